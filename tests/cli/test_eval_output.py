"""Tests of the output of `gpt eval`: readable at 80 columns."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.cli.eval_output import (
    print_comparison,
    print_items,
    print_report,
    print_task_details,
    print_tasks,
)
from gptcli.errors import InputError
from gptcli.evals.compare import compare_scores
from gptcli.evals.results import Conditions, MetricValue, PaperScore, TaskResult
from gptcli.evals.task import find_task, task_names


def result(task: str, scoring: str, metrics: dict[str, float]) -> TaskResult:
    conditions = Conditions(
        shots=32, mean_shots=30.5, shots_from="train.jsonl", shots_seed=0, shared_shots=False,
        items=10_042, skipped={}, truncated=0, stride=None, data="d", data_sha256="0", note="",
        own_shots=True,
    )  # fmt: skip
    return TaskResult(
        task=task,
        scoring=scoring,
        correct=None,
        metrics={name: MetricValue(value=value, stderr=0.69) for name, value in metrics.items()},
        conditions=conditions,
        paper=[PaperScore(metric=name, score=45.99, model="gpt2", source="s") for name in metrics],
    )


@pytest.mark.parametrize("columns", [80, 120])
def test_tasks_with_different_metrics_fit_into_one_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("gptcli.cli.eval_output.PIPE_WIDTH", columns)
    results = [
        result("hellaswag", "token", {"accuracy": 45.99}),
        result("lambada", "last_token_filtered", {"accuracy": 45.99, "perplexity": 35.13}),
        result("squad_v2", "beam 4", {"f1": 59.5, "exact_match": 52.6}),
        result("enwik8", "bytes", {"bits_per_byte": 1.16}),
    ]
    print_report("run", [], results, markdown=False)
    lines = capsys.readouterr().out.splitlines()
    table = lines[1 : next(n for n, line in enumerate(lines) if line.startswith("* "))]
    assert max(map(len, table)) <= columns
    shown = {tuple(line.split()) for line in table}
    assert any(
        {"hellaswag", "token", "30.5/32*", "10,042", "accuracy"} <= {*line} for line in shown
    )
    assert any({"squad_v2", "beam", "4", "exact", "52.60%", "±0.69"} <= {*line} for line in shown)
    assert any({"enwik8", "bytes", "1.16", "±0.69"} <= {*line} for line in shown)
    assert "…" not in "".join(table)


def test_words_of_a_table_are_whole_at_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.cli.eval_output.PIPE_WIDTH", 80)
    results = [
        result("arc_easy", "unconditional", {"accuracy": 45.99}),
        result("lambada", "last_word", {"perplexity": 35.13}),
    ]
    print_report("run", [], results, markdown=False)
    told = capsys.readouterr().out
    table = told[: told.index("* The")]
    assert all(len(line.rstrip()) <= 80 for line in table.splitlines())
    assert {"unconditional", "perplexity", "accuracy", "last"} <= {*table.split()}


def test_a_number_is_whole_on_a_screen_too_narrow_for_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gptcli.cli.eval_output.PIPE_WIDTH", 60)
    results = [
        result("hellaswag", "token", {"accuracy": 45.99}),
        result("lambada", "last_token_filtered", {"perplexity": 35.13}),
    ]
    print_report("run", [], results, markdown=False)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert lines.count("items: 10,042") == 2
    assert {"hellaswag", "score: 45.99% ±0.69", "score: 35.13 ±0.69"} <= {*lines}


def test_a_comparison_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    a = np.array([0.0, 1.0] * 50)
    found = compare_scores(a, np.ones(100), task="quiz")
    print_comparison([found], ["a", "b"], markdown=False)
    told = capsys.readouterr().out
    assert "first: a; second: b" in told
    assert {"50.00%", "100.00%", "+50.00"} <= {*told.split()}
    assert "second is better" in told


@pytest.mark.parametrize("name", task_names())
def test_every_task_says_where_its_data_is_from(
    capsys: pytest.CaptureFixture[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    print_task_details([(find_task(name), Path("data"))])
    told = capsys.readouterr().out
    for word in ("kind", "source", "licence", "items", "files", "hub", "folder", "here"):
        assert f"\n  {word:<9} " in told
    assert f"data/{name}/" in told
    assert "not stated" not in told


def test_the_list_of_tasks_says_which_have_data_in_80_columns(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "hellaswag").mkdir()
    (tmp_path / "hellaswag" / "hellaswag_val.jsonl").touch()
    tasks = [find_task(name) for name in task_names()]
    for data, hellaswag, lambada in ((tmp_path, "here", "not here"), (None, "", "")):
        print_tasks([(task, data) for task in tasks])
        lines = capsys.readouterr().out.splitlines()
        assert all(len(line) <= 80 and line == line.rstrip() for line in lines)
        begin = lines[0].index("data")
        told = {
            line.split()[0]: line[begin : begin + 9].strip() for line in lines if line[0] != " "
        }
        assert {*told} > {task.name for task in tasks}
        assert (told["hellaswag"], told["lambada"]) == (hellaswag, lambada)
        assert told["reversed_words"] == "generated"


def test_details_say_why_there_is_no_data(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    task = find_task("hellaswag")
    for data, says in ((None, "unknown"), (tmp_path, "no: no file matches hellaswag_val*")):
        print_task_details([(task, data)])
        assert f"\n  here      {says}" in capsys.readouterr().out
    for name in ("hellaswag_val.jsonl", "hellaswag_val.txt"):
        (tmp_path / name).touch()
    print_task_details([(task, tmp_path)])
    assert "\n  here      no: 2 files match" in capsys.readouterr().out
    with pytest.raises(InputError, match="no such file or folder"):
        print_task_details([(task, tmp_path / "gone")])
    assert capsys.readouterr().out == ""


def test_items_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    item = {
        "task": "t",
        "index": 3,
        "id": "x",
        "shots": 0,
        "truncated": False,
        "gold": [1],
        "contexts": ["Q:\n"],
        "context_tokens": [[1, 2]],
        "continuations": [" a", " b"],
        "continuation_tokens": [[3], [4]],
    }
    print_items([item])
    assert capsys.readouterr().out == (
        "--- t, item 3 (x), 0 shots\n[context, 2 tokens: 1 2]\nQ:\n\n [0: 3] ' a'\n*[1: 4] ' b'\n"
    )
