"""Results of a task: metrics computed from its records, with the conditions they depend on.

Shapes: N items, K choices, W windows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gptcli.errors import RunError
from gptcli.evals.bleu import bleu_stderr
from gptcli.evals.metrics import CORPUS_METRICS, GROUP_METRICS, METRICS
from gptcli.evals.records import Record, predict
from gptcli.evals.rolling import MAX_NATS
from gptcli.evals.stderr import (
    cluster_stderr,
    group_metric_stderr,
    mean_stderr,
    ratio_spread,
)
from gptcli.evals.task import NORMALISERS, Normaliser, Task
from gptcli.papers.models import MODELS
from gptcli.papers.scores import TABLES

# Last-word tasks: whether every token of the word must be predicted, or only its last token. Each
# rule is also applied with the stop-word filter.
LAST_WORD_RULES = ("last_word", "last_token")
FILTERED = "_filtered"
CALIBRATION_PERCENT = (1, 5, 10, 50)


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricValue:
    """Value of a metric, with its standard error."""

    value: float
    """Value; shares are in percent, as in the papers."""
    stderr: float | None
    """Standard error; None if only one item was scored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperScore:
    """Published score of a paper's model."""

    metric: str
    """Name of the metric."""
    score: float
    """Published value."""
    model: str
    """Name of the paper's model."""
    source: str
    """Table the value is from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Conditions that the metrics depend on, besides the model."""

    shots: int
    """Number of few-shot examples requested, K."""
    mean_shots: float
    """Mean number of few-shot examples that fit into the context."""
    min_shots: int = 0
    """Lowest number of few-shot examples in front of an item."""
    own_shots: bool = False
    """True if the few-shot examples are from the evaluated set."""
    shots_from: str | None
    """File of the few-shot examples, or "the same set without the item"; None for zero-shot."""
    shots_seed: int | None
    """Random seed of the few-shot examples; None for zero-shot."""
    shared_shots: bool
    """True if all items have the same few-shot examples."""
    limit: int | None = None
    """Maximum number of items, or windows of text; None for all."""
    items: int
    """Number of scored items, or windows of text."""
    skipped: dict[str, int]
    """Number of skipped items by reason."""
    truncated: int
    """Number of requests whose beginning was cut to fit the model's context."""
    stride: int | None
    """Running text: tokens from one window to the next."""
    data: str
    """File of the items."""
    data_sha256: str
    """SHA-256 of the data."""
    note: str
    """Differences of the task from the paper."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """Metrics of a task under one scoring rule."""

    task: str
    """Name of the task."""
    scoring: str
    """Scoring rule: normalisation of choices, whole word or last token, greedy or beam search, or
    unit of text.
    """
    correct: int | None
    """Number of correct items; None if items are not simply right or wrong."""
    metrics: dict[str, MetricValue]
    """Values by the name of the metric."""
    conditions: Conditions
    """Conditions of the measurement."""
    paper: list[PaperScore]
    """Published scores to compare with."""
    accuracy_by_normaliser: dict[str, float] = field(default_factory=dict)
    """Multiple choice: accuracy in percent under every normalisation."""
    signatures: dict[str, str] = field(default_factory=dict)
    """Signatures of corpus metrics, such as sacrebleu's, by the name of the metric."""
    calibration: dict[str, float] = field(default_factory=dict)
    """Free form: the first metric over the most confident 1, 5, 10 and 50 percent of answers."""
    controls: dict[str, float] = field(default_factory=dict)
    """Multiple choice, in percent: accuracy of random answers, `chance`; accuracy by the correct
    answers of other items, `shuffled_labels`, which is near chance; and what is above chance as a
    share of what can be, `centred`.
    """
    contamination: dict[str, Any] = field(default_factory=dict)
    """First metric of clean, dirty and all items (GPT-3, Appendix C)."""

    def as_dict(self) -> dict[str, Any]:
        """Return the result for JSON: metric NAME, and its standard error under NAME_stderr."""
        values: dict[str, float | None] = {}
        for name, metric in self.metrics.items():
            values |= {name: metric.value, f"{name}_stderr": metric.stderr}
        optional = {
            "accuracy_by_normaliser": self.accuracy_by_normaliser,
            "signatures": self.signatures,
            "controls": self.controls,
            "contamination": self.contamination,
            "calibration": self.calibration,
        }
        return {
            "task": self.task,
            "scoring": self.scoring,
            "metrics": list(self.metrics),
            **asdict(self.conditions),
            "correct": self.correct,
            **values,
            **{name: value for name, value in optional.items() if value},
            "paper": [asdict(score) for score in self.paper],
        }


