"""Learning rate and batch against the closed forms of GPT-3, Appendix B, written here a second time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import UsageError
from gptcli.model.config import find_size
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.recipe import paper_recipe
from gptcli.trainer.schedule import Position, Schedule

MACHINE = {
    "seed": 0, "micro_batch": 1, "layout": "dp=1", "precision": "fp32", "compile": False, "checkpoint_every": 1, "eval_every": 1,
    "eval_tokens": 1, "keep": 1,
}  # fmt: skip
COUNTS = [1, 10**6, 10**7, 10**8, 187_500_000, 374_999_999, 375_000_000, 376 * 10**6, 5 * 10**8, 10**9, 2 * 10**9, 3_999_999_999]
COUNTS += [4 * 10**9, 7 * 10**9, 10**10, 5 * 10**10, 130 * 10**9, 2 * 10**11, 260 * 10**9, 300 * 10**9]


def paper_schedule(size: str, tokens: int | None = None) -> Schedule:
    paper = find_size(size)
    return Schedule(TrainConfig(**paper_recipe(paper, tokens), **MACHINE), paper.n_ctx)


@pytest.mark.parametrize(
    ("size", "lr", "batch", "ramp"),
    [("125M", 6e-4, 2**19, 4e9), ("1.3B", 2e-4, 2**20, 4e9), ("6.7B", 1.2e-4, 2**21, 8e9), ("175B", 0.6e-4, 1536 * 2048, 12e9)],
)
def test_closed_forms_at_twenty_token_counts(size, lr, batch, ramp):
    schedule = paper_schedule(size)
    assert len(set(COUNTS)) == 20
    for tokens in COUNTS:
        if tokens <= 375e6:
            expected = lr * tokens / 375e6
        else:
            share = min(1.0, (tokens - 375e6) / (260e9 - 375e6))
            expected = 0.1 * lr + 0.9 * lr * math.cos(share * math.pi / 2) ** 2
        assert schedule.lr(tokens) == pytest.approx(expected, rel=1e-12), tokens
        sequences = tokens // 2048
        expected_batch = min(32_000 + (batch - 32_000) * tokens / ramp, batch) / 2048
        if sequences < schedule.total - batch // 2048:
            assert schedule.batch(sequences) == pytest.approx(expected_batch, abs=1.5), tokens


def test_scaled_to_fewer_tokens_the_shape_is_the_same():
    whole, tenth = paper_schedule("125M"), paper_schedule("125M", 30_000_000_000)
    for tokens in COUNTS:
        assert tenth.lr(tokens / 10) == pytest.approx(whole.lr(tokens))


def test_without_warm_up_or_decay(make_run):
    config = replace(make_run().train, warmup_tokens=0, decay_tokens=1)
    assert Schedule(config, 16).lr(1) == pytest.approx(config.lr * config.min_lr_ratio)
    assert Schedule(replace(config, decay_tokens=1000), 16).lr(0) == config.lr


@given(
    total=st.integers(1, 3000),
    full=st.integers(1, 64),
    first=st.integers(0, 64),
    ramp=st.integers(0, 2000),
    n_ctx=st.sampled_from([1, 8, 48]),
)
def test_steps_cover_the_run_exactly(total, full, first, ramp, n_ctx):
    recipe = paper_recipe(find_size("125M"))
    recipe |= {"tokens": total * n_ctx, "batch_tokens": full * n_ctx, "ramp_from": first * n_ctx, "ramp_tokens": ramp * n_ctx}
    schedule = Schedule(TrainConfig(**recipe, **MACHINE), n_ctx)
    position, batches = Position(), []
    while position.sequences < total:
        batches.append(schedule.batch(position.sequences))
        position = schedule.after(position)
    assert sum(batches) == position.sequences == total
    assert len(batches) == position.step == schedule.steps()
    assert all(1 <= size <= full for size in batches)
    assert batches[:-1] == sorted(batches[:-1])


def test_a_run_shorter_than_a_sequence_is_refused(make_run):
    with pytest.raises(UsageError, match="less than one sequence"):
        Schedule(make_run(tokens=15).train, 16)
