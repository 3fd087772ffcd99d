"""Records of WARC and WET files are documents, and broken records are counted."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from random import Random

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.corpus.documents import WHOLE_FILE, FileRange
from gptcli.corpus.formats import http_pages
from gptcli.corpus.formats.warc import read_warc
from gptcli.errors import InputError
from tests.corpus.formats.scanning import error_kinds, scanned


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
    known: dict[str, Callable[[bytes], bytes]] = {
        ".gz": lambda data: gzip.compress(data, mtime=0),  # not the time of the run
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
    assert error_kinds(path) == ["no records"]
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(warc)[:-20])
    assert error_kinds(tmp_path / "b.warc.gz")[-1] in ("damaged record", "truncated record")


def page(number: int) -> bytes:
    return f"<html><p>Page {number} has these words.</p></html>".encode()


def http(*fields: str) -> str:
    return "\r\n".join(["HTTP/1.1 200 OK", "Content-Type: text/html", *fields])


ENCODED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "deflate": lambda body: zlib.compress(body)[2:-4],
    "br": lambda body: brotli.compress(body),
    "zstd": lambda body: zstandard.compress(body),
}
DECLARED = {
    "": ["", "identity", "none", "UTF-8", "gzip", "x-gzip", "br", "zstd", "deflate", "gzip, gzip"],
    "gzip": ["gzip", "x-gzip", "GZIP", '"gzip"', "UTF-8, gzip"],
    "zlib": ["deflate"],
    "deflate": ["deflate"],
    "br": ["br"],
    "zstd": ["zstd"],
}


@pytest.mark.parametrize("really", ENCODED)
def test_a_body_is_decoded_if_it_is_encoded_and_costs_no_other_page(
    tmp_path: Path, really: str
) -> None:
    for declared in DECLARED[really]:
        field = [f"Content-Encoding: {declared}"] if declared else []
        (tmp_path / "a.warc").write_bytes(
            record("response", page(1))
            + record("response", ENCODED[really](page(2)), http=http(*field))
            + record("response", page(3))
        )
        pages = scanned(tmp_path / "a.warc")
        assert [each.html for each in pages] == [page(1), page(2), page(3)], declared


@pytest.mark.parametrize("declared", ["br", "gzip", "deflate", "zstd", ""])
def test_a_body_that_is_neither_plain_nor_as_declared_is_counted(
    tmp_path: Path, declared: str
) -> None:
    body = Random(0).randbytes(2000)
    (tmp_path / "a.warc").write_bytes(
        record("response", gzip.compress(page(1))[:30] + body, http=http("Content-Encoding: gzip"))
        + record("response", body, http=http(f"Content-Encoding: {declared}"))
        + record("response", page(3))
    )
    first, second, third = scanned(tmp_path / "a.warc")
    assert third.html == page(3)
    assert first.error_kind in ("undecodable body", "not a page")
    assert second.error_kind == ("undecodable body" if declared else "")


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("body", [chunked(page(2), 7), chunked(page(2), 900), page(2)])
def test_chunks_are_joined_where_there_are_any(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "a.warc").write_bytes(
        record("response", body, http=http("Transfer-Encoding: chunked"))
        + record("response", page(3))
    )
    assert [each.html for each in scanned(tmp_path / "a.warc")] == [page(2), page(3)]


@pytest.mark.parametrize(
    ("kind", "url", "type_", "is_page"),
    [
        ("response", "dns:example.org", "text/dns", False),
        ("resource", "metadata://gnu.org/software/wget/warc/wget.log", "text/plain", False),
        ("resource", "https://a.org/x.png", "image/png", False),
        ("resource", "<https://a.org/x>", "text/html", True),
        ("response", "<http://a.org/[x>", "application/http", True),
        ("response", "urn:pageinfo:http://a.org", "application/json", False),
    ],
)
def test_only_pages_become_documents(
    tmp_path: Path, kind: str, url: str, type_: str, is_page: bool
) -> None:
    body = page(1) if kind == "resource" else http().encode() + b"\r\n\r\n" + page(1)
    head = (
        f"WARC/1.1\r\nwarc-type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: never\r\n"
        f"Content-Type: {type_}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    (tmp_path / "a.warc").write_bytes(head.encode() + body + b"\r\n\r\n")
    (found,) = scanned(tmp_path / "a.warc")
    assert (found.html, found.error_kind) == ((page(1), "") if is_page else (None, "not a page"))
    assert not is_page or found.url == url.strip("<>")


PAGES = 12
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": lambda data: gzip.compress(data, mtime=0),  # not the time of the run
    ".zst": lambda data: zstandard.compress(data),
}


def damaged(data: bytes, how: str, at: float, size: int, random: Random) -> bytes:
    """Damage about `size` bytes at a fraction of the data."""
    start = int(at * len(data))
    middle = {
        "flip": bytes(byte ^ random.randrange(1, 256) for byte in data[start : start + size]),
        "remove": b"",
        "insert": random.randbytes(size) + data[start : start + size],
        "cut": None,
    }[how]
    return data[:start] if middle is None else data[:start] + middle + data[start + size :]


def is_well_formed(data: bytes) -> bool:
    """Return whether every record has a header, a block of the length that it names, and an end."""
    while data:
        header, _, data = data.partition(b"\r\n\r\n")
        length = re.search(rb"(?im)^content-length: *(\d+)\r?$", header)
        if not header.startswith(b"WARC/") or length is None:
            return False
        stop = int(length[1])
        if data[stop : stop + 4] != b"\r\n\r\n":
            return False
        data = data[stop + 4 :]
    return True


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(list(COMPRESS)),
    st.sampled_from(["flip", "remove", "insert", "cut"]),
    st.floats(0, 1),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
)
def test_damage_anywhere_is_counted_and_costs_only_the_records_it_touches(
    tmp_path_factory: pytest.TempPathFactory,
    ending: str,
    how: str,
    at: float,
    size: int,
    random: Random,
) -> None:
    records = [
        record("response", page(number), f"http://a.com/{number}") for number in range(PAGES)
    ]
    data = b"".join(map(COMPRESS[ending], records))
    path = tmp_path_factory.mktemp("damage") / f"a.warc{ending}"
    path.write_bytes(damaged(data, how, at, size, random))
    found = scanned(path)
    whole = [each.html for each in found if each.html is not None]
    lost = PAGES - sum(page(number) in whole for number in range(PAGES))
    # A record compressed is about 190 bytes, so that 300 bytes touch three of them, or four.
    assert lost <= 4 or how == "cut"
    changed = [html for html in whole if html not in map(page, range(PAGES))]
    rest = path.read_bytes()
    for each in records:
        rest = rest.replace(COMPRESS[ending](each), b"", 1)
    # Whole records that are gone leave no trace, nor does a cut from the middle of one to the same
    # place of the next. The last bytes of a gzip member are zeros, which are padding at the end.
    content = path.read_bytes()
    if ending == ".gz" and not content.endswith(tuple(map(COMPRESS[ending], records))):
        rest = rest if rest.strip(b"\0") else b""
    if lost > len(changed) and rest.strip(b"\r\n") and not is_well_formed(content):
        assert any(each.error_kind for each in found)
    for stripes in (2, 3):
        parts = [
            scanned(path, part=FileRange(stripe=stripe, stripes=stripes, block=1))
            for stripe in range(stripes)
        ]
        together = sorted((each for part in parts for each in part), key=lambda each: each.position)
        assert [(each.position, each.html, each.error_kind) for each in together] == [
            (each.position, each.html, each.error_kind) for each in found
        ]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_an_archive_without_its_first_bytes_is_damaged(tmp_path: Path, ending: str) -> None:
    """The last bytes of a gzip member are zeros, which are padding only behind a whole one."""
    members = [
        COMPRESS[ending](record("response", page(number), f"http://a.com/{number}"))
        for number in range(3)
    ]
    path = tmp_path / f"a.warc{ending}"
    for size in range(1, len(members[0]) + len(members[1])):
        path.write_bytes(b"".join(members)[size:])
        found = scanned(path)
        is_second_whole = size <= len(members[0])
        assert [each.html for each in found if each.html is not None] == [
            page(number) for number in range(1 if is_second_whole else 2, 3)
        ]
        is_cut_between = size == len(members[0])
        assert [each.error_kind for each in found if each.html is None] == (
            [] if is_cut_between else ["damaged record"]
        ), size


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n"])
def test_two_records_that_became_one_are_counted(tmp_path: Path, end: bytes) -> None:
    """Bytes are removed from one record up to about the same place of the next."""
    records = [
        record("response", page(number), f"http://a.com/{number}").removesuffix(b"\r\n\r\n") + end
        for number in range(4)
    ]
    data, path = b"".join(records), tmp_path / "a.warc"
    path.write_bytes(data)
    assert [each.html for each in scanned(path)] == list(map(page, range(4)))
    start, body = len(records[0]), records[1].index(b"<html>")
    for at in range(start + body - 3, start + body + 40):
        for longer in range(-3, len(end) + 8):
            if longer:  # else nothing tells
                path.write_bytes(data[:at] + data[at + len(records[1]) + longer :])
                assert any(each.error_kind for each in scanned(path)), (at, longer)


def test_a_wrong_length_costs_no_other_record() -> None:
    """Whatever the length, and wherever it ends in the records behind it."""
    pages = [page(number) for number in range(4)]
    records = [record("response", each, f"http://a.com/{each[-5:].hex()}") for each in pages]
    length = re.search(rb"Content-Length: (\d+)", records[1])
    assert length is not None
    true = int(length[1])
    for wrong in [*range(true - 20, true), *range(true + 1, true + len(records[2]))]:
        damaged = records[1].replace(length[0], b"Content-Length: %d" % wrong, 1)
        data = io.BytesIO(b"".join([records[0], damaged, *records[2:]]))
        found = list(read_warc(data, "a.warc", WHOLE_FILE))
        whole = [each.html for each in found if each.html is not None]
        assert [each for each in pages if each not in whole] in ([], [pages[1]]), wrong
        is_blank = true < wrong <= true + 4  # the lines behind the block are taken into it
        assert is_blank or any(each.error_kind for each in found), wrong


def segment(number: int, body: bytes, origin: str = "<urn:1>", total: int | None = None) -> bytes:
    """Return a segment of a page, the first with the header of the whole record."""
    fields = [f"WARC-Segment-Number: {number}"]
    if number == 1:
        fields += [f"WARC-Record-ID: {origin}", "WARC-Target-URI: http://a.com/1"]
    else:
        fields.append(f"WARC-Segment-Origin-ID: {origin}")
    if total is not None:
        fields.append(f"WARC-Segment-Total-Length: {total}")
    head = "\r\n".join(
        [
            f"WARC/1.0\r\nWARC-Type: {'response' if number == 1 else 'continuation'}",
            "Content-Type: application/http; msgtype=response",
            *fields,
            f"Content-Length: {len(body)}",
        ]
    )
    return head.encode() + b"\r\n\r\n" + body + b"\r\n\r\n"


def test_segments_are_joined_or_counted(tmp_path: Path, warc: bytes) -> None:
    whole = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n" + b"one two three four"
    cuts = [whole[:20], whole[20:60], whole[60:]]
    parts = [segment(1, cuts[0]), segment(2, cuts[1]), segment(3, cuts[2], total=len(whole))]
    other = record("request", b"GET / HTTP/1.1\r\n\r\n")
    page = record("conversion", b"a page")

    def read(data: bytes) -> list[str]:
        (tmp_path / "a.warc").write_bytes(data)
        return [document.text or document.error_kind for document in scanned(tmp_path / "a.warc")]

    alone = "segment of a record"
    assert read(page + parts[0] + other + parts[1] + parts[2] + page) == [
        *("a page", "one two three four", "a page")
    ]
    assert read(parts[0] + parts[1] + page) == [alone, "a page"]
    assert read(parts[1] + page) == [alone, "a page"]
    assert read(parts[0] + page + parts[1] + parts[2]) == [alone, "a page", alone, alone]
    assert read(parts[0] + parts[2]) == [alone, alone]
    assert read(parts[0]) == [alone]
    wrong = segment(3, cuts[2], total=len(whole) + 1)
    assert read(parts[0] + parts[1] + wrong + page) == [alone, "a page"]
    assert read(parts[0] + segment(2, b"x", "<urn:2>") + page) == [alone, alone, "a page"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_body_that_unpacks_without_end_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    monkeypatch.setattr(http_pages, "MAX_DOCUMENT_BYTES", 100_000)
    compress: dict[str, Callable[[bytes], bytes]] = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "br": brotli.compress,
        "zstd": zstandard.compress,
    }
    http = f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Encoding: {encoding}"
    bodies = [b"a" * 100_000, b"a" * 100_001, b"a" * 50_000_000]
    data = b"".join(record("response", compress[encoding](body), http=http) for body in bodies)
    (tmp_path / "a.warc").write_bytes(data)
    whole, *long = scanned(tmp_path / "a.warc")
    assert whole.text == "a" * 100_000
    assert [document.error_kind for document in long] == ["undecodable body"] * 2
