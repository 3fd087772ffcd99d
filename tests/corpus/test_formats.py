"""Every format yields its documents, and one clear message for every way in which a file can be broken."""

from __future__ import annotations

import builtins
import gzip
import io
import json
import os
import sys
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from random import Random
from threading import Thread

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.corpus.formats import (
    DocumentKind,
    find_reader,
    named_as_text,
    read_documents,
    scan,
    undivided,
)
from gptcli.errors import InputError, UsageError, install_hint

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
each_compression = pytest.mark.parametrize("compression", COMPRESS)
valid_text = st.text(st.characters(exclude_categories=["Cs"]))


def write(path: Path, data: bytes | str) -> str:
    """Write `data` with the compression of the suffix, and return the path."""
    data = data.encode() if isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(COMPRESS.get(path.suffix, COMPRESS[""])(data))
    return str(path)


def texts(path: str, documents: DocumentKind = "file") -> list[str]:
    return [document.text for document in read_documents(path, documents=documents)]


def places(path: str, documents: DocumentKind = "file") -> list[str]:
    return [
        document.where.removeprefix(path) for document in read_documents(path, documents=documents)
    ]


def error_of(path: str, documents: DocumentKind = "file") -> str:
    with pytest.raises(InputError) as raised:
        texts(path, documents)
    return str(raised.value).replace(path, "FILE")


@each_compression
def test_a_text_file_is_one_document(tmp_path: Path, compression: str) -> None:
    text = "\ufeffone\r\ntwo\u2028three \x00\n\n😀"
    path = write(tmp_path / f"a.txt{compression}", text)
    assert texts(path) == [text]
    assert places(path) == [""]


@each_compression
def test_a_document_can_be_a_line(tmp_path: Path, compression: str) -> None:
    path = write(tmp_path / f"a.txt{compression}", "one\n\ntwo\r\n  three\u2028\x85 \n\nfour")
    assert texts(path, "line") == ["one", "two", "  three\u2028\x85 ", "four"]
    assert places(path, "line") == [":1", ":3", ":4", ":6"]


@each_compression
def test_a_document_can_be_a_paragraph(tmp_path: Path, compression: str) -> None:
    path = write(
        tmp_path / f"a.txt{compression}", "\n \none\ntwo\n\n\nthree\r\n\t\r\n  four\nfive\n"
    )
    assert texts(path, "paragraph") == ["one\ntwo", "three", "  four\nfive"]
    assert places(path, "paragraph") == [":3", ":7", ":9"]


@each_compression
@pytest.mark.parametrize("documents", ["file", "line", "paragraph"])
def test_json_lines_are_documents_whatever_the_kind(
    tmp_path: Path, compression: str, documents: DocumentKind
) -> None:
    lines = [
        '{"text": "one\\ntwo", "id": 1}',
        "",
        '{"id": {"text": 3}, "text": ""}',
        ' {"text":"\\ud83d\\ude00 \\\\ud800"} \r',
    ]
    path = write(tmp_path / f"a.jsonl{compression}", "\ufeff" + "\n".join(lines))
    assert texts(path, documents) == ["one\ntwo", "😀 \\ud800"]
    assert places(path, documents) == [":1", ":4"]


@given(st.lists(valid_text), st.sampled_from(list(COMPRESS)))
@settings(max_examples=100, deadline=None)
def test_json_lines_give_back_any_texts(
    tmp_path_factory: pytest.TempPathFactory, documents: list[str], compression: str
) -> None:
    lines = "".join(
        json.dumps({"text": text}, ensure_ascii=index % 2 == 0) + "\n"
        for index, text in enumerate(documents)
    )
    path = write(tmp_path_factory.mktemp("any") / f"a.jsonl{compression}", lines or "\n")
    assert texts(path) == [text for text in documents if text]


