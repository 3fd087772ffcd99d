"""Figures of `gpt eval --plot`, and how figures are written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.runs import cost_plots, plots
from gptcli.runs.plots import accuracy_plot, plot_reports


def test_plots_are_written_as_svg_only(tmp_path: Path) -> None:
    plots.check_plot(tmp_path / "a.SVG")
    with pytest.raises(UsageError, match=r"does not end in \.svg"):
        plots.check_plot(tmp_path / "a.png")
    plots.write_plot(tmp_path / "new" / "a.svg", cost_plots.compute_by_model())
    assert (tmp_path / "new" / "a.svg").read_text(encoding="utf-8").endswith("</svg>\n")


def score(shots: int, parameters: int, percent: float, task: str = "t") -> dict[str, Any]:
    return {"task": task, "shots": shots, "parameters": parameters, "percent": percent}


def heights(svg: str, name: str) -> list[float]:
    """Return the distances of a curve's points from the top."""
    return [
        float(y) for y in re.findall(rf'<circle [^>]*cy="([\d.]+)"[^>]*><title>{name}</title>', svg)
    ]


def test_accuracy_is_drawn_against_shots_with_a_curve_per_size() -> None:
    svg = accuracy_plot(
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


def test_accuracy_of_a_single_k_is_drawn_against_size() -> None:
    svg = accuracy_plot([score(0, 1000, 20), score(0, 20, 10), score(0, 20, 15, "u")])
    assert "parameters" in svg
    assert (len(heights(svg, "t")), len(heights(svg, "u"))) == (2, 1)


def test_reports_that_cannot_be_drawn_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="plot draws reports"):
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


def test_two_models_of_one_size_are_never_joined() -> None:
    scores = [
        {**score(shots, 1000, percent), "model": model}
        for model, percents in (("runs/a", (10, 50)), ("runs/b", (90, 20)))
        for shots, percent in zip((0, 8), percents, strict=True)
    ]
    svg = accuracy_plot(scores)
    assert svg.count('class="curve') == 2
    assert len(heights(svg, "1000, runs/a")) == len(heights(svg, "1000, runs/b")) == 2
    single = accuracy_plot([one for one in scores if one["shots"] == 0] + [score(0, 20, 5)])
    assert len(heights(single, "t")) == 3
    assert 'class="curve' not in single
    assert 'class="curve' in accuracy_plot([score(0, 1000, 5), score(0, 20, 5)])
