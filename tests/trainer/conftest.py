"""Use the small runs."""

from tests.small_runs import (  # noqa: F401
    make_run,
    shards,
    train_here,
    write_shards,
    write_sources,
)
