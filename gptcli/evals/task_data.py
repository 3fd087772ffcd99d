"""Data of a task: which files it is in, and its rows turned into items by the task's templates."""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, UsageError
from gptcli.evals.formats import READERS, Row
from gptcli.evals.synthetic import generate_rows
from gptcli.evals.task import Task
from gptcli.files import sha256

GENERATED_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item in the form of the task's prompt, without few-shot examples."""

    id: str
    """Stable id: the one of the data set, or file:line."""
    prompt: str
    """Text before the answer."""
    choices: tuple[str, ...] = ()
    """Multiple choice: possible continuations of the prompt, with their leading space."""
    contexts: tuple[str, ...] = ()
    """Partial evaluation (Winograd, Winogrande): one context per choice, each followed by
    `target`.
    """
    target: str = ""
    """Last word, running text, or the common continuation of `contexts`."""
    gold: tuple[int, ...] = ()
    """Indices of the correct choices, one or more."""
    answers: tuple[str, ...] = ()
    """Free form: accepted answers, the first of which few-shot examples show. Multiple choice: the
    choices without template.
    """
    unconditional: str = ""
    """Prompt of GPT-3's unconditional normalisation, such as "Answer:" or "A:"."""
    group: str = ""
    """Name shared by items that are scored together, such as those of a MultiRC question, a ReCoRD
    passage or a CoQA story.
    """
    shot: str = ""
    """This item as a few-shot example, if that is not its prompt and correct answer."""


def find_data(task: Task, data: Path | None) -> Path | None:
    """Return the file with the task's items, or None if no `data` is given and they are generated.

    It is `data` itself, or the file in that folder, or in its subfolder named after the task, that
    matches the task's pattern. Raises UsageError if `data` is needed and not given, InputError if
    there is no such file, or several.
    """
    pattern = task.files["items"]
    shown = pattern.replace("|", " or ")
    if data is None and task.generated:
        return None
    if data is None:
        raise UsageError(
            f"the task {task.name} needs its data",
            hint=f"give {{option:data}} DIR, a folder with {shown}: {task.source}",
        )
    if data.is_file():
        return data
    if not data.is_dir():
        raise InputError("no such file or folder", where=data)
    found = _matching_files(task, data, pattern)
    if len(found) != 1:
        names = f"{len(found)} files match" if found else "no file matches"
        raise InputError(
            f"{names} {shown}, the data of {task.name}",
            where=data,
            hint=f"name one of them with {{option:data}}: {', '.join(file.name for file in found)}"
            if found
            else f"get it from {task.source}",
        )
    return found[0]


def find_examples(task: Task, items: Path | None, data: Path | None) -> Path | None:
    """Return the file that few-shot examples are drawn from.

    It is the one that matches the task's pattern for examples, or `items` if the task has no such
    pattern or no single file matches.
    """
    found = (
        _matching_files(task, data, task.files["shots"])
        if "shots" in task.files and data is not None and data.is_dir()
        else []
    )
    return found[0] if len(found) == 1 else items


def _matching_files(task: Task, data: Path, pattern: str) -> list[Path]:
    """Return the matches of the first alternative of `pattern` that has any.

    The folder itself comes before its subfolder named after the task.
    """
    matches = (
        sorted(folder.glob(alternative))
        for folder in (data, data / task.name)
        for alternative in pattern.split("|")
    )
    return next(filter(None, matches), [])


def read_items(task: Task, path: Path | None, limit: int | None = None) -> list[Item]:
    """Return the first `limit` items of a data file, or generated items if `path` is None.

    Raises InputError with file and item if an item is broken or there are none.
    """
    rows = (
        generate_rows(task.generated, GENERATED_SEED)
        if path is None
        else READERS[task.reader](path)
    )
    items: list[Item] = []
    for row in rows:
        if len(items) == limit:
            break
        if all(row.get(field) == value for field, value in task.where.items()):
            items.append(make_item(task, row, path))
    if not items:
        condition = f" with {task.where}" if task.where else ""
        raise InputError(
            "contains no items",
            where=path,
            hint=f"{task.name} expects the format {task.reader!r}{condition}",
        )
    return items


