"""Blocks of lines give the documents of the whole file, wherever it is cut and however it ends."""

from __future__ import annotations

import gzip
from pathlib import Path
from random import Random

import pytest

from gptcli.corpus import line_blocks
from gptcli.corpus.documents import Document, FileRange, Reader
from gptcli.corpus.formats import find_reader, text
from gptcli.corpus.input_splits import InputSplit, numbered_documents
from gptcli.corpus.inputs import open_input
from gptcli.corpus.line_blocks import write_line_blocks
from gptcli.errors import InputError

LIMIT = 90  # bytes of a document, in these tests


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_blocks, "MAX_DOCUMENT_BYTES", LIMIT)
    monkeypatch.setattr(line_blocks, "READ_BYTES", 16)
    monkeypatch.setattr(text, "MAX_DOCUMENT_BYTES", LIMIT)


Seen = tuple[int, str, str, str, str]


def reader(path: str) -> Reader:
    return find_reader(path, "line")


def seen(found: list[tuple[int, Document]]) -> list[Seen]:
    return [(number, each.text, each.where, each.error_kind, each.url) for number, each in found]


def in_blocks(path: Path, folder: Path, block: int) -> tuple[list[list[Seen]], str]:
    """Return the documents of each block of a file, and what is wrong with the file."""
    split = InputSplit(2, 3, (str(path),), FileRange(block=block, is_handed_out=True))
    found, what = [], ""
    try:
        with open_input(str(path)) as stream:
            for part in write_line_blocks(stream, split, folder):
                assert part.lines is not None
                assert part.lines.stat().st_size <= block + 2 * LIMIT + 2
                found.append(seen(list(numbered_documents(part, reader))))
    except InputError as error:
        what = error.what
    return found, what


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz"])
@pytest.mark.parametrize("block", [1, 13, 64, 1000])
def test_blocks_have_the_documents_of_the_file(tmp_path: Path, name: str, block: int) -> None:
    for seed in range(12):
        chance = Random(seed)
        lines = [
            b'{"text": "%s", "url": "u"}' % (b"x" * chance.choice([0, 1, 9, 40, 59, 60, 200, 999]))
            for _ in range(30)
        ]
        lines[4:4] = [b"", b"\xef\xbb\xbf" + lines[0], b"  ", b"\xff not JSON", b"\r"]
        data = b"\n".join(lines) + b"\n" * chance.randrange(3)
        path = tmp_path / name
        path.write_bytes(gzip.compress(data, 0))
        whole = InputSplit(2, 3, (str(path),), FileRange(block=block))
        expected = seen(list(numbered_documents(whole, reader)))
        assert any(kind == "too long" for _, _, _, kind, _ in expected)
        found, what = in_blocks(path, tmp_path, block)
        assert [each for group in found for each in group] == expected
        assert not what
        for group in found:  # of one block each, as chunks are
            assert len({number % (1 << 40) // block for number, *_ in group}) <= 1


@pytest.mark.parametrize("block", [1, 50, 5000])
def test_the_whole_lines_before_damage_are_read(tmp_path: Path, block: int) -> None:
    lines = b"".join(b'{"text": "%d"}\n' % (number * number) for number in range(3000))
    packed = gzip.compress(lines, 0)
    path = tmp_path / "a.jsonl.gz"
    for size in (len(packed) // 2, len(packed) // 3, 40, 14):
        path.write_bytes(packed[:size])
        whole = InputSplit(2, 3, (str(path),), FileRange(block=block))
        *expected, last = numbered_documents(whole, reader)
        found, what = in_blocks(path, tmp_path, block)
        assert [each for group in found for each in group] == seen(expected)
        assert last[1].error is not None
        assert what == last[1].error.what


def test_a_block_is_not_taken_for_the_file(tmp_path: Path) -> None:
    """The record that the first block is done must not say that the file is."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n' * 20))
    split = InputSplit(0, 0, (str(path),), FileRange(block=50, is_handed_out=True))
    with open_input(str(path)) as stream:
        names = [part.name for part in write_line_blocks(stream, split, tmp_path)]
    assert len({split.name, *names}) == len(names) + 1 > 5
