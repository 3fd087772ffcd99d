"""Every task, file and option is checked before anything is scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.errors import GptError, InputError, UsageError
from gptcli.evals.check import EvalOptions, check_task
from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.task import find_task


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"text": f"the text number {n} has a last word"} for n in range(4)]
    (tmp_path / "lambada_test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "wiki.test.tokens").write_text(" = Title = \n")
    return tmp_path


@pytest.mark.parametrize(
    ("task", "options", "what"),
    [
        ("lambada", EvalOptions(normalise="sum"), "lambada has no choices to normalise"),
        ("two_digit_addition", EvalOptions(normalise="token"), "has no choices to normalise"),
        ("wikitext2", EvalOptions(fewshot=FewShotConfig(shots=1)), "has no few-shot examples"),
        ("wikitext2", EvalOptions(against=Path("x")), "has no items to search for"),
        ("lambada", EvalOptions(fewshot=FewShotConfig(shots=4)), "needs more few-shot examples"),
        ("piqa", EvalOptions(), "no file matches"),
    ],
)
def test_what_is_not_possible_is_refused(
    data: Path, task: str, options: EvalOptions, what: str
) -> None:
    with pytest.raises(GptError, match=what):
        check_task(find_task(task), data, options)


def test_the_last_row_is_read_before_the_first_is_scored(data: Path) -> None:
    with open(data / "lambada_test.jsonl", "a") as file:
        file.write("{}\n")
    with pytest.raises(InputError, match=r"lambada_test\.jsonl:5"):
        check_task(find_task("lambada"), data, EvalOptions())
    assert check_task(find_task("lambada"), data, EvalOptions(limit=4)).path is not None


def test_the_papers_number_of_examples_is_the_tasks(data: Path) -> None:
    options = EvalOptions(paper_shots=True)
    assert check_task(find_task("lambada"), data, options).fewshot.shots == 0
    assert check_task(find_task("two_digit_addition"), None, options).fewshot.shots == 50


def test_the_folder_of_one_task(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(InputError, match="no file matches"):
        check_task(find_task("lambada"), data, EvalOptions(folders={"lambada": other}))


def test_two_files_of_examples_are_refused(data: Path) -> None:
    (data / "NQ-open.dev.jsonl").write_text('{"question": "q", "answer": ["a"]}\n')
    for name in ("NQ-open.train.jsonl", "NQ-open.train.jsonl.gz"):
        (data / name).touch()
    options = EvalOptions(fewshot=FewShotConfig(shots=1))
    with pytest.raises(UsageError, match="2 files could be the few-shot examples"):
        check_task(find_task("natural_questions"), data, options)
