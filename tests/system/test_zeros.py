"""Zeros where bytes were lost, as a disk or an interrupted copy leaves them, are counted in every
format, and no text has them.
"""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from gptcli.corpus.formats import DocumentKind
from gptcli.errors import InputError
from tests.corpus.formats.scanning import scanned

TEXTS = [f"{number}: {' '.join(['river', 'stone', 'light'] * (number + 4))}" for number in range(9)]


def as_csv(delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["id", "text", "tag"])
    writer.writerows([number, text, text[::-1]] for number, text in enumerate(TEXTS))
    return out.getvalue().encode()


def as_parquet(compression: str, *, has_checksums: bool) -> bytes:
    out = io.BytesIO()
    parquet.write_table(
        pyarrow.table({"text": TEXTS}),
        out,
        compression=compression,
        use_dictionary=False,
        row_group_size=4,
        write_page_checksum=has_checksums,
    )
    return out.getvalue()


def as_warc(kind: str, content_type: str, body: Callable[[str], str]) -> bytes:
    return b"".join(
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.com/\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body(text))}\r\n\r\n"
        f"{body(text)}\r\n\r\n".encode()
        for text in TEXTS
    )


def as_tar() -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number, text in enumerate(TEXTS):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def as_zip(method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for number, text in enumerate(TEXTS):
            archive.writestr(f"{number}.txt", text)
    return out.getvalue()


HTTP = "application/http; msgtype=response"
FILES: dict[str, tuple[DocumentKind, bytes]] = {
    "a.txt": ("file", "\n".join(TEXTS).encode()),
    "lines.txt": ("line", "\n".join(TEXTS).encode()),
    "paragraphs.txt": ("paragraph", "\n\n".join(TEXTS).encode()),
    "name": ("file", "\n".join(TEXTS).encode()),
    "a.html": ("file", "".join(f"<p>{text}</p>\n" for text in TEXTS).encode()),
    "a.jsonl": ("file", "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()),
    "a.json": ("file", json.dumps([{"text": text} for text in TEXTS]).encode()),
    "a.csv": ("file", as_csv(",")),
    "a.tsv": ("file", as_csv("\t")),
    "a.parquet": ("file", as_parquet("snappy", has_checksums=True)),
    "plain.parquet": ("file", as_parquet("none", has_checksums=False)),
    "a.wet": ("file", as_warc("conversion", "text/plain", str)),
    "a.warc": (
        "file",
        as_warc(
            "response",
            HTTP,
            lambda text: f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<p>{text}</p>",
        ),
    ),
    "text.warc": (
        "file",
        as_warc(
            "response",
            HTTP,
            lambda text: f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n{text}",
        ),
    ),
    "a.tar": ("file", as_tar()),
    "a.zip": ("file", as_zip(zipfile.ZIP_DEFLATED)),
    "stored.zip": ("file", as_zip(zipfile.ZIP_STORED)),
}


def read(path: Path, documents: DocumentKind) -> tuple[list[str], int]:
    """Return the texts and the pages of a file, and the number of others, or 1 for an error."""
    try:
        found = scanned(path, documents)
    except InputError:
        return [], 1
    texts = [each.text or (each.html or b"").decode() for each in found if not each.error_kind]
    return texts, len(found) - len(texts)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("size", [6, 80, 512, 2048])
def test_a_hole_anywhere_is_counted(tmp_path: Path, name: str, size: int) -> None:
    documents, data = FILES[name]
    path = tmp_path / name
    path.write_bytes(data)
    whole, bad = read(path, documents)
    assert not bad
    for at in range(0, len(data), 37 if size < 512 else 128):
        path.write_bytes(data[:at] + bytes(min(size, len(data) - at)) + data[at + size :])
        texts, bad = read(path, documents)
        assert not any("\0" * 4 in text for text in texts), at
        # A length that is lost is 0, that of an empty text; zeros end a tar.
        is_told = name != "plain.parquet" and (name != "a.tar" or data[at + size :].strip(b"\0"))
        assert bad or texts == whole or not is_told, at


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_zeros_is_counted(tmp_path: Path, name: str) -> None:
    documents, _ = FILES[name]
    for size in (1, 3, 4, 5000, 70_000):
        (tmp_path / name).write_bytes(bytes(size))
        texts, bad = read(tmp_path / name, documents)
        assert not texts, size
        assert bad, size
