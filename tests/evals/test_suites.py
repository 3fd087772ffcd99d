"""Suites: their tasks exist, and what is not there is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.evals.check import EvalOptions
from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.suites import (
    GPT2_TASKS,
    GPT3_TASKS,
    check_suite,
    downloadable_tasks,
    plan_suite,
    suite_tasks,
)
from gptcli.papers.scores import GPT2_TABLE_3, GPT3_TABLE_H1


def test_the_suites_are_the_tables() -> None:
    assert [task.name for task in suite_tasks("gpt2", shots=False)] == list(GPT2_TASKS)
    published = {ref for task in suite_tasks("gpt2", shots=False) for ref in task.paper.values()}
    assert {ref.partition(".")[2] for ref in published} == {*GPT2_TABLE_3.columns}
    columns = {name.rpartition("_")[0] for name in GPT3_TABLE_H1.columns}
    for shots in (False, True):
        tasks = suite_tasks("gpt3", shots=shots)
        assert len(tasks) == len(GPT3_TASKS)
        covered = {ref.partition(".")[2] for task in tasks for ref in task.paper.values()}
        missing = columns - covered - ({"lambada", "lambada_ppl"} if not shots else set())
        assert missing == {"superglue"}  # a mean of the other tasks
    names = {task.name for task in suite_tasks("gpt3", shots=False)}
    assert {"lambada", "wmt14_en_fr_zero"} <= names


def test_the_bundle_of_core_is_not_downloaded() -> None:
    assert downloadable_tasks("gpt2", shots=False) == suite_tasks("gpt2", shots=False)
    with pytest.raises(UsageError, match="bundle is not on the hub"):
        downloadable_tasks("core", shots=False)


def test_tasks_without_data_are_named(tmp_path: Path) -> None:
    (tmp_path / "piqa").mkdir()
    (tmp_path / "piqa" / "dev.jsonl").touch()
    plan = plan_suite("gpt3", tmp_path, EvalOptions(paper_shots=True))
    names = {task.name for task in plan.tasks}
    assert "piqa" in names
    assert "two_digit_addition" in names  # generated
    assert {"hellaswag", "lambada_fill"} <= {*plan.left_out}
    assert plan.options.folders["piqa"] == tmp_path / "piqa"
    assert len(names) + len(plan.left_out) == len(GPT3_TASKS)
    with pytest.raises(InputError, match="no task of the suite has its data"):
        plan_suite("gpt2", tmp_path, EvalOptions())


@pytest.mark.parametrize(
    ("suite", "options", "what"),
    [
        ("core", EvalOptions(fewshot=FewShotConfig(shots=1)), "CORE fixes the examples"),
        ("core", EvalOptions(normalise="sum"), "CORE fixes the examples"),
        ("gpt2", EvalOptions(paper_shots=True), "zero-shot"),
    ],
)
def test_options_that_a_suite_fixes(
    tmp_path: Path, suite: str, options: EvalOptions, what: str
) -> None:
    with pytest.raises(UsageError, match=what):
        plan_suite(check_suite(suite), tmp_path, options)
    with pytest.raises(UsageError, match="did you mean gpt3"):
        check_suite("gtp3")
    with pytest.raises(UsageError, match="needs DCLM's evaluation bundle"):
        plan_suite("core", None, EvalOptions())
