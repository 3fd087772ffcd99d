from __future__ import annotations

import math

import pytest

from gptcli.papers.models import MODELS
from gptcli.trainer.sizing import scaled_lr


@pytest.mark.parametrize("paper", [model for model in MODELS if model.paper == "GPT-3"], ids=lambda paper: paper.name)
def test_every_size_has_its_own(paper) -> None:
    assert scaled_lr(paper.parameters) == pytest.approx(paper.lr)


def test_between_two_sizes_by_hand() -> None:
    middle = math.sqrt(125_226_240 * 355_871_744)  # halfway between 125M and 350M, logarithmically
    assert scaled_lr(round(middle)) == pytest.approx(math.sqrt(6e-4 * 3e-4), rel=1e-6)


def test_beyond_the_table() -> None:
    assert scaled_lr(1_000_000) == 6e-4
    assert scaled_lr(10**12) == 0.6e-4
