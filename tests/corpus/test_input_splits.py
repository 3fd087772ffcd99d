"""Documents, their numbers and their chunks are the same however reading is divided."""

from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.corpus.documents import Reader
from gptcli.corpus.formats import find_reader
from gptcli.corpus.input_splits import (
    POSITION_BITS,
    group_into_chunks,
    numbered_documents,
    split_inputs,
)
from gptcli.errors import InputError


def reader(field: str) -> Callable[[str], Reader]:
    return lambda path: find_reader(path, "file", field)


@pytest.fixture
def inputs(tmp_path: Path) -> list[tuple[str, int]]:
    lines = [f'{{"text": "{number} {"é" * (number % 50)}"}}' for number in range(600)]
    for name in ("a.jsonl", "d.jsonl"):
        (tmp_path / name).write_text("\n".join(lines))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode(), 0))
    (tmp_path / "c.txt").write_text("small")
    (tmp_path / "e.txt").write_text("")
    (tmp_path / "f.csv").write_text("text\n" + "\n".join(f"row {number}" for number in range(3000)))
    return [(str(path), path.stat().st_size) for path in sorted(tmp_path.iterdir())]


@pytest.mark.parametrize("workers", [1, 3, 20])
def test_documents_and_chunks_do_not_depend_on_the_split(
    inputs: list[tuple[str, int]], workers: int
) -> None:
    size = 2000

    def read(workers: int) -> tuple[dict[int, str], dict[int, list[int]]]:
        documents, chunks = {}, {}
        for split in split_inputs(0, inputs, size, workers, "file"):
            for group in group_into_chunks(
                numbered_documents(split, reader("text")), split.part.block, size
            ):
                chunks[group[0][0]] = [number for number, _ in group]
                for number, document in group:
                    assert number not in documents
                    documents[number] = document.text or document.error_kind
        return documents, chunks

    splits = list(split_inputs(0, inputs, size, workers, "file"))
    assert len({split.name for split in splits}) == len(splits)
    assert read(workers) == read(1)
    documents, _ = read(workers)
    assert len(documents) == 3 * 600 + 2 + 3000
    assert documents[4 << POSITION_BITS] == "empty file"


def test_a_damaged_file_ends_with_one_bad_document(tmp_path: Path) -> None:
    whole = gzip.compress(
        b"".join(b'{"text": "%d"}\n' % (number * number) for number in range(30_000)), 0
    )
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.txt").write_text("after")
    for size, workers in ((10**6, 1), (2000, 3)):
        inputs = [(str(path), path.stat().st_size) for path in sorted(tmp_path.iterdir())]
        found = [
            document
            for split in split_inputs(0, inputs, size, workers, "file")
            for _, document in numbered_documents(split, reader("text"))
        ]
        assert [document.error_kind for document in found if document.error_kind] == [
            "damaged file"
        ]
        assert len(found) > 2000
        assert "after" in {document.text for document in found}


def test_a_parquet_file_is_split_at_its_row_groups(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [f"row {number}" for number in range(5000)]
    path = tmp_path / "a.parquet"
    parquet.write_table(
        pyarrow.table({"text": texts}),
        path,
        row_group_size=700,
        compression="none",
        use_dictionary=False,
    )
    splits = list(split_inputs(0, [(str(path), path.stat().st_size)], 20_000, 1, "file"))
    assert [split.part.groups for split in splits] == [(0, 3), (3, 6), (6, 8)]
    assert len({split.name for split in splits}) == 3
    found = [
        document for split in splits for _, document in numbered_documents(split, reader("text"))
    ]
    assert [(document.position, document.text) for document in found] == list(enumerate(texts))
    assert [
        document.error_kind
        for split in splits
        for _, document in numbered_documents(split, reader("words"))
    ] == ["no text field"] * 5000

    at = parquet.read_metadata(path).row_group(4).column(0).data_page_offset
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes(100) + data[at + 100 :])
    numbered = [
        document for split in splits for _, document in numbered_documents(split, reader("text"))
    ]
    assert [document.position for document in numbered] == list(range(5000))
    assert [
        document.position for document in numbered if document.error_kind == "damaged rows"
    ] == list(range(2800, 3500))


def test_a_parquet_file_with_damaged_metadata_is_one_split(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(5000))
    (split,) = split_inputs(0, [(str(tmp_path / "a.parquet"), 5004)], 1000, 4, "file")
    assert [document.error_kind for _, document in numbered_documents(split, reader("text"))] == [
        "damaged file"
    ]


def test_a_missing_package_is_not_counted_as_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs the package pyarrow"):
        list(
            numbered_documents(
                next(split_inputs(0, [(str(tmp_path / "a.parquet"), 4)], 100, 1, "file")),
                reader("text"),
            )
        )
