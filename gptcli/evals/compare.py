"""Compare two models on the items that both were asked: is one better, and by how much?

The items are paired, so that their difficulty cancels. Several seeds of one model count as one: an
item's score is the mean over them. Scores that are right or wrong are compared by McNemar's test
(mid-p, Fagerland et al. 2013); others, seeds, and items in groups (a passage, a story) by the
paired bootstrap over items or groups, which also gives all confidence intervals.

Shapes: N shared items, G groups, B bootstrap samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from gptcli.errors import InputError
from gptcli.evals.metrics import METRICS
from gptcli.evals.records import INDEX
from gptcli.files import complete_lines, read_json
from gptcli.toml_json import parse_json

BOOTSTRAP_SAMPLES = 10_000
CHUNK = 500  # bootstrap samples drawn at a time
CONFIDENCE, POWER = 0.95, 0.80
Items = Mapping[str, Mapping[tuple[int, str], dict[str, Any]]]
"""Records by task, then by index and id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Difference of two models on one task; scores are in percent, or in nats per token for text."""

    task: str
    """Name of the task."""
    score: str
    """Compared score: "accuracy", a metric, or "loss"."""
    items: int
    """Number of shared items, N."""
    unshared: int
    """Number of items that only one of the models was asked."""
    a: float
    """Mean score of the first model."""
    b: float
    """Mean score of the second model."""
    difference: float
    """Second minus first."""
    low: float
    """Lower end of the 95 % confidence interval of the difference."""
    high: float
    """Upper end of it."""
    p: float
    """Probability of a difference at least this large between equal models, two-sided."""
    test: str
    """Test that p is from: "McNemar" or "bootstrap"."""
    effect: float | None
    """Difference over the standard deviation of the items' differences; None if they all agree."""
    items_needed: int | None
    """Items with which a true difference of this size is found in 80 % of cases; None for none."""

    @property
    def verdict(self) -> str:
        """Say which model is better, if the difference is significant at 5 %."""
        if self.p >= 1 - CONFIDENCE:
            return "no difference found"
        better = self.difference < 0 if self.score == "loss" else self.difference > 0
        return "second is better" if better else "first is better"


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the items of an evaluation: a folder of records, or a file of --samples or of a
    report.

    Beside a report, eval.json, are its records, in eval.records. Raises InputError if there are
    none.
    """
    report = None
    if path.suffix == ".json" and path.is_file():
        report, path = path, path.with_suffix(".records")
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        if report is not None and not _tasks_of(report):
            raise InputError(
                "this report has no task, and models are compared on the items of tasks",
                where=report,
                hint="gpt eval RUN {option:task} NAME {option:data} FOLDER -o eval.json\n"
                "the losses of two runs side by side: gpt train --report A B -o compare.html",
            )
        if not path.exists() and report is None:
            raise InputError("no such report or folder of records", where=path)
        raise InputError(
            "contains no records of items",
            where=path,
            hint="gpt eval ... -o eval.json writes them beside the report; {option:samples} too",
        )
    items = []
    for file in files:
        for number, line in enumerate(complete_lines(file), 1):
            record = parse_json(line.encode(), f"{file}:{number}")
            if not isinstance(record, dict):
                raise InputError("not a record of an item", where=f"{file}:{number}")
            if "format" in record and INDEX not in record:
                continue  # the header of a task's records
            items.append({"task": file.stem, **record})
    return items


def _tasks_of(report: Path) -> object:
    found = read_json(report)
    return found.get("tasks") if isinstance(found, dict) else None


def group_items(items: Sequence[dict[str, Any]], where: str) -> Items:
    """Return records by task, index and id. Raises InputError if one is not a record of an item."""
    found: dict[str, dict[tuple[int, str], dict[str, Any]]] = {}
    for record in items:
        if not isinstance(record.get(INDEX), int) or not isinstance(record.get("task"), str):
            raise InputError("not the records of an evaluation", where=where)
        found.setdefault(record["task"], {})[record[INDEX], str(record.get("id"))] = record
    return found


def item_score(record: dict[str, Any]) -> tuple[str, float] | None:
    """Return the name and value of an item's score; None if it does not count."""
    if "correct" in record:
        return "accuracy", float(record["correct"])
    if "likeliest" in record:
        return "accuracy", float(all(record["likeliest"]))
    name = next((key for key in record if key in METRICS), None)
    if name is not None:
        return None if record[name] is None else (name, float(record[name]))
    if isinstance(record.get("tokens"), int) and record["tokens"]:
        return "loss", -record["log_prob"] / record["tokens"]
    return None


def compare_items(a: Sequence[Items], b: Sequence[Items]) -> list[Comparison]:
    """Compare two models, each with the records of one or more seeds, task by task.

    Raises InputError if they share no item.
    """
    tasks = [
        task for task in a[0] if all(task in seed for seed in a) and all(task in seed for seed in b)
    ]
    found = [one for task in tasks if (one := _compare_task(task, a, b)) is not None]
    if not found:
        raise InputError(
            "the two models share no scored item",
            hint="evaluate both on the same tasks, with the same data and {option:limit}",
        )
    return found


