"""Comparison of two models: rates of right and wrong verdicts, and the closed forms behind them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import InputError
from gptcli.evals.compare import (
    compare_items,
    compare_scores,
    group_items,
    items_needed,
    mcnemar,
    read_records,
)


def exact_mid_p(first: int, second: int) -> float:
    n, k = first + second, min(first, second)
    terms = [math.comb(n, i) / 2**n for i in range(n + 1)]
    return min(1.0, 2 * sum(terms[: k + 1]) - terms[k])


def test_mcnemar_is_the_binomial_mid_p() -> None:
    assert mcnemar(0, 0) == 1.0
    for first, second in ((1, 9), (3, 3), (40, 60), (0, 5)):
        assert mcnemar(first, second) == pytest.approx(exact_mid_p(first, second), rel=1e-9)
        assert mcnemar(first, second) == mcnemar(second, first)


def test_equal_models_differ_in_5_of_100_comparisons() -> None:
    random = np.random.default_rng(1)
    found = 0
    for _ in range(1000):
        ease = random.random(400)
        difference = (random.random(400) < ease).astype(int) - (random.random(400) < ease)
        found += mcnemar(int((difference < 0).sum()), int((difference > 0).sum())) < 0.05
    assert 0.03 < found / 1000 < 0.07


def test_a_true_difference_is_found_in_80_of_100_comparisons() -> None:
    only_a, only_b = 0.05, 0.10
    n = items_needed(only_b - only_a, math.sqrt(only_a + only_b - (only_b - only_a) ** 2))
    assert n == 464
    random = np.random.default_rng(2)
    found = 0
    for _ in range(1000):
        draw = random.random(n)
        first, second = (draw < only_a).sum(), ((draw >= only_a) & (draw < only_a + only_b)).sum()
        found += mcnemar(int(first), int(second)) < 0.05
    assert 0.76 < found / 1000 < 0.84


def test_the_interval_covers_the_difference_in_95_of_100_samples_of_groups() -> None:
    random = np.random.default_rng(3)
    covered = significant = 0
    groups = [str(number // 4) for number in range(240)]
    for _ in range(200):
        shared = np.repeat(random.normal(0, 1, 60), 4)
        a = random.normal(0, 0.5, 240)
        found = compare_scores(a, a + shared + random.normal(0, 0.3, 240), groups, unit=1.0)
        covered += found.low <= 0 <= found.high
        significant += found.p < 0.05
    assert 0.90 < covered / 200 < 0.99
    assert significant / 200 < 0.10
    assert found.test == "bootstrap"


def test_records_are_paired_and_seeds_are_one_model(tmp_path: Path) -> None:
    def write(name: str, correct: list[bool]) -> Path:
        folder = tmp_path / f"{name}.records"
        folder.mkdir()
        lines = [{"format": 1, "task": "quiz"}]
        lines += [{"index": n, "id": "same", "correct": one} for n, one in enumerate(correct)]
        (folder / "quiz.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / f"{name}.json").write_text("{}")
        return tmp_path / f"{name}.json"

    a = write("a", [True, False, False, False])
    b = write("b", [True, True, True, False, True])
    c = write("c", [True, True, False, False])
    first, second, third = (group_items(read_records(path), str(path)) for path in (a, b, c))
    [found] = compare_items([first], [second])
    assert (found.items, found.unshared, found.a, found.b) == (4, 1, 25.0, 75.0)
    assert (found.difference, found.test, found.p) == (50.0, "McNemar", mcnemar(0, 2))
    assert found.verdict == "no difference found"
    [seeds] = compare_items([first], [second, third])
    assert (seeds.b, seeds.test) == (62.5, "bootstrap")
    with pytest.raises(InputError, match="contains no records of items"):
        read_records(tmp_path)
    (tmp_path / "loss.json").write_text('{"losses": [{"name": "book.txt"}], "tasks": []}')
    with pytest.raises(InputError, match="has no task") as caught:
        read_records(tmp_path / "loss.json")
    assert caught.value.where == str(tmp_path / "loss.json")
    with pytest.raises(InputError, match="share no scored item"):
        compare_items([first], [{}])
