"""The bytes of files, URLs and standard input are read, plain or compressed."""

from __future__ import annotations

import gzip
import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.corpus.formats import read_documents
from gptcli.corpus.input_search import find_inputs
from gptcli.corpus.inputs import file_suffixes, fingerprint, is_url, open_filesystem, open_input
from gptcli.errors import GptError, InputError, RunError
from gptcli.text.compression import MissingPackageError

zstandard = pytest.importorskip("zstandard")
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def test_suffixes_give_kind_and_compression() -> None:
    assert [file_suffixes(name) for name in ("a.jsonl.gz", "b.TXT", "c.d.txt.ZST", "plain", "x.gz", "dir.d/name")] == [
        (".jsonl", ".gz"), (".txt", ""), (".txt", ".zst"), ("", ""), ("", ".gz"), ("", ""),
    ]  # fmt: skip
    assert is_url("s3://bucket/a.txt")
    assert not is_url("C:/a.txt")


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(
    st.lists(st.binary(max_size=300), max_size=4),
    st.sampled_from(sorted(COMPRESS)),
    st.integers(0, 50),
)
def test_bytes_are_read_as_they_were_written(
    tmp_path: Path, frames: list[bytes], kind: str, start: int
) -> None:
    path = tmp_path / f"a.txt{kind}"
    # members and frames follow one another
    path.write_bytes(b"".join(COMPRESS[kind](frame) for frame in frames))
    whole = b"".join(frames)
    with open_input(str(path)) as stream:
        assert stream.read() == whole
    if start <= len(whole) and not kind:
        with open_input(str(path), start=start) as stream:
            assert stream.read() == whole[start:]


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_an_incomplete_stream_is_an_error(tmp_path: Path, kind: str) -> None:
    whole = COMPRESS[kind](bytes(range(256)) * 50)
    path = tmp_path / f"a.txt{kind}"
    for cut in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with (
            pytest.raises(InputError, match="cut short") as caught,
            open_input(str(path)) as stream,
        ):
            stream.read()
        assert caught.value.where == str(path)
    path.write_bytes(b"no such thing" + whole)
    with pytest.raises(InputError, match="the file is damaged"), open_input(str(path)) as stream:
        stream.read()


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text\n")))
    with open_input("-") as stream:
        assert stream.read() == b"text\n"


def test_missing_files_and_packages_are_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for look in (fingerprint, lambda path: open_input(path).__enter__()):
        with pytest.raises(InputError, match="no such file"):
            look(str(tmp_path / "none.txt"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").touch()
    with (
        pytest.raises(MissingPackageError, match="needs the package zstandard"),
        open_input(str(tmp_path / "a.zst")),
    ):
        pass
    with pytest.raises(InputError, match="nosuch"):
        open_filesystem("nosuch://a")


def test_a_fingerprint_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = fingerprint(str(path))
    assert before[0] == 3
    path.write_text("three")
    assert fingerprint(str(path)) != before


class ClientError(Exception):
    """Error of a file system's client, which has no base class in common with others."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ClientError("no route"), RunError, "memory://a.txt cannot be reached: no route"),
        (ValueError("no such bucket name"), InputError, "memory://a.txt: no such bucket name"),
    ],
)
def test_an_unreachable_url_is_an_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[GptError], message: str
) -> None:
    memory = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem

    def fail(*_: object, **__: object) -> None:
        raise error

    def opening(url: str) -> None:
        with open_input(url):
            pass

    for name, ask in (
        ("isdir", lambda url: find_inputs([url])),
        ("size", fingerprint),
        ("open", opening),
    ):
        with monkeypatch.context() as patch, pytest.raises(kind, match=message):
            patch.setattr(memory, name, fail)
            ask("memory://a.txt")


def test_files_behind_urls_are_read(tmp_path: Path) -> None:
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
        with pytest.raises(InputError, match="no file is there"):
            find_inputs(["memory://other"])
    finally:
        memory.rm("/corpus", recursive=True)
    (tmp_path / "c.txt").write_text("four")
    assert [
        document.text for document in read_documents(find_inputs([f"file://{tmp_path}/c.txt"])[0])
    ] == ["four"]
    with pytest.raises(InputError, match=r"nosuch://x: "):
        find_inputs(["nosuch://x"])
