"""When, where and by what a run was made: told at the top of run.toml, and never in the way of
reading it.
"""

from __future__ import annotations

import platform
import re
import tomllib
from pathlib import Path

import pytest

from gptcli.cli.options import resolved_toml
from gptcli.runs.provenance import FACTS, commit, provenance, read_provenance, resumed
from gptcli.settings import Resolved

HASH = "0123456789abcdef0123456789abcdef01234567"
OTHER = HASH[::-1]


@pytest.fixture
def facts(tmp_path):
    return provenance(1, tmp_path / "shards", "ab" * 32, 1000, 2500)


def test_all_facts_are_written_and_run_toml_can_still_be_read(facts, tmp_path):
    assert set(facts) >= set(FACTS) - {"commit"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", facts["date"])
    assert facts["passes"] == "2.5"
    assert facts["data"] == f"{tmp_path / 'shards'}, 1,000 training tokens, sha256 {'ab' * 32}"
    assert re.search(r"\d cores?$|NVIDIA|AMD", facts["device"])
    text = resolved_toml(Resolved({"lr": 0.5}, {}), parameters="10", **facts)
    assert tomllib.loads(text) == {"lr": 0.5}
    assert read_provenance(text) == {name: facts[name] for name in FACTS if name in facts}


def test_a_name_with_control_characters_becomes_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(platform, "node", lambda: "a\nb\x00\x1b")
    facts = provenance(1, tmp_path / "x\ny", "ab", 10, 10)
    text = resolved_toml(Resolved({"lr": 0.5}, {}), **facts)
    assert tomllib.loads(text) == {"lr": 0.5}
    assert read_provenance(text)["host"] == "a b"


def test_comments_below_the_top_are_not_facts():
    assert read_provenance("# gpt 0, python 3\n# parameters: 10\n\nlr = 1\n# host: x\n") == {}
    assert read_provenance("") == {}


def test_a_resume_records_changes_only(facts):
    text = resolved_toml(Resolved({"lr": 0.5}, {}), **facts)
    assert resumed(text, {**facts, "date": "2030-01-01T00:00:00Z", "passes": "9"}) == text
    moved = resumed(text, {**facts, "date": "2030-01-01T00:00:00Z", "host": "b", "torch": "9.9"})
    assert tomllib.loads(moved) == {"lr": 0.5}
    told = read_provenance(moved)
    assert told.pop("resumed") == "2030-01-01T00:00:00Z; host b; torch 9.9"
    assert told == read_provenance(text), "how it began stays"
    assert (
        resumed(moved, {**facts, "date": "2031-01-01T00:00:00Z", "host": "b", "torch": "9.9"})
        == moved
    )
    back = resumed(moved, {**facts, "date": "2031-01-01T00:00:00Z"})
    assert read_provenance(back)["resumed"] == "2031-01-01T00:00:00Z; as at first"
    assert resumed(back, {**facts, "date": "2032-01-01T00:00:00Z"}) == back
    old = "# gpt 0, python 3\n\nlr = 1\n"
    assert resumed(old, facts) == old


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_commit_is_read_from_a_checkout(tmp_path):
    git = tmp_path / ".git"
    write(git / "HEAD", f"{HASH}\n")
    assert commit(tmp_path) == HASH, "detached"
    write(git / "HEAD", "ref: refs/heads/main\n")
    assert commit(tmp_path) == "", "not born yet"
    write(
        git / "packed-refs",
        f"# pack-refs with: peeled\n{OTHER} refs/heads/main-2\n{HASH} refs/heads/main\n",
    )
    assert commit(tmp_path) == HASH
    write(git / "refs/heads/main", f"{OTHER}\n")
    assert commit(tmp_path) == OTHER, "a loose reference is the newer one"


def test_commit_is_read_from_an_additional_work_tree(tmp_path):
    here = tmp_path / "tree"
    write(here / ".git", "gitdir: ../main/.git/worktrees/tree\n")
    git = tmp_path / "main/.git"
    write(git / "worktrees/tree/HEAD", "ref: refs/heads/branch\n")
    write(git / "worktrees/tree/commondir", "../..\n")
    write(git / "refs/heads/branch", f"{HASH}\n")
    assert commit(here) == HASH


@pytest.mark.parametrize(
    "head", ["", "ref: ", "ref: refs/heads/none", "ref: ../../secret", "nonsense", "\0"]
)
def test_a_missing_or_broken_commit_is_empty(tmp_path, head):
    assert commit(tmp_path) == ""
    write(tmp_path / ".git/HEAD", head)
    assert commit(tmp_path) == ""
    (tmp_path / ".git/HEAD").write_bytes(b"\xff\xfe")
    assert commit(tmp_path) == ""
