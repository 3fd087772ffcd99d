"""Use the small runs."""

from tests.small_runs import make_run, shards, train_here, write_shards  # noqa: F401
