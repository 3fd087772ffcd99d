"""task.toml: what a model is fine-tuned for. GPT-1's constants (Radford et al. 2018, section 4.1) where the file says nothing.

kind = "classification"             # or entailment, similarity, multiple-choice
train = "train.jsonl"               # beside this file; a line an example
validation = "dev.jsonl"
labels = ["negative", "positive"]   # what `label` holds; of multiple choice it holds the right answer's number, from 0

[fields]                            # where the files call a field otherwise
text = "sentence"
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import parse_json, read_toml
from gptcli.trainer.finetune_inputs import KINDS, Example, Transformation


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
            raise UsageError("multiple choice has no labels, and every other kind has", hint='labels = ["negative", "positive"]')
        known = (*KINDS[self.kind], "label")
        if unknown := [name for name in self.fields if name not in known]:
            raise UsageError(f"{self.kind} has no field {unknown[0]!r}", hint=nearest(unknown[0], known))
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


def read_examples(task: Task, path: Path, transformation: Transformation) -> list[Example]:
    """The examples of a .jsonl file. Raises InputError, with the line, for one that is not of this task."""
    examples = []
    names = {name: task.fields.get(name, name) for name in (*KINDS[task.kind], "label")}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        row = parse_json(line, where)
        try:
            texts = {ours: row[theirs] for ours, theirs in names.items()}
        except (KeyError, TypeError) as error:
            raise InputError(
                f"not an example of this task: {error}", where=where, hint=f"a line holds {', '.join(names.values())}"
            ) from None
        choices = task.labels or list(range(len(texts["answers"])))
        if (label := texts.pop("label")) not in choices:
            raise InputError(f"the label {label!r} is none of {choices}", where=where)
        examples.append(Example(transformation.sequences(texts), choices.index(label)))
    if not examples:
        raise InputError("holds no examples", where=path)
    return examples
