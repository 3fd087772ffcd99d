"""Figures of `gpt cost --plot` and `gpt eval --plot`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from gptcli.cost.estimate import Estimate
from gptcli.cost.hardware import find_gpu
from gptcli.cost.options import HardwareOptions
from gptcli.cost.planner import plans
from gptcli.cost.scaling_fit import RunResult, fit_law
from gptcli.cost.target import estimate_target, find_target
from gptcli.errors import InputError, UsageError
from gptcli.papers.models import TABLE_D1
from gptcli.runs import plots
from gptcli.runs.plots import accuracy_plot, plot_reports
from tests.runs.test_charts import SVG, bar_of, check_picture, label_boxes


def priced(size: str, **options: Any) -> Estimate:
    return estimate_target(find_target(size), None, HardwareOptions(**options))


def words_of(root: ElementTree.Element) -> list[str]:
    return [words for words, _ in label_boxes(root)]


def test_figure_2_2_has_every_model_in_the_order_of_the_paper() -> None:
    root = check_picture(plots.compute_by_model())
    words = words_of(root)
    order = [word for word in words if word in {row.name for row in TABLE_D1}]
    assert sorted(order) == sorted(row.name for row in TABLE_D1)
    assert (order[0], order[-1]) == ("BERT-Base", "GPT-3 175B"), "the figure's order"
    lengths = {row.name: bar_of(root, f"{row.name}: ")[1] for row in TABLE_D1}
    assert sorted(lengths, key=lambda name: lengths[name]) == [
        row.name for row in sorted(TABLE_D1, key=lambda row: row.pf_days)
    ]
    assert "3,640" in words


def test_figure_3_1_has_a_falling_curve_for_each_size() -> None:
    root = check_picture(plots.loss_by_compute(3.14e23))
    words = words_of(root)
    assert {
        "125M",
        "13B",
        "175B",
        "kaplan",
        "chinchilla",
        "chinchilla-refit",
        "3.14e23 FLOP",
    } <= set(words)
    thin = [path for path in root.iter(f"{SVG}path") if "thin" in (path.get("class") or "")]
    assert len(thin) == 8, "a curve for each size of Table 2.1"
    for path in thin:
        heights = [float(y) for _, y in re.findall(r"[ML](\S+) ([^LM]+)", path.get("d", ""))]
        assert heights == sorted(heights), "the loss falls, and so does the line: y grows downwards"


@pytest.mark.parametrize("flops", [1e10, 1e30])
def test_figure_3_1_can_be_drawn_for_any_budget(flops: float) -> None:
    check_picture(plots.loss_by_compute(flops))


def test_compute_by_year_has_a_line_for_the_estimate() -> None:
    root = check_picture(plots.compute_by_year(priced("175B")))
    words = words_of(root)
    assert {"GPT-1", "BERT-Large", "T5-11B", "GPT-3 175B", "PaLM 540B", "2018", "2024"} <= set(
        words
    )
    assert "gpt3" in words, "the estimate has its line"


@pytest.mark.parametrize("size", ["gpt2", "175B", "T5-11B"])
def test_memory_of_a_model_has_bars_in_proportion(size: str) -> None:
    found = priced(size, gpu="a100")
    root = check_picture(plots.memory_of_model(found))
    _, parameters = bar_of(root, "to train, fp32, parameters")
    _, optimizer = bar_of(root, "to train, fp32, optimizer")
    assert optimizer == pytest.approx(2 * parameters, rel=0.02)
    assert bar_of(root, "to run, 16 bits, parameters")[1] == pytest.approx(parameters / 2, rel=0.02)
    assert ("1 a100: 80 GB" in words_of(root)) == (size != "gpt2"), (
        "where the picture has room for it"
    )


def test_memory_of_a_rank_shrinks_with_recomputation() -> None:
    found = priced("6.7B", gpu="a100", layout="shard=8,tp=2", micro_batch=4)
    assert found.plan is not None
    assert found.model is not None
    root = check_picture(plots.memory_of_rank(found.plan, found.model, found))
    kept = [
        bar_of(root, f"recompute {kind}, activations")[1] for kind in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert "a100, 80 GB" in words_of(root)


def test_time_of_plans_names_each_layout() -> None:
    found = plans(find_target("13B").model, find_gpu("h100"), 64, 1024, "bf16", most=12)
    root = check_picture(plots.time_of_plans("13B", found))
    assert str(found[0].layout) in words_of(root)


def test_a_fitted_law_is_drawn_with_its_runs_and_predictions() -> None:
    runs = [
        RunResult(name=f"out/{n}", parameters=10**4 * 2**n, tokens=10**5 * 2**n, loss=4.0 * 1.1**-n)
        for n in range(6)
    ]
    fitted = fit_law(runs)
    predicted = [
        fitted.predict("out/seventh", 10**6, 10**7, 1.9),
        fitted.predict("custom", 10**6, 2 * 10**7, None),
    ]
    root = check_picture(plots.fitted_law(fitted, runs, predicted))
    words = words_of(root)
    assert "seventh: 1.900" in words
    assert len(list(root.iter(f"{SVG}circle"))) == 6 + 2 + 1
    check_picture(plots.fitted_law(fitted, runs, []))


def test_plots_are_written_as_svg_only(tmp_path: Path) -> None:
    plots.check_plot(tmp_path / "a.SVG")
    with pytest.raises(UsageError, match=r"does not end in \.svg"):
        plots.check_plot(tmp_path / "a.png")
    plots.write_plot(tmp_path / "new" / "a.svg", plots.compute_by_model())
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