def compute_results(
    task: Task,
    records: Sequence[Record],
    conditions: Conditions,
    parameters: int,
    units: dict[str, int],
) -> list[TaskResult]:
    """Return the results of a task, one per scoring rule.

    `parameters` is the model's parameter count; `units` counts the units, bytes and characters of
    running text. Raises RunError if a log-likelihood is not finite.
    """
    paper = nearest_paper_scores(task, parameters, conditions.shots)

    def result(
        scoring: str, metrics: dict[str, MetricValue], correct: int | None = None, **optional: Any
    ) -> TaskResult:
        return TaskResult(
            task=task.name,
            scoring=scoring,
            correct=correct,
            metrics=metrics,
            conditions=conditions,
            paper=[score for score in paper if score.metric in metrics],
            **optional,
        )

    if task.kind == "text":
        return [result(task.detokenize or "as it is", _text_metrics(task, records, units))]
    if task.kind == "freeform":
        scoring = "greedy"
        if task.top_k:
            scoring = f"top-k {task.top_k}"
        elif task.beam > 1:
            scoring = f"beam {task.beam}"
        metrics, signatures = _answer_metrics(task, records)
        calibration = _calibration(task, records)
        return [result(scoring, metrics, signatures=signatures, calibration=calibration)]
    if task.kind == "last_word":
        return [
            result(rule + filtered, *_last_word_metrics(task, records, rule, filtered))
            for filtered in ("", FILTERED)
            for rule in LAST_WORD_RULES
        ]
    correct_N = _correct(records, task.normalise)
    by_normaliser = {}
    if task.kind == "choice":
        by_normaliser = {
            name: 100 * float(_correct(records, name).mean())
            for name in NORMALISERS
            if name != "unconditional" or all("unconditional" in record for record in records)
        }
    metrics = {"accuracy": _mean_percent(records, correct_N)}
    for name in task.metric:
        if name in METRICS:
            metrics[name] = _item_metric(task, records, name)
        elif name in GROUP_METRICS:
            metrics[name] = _group_metric(records, name)
    return [
        result(
            task.normalise,
            {name: metrics[name] for name in task.metric},
            int(correct_N.sum()),
            accuracy_by_normaliser=by_normaliser,
            controls=_controls(records, task.normalise),
        )
    ]


def item_score(task: Task, record: Record) -> float | None:
    """Return an item's score by the task's first metric, from 0 to 1; None for a corpus metric."""
    if task.kind == "last_word":
        return float(all(record["likeliest"]))
    if task.kind in ("choice", "partial"):
        return float(record["correct"])
    return record.get(task.metric[0])


def _correct(records: Sequence[Record], normalise: Normaliser) -> np.ndarray:
    return np.array([predict(record, normalise) in record["gold"] for record in records])


def _controls(records: Sequence[Record], normalise: Normaliser) -> dict[str, float]:
    """Return what shows whether an accuracy is more than chance; see `TaskResult.controls`."""
    chance = 100 * float(
        np.mean([len(record["gold"]) / len(record["log_probs"]) for record in records])
    )
    others = np.random.default_rng(0).permutation(len(records)).tolist()
    predictions = [predict(record, normalise) for record in records]
    shuffled = [
        prediction in records[other]["gold"]
        for prediction, other in zip(predictions, others, strict=True)
    ]
    accuracy = 100 * float(_correct(records, normalise).mean())
    return {
        "chance": chance,
        "shuffled_labels": 100 * float(np.mean(shuffled)),
        "centred": 100 * (accuracy - chance) / (100 - chance) if chance < 100 else 0.0,
    }


def _mean_percent(records: Sequence[Record], score_N: np.ndarray) -> MetricValue:
    """Return the mean in percent; items of one group are not independent."""
    stderr = mean_stderr(score_N)
    if "group" in records[0]:
        stderr = cluster_stderr(score_N, np.array([record["group"] for record in records]))
    return MetricValue(
        value=100 * float(score_N.mean()), stderr=None if stderr is None else 100 * stderr
    )


def _item_metric(task: Task, records: Sequence[Record], name: str) -> MetricValue:
    """Return the mean over the items that count for a metric.

    Raises RunError if none does.
    """
    counted = [record for record in records if record[name] is not None]
    if not counted:
        raise RunError(f"no item counts for {name}", where=task.name)
    return _mean_percent(counted, np.array([record[name] for record in counted], dtype=np.float64))