def _compare_task(task: str, a: Sequence[Items], b: Sequence[Items]) -> Comparison | None:
    models = [
        [{key: item_score(record) for key, record in seed[task].items()} for seed in model]
        for model in (a, b)
    ]
    every = [seed for model in models for seed in model]
    union = set.union(*({*seed} for seed in every))
    shared = sorted(key for key in union if all(seed.get(key) is not None for seed in every))
    if not shared:
        return None
    a_N, b_N = (
        np.array([np.mean([seed[key][1] for seed in model]) for key in shared])  # type: ignore[index]
        for model in models
    )
    name = models[0][0][shared[0]][0]  # type: ignore[index]
    groups = [str(a[0][task][key].get("group", key)) for key in shared]
    unit = 1.0 if name == "loss" else 100.0
    return compare_scores(
        a_N, b_N, groups, task=task, score=name, unit=unit, unshared=len(union) - len(shared)
    )


def compare_scores(
    a_N: np.ndarray,
    b_N: np.ndarray,
    groups: Sequence[str] | None = None,
    *,
    task: str = "",
    score: str = "accuracy",
    unit: float = 100.0,
    unshared: int = 0,
) -> Comparison:
    """Compare the scores of two models on the same items.

    `groups` names the group of each item, if items depend on each other.
    """
    difference_N = b_N - a_N
    N = len(difference_N)
    _, group_N = np.unique(
        np.arange(N) if groups is None else np.array(groups), return_inverse=True
    )
    samples_B = _bootstrap(difference_N, group_N)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples_B, [tail, 1 - tail])
    difference = float(difference_N.mean())
    is_binary = bool(np.isin(difference_N, (-1, 0, 1)).all()) and len(np.unique(group_N)) == N
    if is_binary:
        p = mcnemar(int((difference_N < 0).sum()), int((difference_N > 0).sum()))
    else:
        sides = (samples_B <= 0).mean(), (samples_B >= 0).mean()
        p = min(1.0, 2 * max(1 / len(samples_B), float(min(sides))))
    spread = float(difference_N.std(ddof=1)) if N > 1 else 0.0
    return Comparison(
        task=task,
        score=score,
        items=N,
        unshared=unshared,
        a=unit * float(a_N.mean()),
        b=unit * float(b_N.mean()),
        difference=unit * difference,
        low=unit * float(low),
        high=unit * float(high),
        p=p,
        test="McNemar" if is_binary else "bootstrap",
        effect=difference / spread if spread else None,
        items_needed=items_needed(difference, spread * _design(difference_N, group_N)),
    )


def mcnemar(first: int, second: int) -> float:
    """Return McNemar's mid-p value.

    `first` and `second` count the items that only one of the models solved.
    """
    n, k = first + second, min(first, second)
    if n == 0:
        return 1.0

    def log_probability(i: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)

    tail = sum(math.exp(log_probability(i)) for i in range(k + 1))
    return min(1.0, 2 * tail - math.exp(log_probability(k)))


def items_needed(difference: float, spread: float) -> int | None:
    """Return the items with which a difference is found in POWER of cases, at 5 %, two-sided.

    `spread` is the standard deviation of the items' differences.
    """
    if not difference or not spread:
        return None
    normal = NormalDist()
    z = normal.inv_cdf(1 - (1 - CONFIDENCE) / 2) + normal.inv_cdf(POWER)
    return math.ceil((z * spread / difference) ** 2)


def _design(difference_N: np.ndarray, group_N: np.ndarray) -> float:
    """Return by what the standard error grows because items of a group depend on each other."""
    N, G = len(difference_N), int(group_N.max()) + 1
    spread = float(((difference_N - difference_N.mean()) ** 2).sum())
    if G < 2 or G == N or not spread:
        return 1.0
    sum_G = np.bincount(group_N, difference_N) - difference_N.mean() * np.bincount(group_N)
    return math.sqrt(float((sum_G**2).sum()) / spread)


def _bootstrap(difference_N: np.ndarray, group_N: np.ndarray) -> np.ndarray:
    """Return the mean difference of BOOTSTRAP_SAMPLES samples of groups, (B,)."""
    sum_G = np.bincount(group_N, difference_N)
    count_G = np.bincount(group_N).astype(np.float64)
    G, drawing = len(sum_G), np.random.default_rng(0)
    means = []
    # groups with the same sum and size are interchangeable: draw how many of each kind there are
    kinds_K2, number_K = np.unique(np.stack([sum_G, count_G], axis=1), axis=0, return_counts=True)
    for _ in range(BOOTSTRAP_SAMPLES // CHUNK):
        drawn_BK = drawing.multinomial(G, number_K / G, size=CHUNK)
        means.append((drawn_BK @ kinds_K2[:, 0]) / (drawn_BK @ kinds_K2[:, 1]))
    return np.concatenate(means)
