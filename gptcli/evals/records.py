"""Records of evaluated items, written as they are scored so that an evaluation can be resumed.

`TASK.jsonl` in the records folder consists of a header line that identifies the evaluation, then
one line per item. With several processes each writes its own file (`TASK.jsonl.1`); an evaluation
may be resumed with any number of processes. When it is finished, one file contains every item in
order.

Items are scored in batches that depend on the evaluation alone, and a batch with a missing item is
scored again as a whole. Scores after an interruption are therefore the same to the last bit,
whatever the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptcli import toml_json
from gptcli.errors import InputError, UsageError
from gptcli.evals.loglikelihood import Score
from gptcli.evals.metrics import METRICS, first_sentences
from gptcli.evals.requests import Request
from gptcli.evals.task import Normaliser, Task
from gptcli.events import SILENT, Events
from gptcli.files import PARTIAL, atomic_write, complete_lines, sha256
from gptcli.locks import nothing_to_resume
from gptcli.model.hub import PICKLED_WEIGHTS
from gptcli.model.source import UNFINISHED, WEIGHTS, ModelSource
from gptcli.sampling.generate import Completion
from gptcli.toml_json import parse_json

Record = dict[str, Any]
INDEX = "index"  # key of every record: the item's index in its file


def score_record(
    task: Task, request: Request, scores: Sequence[Score], unconditional: Sequence[Score]
) -> Record:
    """Return the record of a scored request.

    `scores` are those of its continuations; `unconditional` are those of the same choices after the
    task's unconditional prompt, empty if it has none.
    """
    record = _common_fields(request)
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
        text_metrics = [name for name in task.metric if name in METRICS]
        if text_metrics:
            predicted = item.answers[record["prediction"]]
            accepted = item.accepted or [item.answers[number] for number in item.gold]
            record |= {name: METRICS[name](predicted, accepted) for name in text_metrics}
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


def completion_record(task: Task, request: Request, completion: Completion) -> Record:
    """Return the record of a generated answer; `log_prob` is the sum over its tokens in nats."""
    prediction, answers = completion.text.strip(), request.item.answers
    if task.sentences:
        prediction = first_sentences(prediction, task.sentences)
    return {
        **_common_fields(request),
        "prediction": prediction,
        "answers": list(answers),
        "finish_reason": completion.finish_reason,
        "log_prob": sum(completion.log_probs),
        **{name: METRICS[name](prediction, answers) for name in task.metric if name in METRICS},
    }


def predict(record: Record, normalise: Normaliser) -> int:
    """Return the index of the choice with the highest normalised log-probability.

    `normalise` is "token" (per token), "character" (per character), "unconditional" (minus the
    log-probability after the unconditional prompt) or "sum" (unchanged).
    """
    log_prob_K = np.array(record["log_probs"])
    if normalise == "token":
        log_prob_K = log_prob_K / np.array(record["tokens"])
    elif normalise == "character":
        log_prob_K = log_prob_K / np.maximum(1, np.array(record["characters"]))
    elif normalise == "unconditional":
        log_prob_K = log_prob_K - np.array(record["unconditional"])
    return int(log_prob_K.argmax())


def _common_fields(request: Request) -> Record:
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


class Records:
    """Records of one task, in memory and, if there is a folder, on disk."""

    def __init__(
        self, folder: Path | None, task: str, fingerprint: Mapping[str, Any], rank: int = 0
    ) -> None:
        """Read the records that the folder already contains, if any.

        `fingerprint` is everything that determines the records. Raises UsageError if the folder
        contains records with another one, InputError if a line is not a record.
        """
        self.folder, self.task, self.rank = folder, task, rank
        self.header = toml_json.dumps({"format": 1, "task": task, **fingerprint})
        self.done: dict[int, Record] = {}
        """Records by the index of their item."""
        self.path: Path | None = None
        """File of this process."""
        if folder is None:
            return
        self.path = folder / (f"{task}.jsonl.{rank}" if rank else f"{task}.jsonl")
        for path in self._files():
            lines = complete_lines(path)
            if lines and lines[0] != self.header:
                raise UsageError(
                    "these records are of another model, data set or set of options",
                    where=path,
                    hint=f"use {{option:force}} to start over; {self._difference(lines[0], path)}",
                )
            for number, line in enumerate(lines[1:], 2):
                record = parse_json(line.encode(), f"{path}:{number}")
                if not isinstance(record, dict) or not isinstance(record.get(INDEX), int):
                    raise InputError(
                        "not a record of an evaluation",
                        where=f"{path}:{number}",
                        hint="use {option:force} to start over",
                    )
                self.done[record[INDEX]] = record
        own = complete_lines(self.path)
        with atomic_write(self.path, "w") as file:  # without an incomplete last line
            file.writelines(f"{line}\n" for line in own or [self.header])

    def add(self, records: Sequence[Record]) -> None:
        """Add the records of a batch, which are on disk when this returns."""
        self.done.update((record[INDEX], record) for record in records)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{toml_json.dumps(record)}\n" for record in records)
                file.flush()
                os.fsync(file.fileno())

    def contains_all(self, indices: Iterable[int]) -> bool:
        """Return True if every item in `indices` has a record."""
        return all(index in self.done for index in indices)

    def finish(self, others: Iterable[Record] = ()) -> list[Record]:
        """Return all records in the order of the items and write them to one file.

        `others` are the records of the other processes.
        """
        self.done.update((record[INDEX], record) for record in others)
        records = [self.done[index] for index in sorted(self.done)]
        if self.folder is not None and self.rank == 0:
            with atomic_write(self.folder / f"{self.task}.jsonl", "w") as file:
                file.write(self.header + "\n")
                file.writelines(f"{toml_json.dumps(record)}\n" for record in records)
            for path in self._files()[1:]:
                path.unlink()
        return records

    def _files(self) -> list[Path]:
        """Return the task's file, followed by those of further processes."""
        assert self.folder is not None
        first = self.folder / f"{self.task}.jsonl"
        others = sorted(
            path
            for path in self.folder.glob("*")
            if path.stem == first.name and path.suffix[1:].isdigit()
        )
        return [first, *others]

    def _difference(self, line: str, path: Path) -> str:
        """Return which entries of an earlier header differ from this evaluation's."""
        before, now = parse_json(line.encode(), f"{path}:1"), json.loads(self.header)
        if not isinstance(before, dict):
            return "the first line is not the header of an evaluation"
        names = [
            key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
        ]
        step = before.get("step")
        resumable = step not in (None, now.get("step"))
        hint = f"; {{option:checkpoint}} {step} continues them if that checkpoint still exists"
        return f"different: {', '.join(names)}{hint if resumable else ''}"


