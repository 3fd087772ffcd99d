"""Items of a task: the rows of its data, turned into items by the task's templates."""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from gptcli.errors import InputError
from gptcli.evals.formats import READERS, Row
from gptcli.evals.formats.tables import part_files
from gptcli.evals.synthetic import generate_rows
from gptcli.evals.task import Task
from gptcli.files import sha256
from gptcli.toml_json import shown

GENERATED_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One item in the form of the task's prompt, without few-shot examples."""

    id: str
    """Id of the data set, or file:line."""
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
    accepted: tuple[str, ...] = ()
    """Multiple choice: accepted answers for metrics of text, if not the correct choices."""
    unconditional: str = ""
    """Prompt of GPT-3's unconditional normalisation, such as "Answer:" or "A:"."""
    group: str = ""
    """Name shared by items that are scored together, such as those of a MultiRC question, a ReCoRD
    passage or a CoQA story.
    """
    shot: str = ""
    """This item as a few-shot example, if that is not its prompt and correct answer."""
    key: str = field(default="", compare=False)
    """Id that no other item of the set has: where several share an id, they are numbered."""
    empty: bool = False
    """True if a choice has no text."""


def read_items(task: Task, path: Path | None, limit: int | None = None) -> list[Item]:
    """Return the first `limit` items of a data file, or generated items if `path` is None.

    Raises InputError with file and item if an item is broken or there are none.
    """
    rows = (
        generate_rows(task.generated, GENERATED_SEED)
        if path is None
        else READERS[task.reader](path)
    )
    items = list(islice(_items(task, rows, path), limit))
    if not items:
        condition = f" with {task.where}" if task.where else ""
        raise InputError(
            "contains no items",
            where=path,
            hint=f"{task.name} expects the format {task.reader!r}{condition}",
        )
    return items


def _items(task: Task, rows: Iterator[Row], path: Path | None) -> Iterator[Item]:
    seen: Counter[str] = Counter()
    for row in rows:
        if any(row.get(field) != value for field, value in task.where.items()):
            continue
        item = make_item(task, row, path)
        seen[item.id] += 1
        yield replace(item, key=item.id if seen[item.id] == 1 else f"{item.id}#{seen[item.id]}")


def fingerprint(task: Task, path: Path | None) -> str:
    """Return the SHA-256 of a task's data: of a file, the files of a folder, or generated rows."""
    if path is None:
        rows = json.dumps(list(generate_rows(task.generated, GENERATED_SEED)), ensure_ascii=False)
        return hashlib.sha256(rows.encode()).hexdigest()
    if path.is_file():
        parts = part_files(path)
        if len(parts) == 1:
            return sha256(path)
        return hashlib.sha256("".join(map(sha256, parts)).encode()).hexdigest()
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return hashlib.sha256(
        "".join(f"{file.relative_to(path)} {sha256(file)}\n" for file in files).encode()
    ).hexdigest()


