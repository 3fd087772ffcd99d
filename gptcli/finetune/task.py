"""task.toml: what a model is fine-tuned for. GPT-1's constants (Radford et al. 2018, section 4.1)
where the file says nothing.

kind = "classification"             # or entailment, similarity, multiple-choice
train = "train.jsonl"               # beside this file; a line an example
validation = "dev.jsonl"
labels = ["negative", "positive"]   # what `label` holds; of multiple choice it holds the right answer's number, from 0

[fields]                            # where the files call a field otherwise
text = "sentence"
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import parse_json, read_toml
from gptcli.finetune.inputs import KINDS, Example, Transformation
from gptcli.tokenizer.tokenizer import refuse_surrogates


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Raises UsageError where the values cannot be met."""

    kind: str
    train: str
    validation: str
    labels: list[Any] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)
    """Our name of a field, and the files'."""
    epochs: int = 3
    batch: int = 32
    """Examples."""
    lr: float = 6.25e-5
    lm_weight: float = 0.5
    """Of the auxiliary language-model loss."""
    weight_decay: float = 0.01
    clip: float = 1.0
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"unknown kind of task {self.kind!r}", hint=nearest(self.kind, KINDS))
        if (self.kind == "multiple-choice") == bool(self.labels):
            raise UsageError(
                "multiple choice has no labels, and every other kind has",
                hint='labels = ["negative", "positive"]',
            )
        known = (*KINDS[self.kind], "label")
        if unknown := [name for name in self.fields if name not in known]:
            raise UsageError(
                f"{self.kind} has no field {unknown[0]!r}", hint=nearest(unknown[0], known)
            )
        for name in ("epochs", "batch", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"{name} must be above 0")


def read_task(path: Path) -> Task:
    """Raises InputError where the file is missing or broken, or names what no task has."""
    table = read_toml(path)
    kinds = {name: get_origin(kind) or kind for name, kind in get_type_hints(Task).items()}
    for name, value in table.items():
        if name not in kinds:
            raise InputError(f"unknown key {name!r}", where=path, hint=nearest(name, kinds))
        wanted = (int, float) if kinds[name] is float else kinds[name]
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise InputError(f"{name} is not of type {kinds[name].__name__}", where=path)
    if missing := [name for name in ("kind", "train", "validation") if name not in table]:
        raise InputError(f"no {missing[0]!r}", where=path)
    try:
        return Task(**table)
    except UsageError as error:
        raise InputError(error.what, where=path, hint=error.hint) from None


def _fields(row: Any, names: dict[str, str], where: str) -> tuple[dict[str, Any], Any]:
    """The texts of an example by our names, and its label. Raises InputError if one is missing or
    of another type.
    """
    hint = f"a line holds {', '.join(names.values())}"
    if not isinstance(row, dict):
        raise InputError("not an example: not a JSON object", where=where, hint=hint)
    if missing := [theirs for theirs in names.values() if theirs not in row]:
        raise InputError(f"not an example of this task: no {missing[0]!r}", where=where, hint=hint)
    texts = {ours: row[theirs] for ours, theirs in names.items()}
    label = texts.pop("label")
    for ours, value in texts.items():
        theirs = names[ours]
        parts = value if ours == "answers" and isinstance(value, list) and value else [value]
        for part in parts:
            if not isinstance(part, str):
                kind = "a list of texts" if ours == "answers" else "text"
                raise InputError(
                    f"{theirs!r} is {json.dumps(part)[:40]}, not {kind}", where=where, hint=hint
                )
            try:
                refuse_surrogates(part)
            except InputError as error:
                raise InputError(f"{theirs!r}: {error.what}", where=where) from None
        if ours == "answers" and not isinstance(value, list):
            raise InputError(f"{theirs!r} is one text, not a list of texts", where=where, hint=hint)
    return texts, label


def read_examples(task: Task, path: Path, transformation: Transformation) -> list[Example]:
    """The examples of a .jsonl file. Raises InputError, with the line, for one that is not of this
    task.
    """
    examples = []
    names = {name: task.fields.get(name, name) for name in (*KINDS[task.kind], "label")}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    answers: int | None = None  # of each example, where they are counted
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        texts, label = _fields(parse_json(line, where), names, where)
        choices = task.labels or list(range(len(texts["answers"])))
        if (
            found := next(
                (
                    n
                    for n, choice in enumerate(choices)
                    if (type(choice), choice) == (type(label), label)
                ),
                None,
            )
        ) is None:
            raise InputError(f"the label {label!r} is none of {choices}", where=where)
        sequences = transformation.sequences(texts)
        answers = answers or len(sequences)
        if len(sequences) != answers:
            raise InputError(
                f"{len(sequences)} answers, and the examples before it have {answers}",
                where=where,
                hint="give each as many",
            )
        examples.append(Example(sequences, found))
    if not examples:
        raise InputError("holds no examples", where=path)
    return examples
