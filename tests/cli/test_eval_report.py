"""The tables of `gpt eval`: figures with their errors, where a task's data is, and in what a task
departs from others.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from gptcli.cli.eval_report import PIPE_WIDTH, figure, print_report, print_tasks
from gptcli.evals.results import Conditions, MetricValue, TaskResult
from gptcli.evals.rolling import LossReport
from gptcli.evals.task import find_task


def test_figures() -> None:
    assert figure(45.988, 0.6942, unit="%") == "45.99% ±0.69"
    assert figure(1234.5) == "1,234.50"
    assert figure(2.5e7, 3.0e5) == "2.5e+07 ±3e+05"


def test_where_the_data_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "lambada_test.jsonl").touch()
    tasks = [find_task(name) for name in ("lambada", "piqa", "two_digit_addition")]
    print_tasks(tasks, tmp_path)
    found = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line.strip()}
    assert "lambada_test.jsonl" in found["lambada"]
    assert "not here" in found["piqa"]
    assert "generated" in found["two_digit_addition"]
    print_tasks(tasks, None)
    assert "dev.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("markdown", [False, True])
def test_the_conditions_and_the_note_stand_below(
    capsys: pytest.CaptureFixture[str], markdown: bool
) -> None:
    under = Conditions(
        shots=2, mean_shots=1.5, shots_from="train.jsonl", shots_seed=7, shared_shots=False, items=3, skipped={"an empty answer": 1},
        truncated=1, stride=None, data="dev|x.jsonl", data_sha256="0123456789abcdef", note="\nAs GPT-3;\nothers sum.",
    )  # fmt: skip
    result = TaskResult(
        task="hellaswag",
        scoring="token",
        correct=1,
        metrics={"accuracy": MetricValue(value=33.3, stderr=None)},
        conditions=under,
        paper=[],
    )
    print_report("run", [], [result], markdown=markdown)
    told = capsys.readouterr().out
    assert "hellaswag: As GPT-3; others sum." in told
    assert (
        "2 shots drawn for each item from train.jsonl, seed 7, 1.5 of them fit on average; 1 longer than the context"
        in told
    )
    assert "1 not asked: an empty answer" in told
    assert ("| hellaswag |" in told) == markdown


@pytest.mark.parametrize("terminal", [False, True])
def test_long_lines_break_between_words_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    words = ["losses"] * (2 * PIPE_WIDTH // len("losses"))
    print_report(" ".join(words), [], [], markdown=False)
    lines = capsys.readouterr().out.splitlines()
    assert (len(lines) > 1) == terminal
    assert " ".join(lines).split() == words


NAMES = [
    "[final]book.txt",
    "a[/b].txt",
    "[bold red]",
    ":smile:.txt",
    "\\[x]",
    "[link=http://x]y[/link]",
    "book.txt",
]


@pytest.mark.parametrize("name", NAMES)
def test_names_are_not_markup(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = dict.fromkeys((field.name for field in fields(LossReport)), 1.0)
    loss = LossReport(**values | {"name": name})
    print_report(f"run {name}", [loss], [], markdown=False)
    title, *table = capsys.readouterr().out.splitlines()
    assert title == f"run {name}"
    assert any(line.startswith(name) for line in table)
    task = replace(find_task("lambada"), name=name, title=name)
    print_tasks([task], Path(name))
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(name))
    assert row.rstrip().endswith(name)
