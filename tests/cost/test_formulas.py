"""Formulas with their numbers, each computed again."""

from __future__ import annotations

import re

import pytest

from gptcli.cost.formulas import formulas
from gptcli.cost.options import HardwareOptions
from gptcli.cost.target import estimate_target, find_target


def test_formulas_compute_the_value_they_print() -> None:
    """Each line's last figure follows from the figures before it."""
    lines = formulas(
        estimate_target(find_target("13B"), None, HardwareOptions(gpu="a100", gpus=64))
    )
    text = "\n".join(lines)
    assert "FLOP = 6·N·D = 6 x 12,853,386,240 x 300,000,000,000 = 2.31e22" in text
    assert "PF-days = FLOP / 8.64e19 = 267.8" in text
    assert "training state = (4 + 4 + 8 bytes)·N = 206 GB" in text
    assert "KV cache a token = 2·L·C x 2 bytes = 819,200 bytes" in text
    flops, speed, goodput, hours = map(
        float,
        re.search(
            r"3,600 = (\S+) / \((\S+) x goodput (\S+)\) / 3,600 = (\S+)",
            text.replace(",", "").replace("3600", "3,600"),
        ).groups(),  # type: ignore[union-attr]
    )
    assert hours == pytest.approx(flops / speed / goodput / 3600, rel=0.01)
    match = re.search(r"= (\d+) x (\S+) / (\S+) = (\S+) tokens/s", text)
    assert match is not None
    gpus, bandwidth, n_bytes, rate = map(float, match.groups())
    assert rate == pytest.approx(gpus * bandwidth / n_bytes, rel=0.01)
