"""Lines, JSON and tables are read completely; broken ones are refused with file and line."""

from __future__ import annotations

import bz2
import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from gptcli.errors import InputError
from gptcli.evals.formats import READERS
from gptcli.evals.formats.files import JsonNode, json_document, numbered_lines, read_bytes
from gptcli.evals.formats.tables import read_lines, read_table, read_text, table_rows

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
def test_json_lines_are_read_plain_and_compressed(tmp_path: Path, name: str, pack: object) -> None:
    (tmp_path / name).write_bytes(pack(JSONL.encode()))  # type: ignore[operator]
    assert list(read_table(tmp_path / name)) == [
        {"id": f"{name}:1", "text": "naïve"},
        {"id": "mine", "text": "two"},
    ]


def test_tables_lines_and_running_text_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('name,says\nAnn,"yes, ""no"""\n')
    assert list(read_table(tmp_path / "a.csv")) == [
        {"id": "a.csv:2", "name": "Ann", "says": 'yes, "no"'}
    ]
    (tmp_path / "a.tsv").write_text("name\tsays\nAnn\tyes, no\n")
    assert [row["says"] for row in read_table(tmp_path / "a.tsv")] == ["yes, no"]
    (tmp_path / "a.txt").write_bytes(b" one \r\n\n two\n")
    assert [row["text"] for row in read_lines(tmp_path / "a.txt")] == [" one ", " two"]
    assert [row["text"] for row in read_text(tmp_path / "a.txt")] == [" one \r\n\n two\n"]


@pytest.mark.parametrize(
    ("name", "content", "where", "what"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', ":2", "not valid JSON"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', ":2", "not a JSON object"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', ":2", "not valid UTF-8 at byte 7"),
        ("a.csv", b"a,b\n1\n", ":2", "1 column, but the header has 2"),
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
def test_broken_files_are_refused_with_their_line(
    tmp_path: Path, name: str, content: bytes, where: str, what: str
) -> None:
    (tmp_path / name).write_bytes(content)
    read = read_table
    with pytest.raises(InputError, match=what) as caught:
        list(read(tmp_path / name))
    assert f"{name}{where}" in str(caught.value.where)


@pytest.mark.parametrize(
    ("ending", "pack"),
    [("", bytes), (".gz", gzip.compress), (".bz2", bz2.compress), (".zst", zstandard.compress)],
)
def test_a_small_file_that_unpacks_to_a_large_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, pack: Callable[[bytes], bytes]
) -> None:
    monkeypatch.setattr("gptcli.evals.formats.files.MAX_FILE_BYTES", 1 << 20)
    monkeypatch.setattr("gptcli.evals.formats.files.MAX_LINE_BYTES", 1 << 16)
    (tmp_path / f"a{ending}").write_bytes(pack(bytes(1 << 20)))
    assert len(read_bytes(tmp_path / f"a{ending}")) == 1 << 20
    with pytest.raises(InputError, match="a line of more than 65,536 bytes") as caught:
        list(numbered_lines(tmp_path / f"a{ending}"))
    assert str(caught.value.where).endswith(f"a{ending}:1")
    (tmp_path / f"a{ending}").write_bytes(pack(bytes((1 << 20) + 1)))
    with pytest.raises(InputError, match="more than 1,048,576 bytes"):
        read_bytes(tmp_path / f"a{ending}")


def test_missing_files_and_broken_json_are_refused(tmp_path: Path) -> None:
    for read in (numbered_lines, table_rows):
        with pytest.raises(InputError, match="no such file"):
            list(read(tmp_path / "absent"))
    (tmp_path / "a.json").write_text('{"a":\n1,}')
    with pytest.raises(InputError, match="not valid JSON") as caught:
        json_document(tmp_path / "a.json")
    assert str(caught.value.where).endswith("a.json:2")


def test_fields_of_the_wrong_type_are_refused() -> None:
    node = JsonNode({"text": "a", "number": True, "list": [{"x": 1}, 2], "label": "maybe"}, "f:1")
    assert node.text("text") == "a"
    assert [one.where for one in node.nodes("list")] == ["f:1.list[0]", "f:1.list[1]"]
    for ask, what in (
        (lambda: node.text("absent"), "has no 'absent'"),
        (lambda: node.text("list"), "'list' is not text"),
        (lambda: node.number("number"), "'number' is not a whole number"),
        (lambda: node.texts("list"), "'list' is not a list of texts"),
        (lambda: node.one_of("label", {"yes": 0}), "'label' is 'maybe', not one of yes"),
        (lambda: node.nodes("list")[1].text("x"), "not a JSON object"),
    ):
        with pytest.raises(InputError, match=what):
            ask()


@pytest.mark.parametrize("one", [1, 1.0, "1", " 1 ", "1.0", "1."])
def test_whole_numbers_are_read_as_tables_write_them(one: object) -> None:
    node = JsonNode({"n": one}, "f:1")
    assert node.number("n") == 1
    if one != "1.":
        assert node.boolean("n") is True


@pytest.mark.parametrize(
    "other", [1.5, "1.5", "", "one", float("nan"), "1e0", "0x1", "²", None, [1], True]
)
def test_other_numbers_are_refused(other: object) -> None:
    with pytest.raises(InputError, match="whole number"):
        JsonNode({"n": other}, "f:1").number("n")


@pytest.mark.parametrize(
    "name", sorted(set(READERS) - {"lines", "text", "table", "jsonl", "csv", "enwik8", "sat"})
)
def test_every_reader_refuses_a_file_of_another_format(tmp_path: Path, name: str) -> None:
    for file in ("a.jsonl", "a-labels.lst", "a.en.jsonl", "a.fr.jsonl"):
        (tmp_path / file).write_text('{"what": "is this"}\n')
    for broken in ("a.jsonl", "absent.jsonl"):
        with pytest.raises(InputError):
            list(READERS[name](tmp_path / broken))


def test_enwik8_is_cut_to_its_last_five_million_bytes(tmp_path: Path) -> None:
    # the cut splits é
    (tmp_path / "enwik8").write_bytes(b"x" * 94_999_999 + "é".encode() + b"y" * 4_999_999)
    [row] = READERS["enwik8"](tmp_path / "enwik8")
    assert row["text"] == "y" * 4_999_999
    (tmp_path / "enwik8").write_bytes("né".encode()[:-1])
    assert [row["text"] for row in READERS["enwik8"](tmp_path / "enwik8")] == ["n"]
    (tmp_path / "enwik8").write_bytes(b"abc\xffdef")
    with pytest.raises(InputError, match="not valid UTF-8 at byte 3"):
        list(READERS["enwik8"](tmp_path / "enwik8"))
    (tmp_path / "text8.gz").write_bytes(gzip.compress(b"abc"))
    assert [row["text"] for row in READERS["enwik8"](tmp_path / "text8.gz")] == ["abc"]


@pytest.mark.parametrize("reader", ["enwik8", "lines", "text"])
def test_zeros_where_bytes_were_lost_are_refused(tmp_path: Path, reader: str) -> None:
    for data in (b"river\nstone" + bytes(600) + b"\nlight\n", bytes(600), b"\0"):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(InputError, match="zero byte"):
            list(READERS[reader](tmp_path / "a.txt"))


@pytest.mark.real_data
def test_the_published_enwik8_is_read(real_data: Path) -> None:
    [row] = READERS["enwik8"](real_data / "hf-dummy/enwik8-enwik8-raw/dummy_data/enwik8.zip/enwik8")
    assert row["text"].startswith("==Max Stirner's Egoism==")
