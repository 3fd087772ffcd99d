"""However reading is divided, the same documents come with the same numbers, in the same runs."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from gptcli.corpus.input_splits import POSITION_BITS, divide, documents_of, runs
from gptcli.errors import InputError


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
def test_divided_anyhow(inputs: list[tuple[str, int]], workers: int) -> None:
    size = 2000

    def read(workers: int) -> tuple[dict[int, str], dict[int, list[int]]]:
        documents, units = {}, {}
        for span in divide(0, inputs, size, workers, "file"):
            for run in runs(documents_of(span, "file", "text"), span.cut.block, size):
                units[run[0][0]] = [number for number, _ in run]
                for number, document in run:
                    assert number not in documents
                    documents[number] = document.text or document.flaw
        return documents, units

    spans = list(divide(0, inputs, size, workers, "file"))
    assert len({span.name for span in spans}) == len(spans)
    assert read(workers) == read(1)
    documents, _ = read(workers)
    assert len(documents) == 3 * 600 + 2 + 3000
    assert documents[4 << POSITION_BITS] == "empty file"


def test_a_damaged_file_ends_with_a_flaw(tmp_path: Path) -> None:
    whole = gzip.compress(
        b"".join(b'{"text": "%d"}\n' % (number * number) for number in range(30_000)), 0
    )
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.txt").write_text("after")
    for size, workers in ((10**6, 1), (2000, 3)):
        inputs = [(str(path), path.stat().st_size) for path in sorted(tmp_path.iterdir())]
        found = [
            document
            for span in divide(0, inputs, size, workers, "file")
            for _, document in documents_of(span, "file", "text")
        ]
        assert [document.flaw for document in found if document.flaw] == ["damaged file"]
        assert len(found) > 2000
        assert "after" in {document.text for document in found}


def test_a_table_is_divided_at_its_row_groups(tmp_path: Path) -> None:
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
    spans = list(divide(0, [(str(path), path.stat().st_size)], 20_000, 1, "file"))
    assert [span.cut.groups for span in spans] == [(0, 3), (3, 6), (6, 8)]
    assert len({span.name for span in spans}) == 3
    found = [document for span in spans for _, document in documents_of(span, "file", "text")]
    assert [(document.position, document.text) for document in found] == list(enumerate(texts))
    assert [
        document.flaw for span in spans for _, document in documents_of(span, "file", "words")
    ] == ["no text field"] * 5000

    at = parquet.read_metadata(path).row_group(4).column(0).data_page_offset
    data = path.read_bytes()
    path.write_bytes(data[:at] + bytes(100) + data[at + 100 :])
    numbered = [document for span in spans for _, document in documents_of(span, "file", "text")]
    assert [document.position for document in numbered] == list(range(5000))
    assert [document.position for document in numbered if document.flaw == "damaged rows"] == list(
        range(2800, 3500)
    )


def test_a_table_whose_end_is_damaged_is_one_piece(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "a.parquet").write_bytes(b"PAR1" + bytes(5000))
    (span,) = divide(0, [(str(tmp_path / "a.parquet"), 5004)], 1000, 4, "file")
    assert [document.flaw for _, document in documents_of(span, "file", "text")] == ["damaged file"]


def test_a_missing_package_is_not_the_files_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match="needs the package pyarrow"):
        list(
            documents_of(
                next(divide(0, [(str(tmp_path / "a.parquet"), 4)], 100, 1, "file")), "file", "text"
            )
        )