@given(valid_text.filter(bool))
@settings(max_examples=100, deadline=None)
def test_lines_and_paragraphs_lose_only_line_endings(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = write(tmp_path_factory.mktemp("any") / "a.txt", text)
    assert "".join(texts(path)) == text
    assert texts(path, "line") == [
        line for line in (each.removesuffix("\r") for each in text.split("\n")) if line
    ]
    kept = "".join("".join(texts(path, "paragraph")).split())
    assert kept == "".join(text.split())


def test_stdin_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BufferedReader(io.BytesIO(b"one\ntwo\n")))
    )
    assert [(each.text, each.where) for each in read_documents("-", documents="line")] == [
        ("one", "stdin:1"),
        ("two", "stdin:2"),
    ]


def test_a_named_file_of_an_unknown_suffix_is_text(tmp_path: Path) -> None:
    assert texts(write(tmp_path / "notes.rst.gz", "words")) == ["words"]
    assert texts(write(tmp_path / "README", "words")) == ["words"]


@pytest.mark.parametrize(
    "data", [[b"one", b"two"], [b"one", b"", b"two"], [b"x" * 300_000, b"y" * 300_000]]
)
@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_concatenated_streams_are_read_as_one(
    tmp_path: Path, compression: str, data: list[bytes]
) -> None:
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(b"".join(map(COMPRESS[compression], data)))
    assert texts(str(path)) == [b"".join(data).decode()]


def test_zstd_with_a_long_window_is_read(tmp_path: Path) -> None:
    # 256 MiB, over the library's default limit
    parameters = zstandard.ZstdCompressionParameters(window_log=28, write_content_size=False)
    compressor = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    path = tmp_path / "a.txt.zst"
    path.write_bytes(compressor.compress(b"words") + compressor.flush())
    assert texts(str(path)) == ["words"]


@each_compression
@pytest.mark.parametrize(
    ("ending", "documents"), [(".txt", "line"), (".txt", "paragraph"), (".jsonl", "file")]
)
def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, compression: str, ending: str, documents: DocumentKind
) -> None:
    random, most = Random(0), []
    # 1 and 4 MB: more than a reader of any compression takes at a time
    for count in (5_000, 20_000):
        before, after = ('{"text": "', '"}') if ending == ".jsonl" else ("text ", " end")
        lines = "".join(f"{before}{random.randbytes(100).hex()}{after}\n\n" for _ in range(count))
        path = write(tmp_path / f"a{count}{ending}{compression}", lines)
        del lines
        tracemalloc.start()
        try:
            assert sum(1 for _ in read_documents(path, documents=documents)) == count
            most.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert most[1] < 1.1 * most[0] < 1_100_000


@each_compression
@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_an_empty_file_is_an_error(tmp_path: Path, ending: str, compression: str) -> None:
    assert error_of(write(tmp_path / f"a{ending}{compression}", "")) == "FILE: the file is empty"
    (tmp_path / f"b{ending}{compression}").touch()
    assert error_of(str(tmp_path / f"b{ending}{compression}")) == "FILE: the file is empty"


@each_compression
def test_a_missing_file_is_an_error(tmp_path: Path, compression: str) -> None:
    assert error_of(str(tmp_path / f"a.txt{compression}")) == "FILE: no such file"