def claim_records(folder: Path, *, resume: bool, force: bool, events: Events = SILENT) -> None:
    """Prepare a folder of records for an evaluation, and delete what interrupted writes left.

    Existing records require `resume`, which keeps them, or `force`, which deletes them. Raises
    UsageError otherwise.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(
            "is not a folder", where=folder, hint="name another folder with {option:records}"
        )
    found = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.[0-9]*")])
    if found and not (resume or force):
        raise UsageError(
            "already contains the records of an evaluation",
            where=folder,
            hint="use {option:resume} to continue it, {option:force} to start over",
        )
    if resume and not found:
        events.info(nothing_to_resume(folder))
    for path in [*folder.glob(f".*{PARTIAL}"), *(found if force else [])]:
        path.unlink()


def weights_sha256(source: ModelSource) -> str:
    """Return a SHA-256 that identifies the weights of a model."""
    if source.digest is not None:
        return source.digest
    files = sorted(
        path
        for pattern in ("*.safetensors", "*.npy", PICKLED_WEIGHTS)
        for path in source.folder.glob(pattern)
    )
    if source.folder.is_file():
        files = [source.folder]
    if (source.folder / WEIGHTS).is_file():
        files = [path for path in files if path.name != UNFINISHED]
    return hashlib.sha256(
        "".join(f"{path.name} {sha256(path)}\n" for path in files).encode()
    ).hexdigest()
