"""Bytes come out of plain, gzip and zstd streams as they went in, and a stream that is not whole
says so.
"""

from __future__ import annotations

import gzip
import io
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.corpus.readers import find_inputs
from gptcli.corpus.streams import (
    MissingPackageError,
    ending,
    filesystem,
    fingerprint,
    is_url,
    opened,
)
from gptcli.errors import GptError, InputError, RunError

zstandard = pytest.importorskip("zstandard")
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": lambda data: zstandard.ZstdCompressor().compress(data),
}


def test_endings() -> None:
    assert [ending(name) for name in ("a.jsonl.gz", "b.TXT", "c.d.txt.ZST", "plain", "x.gz", "dir.d/name")] == [
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
def test_what_went_in_comes_out(tmp_path: Path, frames: list[bytes], kind: str, start: int) -> None:
    path = tmp_path / f"a.txt{kind}"
    # members and frames follow one another
    path.write_bytes(b"".join(COMPRESS[kind](frame) for frame in frames))
    whole = b"".join(frames)
    with opened(str(path)) as stream:
        assert stream.read() == whole
    if start <= len(whole) and not kind:
        with opened(str(path), start=start) as stream:
            assert stream.read() == whole[start:]


@pytest.mark.parametrize("kind", [".gz", ".zst"])
def test_a_stream_that_is_not_whole(tmp_path: Path, kind: str) -> None:
    whole = COMPRESS[kind](bytes(range(256)) * 50)
    path = tmp_path / f"a.txt{kind}"
    for cut in (len(whole) - 1, len(whole) // 2):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match="cut short") as caught, opened(str(path)) as stream:
            stream.read()
        assert caught.value.where == str(path)
    path.write_bytes(b"no such thing" + whole)
    with pytest.raises(InputError, match="the file is damaged"), opened(str(path)) as stream:
        stream.read()


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text\n")))
    with opened("-") as stream:
        assert stream.read() == b"text\n"


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for look in (fingerprint, lambda path: opened(path).__enter__()):
        with pytest.raises(InputError, match="no such file"):
            look(str(tmp_path / "none.txt"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    (tmp_path / "a.zst").touch()
    with (
        pytest.raises(MissingPackageError, match="needs the package zstandard"),
        opened(str(tmp_path / "a.zst")),
    ):
        pass
    with pytest.raises(InputError, match="nosuch"):
        filesystem("nosuch://a")


def test_a_fingerprint_changes_with_the_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one")
    before = fingerprint(str(path))
    assert before[0] == 3
    path.write_text("three")
    assert fingerprint(str(path)) != before


class ClientError(Exception):
    """Of a file system's client: they have no kind in common."""


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (ClientError("no route"), RunError, "memory://a.txt: cannot be reached: no route"),
        (ValueError("no such bucket name"), InputError, "memory://a.txt: no such bucket name"),
    ],
)
def test_a_url_that_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch, error: Exception, kind: type[GptError], message: str
) -> None:
    memory = pytest.importorskip("fsspec.implementations.memory").MemoryFileSystem

    def fail(*_: object, **__: object) -> None:
        raise error

    def opening(url: str) -> None:
        with opened(url):
            pass

    for name, ask in (
        ("isdir", lambda url: find_inputs([url])),
        ("size", fingerprint),
        ("open", opening),
    ):
        with monkeypatch.context() as patch, pytest.raises(kind, match=message):
            patch.setattr(memory, name, fail)
            ask("memory://a.txt")
