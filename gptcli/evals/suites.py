"""Suites: the tasks of a paper's table, each with the paper's number of few-shot examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from gptcli.errors import InputError, UsageError, nearest
from gptcli.evals.check import EvalOptions
from gptcli.evals.core import core_tasks
from gptcli.evals.find_data import has_data
from gptcli.evals.task import Task, find_task

Suite = Literal["gpt2", "gpt3", "core"]
SUITES: tuple[Suite, ...] = get_args(Suite)
GPT2_TASKS = (  # the columns of Table 3
    "lambada", "cbt_cn", "cbt_ne", "wikitext2", "ptb", "enwik8", "text8", "wikitext103",
    "one_billion_words",
)  # fmt: skip
GPT3_TASKS = (  # the rows of Table H.1
    "hellaswag", "lambada_fill", "story_cloze", "natural_questions", "trivia_qa", "web_questions",
    "wmt16_ro_en", "wmt16_en_ro", "wmt14_fr_en", "wmt14_en_fr", "wmt16_de_en", "wmt16_en_de",
    "winograd", "winogrande", "piqa", "arc_challenge", "arc_easy", "openbookqa", "quac", "race_h",
    "race_m", "squad_v2", "coqa", "drop", "boolq", "cb", "copa", "rte", "wic", "wsc", "multirc",
    "record", "anli_r1", "anli_r2", "anli_r3", "two_digit_addition", "two_digit_subtraction",
    "three_digit_addition", "three_digit_subtraction", "four_digit_addition",
    "four_digit_subtraction", "five_digit_addition", "five_digit_subtraction",
    "two_digit_multiplication", "single_digit_three_ops", "cycle_letters_in_word",
    "mid_word_1_anagrams", "mid_word_2_anagrams", "random_insertion_in_word", "reversed_words",
    "sat_analogies",
)  # fmt: skip
ZERO_SHOT = {"lambada_fill": "lambada"}  # other forms of a task without examples
ZERO_SHOT |= {name: f"{name}_zero" for name in GPT3_TASKS if name.startswith("wmt")}


def suite_tasks(suite: Suite, *, shots: bool) -> list[Task]:
    """Return the tasks of a suite, those of GPT-3 in their form with or without examples."""
    if suite == "gpt2":
        return [find_task(name) for name in GPT2_TASKS]
    return [find_task(name if shots else ZERO_SHOT.get(name, name)) for name in GPT3_TASKS]


def downloadable_tasks(suite: Suite, *, shots: bool) -> list[Task]:
    """Return the tasks of a suite, of which some may not be on the Hub. Raises UsageError for CORE."""
    if suite == "core":
        raise UsageError(
            "DCLM's evaluation bundle is not on the hub",
            field="data",
            code="not_on_hub",
            hint="name its folder with {option:data}",
        )
    return suite_tasks(suite, shots=shots)


def check_suite(name: str) -> Suite:
    """Return the suite of this name. Raises UsageError if there is none."""
    for suite in SUITES:
        if name == suite:
            return suite
    raise UsageError(
        f"unknown suite {name!r}", field="suite", code="unknown_suite", hint=nearest(name, SUITES)
    )


def tasks_with_data(
    tasks: Sequence[Task], data: Path | None, folders: Mapping[str, Path]
) -> tuple[list[Task], list[str]]:
    """Return the tasks whose items are there or generated, and the names of the others.

    Raises InputError if none is.
    """
    found = [task for task in tasks if has_data(task, folders.get(task.name, data))]
    if not found:
        raise InputError(
            "no task of the suite has its data",
            where=data,
            hint="put the data of each into a folder named after it, {option:data} DIR/TASK/; "
            "gpt eval --list TASK says where it is from",
        )
    names = {task.name for task in found}
    return found, [task.name for task in tasks if task.name not in names]


def task_folders(tasks: Sequence[Task], data: Path | None) -> dict[str, Path]:
    """Return the subfolders of `data` that are named after tasks."""
    if data is None or not data.is_dir():
        return {}
    return {task.name: data / task.name for task in tasks if (data / task.name).is_dir()}


@dataclass(frozen=True, slots=True)
class SuitePlan:
    """Scored tasks of a suite."""

    suite: Suite
    """Suite."""
    tasks: list[Task]
    """Tasks whose data is there; none for CORE, whose tasks are in its bundle."""
    left_out: list[str]
    """Names of the other tasks."""
    options: EvalOptions
    """Options, with the folder of each task's data."""


def plan_suite(suite: Suite, data: Path | None, options: EvalOptions) -> SuitePlan:
    """Return the tasks of a suite whose data is there.

    Raises UsageError or InputError if there is none, or if an option is not possible for the suite.
    """
    if suite == "core":
        if data is None:
            raise UsageError(
                "the suite core needs DCLM's evaluation bundle",
                field="suite",
                code="suite_without_data",
                hint="name its folder with {option:data}",
            )
        if options.fewshot.shots or options.paper_shots or options.normalise is not None:
            raise UsageError(
                "CORE fixes the examples and the normalisation of its tasks",
                field="suite",
                code="core_is_fixed",
                hint="leave out {option:shots} and {option:normalise}",
            )
        core_tasks(data)
        return SuitePlan(suite, [], [], options)
    if suite == "gpt2" and (options.fewshot.shots or options.paper_shots):
        raise UsageError(
            "GPT-2's Table 3 is zero-shot",
            field="shots",
            code="shots_on_text",
            hint="leave out {option:shots}",
        )
    tasks = suite_tasks(suite, shots=bool(options.fewshot.shots or options.paper_shots))
    folders = {**task_folders(tasks, data), **options.folders}
    found, left_out = tasks_with_data(tasks, data, folders)
    return SuitePlan(suite, found, left_out, replace(options, suite=True, folders=folders))