def _group_metric(records: Sequence[Record], name: str) -> MetricValue:
    lists = [record["prediction"] for record in records], [record["gold"] for record in records]
    groups = [record.get("group", str(number)) for number, record in enumerate(records)]
    stderr = group_metric_stderr(GROUP_METRICS[name], *lists, groups)
    return MetricValue(
        value=100 * GROUP_METRICS[name](*lists, groups),
        stderr=None if stderr is None else 100 * stderr,
    )


def _answer_metrics(
    task: Task, records: Sequence[Record]
) -> tuple[dict[str, MetricValue], dict[str, str]]:
    """Return the metrics of generated answers, and the signatures of corpus metrics."""
    metrics, signatures = {}, {}
    for name in task.metric:
        if name in METRICS:
            metrics[name] = _item_metric(task, records, name)
            continue
        texts = (
            [record["prediction"] for record in records],
            [record["answers"] for record in records],
        )
        language = task.answers
        value, signatures[name] = CORPUS_METRICS[name](*texts, language)
        metrics[name] = MetricValue(value=value, stderr=bleu_stderr(*texts, language, name))
    return metrics, signatures


def _calibration(task: Task, records: Sequence[Record]) -> dict[str, float]:
    """Return the first metric over the most confident answers, by their share in percent.

    Source: GPT-2, section 3.7.
    """
    name = task.metric[0]
    if name not in METRICS:
        return {}
    counted = [record for record in records if record[name] is not None]
    by_confidence = sorted(counted, key=lambda record: -record["log_prob"])
    result = {}
    for percent in CALIBRATION_PERCENT:
        some = by_confidence[: max(1, round(len(by_confidence) * percent / 100))]
        result[f"{percent:g}"] = 100 * sum(record[name] for record in some) / len(some)
    return result


def _last_word_metrics(
    task: Task, records: Sequence[Record], rule: str, filtered: str
) -> tuple[dict[str, MetricValue], int]:
    """Return accuracy and perplexity, and the number of correct items."""
    first = -1 if rule == "last_token" else 0
    correct_N = np.array([all(record["likeliest" + filtered][first:]) for record in records])
    log_prob_N = np.array([sum(record["log_probs"][first:]) for record in records])
    perplexity = _perplexity(task, float(log_prob_N.sum()), len(records), mean_stderr(log_prob_N))
    return {"accuracy": _mean_percent(records, correct_N), "perplexity": perplexity}, int(
        correct_N.sum()
    )


def _text_metrics(
    task: Task, records: Sequence[Record], units: dict[str, int]
) -> dict[str, MetricValue]:
    log_prob_W = np.array([record["log_prob"] for record in records])
    tokens_W = np.array([record["tokens"] for record in records])
    total = float(log_prob_W.sum())
    # Windows differ in length: the spread is that of the log-likelihood per token.
    spread = ratio_spread(log_prob_W, tokens_W, total / tokens_W.sum())
    metrics = {}
    for name, unit in (
        ("perplexity", "units"),
        ("bits_per_byte", "bytes"),
        ("bits_per_character", "characters"),
    ):
        if name not in task.metric:
            continue
        count = units[unit]
        if name == "perplexity":
            stderr = None if spread is None else spread / count
            metrics[name] = _perplexity(task, total, count, stderr)
        else:
            metrics[name] = MetricValue(
                value=-total / math.log(2) / count,
                stderr=None if spread is None else spread / math.log(2) / count,
            )
    return metrics


def _perplexity(task: Task, total: float, count: int, stderr: float | None) -> MetricValue:
    """Return exp(-total / count) for a log-likelihood in nats.

    `stderr` is that of the mean log-likelihood; the delta method gives that of the perplexity.
    Raises RunError if the result is not finite.
    """
    nats = -total / count
    if not nats < MAX_NATS:  # NaN too
        raise RunError(
            f"the mean log-probability is {-nats}",
            where=task.name,
            hint="the model's weights are broken",
        )
    return MetricValue(
        value=math.exp(nats), stderr=None if stderr is None else math.exp(nats) * stderr
    )


def nearest_paper_scores(task: Task, parameters: int, shots: int) -> list[PaperScore]:
    """Return the published scores of the paper's model nearest in size, by parameter ratio.

    If the paper reports zero-, one- and few-shot scores, they are those for `shots`.
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
