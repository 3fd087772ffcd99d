from __future__ import annotations

import math

import pytest

from gptcli.papers.models import MODELS
from gptcli.trainer.sizing import MAX_SMALL_LR, scaled_lr, small_lr


@pytest.mark.parametrize(
    "paper", [model for model in MODELS if model.paper == "GPT-3"], ids=lambda paper: paper.name
)
def test_every_size_has_its_own(paper) -> None:
    assert scaled_lr(paper.parameters) == pytest.approx(paper.lr)


def test_between_two_sizes_by_hand() -> None:
    middle = math.sqrt(125_226_240 * 355_871_744)  # halfway between 125M and 350M, logarithmically
    assert scaled_lr(round(middle)) == pytest.approx(math.sqrt(6e-4 * 3e-4), rel=1e-6)


def test_beyond_the_table() -> None:
    assert scaled_lr(1_000_000) == 6e-4
    assert scaled_lr(10**12) == 0.6e-4


def test_below_the_table_the_rate_rises_with_the_cube_root() -> None:
    assert small_lr(125_226_240) == small_lr(10**9) == 6e-4
    assert small_lr(125_226_240 // 8) == 1.2e-3
    assert small_lr(1000) == small_lr(1) == MAX_SMALL_LR == 4e-3
    rates = [small_lr(2**power) for power in range(10, 30)]
    assert rates == sorted(rates, reverse=True)
