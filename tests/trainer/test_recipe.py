from __future__ import annotations

import pytest

from gptcli.model.config import ModelConfig, find_size
from gptcli.papers.models import MODELS
from gptcli.trainer.recipe import cadence, nearest_paper, paper_recipe, whole_sequences


@pytest.mark.parametrize("paper", MODELS, ids=lambda paper: paper.name)
def test_the_papers_values(paper):
    recipe = paper_recipe(paper)
    assert (recipe["lr"], recipe["batch_tokens"]) == (paper.lr, paper.batch_tokens)
    beta2, weight_decay = (0.999, 0.01) if paper.paper == "GPT-1" else (0.95, 0.1)
    assert (recipe["beta1"], recipe["beta2"], recipe["eps"], recipe["weight_decay"], recipe["clip"]) == (
        0.9,
        beta2,
        1e-8,
        weight_decay,
        1.0,
    )
    if paper.paper == "GPT-3":
        assert (recipe["tokens"], recipe["warmup_tokens"], recipe["decay_tokens"]) == (300e9, 375e6, 260e9)
        assert 4e9 <= recipe["ramp_tokens"] <= 12e9
        assert recipe["ramp_from"] == 32_000


def test_tokens_scale_the_schedule_and_nothing_else():
    recipe, whole = paper_recipe(find_size("350M"), 3_000_000), paper_recipe(find_size("350M"))
    assert {name for name in whole if recipe[name] != whole[name]} == {"tokens", "warmup_tokens", "decay_tokens", "ramp_tokens"}
    assert (recipe["warmup_tokens"], recipe["decay_tokens"], recipe["ramp_tokens"]) == (3750, 2_600_000, 40_000)


def test_every_gpt3_size_is_its_own_nearest():
    for paper in MODELS:
        if paper.paper == "GPT-3":
            assert nearest_paper(ModelConfig.from_paper(paper)) is paper
    assert nearest_paper(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=8)).name == "gpt3-small"


@pytest.mark.parametrize(("tokens", "n_ctx", "whole"), [(100, 16, 96), (104, 16, 96), (105, 16, 112), (1, 16, 16), (2**19, 2048, 2**19)])
def test_a_batch_is_whole_sequences(tokens, n_ctx, whole):
    assert whole_sequences(tokens, n_ctx) == whole


def test_cadence_of_a_short_and_of_the_papers_run():
    assert cadence(100_000, 1000) == {"checkpoint_every": 10, "eval_every": 5, "eval_tokens": 500, "keep": 2}
    assert cadence(300_000_000_000, 2**19) == {"checkpoint_every": 1000, "eval_every": 500, "eval_tokens": 2**20, "keep": 2}
    assert min(cadence(1, 1000).values()) == 1
