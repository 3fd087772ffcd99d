"""A task as data: a TOML file that says which files it reads, what a question looks like, how it is
scored, and what the paper scored.

title          one line for people
source         where the data is from
files          {items = "pattern", shots = "pattern"}: the questions, and what solved examples are drawn from; without `shots`, the
               examples are drawn from the questions' own file. Of alternatives,
               "dev.jsonl|val.jsonl", the first that is there counts
reader         the format of these files, of gptcli.evals.formats
generated      of gptcli.evals.synthetic: what is asked where no data is named
where          {field = value}: only rows with these values are questions
kind           choice      which of several continuations of the prompt is the likeliest
               partial     after which of several contexts the common continuation is the likeliest (Winograd)
               last_word   whether the model foretells the target, every token of it
               freeform    the model writes; what it wrote is held against the accepted answers
               text        the loss of running text, for each unit of the original
instruction    what stands once before all solved examples and the question
prompt         "Question: {question}\\nAnswer:"; {field} names a field of the row, {{ is a brace, and there is nothing else
choices        a field that holds a list of texts, or the list itself: ["yes", "no"]
choice         how a choice follows the prompt; " {choice}" where not said
contexts       partial: the field that holds the list of contexts
target         last_word and partial: what follows, as a template; a last_word without it takes the last word of its prompt; text: the text
gold           the field that holds the index of the right choice, or a list of them
answers        freeform: the field that holds the accepted answers, a list or one text
answer         how a shot shows the first of them; " {answer}" where not said
unconditional  the prompt of the "unconditional" normaliser: "Answer:"
group          the field whose value items scored together share
shot           how a solved example reads, where that is not the prompt and the right answer
delimiter      between solved examples, and before the question; "\\n\\n" where not said
shots          the paper's K for few-shot
normalise      token, sum, character or unconditional: what the likelihoods of choices are compared by; "token" where not said
metric         what is reported: see METRICS_OF
stop           freeform: where an answer ends: ["\\n"]
beam           freeform: width of the search; 4 where not said, as GPT-3; 1 is greedy
sentences      freeform: only so many of the first sentences count (GPT-2's summaries: 3)
top_k          freeform: draw among so many tokens, and search no beam (GPT-2's summaries: 2)
max_tokens     freeform: the longest answer
detokenize     text: of gptcli.text.detokenize
note           where this departs from the paper, or from lm-evaluation-harness
[paper]        metric = "table.column" of gptcli.papers.scores; may be left out
"""

from __future__ import annotations

import dataclasses
import string
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, UsageError, nearest
from gptcli.evals.formats import READERS
from gptcli.evals.metrics import CORPUS_METRICS, GROUP_METRICS, METRICS
from gptcli.evals.synthetic import GENERATED
from gptcli.files import read_toml
from gptcli.papers.scores import TABLES
from gptcli.text.detokenize import DETOKENIZERS

