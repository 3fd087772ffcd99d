"""A task as data: a TOML file that says which file it reads, how an item is scored, and what the paper scored.

title    one line for people
source   where the data is from
file     name or pattern of the data file, a JSON object a line
field    the JSON field that holds the passage
scoring  any of SCORINGS
[paper]  metric = "table.column" of gptcli.papers.scores; may be left out
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, UsageError, nearest
from gptcli.papers.scores import TABLES
from gptcli.tokenizer.tokenizer import Tokenizer

TASKS = Path(__file__).parent / "tasks"
SCORINGS = ("last_word", "last_token")
METRICS = ("accuracy", "perplexity")


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    name: str
    title: str
    source: str
    file: str
    field: str
    scoring: list[str]
    paper: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One passage: `tokens`, of which the last `count` spell `target`, the word to predict."""

    line: int
    target: str
    tokens: list[int]
    count: int


def task_names() -> list[str]:
    """The tasks that come with the program."""
    return sorted(path.stem for path in TASKS.glob("*.toml"))


def find_task(name: str) -> Task:
    """A built-in task by its name, or a user's own by the path of its .toml file. Raises UsageError with the nearest names."""
    if name in task_names():
        return read_task(TASKS / f"{name}.toml")
    if name.endswith(".toml"):
        return read_task(Path(name))
    raise UsageError(f"unknown task {name!r}", hint=f"{nearest(name, task_names())}; a task of your own is a path that ends in .toml")


def read_task(path: Path) -> Task:
    """The task in a TOML file, named after it. Raises InputError where the file is not a task."""
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError("no such task file", where=path) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"not valid TOML: {error}", where=path) from None
    kinds = {"title": str, "source": str, "file": str, "field": str, "scoring": list, "paper": dict}
    for key, value in {"paper": {}, **table}.items():
        if key not in kinds:
            raise InputError(f"unknown key {key!r}", where=path, hint=nearest(key, kinds))
        if not isinstance(value, kinds[key]) or not (value or key == "paper"):
            raise InputError(f"{key!r} is not a {kinds[key].__name__} with something in it", where=path)
    if missing := [key for key in kinds if key not in table and key != "paper"]:
        raise InputError(f"has no {missing[0]!r}", where=path)
    for scoring in table["scoring"]:
        if scoring not in SCORINGS:
            raise InputError(f"unknown scoring {scoring!r}", where=path, hint=nearest(str(scoring), SCORINGS))
    for metric, reference in table.get("paper", {}).items():
        _check_paper(metric, reference, path)
    return Task(name=path.stem, **table)


def _check_paper(metric: str, reference: Any, path: Path) -> None:
    if metric not in METRICS:
        raise InputError(f"unknown metric {metric!r} under [paper]", where=path, hint=nearest(metric, METRICS))
    columns = [f"{name}.{column}" for name, table in TABLES.items() for column in table.columns]
    if reference not in columns:
        raise InputError(f"no published scores {reference!r}", where=path, hint=nearest(str(reference), columns))


def find_data(task: Task, data: Path | None) -> Path:
    """The task's data file: `data` itself, or the one file in it, or in its folder of the task's name, that `task.file` matches.

    Raises UsageError where `data` is None, InputError where there is no such file, or several.
    """
    if data is None:
        raise UsageError(f"{task.name} needs its data", hint=f"--data DIR names a folder with {task.file}: {task.source}")
    if data.is_file():
        return data
    if not data.is_dir():
        raise InputError("no such file or folder", where=data)
    found = sorted(data.glob(task.file)) or sorted((data / task.name).glob(task.file))
    if len(found) != 1:
        names = f"{len(found)} files match" if found else "no file matches"
        raise InputError(
            f"{names} {task.file}, the data of {task.name}",
            where=data,
            hint=f"name the one with --data: {', '.join(file.name for file in found)}" if found else f"get it from {task.source}",
        )
    return found[0]


def read_items(task: Task, path: Path, tokenizer: Tokenizer, limit: int | None = None) -> list[Item]:
    """The first `limit` items of a data file as tokens. Raises InputError with file and line where one is broken."""
    passages: list[tuple[int, str, str]] = []
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if len(passages) == limit:
                break
            if line.strip():
                passages.append((number, *_split(task, line, where=f"{path}:{number}")))
    if not passages:
        raise InputError("holds no items", where=path)
    contexts = tokenizer.encode_batch([context for _, context, _ in passages])
    targets = tokenizer.encode_batch([target for _, _, target in passages])
    return [
        Item(line=number, target=word, tokens=context + target, count=len(target))
        for (number, _, word), context, target in zip(passages, contexts, targets, strict=True)
    ]


def _split(task: Task, line: bytes, where: str) -> tuple[str, str]:
    """A line of the data as the passage and its last word, which begins with the last space."""
    try:
        row = json.loads(line)
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}", where=where) from None
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", where=where) from None
    text = row.get(task.field) if isinstance(row, dict) else None
    if not isinstance(text, str):
        raise InputError(f"no text under {task.field!r}", where=where, hint=f"{task.name} reads JSON lines with this field")
    context, space, word = text.rpartition(" ")
    if not context.strip() or not word.strip():
        raise InputError("no last word to predict", where=where)
    return context, space + word
