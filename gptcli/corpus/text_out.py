"""The documents of a build as text, with the fate of each: JSON lines or Parquet.

While a chunk is made, its documents are recorded next to it, and the records of all chunks are put
together in the order of the inputs at the end. As chunks do not depend on the number of workers, the
file does not either, and an interrupted build goes on with the records that it has.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gptcli.errors import UsageError, install_hint
from gptcli.files import atomic_write
from gptcli.toml_json import dumps

Recorded = Literal["", "kept", "all"]
"""Documents that are recorded: none, those kept, or the dropped ones as well."""
SUFFIXES = (".jsonl.zst", ".jsonl", ".parquet")
PREFIX, PENDING = "records", "pending"  # of files in the work folder
LEVEL = 3  # of zstd


@dataclass(slots=True)
class DocumentRecord:
    """Fate of a document."""

    number: int
    """Number within its source."""
    id: str
    """Input file and position in it."""
    url: str
    """URL that it was crawled from, or ""."""
    text: str | None
    """Text as it was tokenized, or as it was when it was dropped; None if it is in a text chunk."""
    reason: str
    """Reason for which it was dropped, or "" if it was kept."""
    scores: dict[str, float]
    """Measures of the filters."""


def check_text_out(path: Path) -> None:
    """Raise UsageError if documents cannot be written to `path`: its suffix, a missing package."""
    if not path.name.endswith(SUFFIXES):
        raise UsageError(
            f"the name of a file of documents must end in {', '.join(SUFFIXES)}",
            where=path,
            field="text_out",
            code="unknown_suffix",
        )
    for package in ("zstandard", *(["pyarrow"] if path.suffix == ".parquet" else [])):
        try:
            __import__(package)
        except ImportError:
            raise UsageError(
                f"writing documents needs the package {package}",
                field="text_out",
                code="not_installed",
                hint=install_hint(package),
            ) from None


def record_path(chunk: Path, prefix: str = PREFIX) -> Path:
    """Return the file of a chunk's records, or of those that wait for the comparison of all."""
    return chunk.with_name(f"{prefix}-{chunk.name.partition('-')[2]}")


def write_records(
    path: Path, source: str, records: Iterable[DocumentRecord], recorded: Recorded
) -> None:
    """Write the records of a chunk as one zstd frame of JSON lines.

    One with text of None is written with its number, for `read_pending`.
    """
    import zstandard

    lines = []
    for record in records:
        if record.reason and recorded != "all":
            continue
        row: dict[str, Any] = {
            "text": record.text,
            "id": record.id,
            "source": source,
            "url": record.url,
            "kept": not record.reason,
            "reason": record.reason,
            "scores": {name: round(value, 6) for name, value in record.scores.items()},
        }
        if record.text is None:
            row["number"] = record.number
        lines.append(dumps(row) + "\n")
    data = "".join(lines).encode()
    with atomic_write(path) as file:
        file.write(zstandard.ZstdCompressor(LEVEL, write_checksum=True).compress(data))


def read_records(path: Path) -> list[dict[str, Any]]:
    """Return the rows that `write_records` wrote."""
    return [json.loads(line) for line in _content(path).split(b"\n") if line]


def _content(path: Path) -> bytes:
    import zstandard

    return zstandard.ZstdDecompressor().decompress(path.read_bytes())


def finished_records(
    pending: list[dict[str, Any]], fates: Iterator[tuple[int, list[str], str]]
) -> Iterator[DocumentRecord]:
    """Yield the records of a text chunk once all documents have been compared.

    `fates` are number, pieces and reason of each document in the chunk, in order; the rows that
    wait for them have no text. A document that decontamination divided has a record for each piece.
    """
    for row in pending:
        if row["text"] is not None:
            yield _record(row, row["text"], row["reason"], row["id"])
            continue
        number, pieces, reason = next(fates)
        assert number == row["number"]
        for piece, text in enumerate(pieces):
            suffix = f", piece {piece + 1} of {len(pieces)}" if len(pieces) > 1 else ""
            yield _record(row, text, reason, row["id"] + suffix)


def _record(row: dict[str, Any], text: str, reason: str, name: str) -> DocumentRecord:
    return DocumentRecord(-1, name, row["url"], text, reason, row["scores"])


def write_text_out(path: Path, work: Path) -> int:
    """Put all records of a build together; return the number of documents."""
    files = sorted(work.glob(f"{PREFIX}-*"))
    if path.suffix == ".parquet":
        return _write_parquet(path, files)
    count = 0
    with atomic_write(path) as out:
        for file in files:
            content = _content(file)
            count += content.count(b"\n")
            out.write(file.read_bytes() if path.suffix == ".zst" else content)
    return count


def _write_parquet(path: Path, files: list[Path]) -> int:
    """Write a row group for each chunk."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema(
        [
            *((name, pyarrow.string()) for name in ("text", "id", "source", "url")),
            ("kept", pyarrow.bool_()),
            ("reason", pyarrow.string()),
            ("scores", pyarrow.map_(pyarrow.string(), pyarrow.float64())),
        ]
    )
    count = 0
    with (
        atomic_write(path) as out,
        parquet.ParquetWriter(out, schema, compression="zstd") as writer,
    ):
        for file in files:
            rows = read_records(file)
            for row in rows:
                row["scores"] = list(row["scores"].items())
            if rows:
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count
