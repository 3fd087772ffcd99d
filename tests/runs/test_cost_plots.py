"""Figures of gpt cost --plot say what the papers print."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from gptcli.cost.estimate import Estimate
from gptcli.cost.hardware import find_gpu
from gptcli.cost.options import HardwareOptions
from gptcli.cost.planner import plans
from gptcli.cost.scaling_fit import fit_law
from gptcli.cost.scaling_forms import RunResult
from gptcli.cost.target import estimate_target, find_target
from gptcli.papers.models import TABLE_D1
from gptcli.runs import cost_plots
from tests.runs.test_charts import SVG, bar_of, check_picture, label_boxes


def priced(size: str, **options: Any) -> Estimate:
    return estimate_target(find_target(size), None, HardwareOptions(**options))


def words_of(root: ElementTree.Element) -> list[str]:
    return [words for words, _ in label_boxes(root)]


def test_figure_2_2_has_every_model_in_the_order_of_the_paper() -> None:
    root = check_picture(cost_plots.compute_by_model())
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
    root = check_picture(cost_plots.loss_by_compute(3.14e23))
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
    check_picture(cost_plots.loss_by_compute(flops))


def test_compute_by_year_has_a_line_for_the_estimate() -> None:
    root = check_picture(cost_plots.compute_by_year(priced("175B")))
    words = words_of(root)
    assert {"GPT-1", "BERT-Large", "T5-11B", "GPT-3 175B", "PaLM 540B", "2018", "2024"} <= set(
        words
    )
    assert "gpt3" in words, "the estimate has its line"


@pytest.mark.parametrize("size", ["gpt2", "175B", "T5-11B"])
def test_memory_of_a_model_has_bars_in_proportion(size: str) -> None:
    found = priced(size, gpu="a100")
    root = check_picture(cost_plots.memory_of_model(found))
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
    root = check_picture(cost_plots.memory_of_rank(found.plan, found.model, found))
    kept = [
        bar_of(root, f"recompute {kind}, activations")[1] for kind in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert "a100, 80 GB" in words_of(root)


def test_time_of_plans_names_each_layout() -> None:
    found = plans(find_target("13B").model, find_gpu("h100"), 64, 1024, "bf16", most=12)
    root = check_picture(cost_plots.time_of_plans("13B", found))
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
    root = check_picture(cost_plots.fitted_law(fitted, runs, predicted))
    words = words_of(root)
    assert "seventh: 1.900" in words
    assert len(list(root.iter(f"{SVG}circle"))) == 6 + 2 + 1
    check_picture(cost_plots.fitted_law(fitted, runs, []))
