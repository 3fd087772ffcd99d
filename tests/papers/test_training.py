"""Tests of the papers' training: GPT-3's Appendix B to the digit, ours where they are silent."""

from __future__ import annotations

import pytest

from gptcli.papers.models import MODELS
from gptcli.papers.training import (
    GPT1_TRAINING,
    GPT2_TRAINING,
    GPT3_MIXTURE,
    GPT3_MIXTURE_TOKENS,
    GPT3_TRAINING,
    RAMP_TOKENS,
    TRAINING,
)


def test_appendix_b() -> None:
    recipe = GPT3_TRAINING
    assert (recipe.beta1, recipe.beta2, recipe.eps) == (0.9, 0.95, 1e-8)
    assert (recipe.clip, recipe.weight_decay) == (1.0, 0.1)
    assert (recipe.warmup_tokens, recipe.decay_tokens, recipe.min_lr_ratio) == (375e6, 260e9, 0.1)
    assert recipe.tokens == 300e9
    assert recipe.ramp_from == 32_000


def test_the_ramp_runs_over_4_to_12_billion_tokens_longer_for_larger_models() -> None:
    sizes = [model.name for model in MODELS if model.paper == "GPT-3"]
    assert set(RAMP_TOKENS) <= set(sizes)
    ramps = [RAMP_TOKENS.get(name, GPT3_TRAINING.ramp_tokens) for name in sizes]
    assert ramps == sorted(ramps)
    assert (min(ramps), max(ramps)) == (4e9, 12e9)


def test_gpt2_has_gpt3s_schedule_in_proportion_and_no_ramp() -> None:
    for name in ("warmup_tokens", "tokens"):
        assert getattr(GPT2_TRAINING, name) * 30 == getattr(GPT3_TRAINING, name)
    assert GPT2_TRAINING.ramp_tokens == 0


def test_gpt1_section_4_1() -> None:
    recipe = GPT1_TRAINING
    assert recipe.warmup_tokens == 2000 * 64 * 512
    assert (recipe.decay_tokens, recipe.min_lr_ratio) == (recipe.tokens, 0.0)
    assert (recipe.weight_decay, recipe.ramp_tokens, recipe.beta2) == (0.01, 0, 0.999)


def test_every_paper_has_a_recipe() -> None:
    assert {model.paper for model in MODELS} == set(TRAINING)


def test_printed_weights_add_up_to_101_per_cent() -> None:
    assert sum(part.weight for part in GPT3_MIXTURE.values()) == 101


@pytest.mark.parametrize("name", GPT3_MIXTURE)
def test_printed_epochs_follow_from_weight_and_size(name: str) -> None:
    """To the paper's rounding of both, except Books2 and Common Crawl, which round a little
    differently.
    """
    part = GPT3_MIXTURE[name]
    assert part.weight / 100 * GPT3_MIXTURE_TOKENS / part.tokens == pytest.approx(
        part.epochs, rel=0.2
    )
