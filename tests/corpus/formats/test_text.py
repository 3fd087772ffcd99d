"""Lines of text and JSON are documents, and broken lines are counted."""

from __future__ import annotations

import io
import json
import types
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.corpus.documents import WHOLE_FILE, FileRange
from gptcli.corpus.formats import DocumentKind, find_reader, scan, text
from tests.corpus.formats.scanning import error_kinds, scanned


def test_each_broken_json_line_is_counted_by_its_error(tmp_path: Path) -> None:
    lines = [
        '{"text": "a", "id": 1}',
        '{"text": "b", "id": 1}',
        "",
        "{",
        '{"words": "c"}',
        "[1]",
        '{"text": 3}',
        '{"text": ""}',
        '{"text": "\\ud800"}',
    ]
    (tmp_path / "a.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}\n')
    assert error_kinds(tmp_path / "a.jsonl") == [
        "",
        "",
        "not valid JSON",
        *["no text field"] * 3,
        "",
        "lone surrogate",
        "not valid UTF-8",
    ]


@pytest.mark.parametrize("documents", ["file", "line", "paragraph"])
def test_a_huge_line_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: DocumentKind
) -> None:
    monkeypatch.setattr(text, "MAX_DOCUMENT_BYTES", 100)
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a"}\n{"text": "' + "x" * 5000 + '"}\n{"text": "b"}\n'
    )
    assert error_kinds(tmp_path / "a.jsonl") == ["", "too long", ""]
    (tmp_path / "a.txt").write_text("one\n\n" + "x" * 5000 + "\n\ntwo\n")
    if documents != "file":
        assert error_kinds(tmp_path / "a.txt", documents) == ["", "too long", ""]


@settings(max_examples=60, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=40), st.integers(8, 40))
def test_a_text_of_any_size_is_cut_into_documents_without_losing_a_character(
    tmp_path_factory: pytest.TempPathFactory, content: str, size: int
) -> None:
    path = tmp_path_factory.mktemp("cut") / "a.txt"
    path.write_text("- " + content, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "MAX_DOCUMENT_BYTES", 40)
        patch.setattr(text, "CUT_BYTES", size)
        found = scanned(path)
    assert "".join(document.text for document in found) == "- " + content
    if len(path.read_bytes()) > 40:
        assert all(len(document.text.encode()) <= size for document in found)
        starts = [
            len(b"".join(each.text.encode() for each in found[:n])) for n in range(len(found))
        ]
        assert [document.position for document in found] == starts


def test_a_long_text_is_cut_at_blank_lines_then_lines_then_blanks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "MAX_DOCUMENT_BYTES", 20)
    monkeypatch.setattr(text, "CUT_BYTES", 16)
    path = tmp_path / "a.txt"
    path.write_text("one two\nthree\n\nfour five six\nseven eight nine ten")
    assert [document.text for document in scanned(path)] == [
        "one two\nthree\n\n",
        "four five six\n",
        "seven eight ",
        "nine ten",
    ]


@pytest.mark.parametrize("documents", ["file", "line", "paragraph"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_marks_of_end_of_text_divide_documents_if_they_are_honoured(
    tmp_path: Path, documents: DocumentKind, ending: str
) -> None:
    stories = "Once a cat.\n<|endoftext|>\nThe dog\nran.<|endoftext|>A bird. <|endoftext|>\n"
    path = tmp_path / f"a{ending}"
    path.write_text(stories if ending == ".txt" else json.dumps({"text": stories, "url": "u"}))
    reader = find_reader(str(path), documents, eot_in_text=True)
    found = list(scan(str(path), reader))
    whole = ["Once a cat.", "The dog\nran.", "A bird. "]
    is_line = documents == "line" and ending == ".txt"
    assert [document.text for document in found] == (
        ["Once a cat.", "The dog", "ran.", "A bird. "] if is_line else whole
    )
    assert len({document.position for document in found}) == len(found)
    assert ending == ".txt" or {document.url for document in found} == {"u"}
    assert len(scanned(path, "file")) == 1  # as ordinary text otherwise


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="ab\n <|", max_size=30), max_size=8), st.integers(3, 40))
def test_marks_are_found_wherever_blocks_of_the_file_end(
    tmp_path_factory: pytest.TempPathFactory, stories: list[str], block: int
) -> None:
    path = tmp_path_factory.mktemp("marks") / "a.txt"
    path.write_text(".<|endoftext|>".join(stories) + "!", newline="")
    stream = io.BytesIO(path.read_bytes())
    small = types.SimpleNamespace(read=lambda _: stream.read(block))
    found = list(text.read_marked(small, "a", WHOLE_FILE))  # type: ignore[arg-type]
    texts = [f"{story}." for story in stories[:-1]] + [f"{''.join(stories[-1:])}!"]
    assert [document.text for document in found] == [
        story.removeprefix("\n") for story in texts if story.strip()
    ]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ('{"text": "a"}\n{"text": "b"}\n', "JSON lines"),
        ('[{"text": "a"},\n{"text": "b"}]\n', "JSON"),
        ("<!DOCTYPE html><p>a</p>", "an HTML page"),
    ],
)
def test_a_text_that_is_none_is_refused_where_the_name_decides(
    tmp_path: Path, content: str, what: str
) -> None:
    """As the reader of a URL does, whose bytes are not asked for beforehand."""
    path = tmp_path / "a.txt"
    path.write_text(content)
    (document,) = scan(str(path), text.text_reader("file"))
    assert f"looks like {what}" in str(document.error)
    (asked,) = scan(str(path), find_reader(str(path), "file", input_format="text"))
    assert asked.text == content


@pytest.mark.parametrize("step", [7, 40, 1000])
def test_byte_ranges_meet_without_gap_or_overlap(tmp_path: Path, step: int) -> None:
    lines = [f'{{"text": "{"é" * (number % 23)}{number}"}}' for number in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    size = path.stat().st_size
    parts = [
        page
        for start in range(0, size, step)
        for page in scanned(path, part=FileRange(start, start + step))
    ]
    assert [(page.text, page.position) for page in parts] == [
        (page.text, page.position) for page in scanned(path)
    ]


def test_json_is_read_without_orjson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": NaN}\n{"text": "b"}\n')
    expected = error_kinds(tmp_path / "a.jsonl")
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert error_kinds(tmp_path / "a.jsonl") == expected == ["", "no text field", ""]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("block", [1, 7, 40, 1 << 20])
def test_stripes_give_the_lines_of_the_whole(tmp_path: Path, name: str, block: int) -> None:
    lines = [f'{{"text": "{"x" * (number % 50)}{number}"}}\n' for number in range(60)]
    lines[10:10] = ["\n", "not JSON\n"]
    path = tmp_path / name
    path.write_text("".join(lines).rstrip(), encoding="utf-8")
    whole = scanned(path, "line", FileRange(block=block))
    for stripes in (2, 3):
        parts = [
            scanned(path, "line", FileRange(stripe=stripe, stripes=stripes, block=block))
            for stripe in range(stripes)
        ]
        together = sorted((each for part in parts for each in part), key=lambda each: each.position)
        assert [(each.position, each.text, each.where) for each in together] == [
            (each.position, each.text, each.where) for each in whole
        ]


def test_lines_appended_with_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    line = b'\xef\xbb\xbf{"text": "a"}\n'
    path.write_bytes(line * 2)
    assert [each.text for each in scanned(path)] == ["a", "a"]
