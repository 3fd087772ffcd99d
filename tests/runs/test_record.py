"""The record of a run is what its folder contains, and other folders are refused."""

from __future__ import annotations

import json
import platform
import re
import tomllib
from pathlib import Path

import pytest

from gptcli.cli.options import resolved_toml
from gptcli.errors import InputError
from gptcli.runs.record import (
    FACTS,
    commit,
    distinct_names,
    figures,
    provenance,
    read_provenance,
    read_record,
    resumed,
    shareable,
    validation_extent,
)
from gptcli.settings import Resolved
from tests.runs.example_run import EVALUATION, RUN_TOML, lines


def test_runs_with_the_same_folder_name_are_named_by_their_paths():
    assert distinct_names([Path("x/a"), Path("x/b")]) == ["a", "b"]
    assert distinct_names([Path("x/1/run"), Path("x/2/run")]) == ["1/run", "2/run"]


def test_a_record_has_only_the_evaluations_of_its_own_model(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.toml").write_text(RUN_TOML)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(2)))
    for path, report in (
        # in the folder: its own in any case
        (folder / "eval.json", {**EVALUATION, "model": "/some/other/name"}),
        (tmp_path / "eval-run.json", EVALUATION),
        (tmp_path / "eval-other.json", {**EVALUATION, "model": "runs/other"}),
        (tmp_path / "my-eval.json", {"schema": "else"}),
        (tmp_path / "eval-list.json", [1]),
        (folder / "eval-odd.json", {**EVALUATION, "losses": [{"name": "x", "tokens": "many"}]}),
        (
            folder / "eval-word.json",
            {**EVALUATION, "losses": [{"name": "x", "tokens": 1, "loss": "low"}]},
        ),
        (folder / "eval-text.json", {**EVALUATION, "tasks": "none"}),
    ):
        path.write_text(json.dumps(report))
    (tmp_path / "eval-broken.json").write_text("{")
    # a byte order mark, as some editors write
    (folder / "run.toml").write_bytes(b"\xef\xbb\xbf" + (folder / "run.toml").read_bytes())
    found = read_record(folder)
    assert len(found.lines) == 2
    assert [one["model"] for one in found.evaluations] == ["/some/other/name", "elsewhere/run"]
    assert len(figures(found.evaluations)) == 8


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({}, "no such run"),
        ({"run.toml": "= 1"}, "cannot be read as a run"),
        ({"run.toml": "a = 1"}, "has no steps"),
        ({"run.toml": "a = 1", "metrics.jsonl": "{\n"}, "has no steps"),
        (
            {"run.toml": "a = 1", "metrics.jsonl": '{"step": 1}\n'},
            "metrics.jsonl:1: not the metrics of a step",
        ),
    ],
)
def test_a_folder_that_is_not_a_run_is_refused_with_the_reason(tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_record(tmp_path)


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


@pytest.mark.parametrize(
    ("values", "extent"),
    [
        ("n_ctx = 64\neval_tokens = 150", "128 of 1,000 tokens"),
        ("n_ctx = 64\neval_tokens = 1", "64 of 1,000 tokens"),
        ("n_ctx = 64\neval_tokens = 9999", "960 of 1,000 tokens"),  # whole windows
        ("n_ctx = 1000\neval_tokens = 9999", ""),  # no window
        ("n_ctx = 64", ""),
    ],
)
def test_validation_reads_whole_windows(values, extent):
    assert validation_extent(f"# val_tokens: 1,000, from the shards\n\n{values}\n") == extent
    assert validation_extent(f"# gpt 0\n\n{values}\n# val_tokens: 1,000\n") == ""


def test_what_is_published_names_no_host_and_no_folder_above():
    text = (
        "# gpt 0, python 3\n"
        "# command: gpt train --data /home/me/shards --val a=/home/me/b -o '/home/me/my runs/c'\n"
        "# host: mine\n"
        "# data: /home/me/my texts/shards, 1,000 training tokens, sha256 ab\n"
        "# resumed: 2030-01-01T00:00:00Z; host mine; torch 9.9\n"
        "\n"
        'data = "/home/me/my shards"  # /home/me/c.toml\n'
        'checkpoint_to = "s3://store/me/runs"  # option\n'
        'out = "runs/c"  # 2 / (1 - beta2)\n'
    )
    assert shareable(text) == (
        "# gpt 0, python 3\n"
        "# command: gpt train --data shards --val a=b -o 'c'\n"
        "# data: shards, 1,000 training tokens, sha256 ab\n"
        "# resumed: 2030-01-01T00:00:00Z; torch 9.9\n"
        "\n"
        'data = "my shards"  # c.toml\n'
        'checkpoint_to = "s3://store/me/runs"  # option\n'
        'out = "runs/c"  # 2 / (1 - beta2)\n'
    )


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