def fingerprint(task: Task, path: Path | None) -> str:
    """Return the SHA-256 of a task's data: of a file, the files of a folder, or generated rows."""
    if path is None:
        rows = json.dumps(list(generate_rows(task.generated, GENERATED_SEED)), ensure_ascii=False)
        return hashlib.sha256(rows.encode()).hexdigest()
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(
        "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files).encode()
    ).hexdigest()


def make_item(task: Task, row: Row, path: Path | None) -> Item:
    """Return a row as an item in the form of the task.

    Raises InputError if a field is missing, or if there is no choice or no correct one.
    """
    fields = _Fields(row, where=f"{path or 'generated'}: item {row['id']}")
    common: dict[str, Any] = {
        "id": str(row["id"]),
        "prompt": fields.fill(task.prompt),
        "unconditional": task.unconditional,
        "group": str(fields[task.group]) if task.group else "",
        "shot": fields.fill(task.shot),
    }
    if task.kind == "choice":
        listed = task.choices if isinstance(task.choices, list) else fields.texts(task.choices)
        choices = tuple(
            _Fields({**row, "choice": choice}, where=fields.where).fill(task.choice)
            for choice in listed
        )
        return Item(
            **common,
            choices=choices,
            answers=tuple(listed),
            gold=fields.gold(task.gold, len(choices)),
        )
    if task.kind == "partial":
        contexts = tuple(fields.texts(task.contexts))
        return Item(
            **common,
            contexts=contexts,
            target=fields.fill(task.target),
            gold=fields.gold(task.gold, len(contexts)),
        )
    if task.kind == "freeform":
        return Item(**common, answers=tuple(fields.texts(task.answers)))
    if task.target or task.kind == "text":
        return Item(**common, target=fields.fill(task.target))
    context, space, word = common.pop("prompt").rpartition(" ")
    if not context.strip() or not word.strip():
        raise InputError("has no last word to predict", where=fields.where)
    return Item(**common, prompt=context, target=space + word)


@dataclass(frozen=True, slots=True)
class _Fields:
    """Fields of a row, as a task names them. All methods raise InputError."""

    row: Row
    where: str

    def __getitem__(self, field: str) -> Any:
        if self.row.get(field) is None:
            raise InputError(
                f"has no field {field!r}",
                where=self.where,
                hint=f"its fields are {', '.join(self.row)}",
            )
        return self.row[field]

    def fill(self, template: str) -> str:
        """Return the template with the values of its fields."""
        values = {
            field: self[field]
            for _, field, _, _ in string.Formatter().parse(template)
            if field is not None
        }
        for field, value in values.items():
            if not isinstance(value, str | int | float):
                raise InputError(f"the field {field!r} is not text", where=self.where)
        return template.format_map(values)

    def texts(self, field: str) -> list[str]:
        """Return a field with a text or a non-empty list of texts as a list."""
        value = self[field]
        texts = [value] if isinstance(value, str) else value
        if (
            not isinstance(texts, list | tuple)
            or not texts
            or not all(isinstance(text, str) for text in texts)
        ):
            raise InputError(
                f"the field {field!r} is not a non-empty list of texts", where=self.where
            )
        return list(texts)

    def gold(self, field: str, choices: int) -> tuple[int, ...]:
        """Return the indices of the correct choices in a field."""
        value = self[field]
        gold = value if isinstance(value, list | tuple) else [value]
        if not gold:
            raise InputError("no choice is marked as correct", where=self.where)
        for index in gold:
            if not isinstance(index, int) or not 0 <= index < choices:
                raise InputError(
                    f"the correct choice is {index!r}, but there are {choices} choices",
                    where=self.where,
                )
        return tuple(int(index) for index in gold)


def format_example(task: Task, item: Item) -> str:
    """Return an item with its answer, as a few-shot example."""
    if item.shot:
        return item.shot
    if task.kind == "choice":
        return item.prompt + item.choices[item.gold[0]]
    if task.kind == "partial":
        return item.contexts[item.gold[0]] + item.target
    if task.kind == "freeform":
        return item.prompt + task.answer.format(answer=item.answers[0])
    return item.prompt + item.target
