"""WARC, WET, Parquet, CSV, URLs: every document, and everything that is wrong with a file counted
instead of lost.
"""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from gptcli.corpus import formats
from gptcli.corpus.documents import Document
from gptcli.corpus.formats import Cut
from gptcli.corpus.readers import find_inputs, find_reader, read_documents, scan
from gptcli.errors import InputError


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


def found(path: str | Path, documents: str = "file", cut: Cut = formats.WHOLE) -> list[Document]:
    return list(scan(str(path), find_reader(str(path), documents), cut))


def flaws(path: str | Path, documents: str = "file") -> list[str]:
    return [document.flaw for document in found(path, documents)]


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
def test_warc_and_wet(tmp_path: Path, warc: bytes, name: str) -> None:
    import zstandard

    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
    (tmp_path / name).write_bytes(compress(warc))
    pages = found(tmp_path / name)
    assert [page.flaw for page in pages] == [
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


def test_a_broken_archive_gives_what_is_whole_and_says_the_rest(
    tmp_path: Path, warc: bytes
) -> None:
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
            there = found(path)
        except InputError as error:
            assert "damaged" in str(error) or "cut short" in str(error)  # noqa: PT017
            continue
        assert (
            len(there) == 6 or any(page.flaw for page in there) or warc[:size].endswith(b"\r\n\r\n")
        ), size
    path.write_bytes(b"no archive at all, just words\n" * 9)
    try:
        assert flaws(path) == ["no records"]
    except InputError as error:
        assert "damaged" in str(error)  # noqa: PT017
    (tmp_path / "b.warc.gz").write_bytes(gzip.compress(warc)[:-20])
    with pytest.raises(InputError, match=r"cut short|damaged"):
        found(tmp_path / "b.warc.gz")


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = ["one", None, "", "Grüße", *map(str, range(3000))]
    parquet.write_table(
        pyarrow.table({"text": texts, "id": [7] * len(texts)}),
        tmp_path / "a.parquet",
        row_group_size=1000,
    )
    rows = found(tmp_path / "a.parquet")
    assert [row.text for row in rows if not row.flaw] == [
        text for text in texts if text is not None
    ]
    assert [row.position for row in rows] == list(range(len(texts)))
    assert [row.flaw for row in rows[:3]] == ["", "no text field", ""]
    parquet.write_table(pyarrow.table({"words": texts}), tmp_path / "b.parquet")
    assert flaws(tmp_path / "b.parquet") == ["no text field"] * len(texts)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(data[:-9])
    with pytest.raises(InputError, match=r"c.parquet: the file is damaged"):
        found(tmp_path / "c.parquet")


def test_csv(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        '\ufeffid,text,url\n1,"two\nlines, ""quoted""",http://a\n2,\n3,Grüße,\n4,caf'.encode()
        + b"\xe9,\n"
    )
    rows = found(tmp_path / "a.csv")
    assert [row.text for row in rows] == ['two\nlines, "quoted"', "", "Grüße", ""]
    assert [row.flaw for row in rows] == ["", "no text field", "", "not valid UTF-8"]
    assert rows[0].url == "http://a"
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    assert flaws(tmp_path / "b.csv") == ["no text field"]


def test_json_lines_with_all_that_can_be_wrong(tmp_path: Path) -> None:
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
    assert flaws(tmp_path / "a.jsonl") == [
        "",
        "",
        "not valid JSON",
        *["no text field"] * 3,
        "",
        "lone surrogate",
        "not valid UTF-8",
    ]


@pytest.mark.parametrize("documents", ["file", "line", "paragraph"])
def test_a_huge_line_is_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, documents: str
) -> None:
    monkeypatch.setattr(formats, "MAX_BYTES", 100)
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a"}\n{"text": "' + "x" * 5000 + '"}\n{"text": "b"}\n'
    )
    assert flaws(tmp_path / "a.jsonl") == ["", "too long", ""]
    (tmp_path / "a.txt").write_text("one\n\n" + "x" * 5000 + "\n\ntwo\n")
    assert flaws(tmp_path / "a.txt", documents) == (
        ["too long"] if documents == "file" else ["", "too long", ""]
    )


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.warc", "a.parquet", "a.txt.gz"])
def test_an_empty_file_is_counted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert flaws(tmp_path / name) == ["empty file"]


@pytest.mark.parametrize("step", [7, 40, 1000])
def test_ranges_of_bytes_meet_without_gap_or_overlap(tmp_path: Path, step: int) -> None:
    lines = [f'{{"text": "{"é" * (number % 23)}{number}"}}' for number in range(60)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    size = path.stat().st_size
    parts = [
        page for start in range(0, size, step) for page in found(path, cut=Cut(start, start + step))
    ]
    assert [(page.text, page.position) for page in parts] == [
        (page.text, page.position) for page in found(path)
    ]


def test_urls(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    try:
        memory.pipe("/corpus/a.jsonl.gz", gzip.compress(b'{"text": "one"}\n{"text": "two"}\n'))
        memory.pipe("/corpus/sub/b.txt", b"three")
        memory.pipe("/corpus/notes.md", b"no")
        for where in ("memory://corpus", "memory://corpus/**/*.[jt]*"):
            urls = find_inputs([where])
            assert [document.text for url in urls for document in read_documents(url)] == [
                "one",
                "two",
                "three",
            ]
        with pytest.raises(InputError, match="nothing is there"):
            find_inputs(["memory://other"])
    finally:
        memory.rm("/corpus", recursive=True)
    (tmp_path / "c.txt").write_text("four")
    assert [
        document.text for document in read_documents(find_inputs([f"file://{tmp_path}/c.txt"])[0])
    ] == ["four"]
    with pytest.raises(InputError, match=r"nosuch://x: "):
        find_inputs(["nosuch://x"])


def test_standard_library_json_where_orjson_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"text": NaN}\n{"text": "b"}\n')
    expected = flaws(tmp_path / "a.jsonl")
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert flaws(tmp_path / "a.jsonl") == expected == ["", "no text field", ""]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_parquet_compressed_again(tmp_path: Path, ending: str) -> None:
    import zstandard

    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [str(number) for number in range(3000)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=1000)
    data = {".gz": gzip.compress, ".zst": zstandard.compress}[ending](
        (tmp_path / "a.parquet").read_bytes()
    )
    path = tmp_path / f"b.parquet{ending}"
    path.write_bytes(data)
    assert [row.text for row in found(path)] == texts
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cut short"):
        found(path)


def test_parquet_whose_strings_are_not_utf8_is_counted(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    bad = pyarrow.array([b"one", b"\xff\xfe", b"two"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "a.parquet")
    assert flaws(tmp_path / "a.parquet") == ["", "not valid UTF-8", ""]


def test_a_disk_that_fails_is_not_called_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged input ends a build for good; a failing disk must leave what was built."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / "a.parquet")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(parquet, "ParquetFile", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        found(tmp_path / "a.parquet")
    assert not isinstance(caught.value, InputError)


def test_parquet_whose_columns_names_are_not_utf8_is_damaged(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pyarrow.table({"text": ["one"], "zzzz": ["two"]}),
        tmp_path / "a.parquet",
        store_schema=False,
    )
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"zzzz", b"\xff\xfezz"))
    with pytest.raises(InputError, match="the file is damaged"):
        found(tmp_path / "a.parquet")
