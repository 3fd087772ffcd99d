"""Use the small runs, and the small model of evaluations with its tokenizer."""

from tests.evals.conftest import model, tokenizer  # noqa: F401
from tests.small_runs import make_run, shards, train_here, write_shards  # noqa: F401