TASKS_DIR = Path(__file__).parent / "tasks"
NORMALISERS = ("token", "sum", "character", "unconditional")
# by kind, what the engine itself measures; those of gptcli.evals.metrics come on top
BUILTIN_METRICS = {
    "choice": ("accuracy",),
    "partial": ("accuracy",),
    "last_word": ("accuracy", "perplexity"),
    "freeform": (),
    "text": ("perplexity", "bits_per_byte", "bits_per_character"),
}
METRICS_BY_KIND: dict[str, Collection[str]] = {
    **BUILTIN_METRICS,
    "choice": (*BUILTIN_METRICS["choice"], *METRICS, *GROUP_METRICS),
    "freeform": (*METRICS, *CORPUS_METRICS),
}
LEAST = {"beam": 1, "max_tokens": 1}  # of numbers that may not be 0
SETTINGS = ("", "_zero", "_one", "_few")  # of a column of published scores
NEEDS = {  # by kind, the keys without which it is not one
    "choice": ("prompt", "choices", "gold"),
    "partial": ("contexts", "target", "gold"),
    "last_word": ("prompt",),
    "freeform": ("prompt", "answers", "metric"),
    "text": ("target",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The fields are those of the TOML file, described above."""

    name: str
    title: str
    source: str
    files: dict[str, str]
    reader: str
    kind: str
    generated: str = ""
    where: dict[str, Any] = dataclasses.field(default_factory=dict)
    instruction: str = ""
    prompt: str = ""
    choices: str | list[str] = ""
    choice: str = " {choice}"
    contexts: str = ""
    target: str = ""
    gold: str = ""
    answers: str = ""
    answer: str = " {answer}"
    unconditional: str = ""
    group: str = ""
    shot: str = ""
    delimiter: str = "\n\n"
    shots: int = 0
    normalise: str = "token"
    metric: list[str] = dataclasses.field(default_factory=list)
    stop: list[str] = dataclasses.field(default_factory=lambda: ["\n"])
    beam: int = 4
    top_k: int = 0
    sentences: int = 0
    max_tokens: int = 64
    detokenize: str = ""
    note: str = ""
    paper: dict[str, str] = dataclasses.field(default_factory=dict)


def task_names() -> list[str]:
    """The tasks that come with the program."""
    return sorted(path.stem for path in TASKS_DIR.glob("*.toml"))


def find_task(name: str) -> Task:
    """A built-in task by its name, or a user's own by the path of its .toml file. Raises UsageError
    with the nearest names.
    """
    if name in task_names():
        return read_task(TASKS_DIR / f"{name}.toml")
    if name.endswith(".toml"):
        return read_task(Path(name))
    raise UsageError(
        f"unknown task {name!r}",
        hint=f"{nearest(name, task_names())}; a task of your own is a path that ends in .toml",
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
    """The task in a TOML file, named after it. Raises InputError where the file is not a task."""
    table = read_toml(path)
    _check_keys(table, path)
    task = Task(name=path.stem, **{"metric": list(BUILTIN_METRICS[table["kind"]][:2]), **table})
    _check_files(task, path)
    if not task.metric:
        raise InputError(
            "'metric' is empty",
            where=path,
            hint=f"some of: {', '.join(METRICS_BY_KIND[task.kind])}",
        )
    for metric in task.metric:
        if metric not in METRICS_BY_KIND[task.kind]:
            raise InputError(
                f"unknown metric {metric!r}",
                where=path,
                hint=nearest(metric, METRICS_BY_KIND[task.kind]),
            )
    for key in ("prompt", "target", "shot", "choice", "answer"):
        fields = template_fields(getattr(task, key), key, path)
        if key == "answer" and (other := [field for field in fields if field != "answer"]):
            raise InputError(
                f"'answer': {{{other[0]}}} is not {{answer}}, the one field that it has", where=path
            )
    if task.normalise == "unconditional" and not task.unconditional:
        raise InputError("normalises by an 'unconditional' prompt, and has none", where=path)
    for metric, reference in task.paper.items():
        _check_paper(task, metric, reference, path)
    return task


def _check_keys(table: dict[str, Any], path: Path) -> None:
    kinds: dict[str, Any] = {
        field.name: field.type for field in dataclasses.fields(Task) if field.name != "name"
    }
    types: dict[str, Any] = {
        "str": str,
        "int": int,
        "dict[str, str]": dict,
        "dict[str, Any]": dict,
        "list[str]": list,
        "str | list[str]": (str, list),
    }
    for key, value in table.items():
        if key not in kinds:
            raise InputError(f"unknown key {key!r}", where=path, hint=nearest(key, kinds))
        right = isinstance(value, types[kinds[key]]) and (
            not isinstance(value, list) or all(isinstance(one, str) for one in value)
        )
        if not right or isinstance(value, bool):
            raise InputError(f"{key!r} is not a {kinds[key]}", where=path)
        if isinstance(value, int) and value < LEAST.get(key, 0):
            raise InputError(f"{key!r} is {value}, and at least {LEAST.get(key, 0)}", where=path)
    for key in ("title", "source", "files", "reader", "kind"):
        if not table.get(key):
            raise InputError(f"has no {key!r}", where=path)
    known: dict[str, Collection[str]] = {
        "kind": BUILTIN_METRICS,
        "reader": READERS,
        "normalise": NORMALISERS,
        "generated": GENERATED,
        "detokenize": DETOKENIZERS,
    }
    for key, choices in known.items():
        if key in table and table[key] not in choices:
            raise InputError(
                f"unknown {key} {table[key]!r}", where=path, hint=nearest(table[key], choices)
            )
    for key in NEEDS[table["kind"]]:
        if key not in table:
            raise InputError(
                f"has no {key!r}, which a task of kind {table['kind']!r} needs", where=path
            )


def _check_files(task: Task, path: Path) -> None:
    """The patterns stay in the folder of the data, whoever wrote the task."""
    if "items" not in task.files:
        raise InputError("'files' names no items", where=path)
    for key, pattern in task.files.items():
        if key not in ("items", "shots"):
            raise InputError(f"unknown key {key!r} in 'files'", where=path)
        tries = [Path(one) for one in pattern.split("|")] if isinstance(pattern, str) else []
        if not tries or any(
            one == Path() or one.is_absolute() or ".." in one.parts for one in tries
        ):
            raise InputError(
                f"'files': {pattern!r} is not a pattern of names within the folder of the data",
                where=path,
            )


def _check_paper(task: Task, metric: str, reference: Any, path: Path) -> None:
    if metric not in task.metric:
        raise InputError(
            f"unknown metric {metric!r} under [paper]",
            where=path,
            hint=nearest(metric, task.metric),
        )
    columns = [f"{name}.{column}" for name, table in TABLES.items() for column in table.columns]
    if not any(f"{reference}{setting}" in columns for setting in SETTINGS):
        raise InputError(
            f"no published scores {reference!r}", where=path, hint=nearest(str(reference), columns)
        )


def template_fields(template: str, key: str, path: Path) -> list[str]:
    """The fields that a template names. Raises InputError where it holds anything but plain
    {field}.
    """
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"{key!r}: {error}", where=path, hint="{field} names a field, {{ is a brace"
        ) from None
    for _, field, form, conversion in parts:
        if field is not None and (not field.isidentifier() or form or conversion):
            raise InputError(
                f"{key!r}: {{{field}}} is not a plain field",
                where=path,
                hint="{field} names a field, {{ is a brace",
            )
    return [field for _, field, _, _ in parts if field is not None]
