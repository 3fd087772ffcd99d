"""The record of a run is what its folder contains, and other folders are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.errors import InputError
from gptcli.runs.record import distinct_names, figures, read_record
from tests.runs.example_run import EVALUATION, RUN_TOML, lines


def test_runs_with_the_same_folder_name_are_named_by_their_paths():
    assert distinct_names([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert distinct_names([Path("x/1/run"), Path("x/2/run")]) == ["1/run", "2/run"]


def test_a_record_has_only_the_evaluations_of_its_own_model(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(RUN_TOML)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(2)))
    for path, report in (
        # in the folder: its own in any case
        (folder / "eval.json", {**EVALUATION, "model": "/some/other/name"}),
        (tmp_path / "eval-run.json", EVALUATION),
        (tmp_path / "eval-other.json", {**EVALUATION, "model": "runs/other"}),
        (tmp_path / "my-eval.json", {"schema": "else"}),
        (tmp_path / "eval-list.json", [1]),
        (folder / "eval-odd.json", {**EVALUATION, "losses": [{"name": "x", "tokens": "many"}]}),
        (
            folder / "eval-word.json",
            {**EVALUATION, "losses": [{"name": "x", "tokens": 1, "loss": "low"}]},
        ),
        (folder / "eval-text.json", {**EVALUATION, "tasks": "none"}),
    ):
        path.write_text(json.dumps(report))
    (tmp_path / "eval-broken.json").write_text("{")
    # a byte order mark, as some editors write
    (folder / "run.toml").write_bytes(b"\xef\xbb\xbf" + (folder / "run.toml").read_bytes())
    found = read_record(folder)
    assert len(found.lines) == 2
    assert [one["model"] for one in found.evaluations] == ["/some/other/name", "elsewhere/run"]
    assert len(figures(found.evaluations)) == 8


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no such run"),
        ({"run.toml": "= 1"}, "cannot be read as a run"),
        ({"run.toml": "a = 1"}, "has no steps"),
        ({"run.toml": "a = 1", "metrics.jsonl": "{\n"}, "has no steps"),
        (
            {"run.toml": "a = 1", "metrics.jsonl": '{"step": 1}\n'},
            "metrics.jsonl:1: not the metrics of a step",
        ),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused_with_the_reason(tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_record(tmp_path)
