"""Lines, JSON and tables: whole where they are whole, and with file and line where they are not."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from gptcli.errors import InputError
from gptcli.evals.formats import READERS
from gptcli.evals.formats.files import (
    Node,
    content,
    document,
    lines,
    objects,
    read_csv,
    read_jsonl,
    read_lines,
    read_text,
)

JSONL = '{"text": "naïve"}\n\n{"id": "mine", "text": "two"}\n'


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.bz2", bz2.compress),
        ("a.jsonl.zst", zstandard.compress),
    ],
)
def test_json_lines_plain_and_compressed(tmp_path: Path, name: str, pack: object) -> None:
    (tmp_path / name).write_bytes(pack(JSONL.encode()))  # type: ignore[operator]
    assert list(read_jsonl(tmp_path / name)) == [
        {"id": f"{name}:1", "text": "naïve"},
        {"id": "mine", "text": "two"},
    ]


def test_a_table_and_lines_and_running_text(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('name,says\nAnn,"yes, ""no"""\n')
    assert list(read_csv(tmp_path / "a.csv")) == [
        {"id": "a.csv:2", "name": "Ann", "says": 'yes, "no"'}
    ]
    (tmp_path / "a.tsv").write_text("name\tsays\nAnn\tyes, no\n")
    assert [row["says"] for row in read_csv(tmp_path / "a.tsv")] == ["yes, no"]
    (tmp_path / "a.txt").write_bytes(b" one \r\n\n two\n")
    assert [row["text"] for row in read_lines(tmp_path / "a.txt")] == [" one ", " two"]
    assert [row["text"] for row in read_text(tmp_path / "a.txt")] == [" one \r\n\n two\n"]


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ":2", "not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', ":2", "not a JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2", "not valid UTF-8 at byte 7"),
        ("a.csv", b"a,b\n1\n", ":2", "has not the 2 fields"),
        ("a.csv", b'a,b\n1,"2\n', ":2", "not valid CSV"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9],
            ":",
            "damaged or cut short",
        ),
        ("a.jsonl.bz2", b"no archive", ":1", "damaged or cut short"),
        ("a.jsonl.zst", zstandard.compress(b'{"a": 1}\n' * 99)[:-3], ":1", "ends early"),
        ("a.jsonl.zst", b"no archive", ":1", "damaged or cut short"),
    ],
    ids=[
        "json cut short",
        "json list",
        "invalid utf-8",
        "csv with a field too few",
        "csv with an open quote",
        "gzip cut short",
        "no bzip2",
        "zstd cut short",
        "no zstd",
    ],
)
def test_broken_files_say_where(
    tmp_path: Path, name: str, content: bytes, where: str, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    read = read_csv if name.endswith(".csv") else read_jsonl
    with pytest.raises(InputError, match=what) as caught:
        list(read(tmp_path / name))
    assert f"{name}{where}" in str(caught.value.where)


@pytest.mark.parametrize(
    ("ending", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstandard.compress)],
)
def test_a_small_file_that_unpacks_to_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr("gptcli.evals.formats.files.MAX_FILE_BYTES", 1 << 20)
    monkeypatch.setattr("gptcli.evals.formats.files.MAX_LINE_BYTES", 1 << 16)
    (tmp_path / f"a{ending}").write_bytes(pack(bytes(1 << 20)))
    assert len(content(tmp_path / f"a{ending}")) == 1 << 20
    with pytest.raises(InputError, match="a line of over 65,536 bytes") as caught:
        list(lines(tmp_path / f"a{ending}"))
    assert str(caught.value.where).endswith(f"a{ending}:1")
    (tmp_path / f"a{ending}").write_bytes(pack(bytes((1 << 20) + 1)))
    with pytest.raises(InputError, match="over 1,048,576 bytes"):
        content(tmp_path / f"a{ending}")


def test_a_missing_file_and_broken_json(tmp_path: Path) -> None:
    for read in (lines, objects):
        with pytest.raises(InputError, match="no such file"):
            list(read(tmp_path / "absent"))
    (tmp_path / "a.json").write_text('{"a":\n1,}')
    with pytest.raises(InputError, match="not valid JSON") as caught:
        document(tmp_path / "a.json")
    assert str(caught.value.where).endswith("a.json:2")


def test_fields_say_what_they_are_not() -> None:
    node = Node({"text": "a", "number": True, "list": [{"x": 1}, 2], "label": "maybe"}, "f:1")
    assert node.text("text") == "a"
    assert [one.where for one in node.nodes("list")] == ["f:1.list[0]", "f:1.list[1]"]
    for ask, what in (
        (lambda: node.text("absent"), "has no 'absent'"),
        (lambda: node.text("list"), "'list' is not a text"),
        (lambda: node.number("number"), "'number' is not a whole number"),
        (lambda: node.texts("list"), "'list' is not a list of texts"),
        (lambda: node.one_of("label", {"yes": 0}), "'label' is 'maybe', not one of yes"),
        (lambda: node.nodes("list")[1].text("x"), "not a JSON object"),
    ):
        with pytest.raises(InputError, match=what):
            ask()


@pytest.mark.parametrize("name", sorted(set(READERS) - {"lines", "text", "csv", "enwik8", "sat"}))
def test_every_reader_refuses_a_file_of_another_format(tmp_path: Path, name: str) -> None:
    for file in ("a.jsonl", "a-labels.lst", "a.en.jsonl", "a.fr.jsonl"):
        (tmp_path / file).write_text('{"what": "is this"}\n')
    for broken in ("a.jsonl", "absent.jsonl"):
        # an object of any fields; a table of no rows
        if name in ("jsonl", "story_cloze") and broken == "a.jsonl":
            continue
        with pytest.raises(InputError):
            list(READERS[name](tmp_path / broken))
