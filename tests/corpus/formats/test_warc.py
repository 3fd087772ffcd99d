"""Records of WARC and WET files are documents, and broken records are counted."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.corpus.documents import WHOLE_FILE, Document, FileRange
from gptcli.corpus.formats import DocumentKind, find_reader, scan
from gptcli.errors import InputError


def scanned(
    path: str | Path, documents: DocumentKind = "file", part: FileRange = WHOLE_FILE
) -> list[Document]:
    """Return every document of a file, unreadable ones included."""
    return list(scan(str(path), find_reader(str(path), documents), part))


def error_kinds(path: str | Path, documents: DocumentKind = "file") -> list[str]:
    return [document.error_kind for document in scanned(path, documents)]


def record(
    kind: str,
    body: bytes,
    url: str = "http://a.com/x",
    http: str = "HTTP/1.1 200 OK\r\nContent-Type: text/html",
) -> bytes:
    payload = f"{http}\r\n\r\n".encode() + body if kind == "response" else body
    type_ = "application/http; msgtype=response" if kind == "response" else "text/plain"
    head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nContent-Type: {type_}\r\nContent-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload + b"\r\n\r\n"


@pytest.fixture
def warc() -> bytes:
    pytest.importorskip("fastwarc")
    return (
        record("warcinfo", b"software: x\r\n")
        + record("request", b"GET / HTTP/1.1\r\n\r\n")
        + record("response", "<p>Grüße</p>".encode(), "http://a.com/1")
        + record("response", b"\x89PNG", http="HTTP/1.1 200 OK\r\nContent-Type: image/png")
        + record("response", b"gone", http="HTTP/1.1 404 Not Found\r\nContent-Type: text/html")
        + record("response", b"plain words", http="HTTP/1.1 200 OK\r\nContent-Type: text/plain")
        + record("conversion", "crawled, as WET has it — é".encode(), "http://b.org/")
        + record("conversion", b"\xff\xfe")
    )


@pytest.mark.parametrize("name", ["a.warc", "a.warc.gz", "a.wet.gz", "a.warc.zst"])
def test_pages_and_texts_of_archives_are_documents(tmp_path: Path, warc: bytes, name: str) -> None:
    import zstandard

    known: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
    }
    compress = known.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(warc))
    pages = scanned(tmp_path / name)
    assert [page.error_kind for page in pages] == [
        "",
        "not a page",
        "not a page",
        "",
        "",
        "not valid UTF-8",
    ]
    assert pages[0].html == "<p>Grüße</p>".encode()
    assert (pages[0].url, pages[0].position) == ("http://a.com/1", 0)
    assert pages[3].text == "plain words"
    assert (pages[4].text, pages[4].url) == ("crawled, as WET has it — é", "http://b.org/")


def test_a_truncated_archive_loses_no_record_silently(tmp_path: Path, warc: bytes) -> None:
    """Cut at any place, nothing is lost without a word: a record is found, flawed, or the archive
    is called damaged.
    """
    path = tmp_path / "a.warc"
    whole = len(
        record("warcinfo", b"software: x\r\n") + record("request", b"GET / HTTP/1.1\r\n\r\n")
    )
    for size in range(whole + 10, len(warc) - 6, 97):
        path.write_bytes(warc[:size])
        try:
            there = scanned(path)
        except InputError as error:
            assert "damaged" in str(error) or "cut short" in str(error)  # noqa: PT017
            continue
        assert (
            len(there) == 6
            or any(page.error_kind for page in there)
            or warc[:size].endswith(b"\r\n\r\n")
        ), size
    path.write_bytes(b"no archive at all, just words\n" * 9)
    try:
        assert error_kinds(path) == ["no records"]
    except InputError as error:
        assert "damaged" in str(error)  # noqa: PT017
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(warc)[:-20])
    with pytest.raises(InputError, match=r"cut short|damaged"):
        scanned(tmp_path / "b.warc.gz")