@each_compression
def test_invalid_utf8_is_reported_with_its_byte(tmp_path: Path, compression: str) -> None:
    data = "é\nfine\n".encode() + b"caf\xe9!\n"
    path = write(tmp_path / f"a.txt{compression}", data)
    assert error_of(path).startswith("FILE: not valid UTF-8 at byte 11: it looks like ISO-8859-1\n")
    assert error_of(path, "line").startswith(
        "FILE:3: not valid UTF-8 at byte 11: it looks like ISO-8859-1\n"
    )
    assert error_of(path, "paragraph").startswith(
        "FILE:3: not valid UTF-8 at byte 11: it looks like ISO-8859-1\n"
    )
    path = write(tmp_path / f"a.jsonl{compression}", b'{"text": "x"}\n{"text": "\xff"}\n')
    assert error_of(path).startswith("FILE:2: not valid UTF-8 at byte 24")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "a"', "not valid JSON at column 13: Expecting ',' delimiter"),
        ("words", "not valid JSON at column 1: Expecting value"),
        ('{"text": "a"}{"text": "b"}', "not valid JSON at column 14: Extra data"),
        ('{"text": "a\tb"}', "not valid JSON at column 12: Invalid control character at"),
        ('{"Text": "a"}', 'no "text" field that is a string'),
        ('{"text": null}', 'no "text" field that is a string'),
        ('["text"]', 'no "text" field that is a string'),
        ('"text"', 'no "text" field that is a string'),
        (
            '{"text": "a \\uD83D b"}',
            '"text" has a lone surrogate (\\ud83d) at character 2: it is not valid Unicode',
        ),
        (
            '{"text": "a", "n": ' + "1" * 5000 + "}",
            "not readable JSON: a whole number of more than 4,300 digits",
        ),
        ('{"text": "a", "n": ' + "[" * 100_000, "not readable JSON: nested too deeply"),
    ],
)
def test_a_broken_json_line_is_reported_with_its_number(
    tmp_path: Path, line: str, message: str
) -> None:
    path = write(tmp_path / "a.jsonl", f'{{"text": "fine"}}\n\n{line}\n')
    found = read_documents(path)
    assert next(found).text == "fine"
    with pytest.raises(InputError) as raised:
        next(found)
    assert str(raised.value).startswith(f"{path}:3: {message}")


@pytest.mark.parametrize(
    ("record", "hint"),
    [
        ('{"id": 3, "content": "words"}', "if it is called content: {option:field} content"),
        (
            '{"txt": "a", "url": "longer than the text"}',
            "if it is called txt: {option:field} txt (texts here: txt, url)",
        ),
        (
            '{"title": "a", "body": "longer than the title"}',
            "if it is called body: {option:field} body (texts here: title, body)",
        ),
        ('{"id": 3}', 'a line looks like {"text": "..."}'),
        ("3", 'a line looks like {"text": "..."}'),
    ],
)
def test_an_object_without_the_field_is_reported_with_those_it_has(
    tmp_path: Path, record: str, hint: str
) -> None:
    with pytest.raises(InputError) as raised:
        list(read_documents(write(tmp_path / "a.jsonl", record)))
    assert raised.value.hint == hint


@pytest.mark.parametrize("compression", [".gz", ".zst"])
@pytest.mark.parametrize("ending", [".txt", ".jsonl"])
def test_a_stream_cut_anywhere_is_an_error(tmp_path: Path, ending: str, compression: str) -> None:
    line = '{{"text": "{}"}}\n' if ending == ".jsonl" else "text {}\n"
    whole = COMPRESS[compression]("".join(line.format(n * n) for n in range(2000)).encode())
    path = tmp_path / f"a{ending}{compression}"
    for size in [3, 5, 12, *range(100, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:size])
        assert error_of(str(path)).startswith("FILE: the file is cut short:"), size


@pytest.mark.parametrize("compression", [".gz", ".zst"])
def test_damage_inside_a_stream_is_an_error(tmp_path: Path, compression: str) -> None:
    path = tmp_path / f"a.txt{compression}"
    path.write_bytes(b"plain words, whatever the name says")
    assert error_of(str(path)).startswith("FILE: the file is damaged:")
    compress = (
        zstandard.ZstdCompressor(write_checksum=True).compress
        if compression == ".zst"
        else gzip.compress
    )
    data = bytearray(compress(" ".join(str(n * n) for n in range(9000)).encode()))
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    assert error_of(str(path)).startswith(
        ("FILE: the file is damaged:", "FILE: the file is cut short:")
    )


def test_zstd_without_its_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.txt.zst", "words")
    real = builtins.__import__

    def missing(name: str, *rest: object) -> object:
        if name == "zstandard":
            raise ImportError(name)
        return real(name, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", missing)
    assert (
        error_of(path)
        == f"FILE: reading .zst needs the package zstandard\n  {install_hint('zstandard')}"
    )


@pytest.mark.parametrize("name", ["a.arrow", "a.rar", "a.PDF", "a.7z.gz"])
def test_unsupported_formats_are_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="files cannot be read"):
        read_documents(write(tmp_path / name, "x"))