def make_item(task: Task, row: Row, path: Path | None) -> Item:
    """Return a row as an item in the form of the task.

    Raises InputError if a field is missing, if there is no choice or no correct one, or if the row
    is of another task.
    """
    where = getattr(row, "where", None) or f"{path or 'generated'}: item {row['id']}"
    fields = _Fields(row, where)
    for name, pattern in task.expect.items():
        if row.get(name) is not None and not re.fullmatch(str(pattern), str(row[name])):
            raise InputError(
                f"{name} is {shown(row[name])}: this is not the data of {task.name}",
                where=where,
                hint=f"it should match {pattern}; {{option:data}} names the data: {task.source}",
            )
    common: dict[str, Any] = {
        "id": str(row["id"]),
        "prompt": fields.fill(task.prompt),
        "unconditional": task.unconditional,
        "group": str(fields[task.group]) if task.group else "",
        "shot": fields.fill(task.shot),
    }
    if task.kind == "choice":
        listed = fields.choices(task.choices)
        choices = tuple(
            _Fields({**row, "choice": choice}, where=fields.where).fill(task.choice)
            for choice in listed
        )
        gold = fields.gold(task.gold, listed, task.labels)
        if not task.group:  # in ReCoRD's, every entity of a passage may be an accepted answer
            fields.check_wrong_choice(gold, listed)
        return Item(
            **common,
            choices=choices,
            answers=tuple(listed),
            accepted=tuple(fields.texts(task.answers)) if task.answers else (),
            gold=gold,
            empty=not all(choice.strip() for choice in listed),
        )
    if task.kind == "partial":
        contexts = tuple(fields.texts(task.contexts))
        gold = fields.gold(task.gold, contexts, task.labels)
        fields.check_wrong_choice(gold, contexts)
        return Item(
            **common,
            contexts=contexts,
            target=fields.fill(task.target),
            gold=gold,
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
        """Return the value of a field, or of one inside another: "choices.text"."""
        value: Any = self.row
        for part in [field] if field in self.row else field.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if value is None:
            raise InputError(
                f"has no field {field!r}",
                where=self.where,
                hint=f"its fields are {', '.join(self.row)}",
            )
        return value

    def fill(self, template: str) -> str:
        """Return the template with the values of its fields."""
        parts = []
        for text, name, _, _ in string.Formatter().parse(template):
            parts.append(text)
            if name is None:
                continue
            value = self[name]
            if not isinstance(value, str | int | float):
                raise InputError(f"the field {name!r} is not text", where=self.where)
            parts.append(str(value))
        return "".join(parts)

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

    def choices(self, choices: str | list[str]) -> list[str]:
        """Return the choices: those in a field, or those that the task lists."""
        return (
            self.texts(choices) if isinstance(choices, str) else [self.fill(one) for one in choices]
        )

    def gold(self, field: str, choices: Sequence[str], labels: str | list[str]) -> tuple[int, ...]:
        """Return the indices of the correct choices that a field names."""
        value = self[field]
        gold = value if isinstance(value, list | tuple) else [value]
        if not gold:
            raise InputError("no choice is marked as correct", where=self.where)
        names: Sequence[object] | None = labels if isinstance(labels, list) else None
        if isinstance(labels, str) and labels:
            found = self[labels]
            names = found if isinstance(found, list | tuple) else [found]
        if names is not None and len(names) != len(choices):
            raise InputError(
                f"{len(names)} labels for {len(choices)} choices",
                where=self.where,
                hint="'labels' has a label for each choice, in their order",
            )
        found = tuple(correct_choice(one, choices, names, self.where) for one in gold)
        if len({*found}) != len(found):
            raise InputError(
                f"{field!r} marks a choice as correct twice: {shown(gold)}",
                where=self.where,
                hint="it names the correct choices, and has no mark for each of all choices",
            )
        return found

    def check_wrong_choice(self, gold: tuple[int, ...], choices: Sequence[str]) -> None:
        """Raise InputError if every choice is correct, so that any model would be right."""
        if len(gold) == len(choices):
            listed = ", ".join(repr(one) for one in choices[:6])
            raise InputError(
                f"no choice is wrong: there are {len(choices)} ({listed}), all marked as correct"
                if len(choices) > 1
                else f"there is only one choice: {listed}",
                where=self.where,
                hint="the choices are a list of texts; the field of the correct one names it",
            )


BOOLEANS = {"yes": True, "true": True, "no": False, "false": False}


def correct_choice(
    value: Any, choices: Sequence[str], labels: Sequence[object] | None, where: str
) -> int:
    """Return the index of the choice that a gold label names.

    With `labels` it is one of them. Otherwise it is an index from 0 (2, 2.0 or "2"), a letter from
    A, the text of a choice, or true or false where the choices are yes and no, or true and false.
    Raises InputError if it names no choice, or could name either of two.
    """
    if labels is not None:
        names = [str(label).strip() for label in labels]
        if names.count(str(value).strip()) == 1:
            return names.index(str(value).strip())
        raise InputError(
            f"the correct choice is {shown(value)}, not one of {', '.join(names)}", where=where
        )
    texts = [choice.strip() for choice in choices]
    meanings: dict[str, int] = {}
    if isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in BOOLEANS):
        truth = value if isinstance(value, bool) else BOOLEANS[value.strip().lower()]
        words = [BOOLEANS.get(text.lower()) for text in texts]
        if len(words) == 2 and set(words) == {True, False}:
            meanings["true or false"] = words.index(truth)
    if isinstance(value, str):
        word = value.strip()
        if texts.count(word) == 1:
            meanings["its text"] = texts.index(word)
        if re.fullmatch(r"[0-9]+(\.0+)?", word) and float(word) < len(texts):
            meanings["its index from 0"] = int(float(word))
        if re.fullmatch("[A-Za-z]", word) and 0 <= ord(word.upper()) - ord("A") < len(texts):
            meanings["its letter"] = ord(word.upper()) - ord("A")
    elif (
        not isinstance(value, bool)
        and isinstance(value, int | float)
        and value in range(len(texts))
    ):
        meanings["its index from 0"] = int(value)
    if len(set(meanings.values())) == 1:
        return next(iter(meanings.values()))
    if meanings:
        found = ", ".join(f"choice {index} by {name}" for name, index in meanings.items())
        raise InputError(
            f"the correct choice {shown(value)} is ambiguous: {found}",
            where=where,
            hint="say what it is with 'labels', one for each choice",
        )
    listed = ", ".join(repr(text) for text in texts[:6])
    raise InputError(
        f"the correct choice is {shown(value)}, but there are {len(texts)} choices: {listed}",
        where=where,
        hint="it is an index from 0, a letter from A, or the text of a choice; for others name "
        "'labels', one for each choice",
    )


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
