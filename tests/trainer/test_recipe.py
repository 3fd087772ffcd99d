from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.papers.models import MODELS, TRAINING
from gptcli.settings import Resolved
from gptcli.trainer.recipe import (
    MAX_SMALL_LR,
    SCALED,
    SCALED_BATCH,
    STEPS,
    cadence,
    default_tokens,
    is_of_paper_size,
    nearest_paper,
    paper_recipe,
    round_batch,
    scaled_lr,
    short_warmup,
    small_lr,
    whole_sequences,
    with_losses,
)


@pytest.mark.parametrize("paper", MODELS, ids=lambda paper: paper.name)
def test_the_papers_values(paper):
    recipe = paper_recipe(paper)
    assert (recipe["lr"], recipe["batch_tokens"]) == (paper.lr, paper.batch_tokens)
    beta2, weight_decay = (0.999, 0.01) if paper.paper == "GPT-1" else (0.95, 0.1)
    assert (
        recipe["beta1"],
        recipe["beta2"],
        recipe["eps"],
        recipe["weight_decay"],
        recipe["clip"],
    ) == (
        0.9,
        beta2,
        1e-8,
        weight_decay,
        1.0,
    )
    if paper.paper == "GPT-3":
        assert (recipe["tokens"], recipe["warmup_tokens"], recipe["decay_tokens"]) == (
            300e9,
            375e6,
            260e9,
        )
        assert 4e9 <= recipe["ramp_tokens"] <= 12e9
        assert recipe["ramp_from"] == 32_000


def test_tokens_scale_schedule_and_batch_and_nothing_else():
    recipe, whole = paper_recipe(find_size("350M"), 3_000_000), paper_recipe(find_size("350M"))
    assert {name for name in whole if recipe[name] != whole[name]} == {
        "tokens",
        *SCALED,
        *SCALED_BATCH,
    }
    assert (recipe["warmup_tokens"], recipe["decay_tokens"], recipe["ramp_tokens"]) == (
        3750,
        2_600_000,
        40_000,
    )
    assert recipe["batch_tokens"] == 6000, "a 500th, which is less than 2^19 / 100,000^0.383"
    apart = {
        name: paper_recipe(find_size("350M"), 3_000_000, scale_batch=False)[name]
        for name in SCALED_BATCH
    }
    assert apart == {"batch_tokens": 2**19, "ramp_from": 32_000}


@pytest.mark.parametrize("paper", MODELS, ids=lambda paper: paper.name)
def test_at_the_papers_tokens_and_above_its_batch_is_exact(paper):
    whole = paper_recipe(paper)
    assert paper_recipe(paper, whole["tokens"]) == whole
    longer = paper_recipe(paper, 3 * whole["tokens"])
    assert {name: longer[name] for name in SCALED_BATCH} == {
        name: whole[name] for name in SCALED_BATCH
    }


@pytest.mark.parametrize(
    ("size", "tokens", "batch"),
    [
        ("gpt2", 10**9, 2**19 * 0.1**0.383),
        ("gpt2", 10**7, 10**7 / 500),
        ("350M", 7 * 10**9, 2**19 * (7 / 300) ** 0.383),
        ("350M", 10**8, 2**19 * (1 / 3000) ** 0.383),
        ("175B", 3 * 10**9, 1536 * 2048 * 0.01**0.383),
    ],
)
def test_the_batch_of_a_shorter_run(size, tokens, batch):
    assert paper_recipe(find_size(size), tokens)["batch_tokens"] == pytest.approx(batch, abs=1)


