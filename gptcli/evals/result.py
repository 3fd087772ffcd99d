"""What a task's records come to, and under what conditions they were measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from gptcli.errors import RunError
from gptcli.evals.grade import predict
from gptcli.evals.metrics import CORPUS_METRICS, GROUP_METRICS, METRICS
from gptcli.evals.records import Record
from gptcli.evals.stderr import of_bleu, of_clusters, of_groups, of_mean
from gptcli.evals.task import NORMALISERS, Task
from gptcli.papers.models import MODELS
from gptcli.papers.scores import TABLES

# whether every token of the word must be right, or its last; each also with the stop-word filter
LAST = ("last_word", "last_token")
FILTERED = "_filtered"
CONFIDENT = (1, 5, 10, 50)  # percent
MOST_NATS = 700  # exp overflows beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    value: float
    """Shares in percent, as the papers print them."""
    stderr: float | None
    """None where a single item was scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperScore:
    metric: str
    score: float
    model: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """All that a figure depends on, but for the model."""

    shots: int
    """K, as requested."""
    mean_shots: float
    """As many as fit into the context."""
    shots_from: str | None
    """The file, or "the same set without the item"; None for zero-shot."""
    shots_seed: int | None
    shared_shots: bool
    items: int
    skipped: dict[str, int]
    """Skipped items by reason."""
    truncated: int
    """Questions longer than the model's context: their beginning was cut."""
    stride: int | None
    """Of running text: tokens from one window to the next."""
    data: str
    data_sha256: str
    note: str
    """Where the task departs from the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    task: str
    scoring: str
    """How items are scored: the normaliser of choices, whole word or last token, greedy or beam,
    the unit of text.
    """
    correct: int | None
    figures: dict[str, Figure]
    conditions: Conditions
    paper: list[PaperScore]
    also: dict[str, float] = field(default_factory=dict)
    """Accuracy by every normaliser, in percent."""
    signatures: dict[str, str] = field(default_factory=dict)
    """How a metric of the whole set was counted."""
    calibration: dict[str, float] = field(default_factory=dict)
    """The first metric of free form among the most confident 1, 5, 10, 50 percent of the
    answers.
    """
    contamination: dict[str, Any] = field(default_factory=dict)
    """The first figure of clean items, of dirty ones, and of all (GPT-3, Appendix C)."""

    def as_dict(self) -> dict[str, Any]:
        """One level, for JSON: each figure under its name, its standard error under NAME_stderr."""
        figures: dict[str, float | None] = {}
        for name, figure in self.figures.items():
            figures |= {name: figure.value, f"{name}_stderr": figure.stderr}
        also: dict[str, Any] = {"accuracy_by_normaliser": self.also} if self.also else {}
        also |= {"signatures": self.signatures} if self.signatures else {}
        also |= {"contamination": self.contamination} if self.contamination else {}
        also |= {"calibration": self.calibration} if self.calibration else {}
        return {
            "task": self.task,
            "scoring": self.scoring,
            "metrics": list(self.figures),
            **asdict(self.conditions),
            "correct": self.correct,
            **figures,
            **also,
            "paper": [asdict(score) for score in self.paper],
        }


def results_of(
    task: Task,
    records: Sequence[Record],
    conditions: Conditions,
    parameters: int,
    units: dict[str, int],
) -> list[TaskResult]:
    """The results of a task, one a scoring rule. `units`: of running text, how many of each. Raises
    RunError for broken weights.
    """
    paper = nearest_scores(task, parameters, conditions.shots)

    def result(
        scoring: str,
        figures: dict[str, Figure],
        correct: int | None = None,
        also: dict[str, float] | None = None,
    ) -> TaskResult:
        found = [score for score in paper if score.metric in figures]
        return TaskResult(
            task=task.name,
            scoring=scoring,
            correct=correct,
            figures=figures,
            conditions=conditions,
            paper=found,
            also=also or {},
        )

    if task.kind == "text":
        return [result(task.detokenize or "as it is", _text_figures(task, records, units))]
    if task.kind == "freeform":
        scoring = (
            f"top-k {task.top_k}"
            if task.top_k
            else f"beam {task.beam}"
            if task.beam > 1
            else "greedy"
        )
        figures, signatures = _answer_figures(task, records)
        return [
            replace(
                result(scoring, figures),
                signatures=signatures,
                calibration=_calibration(task, records),
            )
        ]
    if task.kind == "last_word":
        rules = [(rule, filtered) for filtered in ("", FILTERED) for rule in LAST]
        return [
            result(rule + filtered, *_last_word(task, records, rule, filtered))
            for rule, filtered in rules
        ]
    right_N = _right(records, task.normalise)
    others = [
        name
        for name in NORMALISERS
        if name != "unconditional" or all("unconditional" in record for record in records)
    ]
    also = (
        {name: 100 * float(_right(records, name).mean()) for name in others}
        if task.kind == "choice"
        else {}
    )
    figures = {"accuracy": _share(records, right_N)}
    figures |= {name: _mean(records, name) for name in task.metric if name in METRICS}
    figures |= {name: _over_groups(name, records) for name in task.metric if name in GROUP_METRICS}
    return [
        result(
            task.normalise, {name: figures[name] for name in task.metric}, int(right_N.sum()), also
        )
    ]


def _right(records: Sequence[Record], normalise: str) -> np.ndarray:
    return np.array([predict(record, normalise) in record["gold"] for record in records])


def _share(records: Sequence[Record], right_N: np.ndarray) -> Figure:
    """In percent; items of one group are not independent."""
    stderr = of_mean(right_N)
    if "group" in records[0]:
        stderr = of_clusters(right_N, np.array([record["group"] for record in records]))
    return Figure(
        value=100 * float(right_N.mean()), stderr=None if stderr is None else 100 * stderr
    )


def _mean(records: Sequence[Record], name: str) -> Figure:
    return _share(records, np.array([record[name] for record in records], dtype=np.float64))


def score_of(task: Task, record: Record) -> float | None:
    """What an item is worth by the task's first metric, from 0 to 1; None where that is of the
    whole set.
    """
    if task.kind == "last_word":
        return float(all(record["likeliest"]))
    if task.kind in ("choice", "partial"):
        return float(record["correct"])
    return record.get(task.metric[0])


def _over_groups(name: str, records: Sequence[Record]) -> Figure:
    lists = [record["prediction"] for record in records], [record["gold"] for record in records]
    groups = [record.get("group", str(number)) for number, record in enumerate(records)]
    stderr = of_groups(GROUP_METRICS[name], *lists, groups)
    return Figure(
        value=100 * GROUP_METRICS[name](*lists, groups),
        stderr=None if stderr is None else 100 * stderr,
    )


def _answer_figures(
    task: Task, records: Sequence[Record]
) -> tuple[dict[str, Figure], dict[str, str]]:
    """The metrics of written answers, and the signatures of those that are of the whole set."""
    figures, signatures = {}, {}
    for name in task.metric:
        if name in METRICS:
            figures[name] = _mean(records, name)
            continue
        texts = (
            [record["prediction"] for record in records],
            [record["answers"] for record in records],
        )
        value, signatures[name] = CORPUS_METRICS[name](*texts)
        figures[name] = Figure(value=value, stderr=of_bleu(*texts) if name == "bleu" else None)
    return figures, signatures


def _calibration(task: Task, records: Sequence[Record]) -> dict[str, float]:
    """The first metric among the answers that the model was surest of, by their share in percent
    (GPT-2, section 3.7).
    """
    name = task.metric[0]
    if name not in METRICS:
        return {}
    surest = sorted(records, key=lambda record: -record["log_prob"])
    shares = {
        f"{percent:g}": surest[: max(1, round(len(surest) * percent / 100))]
        for percent in CONFIDENT
    }
    return {
        percent: 100 * sum(record[name] for record in some) / len(some)
        for percent, some in shares.items()
    }


def _last_word(
    task: Task, records: Sequence[Record], rule: str, filtered: str
) -> tuple[dict[str, Figure], int]:
    first = -1 if rule == "last_token" else 0
    right_N = np.array([all(record["likeliest" + filtered][first:]) for record in records])
    log_prob_N = np.array([sum(record["log_probs"][first:]) for record in records])
    perplexity = _perplexity(task, float(log_prob_N.sum()), len(records), of_mean(log_prob_N))
    return {"accuracy": _share(records, right_N), "perplexity": perplexity}, int(right_N.sum())


def _text_figures(
    task: Task, records: Sequence[Record], units: dict[str, int]
) -> dict[str, Figure]:
    log_prob_W = np.array([record["log_prob"] for record in records])
    tokens_W = np.array([record["tokens"] for record in records])
    total, W = float(log_prob_W.sum()), len(records)
    # the windows' losses differ with their lengths too: of the ratio of sums, for each token
    spread = (
        None
        if W < 2
        else float(
            np.sqrt(((log_prob_W - total / tokens_W.sum() * tokens_W) ** 2).sum() * W / (W - 1))
        )
    )
    figures = {}
    for name, unit in (
        ("perplexity", "units"),
        ("bits_per_byte", "bytes"),
        ("bits_per_character", "characters"),
    ):
        if name not in task.metric:
            continue
        count = units[unit]
        if name == "perplexity":
            figures[name] = _perplexity(
                task, total, count, None if spread is None else spread / count
            )
        else:
            figures[name] = Figure(
                value=-total / math.log(2) / count,
                stderr=None if spread is None else spread / math.log(2) / count,
            )
    return figures


def _perplexity(task: Task, total: float, count: int, stderr: float | None) -> Figure:
    """exp of the mean of -log p; its standard error by the delta method. Raises RunError where it
    is not a number.
    """
    nats = -total / count
    if not nats < MOST_NATS:  # NaN too
        raise RunError(
            f"the mean log-probability is {-nats}",
            where=task.name,
            hint="the model's weights are broken",
        )
    return Figure(value=math.exp(nats), stderr=None if stderr is None else math.exp(nats) * stderr)


def nearest_scores(task: Task, parameters: int, shots: int) -> list[PaperScore]:
    """What the paper published for its model nearest in size (in the ratio of parameter counts), in
    the setting of `shots` if it says.
    """
    sizes = {model.name: model.parameters for model in MODELS}
    found = []
    for metric, reference in task.paper.items():
        name, _, column = reference.partition(".")
        table = TABLES[name]
        setting = "zero" if shots == 0 else "one" if shots == 1 else "few"
        if f"{column}_{setting}" in table.columns:
            column = f"{column}_{setting}"
        nearest = min(table.rows, key=lambda row: abs(math.log(sizes[row] / parameters)))
        published = table.rows[nearest][table.columns.index(column)]
        found.append(PaperScore(metric=metric, score=published, model=nearest, source=table.source))
    return found
