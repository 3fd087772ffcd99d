"""Table 2.2 adds up as the paper prints it."""

from __future__ import annotations

import pytest

from gptcli.papers.mixture import GPT3_MIXTURE, GPT3_MIXTURE_TOKENS


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
