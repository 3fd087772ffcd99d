"""Records on disk: cut off anywhere, of several processes, of other work, claimed or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.errors import GptError, InputError, UsageError
from gptcli.evals.records import Records, claim_records, weights_sha256, whole_lines
from gptcli.files import PARTIAL
from gptcli.model.source import ModelSource


def test_what_is_added_is_there_for_the_next(tmp_path: Path) -> None:
    records = Records(tmp_path / "records", "t", {"seed": 1})
    records.add([{"index": 4, "text": "é\u2028"}])
    again = Records(tmp_path / "records", "t", {"seed": 1})
    assert again.done == {4: {"index": 4, "text": "é\u2028"}}
    with open(tmp_path / "records" / "t.jsonl", "a") as file:
        file.write('{"index": 5')  # killed in the middle of a line
    assert Records(tmp_path / "records", "t", {"seed": 1}).done.keys() == {4}
    assert len(whole_lines(tmp_path / "records" / "t.jsonl")) == 2


def test_an_id_that_is_no_unicode(tmp_path: Path) -> None:
    Records(tmp_path, "t", {}).add([{"index": 0, "id": "\ud800"}])
    assert Records(tmp_path, "t", {}).finish() == [{"index": 0, "id": "\ud800"}]


def test_several_processes_end_in_one_file(tmp_path: Path) -> None:
    parts = [Records(tmp_path, "t", {}, rank) for rank in range(3)]
    for rank, part in enumerate(parts):
        part.add([{"index": number} for number in range(8, -1, -1) if number % 3 == rank])
    assert Records(tmp_path, "t", {}).done.keys() == set(range(9))  # one alone could go on
    every = [record for part in parts for record in part.done.values()]
    assert [record["index"] for record in parts[1].finish(every)] == list(range(9))
    assert len(list(tmp_path.iterdir())) == 3
    parts[0].finish(every)
    [path] = tmp_path.iterdir()
    assert [json.loads(line)["index"] for line in whole_lines(path)[1:]] == list(range(9))


def test_other_work_is_refused_and_named(tmp_path: Path) -> None:
    Records(tmp_path, "t", {"seed": 1, "limit": None})
    with pytest.raises(UsageError, match=r"(?s)force starts over; different: seed$"):
        Records(tmp_path, "t", {"seed": 2, "limit": None})
    Records(tmp_path, "t.1", {"seed": 2})  # another task, whatever its name
    Records(tmp_path, "t", {"seed": 1, "limit": None})


@pytest.mark.parametrize(
    ("line", "where"), [("[]", ":2"), ("{}", ":2"), ('{"index": "1"}', ":2"), ("{", ":2")]
)
def test_lines_that_are_no_records(tmp_path: Path, line: str, where: str) -> None:
    Records(tmp_path, "t", {}).add([{"index": 0}])
    path = tmp_path / "t.jsonl"
    path.write_text(path.read_text().replace('{"index": 0}', line))
    with pytest.raises(InputError) as caught:
        Records(tmp_path, "t", {})
    assert str(caught.value.where) == f"{path}{where}"


@pytest.mark.parametrize(
    ("first", "what"),
    [
        ("[]", "does not begin as records do"),
        ("x", "not valid JSON"),
        ("[" * 100_000, "not readable JSON"),
    ],
)
def test_a_first_line_that_is_no_header(tmp_path: Path, first: str, what: str) -> None:
    (tmp_path / "t.jsonl").write_text(f"{first}\n")
    with pytest.raises(GptError, match=what):
        Records(tmp_path, "t", {})


def test_claims(tmp_path: Path) -> None:
    claim_records(tmp_path / "new", resume=False, force=False)
    Records(tmp_path, "t", {})
    (tmp_path / "mine.txt").touch()
    with pytest.raises(UsageError, match="resume goes on"):
        claim_records(tmp_path, resume=False, force=False)
    (tmp_path / f".t.jsonl.0123{PARTIAL}").touch()  # a kill before it had its name
    claim_records(tmp_path, resume=True, force=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.txt", "t.jsonl"]
    claim_records(tmp_path, resume=False, force=True)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(UsageError, match="not a folder"):
        claim_records(tmp_path / "mine.txt", resume=True, force=False)


def test_weights_have_a_fingerprint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    one = weights_sha256(ModelSource(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert weights_sha256(ModelSource(tmp_path)) == one
    (tmp_path / "model.safetensors").write_bytes(b"2")
    assert weights_sha256(ModelSource(tmp_path)) != one
