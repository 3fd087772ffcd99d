"""Tasks as data: a TOML file with the task's files, prompt, scoring and published scores.

Kinds of tasks:

choice      which of several continuations of the prompt is most probable
partial     after which of several contexts the common continuation is most probable (Winograd)
last_word   whether every token of the target is the model's greedy prediction
freeform    the model generates an answer, which is compared with the accepted ones
text        the loss of running text, per unit of the original file

Texts such as `prompt` are templates: {field} inserts a field of the row, {answer.value} one inside
another, and {{ is a brace.
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gptcli.errors import InputError, UsageError, nearest
from gptcli.evals.formats import READERS
from gptcli.evals.metrics import CORPUS_METRICS, GROUP_METRICS, METRICS
from gptcli.evals.synthetic import GENERATED
from gptcli.files import read_toml
from gptcli.papers.scores import TABLES
from gptcli.schema import Readers, read_table
from gptcli.settings import Number, OneOf
from gptcli.text.detokenize import DETOKENIZERS

Kind = Literal["choice", "partial", "last_word", "freeform", "text"]
Normaliser = Literal["token", "sum", "character", "unconditional"]

TASKS_DIR = Path(__file__).parent / "tasks"
NORMALISERS: tuple[Normaliser, ...] = get_args(Normaliser)
BUILTIN_METRICS: dict[Kind, tuple[str, ...]] = {
    "choice": ("accuracy",),
    "partial": ("accuracy",),
    "last_word": ("accuracy", "perplexity"),
    "freeform": (),
    "text": ("perplexity", "bits_per_byte", "bits_per_character"),
}
"""Metrics by kind that are computed from log-likelihoods alone."""
METRICS_BY_KIND: dict[Kind, Collection[str]] = {
    **BUILTIN_METRICS,
    "choice": (*BUILTIN_METRICS["choice"], *METRICS, *GROUP_METRICS),
    "freeform": (*METRICS, *CORPUS_METRICS),
}
"""All metrics by kind, those of `gptcli.evals.metrics` included."""
REQUIRED_KEYS: dict[Kind, tuple[str, ...]] = {
    "choice": ("prompt", "choices", "gold"),
    "partial": ("contexts", "target", "gold"),
    "last_word": ("prompt",),
    "freeform": ("prompt", "answers", "metric"),
    "text": ("target",),
}
HUB_KEYS = ("dataset", "config", "items", "shots")
SHOT_SUFFIXES = ("", "_zero", "_one", "_few")  # of the columns of published scores
READERS_BY_KEY: Readers = {
    "reader": OneOf(tuple(READERS)),
    "generated": OneOf(tuple(GENERATED)),
    "detokenize": OneOf(tuple(DETOKENIZERS)),
    **{key: Number(1, 10**9, whole=True) for key in ("beam", "max_tokens")},
    **{key: Number(0, 10**9, whole=True) for key in ("shots", "top_k", "sentences", "count")},
}
"""Reader of a value of a task file, by its key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Definition of a task; the fields, except for `name`, are the keys of its TOML file."""

    name: str
    """Name, the one of the file."""
    title: str
    """Description in one line."""
    source: str
    """Origin of the data."""
    files: dict[str, str]
    """Patterns of the files of `items` and, optionally, `shots`, few-shot examples; without the
    latter, examples are drawn from the items. Of alternatives, "dev.jsonl|val.jsonl", the first
    that exists is used.
    """
    reader: str
    """Format of the files, one of `gptcli.evals.formats.READERS`."""
    kind: Kind
    """Kind of task."""
    generated: str = ""
    """Synthetic task that generates the items if no data is given."""
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Values that fields of a row must have for the row to be an item."""
    expect: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Patterns that fields of a row must match if it has them; others are data of another task."""
    instruction: str = ""
    """Text in front of all few-shot examples and the item."""
    prompt: str = ""
    """Template of the prompt, such as "Question: {question}\\nAnswer:"."""
    choices: str | list[str] = ""
    """Field with a list of choices, or the list itself, such as ["yes", "no"]. A list may name the
    fields that each contain a choice: ["{A}", "{B}"].
    """
    labels: str | list[str] = ""
    """Labels of the choices that `gold` names, such as ["A", "B"], or the field with them; without
    it, `gold` is an index, a letter or the text of a choice.
    """
    choice: str = " {choice}"
    """Template of a choice after the prompt."""
    contexts: str = ""
    """Partial: field with the list of contexts."""
    target: str = ""
    """Template of the text to predict. A last_word task without it predicts the last word of its
    prompt.
    """
    gold: str = ""
    """Field with the correct choice, or a list of correct ones; see `labels`."""
    answers: str = ""
    """Field with the accepted answers, a list or a text; in multiple choice, those that metrics of
    text compare with, if they are not the correct choices.
    """
    answer: str = " {answer}"
    """Freeform: template of the first answer in a few-shot example."""
    unconditional: str = ""
    """Prompt of the "unconditional" normaliser, such as "Answer:"."""
    group: str = ""
    """Field whose value is shared by items that are scored together."""
    shot: str = ""
    """Template of a few-shot example, if it is not the prompt with the correct answer."""
    delimiter: str = "\n\n"
    """Text after each few-shot example."""
    shots: int = 0
    """Number of few-shot examples in the paper, K."""
    normalise: Normaliser = "token"
    """Normalisation of the log-likelihoods of choices: per token, none ("sum"), per character, or
    relative to the unconditional prompt.
    """
    metric: list[str] = dataclasses.field(default_factory=list)
    """Reported metrics, of METRICS_BY_KIND."""
    stop: list[str] = dataclasses.field(default_factory=lambda: ["\n"])
    """Freeform: strings that end an answer."""
    beam: int = 4
    """Freeform: beam width, 4 in GPT-3; 1 is greedy decoding."""
    top_k: int = 0
    """Freeform: sample among this many tokens instead of beam search (GPT-2's summaries: 2)."""
    sentences: int = 0
    """Freeform: number of sentences that are kept, all if 0 (GPT-2's summaries: 3)."""
    max_tokens: int = 64
    """Freeform: maximum length of an answer."""
    detokenize: str = ""
    """Text: detokenizer, one of `gptcli.text.detokenize.DETOKENIZERS`."""
    licence: str = ""
    """Licence of the data."""
    count: int = 0
    """Number of items that the paper reports on."""
    hub: dict[str, str] = dataclasses.field(default_factory=dict)
    """The data on the Hugging Face hub: `dataset`, its `config`, and the splits of `items` and
    `shots`.
    """
    note: str = ""
    """Differences from the paper or from lm-evaluation-harness."""
    paper: dict[str, str] = dataclasses.field(default_factory=dict)
    """Published scores by metric, as "table.column" of `gptcli.papers.scores`."""


def task_names() -> list[str]:
    """Return the names of the built-in tasks."""
    return sorted(path.stem for path in TASKS_DIR.glob("*.toml"))


def find_task(name: str) -> Task:
    """Return a built-in task by name, or a custom task by the path of its .toml file.

    Raises UsageError with the most similar names if there is no such task.
    """
    if name in task_names():
        return read_task(TASKS_DIR / f"{name}.toml")
    if name.endswith(".toml"):
        return read_task(Path(name))
    if Path(name).is_dir():
        raise UsageError("is a folder, not a task", where=name, hint="name a task, or none for all")
    if name == "all":
        raise UsageError(
            "no task is called all",
            hint="{option:suite} gpt2 or gpt3 takes all tasks of a paper, {option:suite} core DCLM's",
        )
    raise UsageError(
        f"unknown task {name!r}",
        hint=nearest(
            name,
            task_names(),
            beyond="for a custom task give a path that ends in .toml",
            lists="gpt eval --list",
        ),
    )


def find_tasks(names: Sequence[str], *, field: str = "task") -> list[Task]:
    """Return the tasks of these names or files.

    Raises UsageError, about the parameter `field`, if one is unknown or named twice.
    """
    tasks = [find_task(name) for name in names]
    found = [task.name for task in tasks]
    if repeated := next((name for name in found if found.count(name) > 1), None):
        raise UsageError(
            f"the task {repeated} is named twice",
            field=field,
            code="repeated_task",
            hint="name each task once",
        )
    return tasks


def read_task(path: Path) -> Task:
    """Return the task of a TOML file, named after it. Raises InputError if it is not valid."""
    table = read_toml(path)
    if "name" in table:
        raise InputError("unknown key 'name'", where=path, hint="the file's name is the task's")
    named = {"name": path.stem, **table}
    task = read_table(Task, named, path, readers=READERS_BY_KEY, may_be_empty=True)
    for key in ("title", "source"):
        if not getattr(task, key):
            raise InputError(f"{key!r} is empty", where=path)
    for key in REQUIRED_KEYS[task.kind]:
        if key not in table:
            raise InputError(
                f"has no {key!r}, which a task of kind {task.kind!r} needs", where=path
            )
    if "metric" not in table:
        task = dataclasses.replace(task, metric=list(BUILTIN_METRICS[task.kind][:2]))
    _check_files(task, path)
    if not task.metric:
        raise InputError(
            "'metric' is empty",
            where=path,
            hint=f"name at least one of {', '.join(METRICS_BY_KIND[task.kind])}",
        )
    for metric in task.metric:
        if metric not in METRICS_BY_KIND[task.kind]:
            raise InputError(
                f"unknown metric {metric!r}",
                where=path,
                hint=nearest(metric, METRICS_BY_KIND[task.kind]),
            )
    if task.hub and not {"dataset", "items"} <= task.hub.keys() <= {*HUB_KEYS}:
        raise InputError(
            f"'hub' has {', '.join(task.hub)}, not {', '.join(HUB_KEYS)}",
            where=path,
            hint="dataset and items are needed",
        )
    choices = task.choices if isinstance(task.choices, list) else []
    for number, choice in enumerate(choices, 1):
        template_fields(choice, f"choices, {number}", path)
    for key in ("prompt", "target", "shot", "choice", "answer"):
        fields = template_fields(getattr(task, key), key, path)
        if key == "answer" and (other := [field for field in fields if field != "answer"]):
            raise InputError(
                f"'answer' contains {{{other[0]}}}; its only field is {{answer}}", where=path
            )
    if task.normalise == "unconditional" and not task.unconditional:
        raise InputError(
            "'normalise' is unconditional, but there is no prompt 'unconditional'", where=path
        )
    for metric, reference in task.paper.items():
        _check_paper(task, metric, reference, path)
    return task


def _check_files(task: Task, path: Path) -> None:
    """Raise InputError if a pattern leaves the folder of the data, whoever wrote the task."""
    if "items" not in task.files:
        raise InputError("'files' has no 'items'", where=path)
    for key, pattern in task.files.items():
        if key not in ("items", "shots"):
            raise InputError(f"unknown key {key!r} in 'files'", where=path)
        if not pattern or any(
            one == Path() or one.is_absolute() or ".." in one.parts
            for one in map(Path, pattern.split("|"))
        ):
            raise InputError(
                f"'files': {pattern!r} is not a pattern of files in the data folder",
                where=path,
            )


def _check_paper(task: Task, metric: str, reference: Any, path: Path) -> None:
    """Raise InputError if the published score of a metric does not exist."""
    if metric not in task.metric:
        raise InputError(
            f"unknown metric {metric!r} under [paper]",
            where=path,
            hint=nearest(metric, task.metric),
        )
    columns = [f"{name}.{column}" for name, table in TABLES.items() for column in table.columns]
    if not any(f"{reference}{suffix}" in columns for suffix in SHOT_SUFFIXES):
        raise InputError(
            f"unknown published scores {reference!r}",
            where=path,
            hint=nearest(str(reference), columns),
        )


def template_fields(template: str, key: str, path: Path) -> list[str]:
    """Return the fields that a template names.

    Raises InputError if it contains a replacement other than a plain {field}.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"{key!r}: {error}", where=path, hint="{field} inserts a field, {{ is a brace"
        ) from None
    for _, field, form, conversion in parts:
        if field is not None and (
            not all(part.isidentifier() and not part.startswith("_") for part in field.split("."))
            or form
            or conversion
        ):
            raise InputError(
                f"{key!r}: {{{field}}} is not a plain field",
                where=path,
                hint="{field} inserts a field, {{ is a brace",
            )
    return [field for _, field, _, _ in parts if field is not None]