def test_an_unknown_kind_of_document_is_refused_at_once() -> None:
    with pytest.raises(UsageError, match="unknown kind of document 'lines'\n  did you mean line"):
        read_documents("-", documents="lines")  # type: ignore[arg-type]


@pytest.mark.parametrize("orjson", [True, False])
def test_a_surrogate_outside_the_text_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orjson: bool
) -> None:
    if not orjson:
        monkeypatch.setitem(sys.modules, "orjson", None)
    lines = [
        r'{"text": "fine", "title": "bad \ud83d", "url": "u\ud83d"}',
        r'{"text": "pair \ud83d\ude00"}',
        r'{"text": "abc \ud83d"}',
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    first, second, third = scan(str(tmp_path / "a.jsonl"), find_reader("a.jsonl", "file"))
    assert (first.text, first.url, second.text) == ("fine", "", "pair \U0001f600")
    assert str(third.error).endswith(
        r':3: "text" has a lone surrogate (\ud83d) at character 4: it is not valid Unicode'
    )


@pytest.mark.parametrize("documents", ["file", "line", "paragraph"])
def test_utf16_without_a_byte_order_mark_is_an_error(
    tmp_path: Path, documents: DocumentKind
) -> None:
    (tmp_path / "a.txt").write_bytes("The river and the stones.\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="looks like UTF-16LE"):
        list(read_documents(str(tmp_path / "a.txt"), documents=documents))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.warc", "a.parquet", "a.txt.gz"])
def test_an_empty_file_is_counted(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    path = str(tmp_path / name)
    documents = scan(path, find_reader(path, "file"))
    assert [document.error_kind for document in documents] == ["empty file"]


def test_a_pipe_is_recognized_and_read_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = Thread(target=path.write_text, args=('{"text": "a"}\n{"text": "b"}\n',))
    writer.start()
    assert [document.text for document in read_documents(str(path))] == ["a", "b"]
    writer.join()


def test_what_is_no_document_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (("a.txt", "alpha"), ("b.png", "\x89PNG\0"), ("c.csv", "text\n")):
            archive.writestr(name, content)
        archive.writestr("d.csv", 'text,id\n"",1\n')
    left_out = Counter[str]()
    assert [each.text for each in read_documents(str(path), left_out=left_out)] == ["alpha"]
    assert left_out == {"left out of an archive": 1, "without text": 1}


def test_a_table_of_a_header_alone_needs_the_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("just a line")
    with pytest.raises(InputError, match='no column "text" among just a line'):
        list(read_documents(str(path)))


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.txt.gz", "a.dat"])
def test_what_a_file_of_text_contains_decides_as_it_does_on_stdin(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / name, '{"text": "one"}\n{"text": "two"}\n')
    assert texts(path) == texts(path, "line") == ["one", "two"]
    assert [
        document.text for document in read_documents(path, documents="line", input_format="text")
    ] == ['{"text": "one"}', '{"text": "two"}']
    line = named_as_text([path, write(tmp_path / "b.txt", "words")])
    if name == "a.dat":
        assert line == ""
    else:
        assert line.startswith(f"{path} looks like JSON lines and is read as such")
    assert named_as_text([path], "text") == ""


def test_documents_that_divide_nothing_are_told() -> None:
    assert undivided("line", {"jsonl", "text"}) == undivided("line", {None}) == ""
    assert undivided("file", {"jsonl"}) == ""
    assert undivided("paragraph", {"jsonl", "csv"}) == (
        "{option:documents} paragraph has no effect: it divides text, and the inputs are CSV and "
        "JSON lines"
    )


def test_empty_files_and_empty_texts_are_counted_alike(tmp_path: Path) -> None:
    left_out: Counter[str] = Counter()
    paths = [write(tmp_path / "a.txt", ""), write(tmp_path / "b.jsonl", '{"text": ""}\n')]
    blank = write(tmp_path / "c.txt", " \n")
    found = [
        document.text
        for path in (*paths, blank)
        for document in read_documents(path, left_out=left_out)
    ]
    assert found == [" \n"], "white space is text"
    assert left_out == {"empty file": 1, "without text": 1}
