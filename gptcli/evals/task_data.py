"""A task's data: where it is, and its rows made into items by the task's templates."""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, UsageError
from gptcli.evals.formats import READERS, Row
from gptcli.evals.item import Item
from gptcli.evals.synthetic import generate
from gptcli.evals.task import Task
from gptcli.files import sha256

GENERATED_SEED = 0


def find_data(task: Task, data: Path | None) -> Path | None:
    """The file of the task's items: `data` itself, or the one file in it, or in its folder of the
    task's name, that matches.

    None where no `data` is named and the items are generated. Raises UsageError where none is named
    and they are not, InputError where there is no such file, or several.
    """
    pattern = task.files["items"]
    shown = pattern.replace("|", " or ")
    if data is None and task.generated:
        return None
    if data is None:
        raise UsageError(
            f"{task.name} needs its data",
            hint=f"{{option:data}} DIR names a folder with {shown}: {task.source}",
        )
    if data.is_file():
        return data
    if not data.is_dir():
        raise InputError("no such file or folder", where=data)
    found = _matches(task, data, pattern)
    if len(found) != 1:
        names = f"{len(found)} files match" if found else "no file matches"
        raise InputError(
            f"{names} {shown}, the data of {task.name}",
            where=data,
            hint=f"name the one with {{option:data}}: {', '.join(file.name for file in found)}"
            if found
            else f"get it from {task.source}",
        )
    return found[0]


def find_shots(task: Task, items: Path | None, data: Path | None) -> Path | None:
    """The file that solved examples are drawn from: the one that matches, or the items' own where
    the task names none or none is there.
    """
    found = (
        _matches(task, data, task.files["shots"])
        if "shots" in task.files and data is not None and data.is_dir()
        else []
    )
    return found[0] if len(found) == 1 else items


def _matches(task: Task, data: Path, pattern: str) -> list[Path]:
    """What the first alternative finds that finds anything, in the folder, or else in the one of
    the task's name below it.
    """
    tries = (
        sorted(folder.glob(one))
        for folder in (data, data / task.name)
        for one in pattern.split("|")
    )
    return next(filter(None, tries), [])


def read_items(task: Task, path: Path | None, limit: int | None = None) -> list[Item]:
    """The first `limit` items of a data file, or generated ones. Raises InputError with file and
    item where one is broken.
    """
    items: list[Item] = []
    for row in (
        generate(task.generated, GENERATED_SEED) if path is None else READERS[task.reader](path)
    ):
        if len(items) == limit:
            break
        if all(row.get(field) == value for field, value in task.where.items()):
            items.append(make_item(task, row, path))
    if not items:
        raise InputError(
            "holds no items",
            where=path,
            hint=f"{task.name} reads {task.reader} here"
            + (f" where {task.where}" if task.where else ""),
        )
    return items


def fingerprint(task: Task, path: Path | None) -> str:
    """The SHA-256 of what items are read from: a file, the files of a folder, or the generated
    rows.
    """
    if path is None:
        rows = json.dumps(list(generate(task.generated, GENERATED_SEED)), ensure_ascii=False)
        return hashlib.sha256(rows.encode()).hexdigest()
    if path.is_file():
        return sha256(path)
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(
        "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files).encode()
    ).hexdigest()


def make_item(task: Task, row: Row, path: Path | None) -> Item:
    """A row as the task shapes it. Raises InputError where a field is missing, or there is no
    choice or no right one.
    """
    read = _Fields(row, where=f"{path or 'generated'}: item {row['id']}")
    common: dict[str, Any] = {
        "id": str(row["id"]),
        "prompt": read.fill(task.prompt),
        "unconditional": task.unconditional,
        "group": str(read[task.group]) if task.group else "",
        "shot": read.fill(task.shot),
    }
    if task.kind == "choice":
        listed = task.choices if isinstance(task.choices, list) else read.texts(task.choices)
        choices = tuple(
            _Fields({**row, "choice": choice}, where=read.where).fill(task.choice)
            for choice in listed
        )
        return Item(
            **common,
            choices=choices,
            answers=tuple(listed),
            gold=read.gold(task.gold, len(choices)),
        )
    if task.kind == "partial":
        contexts = tuple(read.texts(task.contexts))
        return Item(
            **common,
            contexts=contexts,
            target=read.fill(task.target),
            gold=read.gold(task.gold, len(contexts)),
        )
    if task.kind == "freeform":
        return Item(**common, answers=tuple(read.texts(task.answers)))
    if task.target or task.kind == "text":
        return Item(**common, target=read.fill(task.target))
    context, space, word = common.pop("prompt").rpartition(" ")
    if not context.strip() or not word.strip():
        raise InputError("no last word to predict", where=read.where)
    return Item(**common, prompt=context, target=space + word)


@dataclass(frozen=True, slots=True)
class _Fields:
    """The fields of a row, asked for by a task. All raise InputError."""

    row: Row
    where: str

    def __getitem__(self, field: str) -> Any:
        if self.row.get(field) is None:
            raise InputError(
                f"has no field {field!r}", where=self.where, hint=f"it has {', '.join(self.row)}"
            )
        return self.row[field]

    def fill(self, template: str) -> str:
        values = {
            field: self[field]
            for _, field, _, _ in string.Formatter().parse(template)
            if field is not None
        }
        for field, value in values.items():
            if not isinstance(value, str | int | float):
                raise InputError(f"the field {field!r} is not a text", where=self.where)
        return template.format_map(values)

    def texts(self, field: str) -> list[str]:
        value = self[field]
        texts = [value] if isinstance(value, str) else value
        if (
            not isinstance(texts, list | tuple)
            or not texts
            or not all(isinstance(text, str) for text in texts)
        ):
            raise InputError(
                f"the field {field!r} is not a list of texts with something in it", where=self.where
            )
        return list(texts)

    def gold(self, field: str, choices: int) -> tuple[int, ...]:
        value = self[field]
        gold = value if isinstance(value, list | tuple) else [value]
        if not gold:
            raise InputError("there is no right choice", where=self.where)
        for one in gold:
            if not isinstance(one, int) or not 0 <= one < choices:
                raise InputError(
                    f"the right choice is {one!r}, and there are {choices} choices",
                    where=self.where,
                )
        return tuple(int(one) for one in gold)


def solved(task: Task, item: Item) -> str:
    """An item with its answer, as it stands before a question."""
    if item.shot:
        return item.shot
    if task.kind == "choice":
        return item.prompt + item.choices[item.gold[0]]
    if task.kind == "partial":
        return item.contexts[item.gold[0]] + item.target
    if task.kind == "freeform":
        return item.prompt + task.answer.format(answer=item.answers[0])
    return item.prompt + item.target
