"""The picture of several reports: against K where there are several, else against size."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.eval_plot import draw, plot_reports
from gptcli.errors import InputError, UsageError


def score(shots: int, parameters: int, percent: float, task: str = "t") -> dict[str, Any]:
    return {"task": task, "shots": shots, "parameters": parameters, "percent": percent}


def heights(svg: str, name: str) -> list[float]:
    """Of the points of a curve: how far below the top."""
    return [
        float(y) for y in re.findall(rf'<circle [^>]*cy="([\d.]+)"[^>]*><title>{name}</title>', svg)
    ]


def test_curves_of_accuracy_against_shots() -> None:
    svg = draw(
        [
            score(8, 1000, 90),
            score(0, 1000, 10),
            score(1, 1000, 50),
            score(0, 20, 5),
            score(8, 20, 5),
        ]
    )
    ys = heights(svg, "1k")
    assert sorted(ys, reverse=True) == ys  # in the order of K, and accuracy rises
    assert len(set(heights(svg, "20"))) == 1
    assert "solved examples in the context (K)" in svg


def test_one_k_is_drawn_against_size() -> None:
    svg = draw([score(0, 1000, 20), score(0, 20, 10), score(0, 20, 15, "u")])
    assert "parameters" in svg
    assert (len(heights(svg, "t")), len(heights(svg, "u"))) == (2, 1)


def test_what_cannot_be_drawn(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--plot draws reports"):
        plot_reports([], tmp_path / "a.svg", force=False)
    report = {
        "schema": "gpt.eval/1",
        "parameters": 5,
        "tasks": [{"task": "wikitext2", "shots": 0, "metrics": ["perplexity"]}],
    }
    (tmp_path / "a.json").write_text(json.dumps(report))
    with pytest.raises(InputError, match="no task with an accuracy"):
        plot_reports([tmp_path / "a.json"], tmp_path / "a.svg", force=False)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(InputError, match="not a report of gpt eval"):
        plot_reports([tmp_path / "a.json"], tmp_path / "a.svg", force=False)
    assert not (tmp_path / "a.svg").exists()
