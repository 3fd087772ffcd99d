"""Run a task: score its items, the longest first, and say what was measured."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.errors import InputError, RunError
from gptcli.evals.score import Score, batches, score
from gptcli.evals.task import Task, read_items
from gptcli.events import SILENT, Events
from gptcli.files import sha256
from gptcli.model.transformer import GPT
from gptcli.papers.models import MODELS
from gptcli.papers.scores import TABLES
from gptcli.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    task: str
    scoring: str
    shots: int
    items: int
    correct: int
    accuracy: float
    """In percent, as the papers print it."""
    accuracy_stderr: float | None
    perplexity: float
    """exp of the mean over items of -log p(target)."""
    perplexity_stderr: float | None
    truncated: int
    """Items longer than the model's context: their beginning was cut."""
    data: str
    data_sha256: str
    paper: list[PaperScore]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperScore:
    metric: str
    score: float
    model: str
    source: str


def run_task(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    data: Path,
    *,
    limit: int | None = None,
    batch_size: int | None = None,
    events: Events = SILENT,
) -> tuple[list[TaskResult], list[dict[str, Any]]]:
    """One result a scoring rule of `task`, and a record an item, on the file `data`; `batch_size` moves neither but for rounding.

    Raises InputError where the data is broken, RunError where the model's scores are not numbers.
    """
    items = read_items(task, data, limit)
    n_ctx = model.config.n_ctx
    contexts, targets = (tokenizer.encode_batch(texts) for texts in ([item.prompt for item in items], [item.target for item in items]))
    sequences = [context + target for context, target in zip(contexts, targets, strict=True)]
    for item, target in zip(items, targets, strict=True):
        if len(target) > n_ctx:
            raise InputError(f"the last word is {len(target)} tokens long, the model's context {n_ctx}", where=f"{data}: item {item.id}")
    scores = _score_items(model, sequences, [len(target) for target in targets], batch_size, task.name, events)
    truncated = [len(sequence) > n_ctx + 1 for sequence in sequences]
    results = [
        _result(task, scoring, scores, sum(truncated), data, nearest_scores(task, model.config.parameters))
        for scoring in ("last_word", "last_token")
    ]
    records = [
        {
            "task": task.name,
            "id": item.id,
            "target": item.target,
            "tokens": target,
            "log_probs": [float(value) for value in log_probs],
            "likeliest": [bool(value) for value in likeliest],
            "truncated": cut,
        }
        for item, target, (log_probs, likeliest), cut in zip(items, targets, scores, truncated, strict=True)
    ]
    return results, records


def _score_items(
    model: GPT, sequences: Sequence[Sequence[int]], counts: Sequence[int], batch_size: int | None, name: str, events: Events
) -> list[Score]:
    """The scores of the last `counts[i]` tokens of each sequence; a context that does not fit loses its beginning."""
    sequences = [sequence[-(model.config.n_ctx + 1) :] for sequence in sequences]
    order = sorted(range(len(sequences)), key=lambda number: -len(sequences[number]))  # alike lengths pad little
    scores: dict[int, Score] = {}
    for batch in batches([len(sequences[number]) for number in order], batch_size):
        numbers = [order[place] for place in batch]
        scores.update(zip(numbers, score(model, [sequences[n] for n in numbers], [counts[n] for n in numbers]), strict=True))
        events.progress(name, batch.stop, len(sequences), "items")
    events.finish(name)
    return [scores[number] for number in range(len(sequences))]


def _result(task: Task, scoring: str, scores: Sequence[Score], truncated: int, path: Path, paper: list[PaperScore]) -> TaskResult:
    first = -1 if scoring == "last_token" else 0
    right_N = np.array([likeliest[first:].all() for _, likeliest in scores])
    log_prob_N = np.array([log_probs[first:].sum(dtype=np.float64) for log_probs, _ in scores])
    N, accuracy, nats = len(scores), float(right_N.mean()), float(-log_prob_N.mean())
    if not nats < 700:  # exp overflows beyond; NaN too
        raise RunError(f"the mean log-probability is {-nats}", where=task.name, hint="the model's weights are broken")
    return TaskResult(
        task=task.name,
        scoring=scoring,
        shots=0,
        items=N,
        correct=int(right_N.sum()),
        accuracy=100 * accuracy,
        accuracy_stderr=100 * math.sqrt(accuracy * (1 - accuracy) / (N - 1)) if N > 1 else None,
        perplexity=math.exp(nats),
        perplexity_stderr=math.exp(nats) * float(log_prob_N.std(ddof=1)) / math.sqrt(N) if N > 1 else None,  # delta method
        truncated=truncated,
        data=str(path),
        data_sha256=sha256(path),
        paper=paper,
    )


def nearest_scores(task: Task, parameters: int) -> list[PaperScore]:
    """What the paper published for its model nearest in size (in the ratio of parameter counts)."""
    sizes = {model.name: model.parameters for model in MODELS}
    found = []
    for metric, reference in task.paper.items():
        name, _, column = reference.partition(".")
        table = TABLES[name]
        nearest = min(table.rows, key=lambda row: abs(math.log(sizes[row] / parameters)))
        published = table.rows[nearest][table.columns.index(column)]
        found.append(PaperScore(metric=metric, score=published, model=nearest, source=table.source))
    return found
