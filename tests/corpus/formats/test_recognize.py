"""Formats are recognized by the first bytes of a file, and prose is never taken for one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.corpus.formats import read_documents
from gptcli.corpus.formats.recognize import disguise, recognize
from gptcli.errors import InputError

ROWS = [{"text": f"words {number}", "id": number} for number in range(20)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize(
    ("head", "found"),
    [
        (LINES, "jsonl"),
        ("\ufeff" + LINES, "jsonl"),
        (LINES[:5], "text"),
        (LINES[:30], "jsonl"),
        ("{broken\n" + LINES, "text"),
        ('{"text": "a" broken}\n' + LINES, "jsonl"),
        (json.dumps(ROWS), "json"),
        (json.dumps(ROWS, indent=2), "json"),
        (json.dumps(ROWS)[:100], "json"),
        (json.dumps(ROWS[0], indent=1), "json"),
        ("[]", "json"),
        ("<html><p>a", "html"),
        ("\n<!-- c -->\n<!DOCTYPE HTML>", "html"),
        ("WARC/1.0\r\n", "warc"),
        ("PAR1", "parquet"),
        ("", "text"),
        ("[1] A reference\n", "text"),
        ("[section]\nkey = 1\n", "text"),
        ('["Quoted" words] and more', "text"),
        ("{curly} words", "text"),
        ("<p>A paragraph</p>", "text"),
        ("The quick brown fox", "text"),
    ],
)
def test_formats_by_their_first_bytes(head: str, found: str) -> None:
    assert recognize(head.encode()) == found


def test_a_tar_archive_is_no_text() -> None:
    assert disguise(b"a.txt".ljust(257, b"\0") + b"ustar\0") == "a tar archive"


@given(st.text())
def test_any_text_is_recognized_as_something(text: str) -> None:
    recognize(text.encode("utf-8", "surrogatepass"))


@pytest.mark.parametrize(
    "name",
    [
        "a.ndjson",
        "a.jsonlines",
        "a.json",
        "a.dat",
        "part-00000",
        "a.json.gz",
        "a.ndjson.bz2",
        "a.xz",
    ],
)
@pytest.mark.parametrize("is_array", [False, True])
def test_json_is_never_one_document_of_raw_syntax(
    tmp_path: Path, name: str, is_array: bool
) -> None:
    import bz2
    import gzip
    import lzma

    compress: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
    }
    data = (json.dumps(ROWS) if is_array else LINES).encode()
    (tmp_path / name).write_bytes(compress.get(Path(name).suffix, bytes)(data))
    if is_array and name.startswith(("a.ndjson", "a.jsonlines")):
        with pytest.raises(InputError, match='no "text" field'):
            list(read_documents(str(tmp_path / name)))
    else:
        found = [document.text for document in read_documents(str(tmp_path / name))]
        assert found == [row["text"] for row in ROWS]
