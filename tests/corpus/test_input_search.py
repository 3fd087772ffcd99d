"""Input files are found by name, folder, glob and URL."""

from __future__ import annotations

import glob
import os
import pickle
from collections import Counter
from pathlib import Path

import pytest

from gptcli.corpus import input_search
from gptcli.corpus.input_search import Inputs, find_inputs, left_out_line
from gptcli.errors import InputError


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
    assert set(input_search._glob(pattern, Counter())) == expected
    absolute = set(input_search._glob(f"{tree}/{pattern}", Counter()))
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
