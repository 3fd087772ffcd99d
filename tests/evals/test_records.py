"""Records: their contents, interrupted writes, several processes, other evaluations, claims."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import GptError, InputError, UsageError
from gptcli.evals.records import (
    Records,
    claim_records,
    completion_record,
    predict,
    weights_sha256,
)
from gptcli.evals.requests import Request
from gptcli.evals.task import Normaliser, find_task
from gptcli.evals.task_data import Item
from gptcli.files import PARTIAL, complete_lines
from gptcli.model.source import ModelSource
from gptcli.sampling.generate import Completion


def test_added_records_are_read_again(tmp_path: Path) -> None:
    records = Records(tmp_path / "records", "t", {"seed": 1})
    records.add([{"index": 4, "text": "é\u2028"}])
    again = Records(tmp_path / "records", "t", {"seed": 1})
    assert again.done == {4: {"index": 4, "text": "é\u2028"}}
    with open(tmp_path / "records" / "t.jsonl", "a") as file:
        file.write('{"index": 5')  # an interrupted write
    assert Records(tmp_path / "records", "t", {"seed": 1}).done.keys() == {4}
    assert len(complete_lines(tmp_path / "records" / "t.jsonl")) == 2


def test_an_id_with_a_lone_surrogate_is_kept(tmp_path: Path) -> None:
    Records(tmp_path, "t", {}).add([{"index": 0, "id": "\ud800"}])
    assert Records(tmp_path, "t", {}).finish() == [{"index": 0, "id": "\ud800"}]


def test_records_of_several_processes_end_in_one_file(tmp_path: Path) -> None:
    parts = [Records(tmp_path, "t", {}, rank) for rank in range(3)]
    for rank, part in enumerate(parts):
        part.add([{"index": number} for number in range(8, -1, -1) if number % 3 == rank])
    assert Records(tmp_path, "t", {}).done.keys() == set(
        range(9)
    )  # a single process could continue
    every = [record for part in parts for record in part.done.values()]
    assert [record["index"] for record in parts[1].finish(every)] == list(range(9))
    assert len(list(tmp_path.iterdir())) == 3
    parts[0].finish(every)
    [path] = tmp_path.iterdir()
    assert [json.loads(line)["index"] for line in complete_lines(path)[1:]] == list(range(9))


def test_records_of_another_evaluation_are_refused_with_the_difference(tmp_path: Path) -> None:
    Records(tmp_path, "t", {"seed": 1, "limit": None})
    with pytest.raises(UsageError, match=r"(?s)use force=True to start over; different: seed$"):
        Records(tmp_path, "t", {"seed": 2, "limit": None})
    Records(tmp_path, "t.1", {"seed": 2})  # another task with a similar name
    Records(tmp_path, "t", {"seed": 1, "limit": None})


@pytest.mark.parametrize(
    ("line", "where"), [("[]", ":2"), ("{}", ":2"), ('{"index": "1"}', ":2"), ("{", ":2")]
)
def test_a_line_that_is_not_a_record_is_refused_with_its_number(
    tmp_path: Path, line: str, where: str
) -> None:
    Records(tmp_path, "t", {}).add([{"index": 0}])
    path = tmp_path / "t.jsonl"
    path.write_text(path.read_text().replace('{"index": 0}', line))
    with pytest.raises(InputError) as caught:
        Records(tmp_path, "t", {})
    assert str(caught.value.where) == f"{path}{where}"


@pytest.mark.parametrize(
    ("first", "what"),
    [
        ("[]", "not the header of an evaluation"),
        ("x", "not valid JSON"),
        ("[" * 100_000, "not readable JSON"),
    ],
)
def test_a_first_line_that_is_not_a_header_is_refused(
    tmp_path: Path, first: str, what: str
) -> None:
    (tmp_path / "t.jsonl").write_text(f"{first}\n")
    with pytest.raises(GptError, match=what):
        Records(tmp_path, "t", {})


def test_existing_records_need_resume_or_force(tmp_path: Path) -> None:
    claim_records(tmp_path / "new", resume=False, force=False)
    Records(tmp_path, "t", {})
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="resume=True to continue"):
        claim_records(tmp_path, resume=False, force=False)
    (tmp_path / f".t.jsonl.0123{PARTIAL}").touch()  # an interrupted atomic write
    claim_records(tmp_path, resume=True, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "t.jsonl"]
    claim_records(tmp_path, resume=False, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="not a folder"):
        claim_records(tmp_path / "mine.txt", resume=True, force=False)


def test_weights_sha256_depends_on_the_weight_files_only(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    one = weights_sha256(ModelSource(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert weights_sha256(ModelSource(tmp_path)) == one
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert weights_sha256(ModelSource(tmp_path)) != one


@pytest.mark.parametrize(
    ("rule", "taken"), [("sum", 0), ("token", 1), ("character", 2), ("unconditional", 3)]
)
def test_each_normaliser_predicts_a_different_choice(rule: Normaliser, taken: int) -> None:
    record = {
        "log_probs": [-2.0, -3.0, -4.0, -5.0],
        "tokens": [1, 4, 2, 1],  # -2, -0.75, -2, -5
        "characters": [2, 4, 40, 1],  # -1, -0.75, -0.1, -5
        "unconditional": [-1.0, -2.0, -3.0, -9.0],  # -1, -1, -1, +4
    }
    assert predict(record, rule) == taken


def test_ties_go_to_the_first_choice_even_if_choices_are_empty() -> None:
    record = {"log_probs": [-2.0, -2.0], "tokens": [1, 1], "characters": [0, 0]}
    assert [predict(record, rule) for rule in ("sum", "token", "character")] == [0, 0, 0]


def test_completion_record_contains_metrics_and_log_probability() -> None:
    question = Request(
        7,
        Item(id="x", prompt="p", answers=("the cat", "a dog")),
        [(np.array([1]), np.array([]))],
        [],
        2,
        False,
        9,
    )
    made = Completion(" Cat! It sat. It ran. ", [1, 2], [-0.5, -0.25], "stop", 0.0)
    task = find_task("squad_v2")
    record = completion_record(replace(task, sentences=1), question, made)
    assert (record["index"], record["shots"], record["prediction"], record["log_prob"]) == (
        7,
        2,
        "Cat!",
        -0.75,
    )
    assert (record["f1"], record["exact_match"]) == (1.0, 1.0)
    assert completion_record(task, question, made)["exact_match"] == 0.0