@given(st.sampled_from(MODELS), st.integers(min_value=1, max_value=10**12))
def test_a_longer_run_has_no_smaller_batch_and_enough_steps(paper, tokens):
    here, more = paper_recipe(paper, tokens), paper_recipe(paper, tokens + tokens // 100 + 1)
    assert 0 <= here["batch_tokens"] <= more["batch_tokens"] <= paper.batch_tokens
    assert here["ramp_from"] <= here["batch_tokens"] or not here["ramp_tokens"]
    assert (
        tokens < TRAINING[paper.paper].tokens * 1e-4
        or more["batch_tokens"] <= 1.1 * here["batch_tokens"]
    ), "no jumps"
    if here["batch_tokens"] >= 10 and tokens < TRAINING[paper.paper].tokens:
        assert tokens / here["batch_tokens"] >= 0.95 * STEPS


def test_a_custom_size_gets_twenty_tokens_a_parameter():
    gpt2 = find_size("gpt2")
    assert is_of_paper_size(ModelConfig.from_paper(gpt2, n_ctx=512, vocab_size=300), gpt2)
    small, large = (ModelConfig.from_paper(gpt2, n_layer=layers) for layers in (4, 120))
    assert not is_of_paper_size(small, gpt2)
    assert default_tokens(small, gpt2) == 20 * small.parameters
    assert default_tokens(large, gpt2) == 10**10, "no more than the paper's"


def test_a_short_warmup_is_forty_steps_or_a_tenth_of_the_run_or_the_papers():
    short = paper_recipe(find_size("350M"), 10**7)
    assert short_warmup(short, 10_240) == 40 * 10_240
    assert short_warmup(short, 2**19) == 10**6
    assert short_warmup(paper_recipe(find_size("350M"), 10**11), 2**18) == 125_000_000
    gpt1 = paper_recipe(find_size("gpt1"))
    assert short_warmup(gpt1, gpt1["batch_tokens"]) == gpt1["warmup_tokens"] == 2000 * 64 * 512


def test_every_gpt3_size_is_its_own_nearest():
    for paper in MODELS:
        if paper.paper == "GPT-3":
            assert nearest_paper(ModelConfig.from_paper(paper)) is paper
    assert nearest_paper(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=8)).name == "gpt3-small"


@pytest.mark.parametrize(
    ("tokens", "n_ctx", "whole"),
    [(100, 16, 96), (104, 16, 96), (105, 16, 112), (1, 16, 16), (2**19, 2048, 2**19)],
)
def test_a_batch_is_whole_sequences(tokens, n_ctx, whole):
    assert whole_sequences(tokens, n_ctx) == whole


def test_a_batch_given_below_one_sequence_is_refused() -> None:
    """It was counted in sequences."""
    small = Resolved({"batch_tokens": 32}, {"batch_tokens": "option"})
    with pytest.raises(
        UsageError, match="a batch of 32 tokens is less than one sequence of 64"
    ) as caught:
        round_batch(small, small, 64)
    assert caught.value.field == "batch_tokens"
    assert str(caught.value.hint).endswith("32 sequences would be 2048")
    round_batch(small, Resolved({}, {}), 64)  # a default
    assert small.values["batch_tokens"] == 64


@given(st.integers(1, 10**9), st.integers(1, 1000), st.integers(1, 1000))
def test_every_checkpoint_has_a_loss_if_the_best_is_kept(tokens, checkpoints, losses):
    usual = cadence(tokens, 1000)
    for given_ in ({}, {"checkpoint_every": checkpoints}, {"eval_every": losses}):
        found = {**with_losses(usual, given_), **given_}
        assert found["checkpoint_every"] % found["eval_every"] == 0
        assert found.keys() == usual.keys()


def test_cadence_of_a_short_and_of_the_papers_run():
    assert cadence(100_000, 1000) == {
        "checkpoint_every": 10,
        "eval_every": 5,
        "eval_tokens": 4096,
        "keep": 2,
    }
    assert cadence(50_000, 1000)["eval_tokens"] == 2500, "20 read as many as the run trains with"
    assert cadence(1_000_000, 1000)["eval_tokens"] == 5000
    assert cadence(300_000_000_000, 2**19) == {
        "checkpoint_every": 1000,
        "eval_every": 500,
        "eval_tokens": 2**20,
        "keep": 2,
    }
    assert min(cadence(1, 1000).values()) == 1


@pytest.mark.parametrize(
    "paper", [model for model in MODELS if model.paper == "GPT-3"], ids=lambda paper: paper.name
)
def test_every_paper_size_has_its_own_learning_rate(paper) -> None:
    assert scaled_lr(paper.parameters) == pytest.approx(paper.lr)


def test_a_learning_rate_between_two_sizes_matches_a_hand_calculation() -> None:
    middle = math.sqrt(125_226_240 * 355_871_744)  # halfway between 125M and 350M, logarithmically
    assert scaled_lr(round(middle)) == pytest.approx(math.sqrt(6e-4 * 3e-4), rel=1e-6)


def test_learning_rates_beyond_the_table_are_those_at_its_ends() -> None:
    assert scaled_lr(1_000_000) == 6e-4
    assert scaled_lr(10**12) == 0.6e-4


def test_below_the_table_the_rate_rises_with_the_cube_root() -> None:
    assert small_lr(125_226_240) == small_lr(10**9) == 6e-4
    assert small_lr(125_226_240 // 8) == 1.2e-3
    assert small_lr(1000) == small_lr(1) == MAX_SMALL_LR == 4e-3
    rates = [small_lr(2**power) for power in range(10, 30)]
    assert rates == sorted(rates, reverse=True)
