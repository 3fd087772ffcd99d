"""Use small shard folders, of one source or of several."""

from tests.small_runs import write_shards, write_sources  # noqa: F401
