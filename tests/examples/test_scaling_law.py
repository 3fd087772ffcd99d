"""examples/scaling-law: its runs are what its README says, and the law of the losses measured there
says what it says.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gptcli.cost.scaling_fit import fit_law
from gptcli.cost.scaling_forms import RunResult
from gptcli.model.config import ModelConfig

EXAMPLE = Path(__file__).parents[2] / "examples" / "scaling-law"


def values(name: str) -> list[float]:
    found = re.search(
        rf"^{name}\s*:= (.*)$", (EXAMPLE / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert found
    return [float(word) for word in found[1].split()]


def printed() -> list[tuple[int, int, int, float]]:
    """Width, parameters, tokens and loss of each run in the README."""
    rows = re.findall(
        r"^\| \*{0,2}\d\*{0,2} \| (\d+) \| (\S+) \| (\S+) \| \*{0,2}(\d\.\d+)",
        (EXAMPLE / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    return [
        (int(width), int(n.replace(",", "")), int(d.replace(",", "")), float(loss))
        for width, n, d, loss in rows
    ]


def test_seven_runs_of_one_family() -> None:
    widths, tokens, rates = values("WIDTH"), values("TOKENS"), values("LR")
    assert len(widths) == len(tokens) == len(rates) == 7
    sizes = [
        ModelConfig(n_layer=2, n_head=2, d_model=int(width), n_ctx=64, vocab_size=4096).parameters
        for width in widths
    ]
    assert [(width, n, d) for width, n, d, _ in printed()] == list(
        zip(widths, sizes, tokens, strict=True)
    )
    assert sizes[6] * tokens[6] == pytest.approx(4 * sizes[5] * tokens[5], rel=1e-3)
    for size, read, rate in zip(sizes, tokens, rates, strict=True):
        assert read / size == pytest.approx(8, rel=0.05)
        assert rate == pytest.approx(4e-3 * (191_040 / size) ** (1 / 3), rel=2e-3)


def test_the_law_of_six_predicts_the_seventh() -> None:
    runs = [
        RunResult(name=str(width), parameters=n, tokens=d, loss=loss)
        for width, n, d, loss in printed()
    ]
    fitted = fit_law(runs[:6])
    assert fitted.law == "compute"
    predicted = fitted.loss(runs[6].parameters, runs[6].tokens)
    assert predicted == pytest.approx(3.873, abs=0.001)
    assert abs(predicted / runs[6].loss - 1) < 0.03
    low, high = fitted.loss_interval(runs[6].parameters, runs[6].tokens)
    assert low <= runs[6].loss <= high
