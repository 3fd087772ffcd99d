"""Learning rate and batch against the closed forms of GPT-3, Appendix B, written here a second
time.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import UsageError
from gptcli.model.config import find_size
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.recipe import paper_recipe
from gptcli.trainer.schedule import GROW_EVERY_STEPS, Position, Rates, Schedule

MACHINE: dict[str, Any] = {
    "seed": 0, "micro_batch": 1, "layout": "dp=1", "precision": "fp32", "compile": False, "checkpoint_every": 1, "eval_every": 1,
    "eval_tokens": 1, "keep": 1,
}  # fmt: skip
COUNTS = [
    1,
    10**6,
    10**7,
    10**8,
    187_500_000,
    374_999_999,
    375_000_000,
    376 * 10**6,
    5 * 10**8,
    10**9,
    2 * 10**9,
    3_999_999_999,
]
COUNTS += [
    4 * 10**9,
    7 * 10**9,
    10**10,
    5 * 10**10,
    130 * 10**9,
    2 * 10**11,
    260 * 10**9,
    300 * 10**9,
]


def paper_schedule(size: str, tokens: int | None = None) -> Schedule:
    paper = find_size(size)
    return Schedule(TrainConfig(**paper_recipe(paper, tokens), **MACHINE), paper.n_ctx)


# learning rate and batch of Table 2.1, and the tokens of the ramp: Appendix B says 4 to 12 billion
TABLE = {
    "125M": (6e-4, 2**19, 4e9), "350M": (3e-4, 2**19, 4e9), "760M": (2.5e-4, 2**19, 4e9), "1.3B": (2e-4, 2**20, 4e9),
    "2.7B": (1.6e-4, 2**20, 8e9), "6.7B": (1.2e-4, 2**21, 8e9), "13B": (1e-4, 2**21, 8e9), "175B": (0.6e-4, 1536 * 2048, 12e9),
}  # fmt: skip


def closed_lr(tokens: float, lr: float, warmup: float, decay: float) -> float:
    if tokens <= warmup:
        return lr * tokens / warmup
    return (
        0.1 * lr
        + 0.9 * lr * math.cos(min(1.0, (tokens - warmup) / (decay - warmup)) * math.pi / 2) ** 2
    )


@pytest.mark.parametrize("size", TABLE)
def test_schedules_match_closed_forms_at_twenty_token_counts(size):
    schedule = paper_schedule(size)
    lr, batch, ramp = TABLE[size]
    assert len(set(COUNTS)) == 20
    for tokens in COUNTS:
        assert schedule.lr(tokens) == pytest.approx(
            closed_lr(tokens, lr, 375e6, 260e9), rel=1e-12
        ), tokens
        sequences = tokens // 2048
        if sequences < schedule.total_sequences - batch // 2048:
            grown = min(Fraction(sequences * 2048) / int(ramp), Fraction(1))
            # 16 sequences are the 32k tokens
            assert schedule.batch(sequences) == math.floor(16 + (batch // 2048 - 16) * grown), (
                tokens
            )
            assert schedule.batch(sequences) * 2048 == pytest.approx(
                min(32_000 + (batch - 32_000) * tokens / ramp, batch), abs=3000
            )


@pytest.mark.parametrize(
    ("size", "micro_batch"), list(zip(TABLE, [1, 2, 3, 4, 5, 7, 12, 16], strict=True))
)
def test_the_steps_of_a_run_do_not_depend_on_the_micro_batch(
    make_run, train_here, size, micro_batch
):
    """Each size's recipe scaled to 12,000 tokens, the batch from 2 to 12 sequences of 16: what the
    run logs, at every step.
    """
    recipe = paper_recipe(find_size(size), 12_000) | {
        "batch_tokens": 192,
        "ramp_from": 32,
        "warmup_tokens": 500,
    }
    run = make_run(
        **recipe,
        micro_batch=micro_batch,
        n_layer=1,
        d_model=4,
        eval_every=1000,
        checkpoint_every=1000,
    )
    train_here(run)
    done, lines = 0, read_metrics(run.out)
    for line in lines:
        expected = 2 + 10 * min(Fraction(done, recipe["ramp_tokens"]), Fraction(1))
        assert line["batch_tokens"] == min(16 * math.floor(expected), 12_000 - done)
        done += line["batch_tokens"]
        assert line["tokens"] == done
        assert line["lr"] == pytest.approx(
            closed_lr(done, TABLE[size][0], 500, recipe["decay_tokens"]), rel=1e-12
        )
    assert done == 12_000
    assert len(lines) > 60


def test_a_recipe_scaled_to_fewer_tokens_has_the_same_shape():
    whole, tenth = paper_schedule("125M"), paper_schedule("125M", 30_000_000_000)
    for tokens in COUNTS:
        assert tenth.lr(tokens / 10) == pytest.approx(whole.lr(tokens))


def test_the_learning_rate_is_constant_without_warmup_and_decay(make_run):
    config = replace(make_run().train, warmup_tokens=0, decay_tokens=1)
    assert Schedule(config, 16).lr(1) == pytest.approx(config.lr * config.min_lr_ratio)
    assert Schedule(replace(config, decay_tokens=1000), 16).lr(0) == config.lr
    at_once = Schedule(replace(config, warmup_tokens=1000, decay_tokens=1000), 16)
    assert at_once.lr(1000) == pytest.approx(config.lr * config.min_lr_ratio)


@given(
    total=st.integers(1, 3000),
    full=st.integers(1, 64),
    first=st.integers(0, 64),
    ramp=st.integers(0, 2000),
    n_ctx=st.sampled_from([1, 8, 48]),
)
def test_steps_cover_the_run_exactly(total, full, first, ramp, n_ctx):
    recipe = paper_recipe(find_size("125M"))
    recipe |= {
        "tokens": total * n_ctx,
        "batch_tokens": full * n_ctx,
        "ramp_from": first * n_ctx,
        "ramp_tokens": ramp * n_ctx,
    }
    schedule = Schedule(TrainConfig(**recipe, **MACHINE), n_ctx)
    position, batches = Position(), []
    while position.sequences < total:
        batches.append(schedule.batch(position.sequences))
        position = schedule.after(position)
    assert sum(batches) == position.sequences == total
    assert len(batches) == position.step == schedule.steps()
    assert all(1 <= size <= full for size in batches)
    assert batches[:-1] == sorted(batches[:-1])


def test_a_batch_that_follows_the_noise_scale_doubles_at_set_steps_and_never_shrinks(make_run):
    schedule = Schedule(make_run(batch_tokens=160, follow_noise=True, ramp_from=32).train, 16)
    assert (schedule.first_batch, schedule.full_batch) == (2, 10)
    assert (
        schedule.grown_batch(2, GROW_EVERY_STEPS, 64.0) == schedule.grown_batch(2, 64, 64.0) == 4
    ), "every 64th step"
    assert schedule.grown_batch(2, GROW_EVERY_STEPS, 63.9) == 2
    assert schedule.grown_batch(2, GROW_EVERY_STEPS + 1, 1e9) == 2
    assert schedule.grown_batch(2, GROW_EVERY_STEPS, None) == 2
    assert schedule.grown_batch(8, GROW_EVERY_STEPS, 1.0) == 8
    assert schedule.grown_batch(8, 3 * GROW_EVERY_STEPS, 1e9) == 10


def test_a_run_shorter_than_a_sequence_is_rejected(make_run):
    with pytest.raises(UsageError, match="less than one sequence"):
        Schedule(make_run(tokens=15).train, 16)


def test_steps_until_a_token_count_match_the_positions(make_run):
    run = make_run(ramp_tokens=640, ramp_from=16, tokens=2000)
    schedule, position, ends = Schedule(run.train, 16), Position(), []
    while position.sequences < schedule.total_sequences:
        position = schedule.after(position)
        ends.append(position.sequences * 16)
    for tokens in range(1, schedule.total_sequences * 16 + 1):
        assert schedule.steps(tokens) == 1 + sum(end < tokens for end in ends), tokens
    assert schedule.steps() == schedule.steps(10**9) == len(ends)
    assert schedule.steps(0) == 0


@given(
    tokens=st.integers(1, 5000),
    n_ctx=st.integers(1, 9),
    batch=st.integers(1, 300),
    first=st.integers(0, 300),
    ramp=st.integers(0, 6000),
    upto=st.none() | st.integers(0, 6000),
)
def test_counted_steps_equal_simulated_steps(tokens, n_ctx, batch, first, ramp, upto):
    recipe = paper_recipe(find_size("125M"), tokens) | {
        "batch_tokens": batch,
        "ramp_from": first,
        "ramp_tokens": ramp,
    }
    tokens = max(tokens, n_ctx)
    schedule = Schedule(TrainConfig(**{**recipe, "tokens": tokens}, **MACHINE), n_ctx)
    end, position = (
        schedule.total_sequences
        if upto is None
        else min(schedule.total_sequences, -(-upto // n_ctx)),
        Position(),
    )
    while position.sequences < end:
        position = schedule.after(position)
    assert schedule.steps(upto) == position.step


def test_steps_of_a_run_of_any_length_are_counted_at_once(monkeypatch):
    schedule, looks = paper_schedule("13B", 10**15), []
    batch = schedule.batch
    monkeypatch.setattr(
        schedule,
        "batch",
        lambda sequences: looks.append(sequences) or batch(sequences),  # type: ignore[func-returns-value]
    )
    assert schedule.steps() > 10**8
    assert len(looks) <= 2**21 // 2048


LATER: dict[str, Any] = {"tokens": 10_000, "batch_tokens": 100, "lr": 1.0, "warmup_tokens": 1000}


def test_the_schedules_beside_the_papers_match_closed_forms():
    wsd = Schedule(
        TrainConfig(**LATER, lr_schedule="wsd", cooldown_tokens=4000, min_lr_ratio=0), 10
    )
    assert [wsd.lr(at) for at in (0, 500, 1000, 6000)] == [0, 0.5, 1, 1]
    assert [wsd.lr(at) for at in (7000, 9000, 10_000)] == pytest.approx([0.5, 1 - 0.75**0.5, 0])
    line = Schedule(TrainConfig(**LATER, lr_schedule="linear", decay_tokens=9000), 10)
    assert [line.lr(at) for at in (1000, 5000, 9000, 10_000)] == pytest.approx([1, 0.55, 0.1, 0.1])
    flat = Schedule(TrainConfig(**LATER, lr_schedule="constant"), 10)
    assert [flat.lr(at) for at in (500, 1000, 10_000)] == [0.5, 1, 1]
    assert TrainConfig(**LATER, lr_schedule="wsd").cooldown_tokens == 2000


def test_weight_decay_and_beta2_go_to_their_ends_over_the_run():
    ends: dict[str, Any] = {
        "end_weight_decay": 0.5,
        "end_beta2": 0.75,
        "weight_decay": 0.1,
        "beta2": 0.95,
    }
    line = Schedule(
        TrainConfig(**LATER, **ends, weight_decay_schedule="linear", beta2_schedule="cosine"), 10
    )
    rates = [line.rates(at) for at in (0, 2500, 5000, 10_000, 11_000)]
    assert [one.weight_decay for one in rates] == pytest.approx([0.1, 0.2, 0.3, 0.5, 0.5])
    quarter = 0.95 - 0.2 * (1 - math.sqrt(0.5)) / 2
    assert [one.beta2 for one in rates] == pytest.approx([0.95, quarter, 0.85, 0.75, 0.75])
    papers = Schedule(TrainConfig(**LATER), 10)
    assert papers.rates(5000) == Rates(papers.lr(5000)), "the papers change neither"


@given(
    tokens=st.integers(5000, 10**6), more=st.integers(0, 10**6), cooldown=st.integers(1, 4000),
    at=st.floats(0, 1),
)  # fmt: skip
def test_runs_of_any_length_under_wsd_share_all_steps_before_the_shorter_ones_cooldown(
    tokens, more, cooldown, at
):
    short, long = (
        Schedule(
            TrainConfig(**{**LATER, "tokens": n}, lr_schedule="wsd", cooldown_tokens=cooldown), 10
        )
        for n in (tokens, tokens + more)
    )
    shared = at * (tokens - cooldown)
    assert short.lr(shared) == long.lr(shared)
    assert short.lr(tokens) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lr_schedule": "wds"}, "lr_schedule"),
        ({"cooldown_tokens": 10}, "cooldown_tokens"),
        ({"lr_schedule": "wsd", "cooldown_tokens": 10_001}, "cooldown_tokens"),
        ({"lr_schedule": "wsd", "cooldown_tokens": -1}, "cooldown_tokens"),
        ({"optimizer": "lion"}, "optimizer"),
        ({"optimizer": "muon", "mup": 8}, "mup"),
        ({"ema": 1.0}, "ema"),
        ({"weight_decay_schedule": "linear"}, "end_weight_decay"),
        ({"end_weight_decay": 0.1}, "end_weight_decay"),
        ({"beta2_schedule": "sine"}, "beta2_schedule"),
        ({"beta2_schedule": "cosine", "end_beta2": 1.0}, "end_beta2"),
    ],
)
def test_settings_that_contradict_each_other_name_their_field(changes, field):
    with pytest.raises(UsageError) as error:
        TrainConfig(**LATER, **changes)
    assert error.value.field == field


def test_a_schedule_of_the_users_own(tmp_path, monkeypatch):
    (tmp_path / "course.py").write_text(
        "def half(tokens, config):\n    return config.lr / 2\n"
        "def wrong(tokens, config):\n    return -1.0\n"
    )
    monkeypatch.chdir(tmp_path)
    assert Schedule(TrainConfig(**LATER, lr_schedule="course:half"), 10).lr(0) == 0.5
    with pytest.raises(UsageError, match=r"course:wrong returned -1.0 at 100 tokens"):
        Schedule(TrainConfig(**LATER, lr_schedule="course:wrong"), 10).lr(100)
    with pytest.raises(UsageError, match="cannot be imported"):
        Schedule(TrainConfig(**LATER, lr_schedule="course:none"), 10)
    own = TrainConfig(**LATER, weight_decay_schedule="course:half", beta2_schedule="course:half")
    assert Schedule(own, 10).weight_decay(0) == 0.5
    with pytest.raises(UsageError, match=r"returned 1.0 at 0 tokens") as error:
        Schedule(replace(own, lr=2.0), 10).beta2(0)
    assert error.value.field == "beta2_schedule"
