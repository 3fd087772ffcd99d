"""Lines of text and JSON are documents, and broken lines are counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.corpus.documents import WHOLE_FILE, Document, FileRange
from gptcli.corpus.formats import DocumentKind, find_reader, scan, text


def scanned(
    path: str | Path, documents: DocumentKind = "file", part: FileRange = WHOLE_FILE
) -> list[Document]:
    """Return every document of a file, unreadable ones included."""
    return list(scan(str(path), find_reader(str(path), documents), part))


def error_kinds(path: str | Path, documents: DocumentKind = "file") -> list[str]:
    return [document.error_kind for document in scanned(path, documents)]


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
    assert error_kinds(tmp_path / "a.txt", documents) == (
        ["too long"] if documents == "file" else ["", "too long", ""]
    )


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
