"""Results: metrics of records, their calibration, and published scores to compare with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gptcli.errors import RunError
from gptcli.evals.results import Conditions, compute_results, item_score, nearest_paper_scores
from gptcli.evals.task import find_task

LAMBADA = find_task("lambada")
CONDITIONS = Conditions(
    shots=0,
    mean_shots=0,
    shots_from=None,
    shots_seed=None,
    shared_shots=False,
    items=0,
    skipped={},
    truncated=0,
    stride=None,
    data="data",
    data_sha256="",
    note="",
)


def test_the_first_metric_is_calibrated_by_confidence() -> None:
    task = replace(find_task("squad_v2"), paper={})
    records: list[dict[str, Any]] = [
        {"log_prob": -float(number), "f1": float(number < 10), "exact_match": 0.0}
        for number in range(100)
    ]
    [result] = compute_results(task, records, CONDITIONS, 10**6, {})
    name = task.metric[0]
    expected = {"1": 100.0, "5": 100.0, "10": 100.0, "50": 20.0}
    assert result.calibration == (expected if name == "f1" else dict.fromkeys(expected, 0.0))
    assert item_score(task, records[0]) == records[0][name]


def test_items_of_one_group_have_a_larger_standard_error() -> None:
    task = replace(find_task("multirc"), metric=["accuracy"], paper={})
    records: list[dict[str, Any]] = [
        {
            "log_probs": [0.0, -1.0],
            "tokens": [1, 1],
            "characters": [1, 1],
            "gold": [number // 20 % 2],
            "group": str(number // 20),
            "correct": number // 20 % 2 == 0,
        }
        for number in range(100)
    ]
    alone = [{**record, "group": str(number)} for number, record in enumerate(records)]
    [grouped], [single] = (
        compute_results(task, some, CONDITIONS, 10**6, {}) for some in (records, alone)
    )
    assert grouped.metrics["accuracy"].value == single.metrics["accuracy"].value == 60
    assert grouped.correct == 60
    assert set(grouped.accuracy_by_normaliser) == {"token", "sum", "character"}
    assert (grouped.metrics["accuracy"].stderr or 0) > 4 * (single.metrics["accuracy"].stderr or 1)


def test_log_likelihoods_that_are_not_finite_raise_an_error() -> None:
    record = {"likeliest": [True], "likeliest_filtered": [True], "log_probs": [float("nan")]}
    with pytest.raises(RunError, match="weights are broken"):
        compute_results(LAMBADA, [record], CONDITIONS, 10**6, {})


def test_paper_scores_are_those_of_the_nearest_model_size() -> None:
    for parameters, model, accuracy in [
        (10**6, "gpt2", 45.99),
        (125 * 10**6, "gpt2", 45.99),
        (355 * 10**6, "gpt2-medium", 55.48),
        (10**12, "gpt2-xl", 63.24),
    ]:
        found = {score.metric: score for score in nearest_paper_scores(LAMBADA, parameters, 0)}
        assert (found["accuracy"].model, found["accuracy"].score) == (model, accuracy)
        assert found["perplexity"].model == model
