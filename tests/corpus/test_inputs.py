"""Input files are found by name, folder, glob and URL, and their bytes are read from plain, gzip and
zstd streams.
"""

from __future__ import annotations

import glob
import gzip
import io
import os
import pickle
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.corpus import inputs as inputs_module
from gptcli.corpus.formats import read_documents
from gptcli.corpus.inputs import (
    Inputs,
    file_suffixes,
    find_inputs,
    fingerprint,
    is_url,
    left_out_line,
    open_filesystem,
    open_input,
)
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


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        "b.txt",
        "a.jsonl.zst",
        "sub/c.TXT",
        "sub/deep/d.txt.gz",
        "notes.md",
        "code.py",
        "x.gz",
        ".hidden.txt",
        ".git/e.txt",
        "sub/.f.txt.9.partial",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (["."], ["a.jsonl.zst", "b.txt", "sub/c.TXT", "sub/deep/d.txt.gz"]),
        (["sub", "b.txt", "./b.txt", "sub/deep"], ["b.txt", "sub/c.TXT", "sub/deep/d.txt.gz"]),
        (["*"], ["a.jsonl.zst", "b.txt"]),
        (["**/*"], ["a.jsonl.zst", "b.txt", "sub/c.TXT", "sub/deep/d.txt.gz"]),
        (["**/*.gz"], ["sub/deep/d.txt.gz", "x.gz"]),
        (["*.md", "code.py"], ["code.py", "notes.md"]),
        (["-", "b.txt", "-"], ["-", "b.txt"]),
        ([".hidden.txt"], [".hidden.txt"]),
    ],
)
def test_inputs_are_files_folders_and_globs(
    tree: Path, inputs: list[str], found: list[str]
) -> None:
    assert find_inputs(inputs) == found


def test_what_a_pattern_matches_and_is_no_file_is_counted(tree: Path) -> None:
    (tree / "gone.txt").symlink_to("nowhere")
    os.mkfifo(tree / "pipe.txt")
    assert find_inputs(["*"]).left_out == {
        ".md": 1, ".py": 1, ".gz": 1, "folders": 1, "links that lead nowhere, or pipes": 2
    }  # fmt: skip
    assert find_inputs(["*.txt"]).left_out == {"links that lead nowhere, or pipes": 2}


def test_a_file_that_is_named_again_is_counted(tree: Path) -> None:
    found = find_inputs(["b.txt", ".", "b.txt"])
    assert found == find_inputs(["."])
    assert found.left_out["named twice"] == 2
    twice = find_inputs(["b.txt", "b.txt"]).left_out
    assert left_out_line(twice) == (
        "left out of the inputs: 1 named twice (each file is read once)"
    )


@pytest.mark.parametrize(
    "pattern",
    ["**", "**/*", "**/*.txt", "s*/**/*.gz", "sub/**", "**/deep/*", "*/**/c.TXT", "**/[ab]*"],
)
def test_patterns_of_any_depth_match_what_pythons_do(tree: Path, pattern: str) -> None:
    expected = {name for name in glob.glob(pattern, recursive=True) if Path(name).is_file()}  # noqa: PTH207
    assert set(inputs_module._glob(pattern, Counter())) == expected
    absolute = set(inputs_module._glob(f"{tree}/{pattern}", Counter()))
    assert absolute == {f"{tree}/{name}" for name in expected}


def test_loops_of_links_end(tree: Path) -> None:
    for name in ("one", "two", "three"):
        (tree / "sub" / name).symlink_to(".")
    (tree / "sub/itself.txt").symlink_to("itself.txt")
    for pattern in ("sub/**/*", "**/*.gz", f"{tree}/s*/**/*"):
        assert Path(find_inputs([pattern])[-1]).name in ("d.txt.gz", "x.gz")


def test_a_file_named_like_a_glob_is_found(tree: Path) -> None:
    (tree / "a[1].txt").write_text("x")
    assert find_inputs(["a[1].txt"]) == ["a[1].txt"]


def test_a_link_to_a_file_is_that_file(tree: Path) -> None:
    (tree / "link.txt").symlink_to("b.txt")
    assert find_inputs(["b.txt", "link.txt"]) == ["b.txt"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent.txt", "absent.txt: no such file or folder"),
        ("*.csv", r"\*.csv: no file matches"),
        ("gone.md", "gone.md: a link that leads nowhere, to nothing"),
        ("[a-c]*.foo*", "contains no file that a folder is searched for\n"),
        ("code*", r"contains no file that a folder is searched for \(only .py\)"),
        ("folder", r"contains no file that a folder is searched for \(only .arrow, no suffix\)"),
    ],
)
def test_an_input_without_files_is_an_error(tree: Path, name: str, message: str) -> None:
    (tree / "folder").mkdir()
    (tree / "folder/a.arrow").write_text("x")
    (tree / "folder/LICENSE").write_text("x")
    (tree / "gone.md").symlink_to("nothing")
    with pytest.raises(InputError, match=message):
        find_inputs(["b.txt", name])


def test_a_mistyped_input_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "books.jsonl").touch()
    with pytest.raises(InputError, match=r"did you mean .*books\.jsonl\?"):
        find_inputs([str(tmp_path / "book.jsonl")])


def test_a_walk_follows_links_once_and_counts_what_it_leaves_out(tree: Path) -> None:
    (tree / "elsewhere").mkdir()
    (tree / "elsewhere/linked.txt").write_text("x")
    corpus = tree / "corpus"
    (corpus / "deep").mkdir(parents=True)
    for name in ("a.txt", "b.md", "c.json.gz", ".d.txt", "README", "deep/e.md"):
        (corpus / name).write_text("x")
    (corpus / "books").symlink_to("../elsewhere")
    (corpus / "deep/loop").symlink_to("..")
    (corpus / "gone.txt").symlink_to("nowhere")
    found = find_inputs(["corpus"])
    assert found == ["corpus/a.txt", "corpus/books/linked.txt"]
    assert found.left_out == {
        ".md": 2, ".json.gz": 1, "no suffix": 1, "hidden": 1, "links that lead nowhere, or pipes": 1
    }  # fmt: skip
    line = left_out_line(found.left_out)
    assert line.startswith("left out of the inputs: 1 .json.gz, 2 .md, 1 hidden, ")
    everything = find_inputs(["corpus"], every_suffix=True)
    assert len(everything) == 6
    assert everything.left_out.keys() == {"hidden", "links that lead nowhere, or pipes"}


def test_what_is_left_out_survives_copies() -> None:
    inputs = Inputs(["a"], {".md": 2})
    assert pickle.loads(pickle.dumps(inputs)).left_out == {".md": 2}


@pytest.mark.parametrize("name", ["", "  "])
def test_an_empty_input_is_not_the_current_folder(tree: Path, name: str) -> None:
    with pytest.raises(InputError, match="INPUT is empty"):
        find_inputs([name])
