"""Fine-tuning tasks: `task.toml`, and the .jsonl files of examples that it names.

kind = "classification"             # or entailment, similarity, multiple-choice
train = "train.jsonl"               # relative to the folder of this file; one example per line
validation = "dev.jsonl"
labels = ["negative", "positive"]   # values of `label`; multiple choice has none: there
                                    # `label` is the index of the right answer, from 0

[fields]                            # names in the .jsonl files, if they differ from ours
text = "sentence"
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_origin, get_type_hints

from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import read_toml
from gptcli.finetune.inputs import TEXT_FIELDS, Example, InputTransform, Kind
from gptcli.tokenizer.tokenizer import refuse_surrogates
from gptcli.toml_json import parse_json


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneTask:
    """Fine-tuning task. Defaults are GPT-1's (Radford et al. 2018, section 4.1).

    Raises UsageError if a value is not allowed.
    """

    kind: Kind
    train: str
    """File name of the training examples."""
    validation: str
    """File name of the validation examples."""
    labels: list[Any] = field(default_factory=list)
    """Values of `label`; empty for multiple choice."""
    fields: dict[str, str] = field(default_factory=dict)
    """Names of the fields in the files, by our names."""
    epochs: int = 3
    batch: int = 32
    """Examples per step."""
    lr: float = 6.25e-5
    """Peak learning rate."""
    lm_weight: float = 0.5
    """Weight of the auxiliary language-model loss."""
    weight_decay: float = 0.01
    clip: float = 1.0
    """Maximum norm of the gradient."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        if self.kind not in TEXT_FIELDS:
            raise UsageError(
                f"unknown kind of task {self.kind!r}", hint=nearest(self.kind, TEXT_FIELDS)
            )
        if self.kind == "multiple-choice" and self.labels:
            raise UsageError(
                "labels are not supported for multiple choice",
                hint="`label` is the index of the right answer; remove `labels`",
            )
        if self.kind != "multiple-choice" and not self.labels:
            raise UsageError("no 'labels'", hint='labels = ["negative", "positive"]')
        known = (*TEXT_FIELDS[self.kind], "label")
        if unknown := [name for name in self.fields if name not in known]:
            raise UsageError(
                f"{self.kind} has no field {unknown[0]!r}", hint=nearest(unknown[0], known)
            )
        for name in ("epochs", "batch", "lr", "clip"):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"{name} must be above 0")


def read_task(path: Path) -> FinetuneTask:
    """Read a task file.

    Raises InputError if the file is missing or broken, a key is unknown, or a value is not allowed.
    """
    table = read_toml(path)
    types = {name: _plain_type(hint) for name, hint in get_type_hints(FinetuneTask).items()}
    for name, value in table.items():
        if name not in types:
            raise InputError(f"unknown key {name!r}", where=path, hint=nearest(name, types))
        allowed = (int, float) if types[name] is float else types[name]
        if isinstance(value, bool) or not isinstance(value, allowed):
            raise InputError(f"{name} is not of type {types[name].__name__}", where=path)
    if missing := [name for name in ("kind", "train", "validation") if name not in table]:
        raise InputError(f"no {missing[0]!r}", where=path)
    try:
        return FinetuneTask(**table)
    except UsageError as error:
        raise InputError(error.what, where=path, hint=error.hint) from None


def _plain_type(hint: Any) -> type:
    """Return the type of a value in TOML for a type hint."""
    origin = get_origin(hint)
    return str if origin is Literal else origin or hint


def read_examples(task: FinetuneTask, path: Path, transform: InputTransform) -> list[Example]:
    """Read and tokenize the examples of a .jsonl file; blank lines are skipped.

    Raises InputError, with the line number, for a line that is not an example of the task.
    """
    examples = []
    names = {name: task.fields.get(name, name) for name in (*TEXT_FIELDS[task.kind], "label")}
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    n_sequences: int | None = None
    for number, line in enumerate(lines, 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        texts, label = _read_fields(parse_json(line, where), names, where)
        choices = task.labels or list(range(len(texts["answers"])))
        # 1, 1.0 and True are equal, and different labels
        matching = [
            index
            for index, choice in enumerate(choices)
            if (type(choice), choice) == (type(label), label)
        ]
        if not matching:
            raise InputError(f"label {label!r} is not one of {choices}", where=where)
        sequences = transform.sequences(texts)
        n_sequences = n_sequences or len(sequences)
        if len(sequences) != n_sequences:
            raise InputError(
                f"{len(sequences)} answers, but the examples before have {n_sequences}",
                where=where,
                hint="give every example the same number of answers",
            )
        examples.append(Example(sequences, matching[0]))
    if not examples:
        raise InputError("the file has no examples", where=path)
    return examples


def _read_fields(row: Any, names: dict[str, str], where: str) -> tuple[dict[str, Any], Any]:
    """Return the texts of an example by our names, and its label.

    Raises InputError if a field is missing or of another type.
    """
    hint = f"a line has the fields {', '.join(names.values())}"
    if not isinstance(row, dict):
        raise InputError("not an example: not a JSON object", where=where, hint=hint)
    if missing := [file_name for file_name in names.values() if file_name not in row]:
        raise InputError(f"not an example of this task: no {missing[0]!r}", where=where, hint=hint)
    texts = {name: row[file_name] for name, file_name in names.items()}
    label = texts.pop("label")
    for name, value in texts.items():
        is_list = name == "answers"
        parts = value if is_list and isinstance(value, list) and value else [value]
        for part in parts:
            if not isinstance(part, str):
                found, wanted = json.dumps(part)[:40], "a list of texts" if is_list else "text"
                raise InputError(
                    f"{names[name]!r} is {found}, not {wanted}", where=where, hint=hint
                )
            try:
                refuse_surrogates(part)
            except InputError as error:
                raise InputError(f"{names[name]!r}: {error.what}", where=where) from None
        if is_list and not isinstance(value, list):
            raise InputError(
                f"{names[name]!r} is one text, not a list of texts", where=where, hint=hint
            )
    return texts, label
