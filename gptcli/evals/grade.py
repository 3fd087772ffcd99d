"""Scores and answers as records of items, and what counts as right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from gptcli.evals.loglikelihood import Score
from gptcli.evals.metrics import METRICS, first_sentences
from gptcli.evals.records import INDEX, Record
from gptcli.evals.requests import Request
from gptcli.evals.task import Task
from gptcli.sampling.streaming import Completion


def record_scores(
    task: Task, request: Request, scores: Sequence[Score], unconditional: Sequence[Score]
) -> Record:
    """Return the record of a scored request.

    It holds the scores of each of its pairs and, if the task normalises by them, of the same
    choices after the unconditional prompt.
    """
    record = _common(request)
    if task.kind in ("choice", "partial"):
        item = request.item
        texts = item.choices or (item.target,) * len(item.contexts)
        record["log_probs"] = [_total(score) for score in scores]
        record["tokens"] = [len(score.log_probs) for score in scores]
        record["characters"] = [len(text.strip()) for text in texts]
        if unconditional:
            record["unconditional"] = [_total(score) for score in unconditional]
        record["gold"] = list(item.gold)
        record["prediction"] = predict(record, task.normalise)
        record["correct"] = record["prediction"] in item.gold
        if texts_metrics := [name for name in task.metric if name in METRICS]:
            taken, accepted = (
                item.answers[record["prediction"]],
                [item.answers[number] for number in item.gold],
            )
            record |= {name: METRICS[name](taken, accepted) for name in texts_metrics}
        return record
    [score] = scores
    if task.kind == "text":
        return {**record, "log_prob": _total(score), "tokens": len(score.log_probs)}
    return {
        **record,
        "target": request.item.target,
        "tokens": request.pairs[0][1].tolist(),
        "log_probs": [float(value) for value in score.log_probs],
        "likeliest": [bool(value) for value in score.is_greedy],
        "likeliest_filtered": [bool(value) for value in score.is_greedy_filtered],
    }


def record_answer(task: Task, request: Request, made: Completion) -> Record:
    """What is kept of an answer that the model wrote: `log_prob` is how sure it was."""
    prediction, answers = made.text.strip(), request.item.answers
    if task.sentences:
        prediction = first_sentences(prediction, task.sentences)
    per_item = {name: METRICS[name](prediction, answers) for name in task.metric if name in METRICS}
    return {
        **_common(request),
        "prediction": prediction,
        "answers": list(answers),
        "finish_reason": made.finish_reason,
        "log_prob": sum(made.log_probs),
        **per_item,
    }


def predict(record: Record, normalise: str) -> int:
    """The choice whose log-probability is highest, by the normaliser: per token, as it is, per
    character, or less the unconditional.
    """
    log_prob_K = np.array(record["log_probs"])
    if normalise == "token":
        log_prob_K = log_prob_K / np.array(record["tokens"])
    elif normalise == "character":
        log_prob_K = log_prob_K / np.maximum(1, np.array(record["characters"]))
    elif normalise == "unconditional":
        log_prob_K = log_prob_K - np.array(record["unconditional"])
    return int(log_prob_K.argmax())


def _common(request: Request) -> dict[str, Any]:
    group = {"group": request.item.group} if request.item.group else {}
    return {
        INDEX: request.index,
        "id": request.item.id,
        "shots": request.shots,
        "truncated": request.truncated,
        **group,
    }


def _total(score: Score) -> float:
    return float(score.log_probs.sum(dtype=np.float64))
