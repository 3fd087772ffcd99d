"""Golden tests of what users rely on: names of options, files and JSON keys, exit codes, and that
files of earlier versions are read.

After a change that users were told of in CHANGELOG.md, `python -m tests.golden` writes options.json
and outputs.json anew. The fixtures are a run of version 0.1.0, stopped at half its way, and stay as
they are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from gptcli.model.safetensors_io import load_model
from gptcli.shards.manifest import read_manifest
from gptcli.trainer.checkpoint import newest_state
from tests.golden.surface import options, outputs

HERE = Path(__file__).parent
FIXTURES = HERE / "fixtures"
Gpt = Callable[..., "CompletedProcess[str]"]


def golden(name: str) -> Any:
    return json.loads((HERE / name).read_text(encoding="utf-8"))


def test_options_are_those_that_users_know() -> None:
    now = json.loads(json.dumps(options()))
    for command, known in golden("options.json").items():
        assert now[command] == known, command
    assert now.keys() == golden("options.json").keys()


def test_files_keys_and_exit_codes_are_those_that_users_know(tmp_path: Path) -> None:
    shutil.copy(FIXTURES / "documents.jsonl", tmp_path)
    made, known = outputs(tmp_path), golden("outputs.json")
    assert made["exit codes"] == known["exit codes"]
    assert made["reports"] == known["reports"]
    assert made["files"] == known["files"]


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    """A folder with the files of version 0.1.0, which tests may change."""
    shutil.copytree(FIXTURES, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_an_earlier_run_is_resumed_to_the_same_losses(earlier: Path, gpt: Gpt) -> None:
    state = newest_state(earlier / "run")
    assert state is not None
    assert state.position.step == 10
    gpt("train", "--data", "shards", "--out", "run", "--resume", OMP_NUM_THREADS="1")
    lines = [
        json.loads(line) for line in (earlier / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    wanted = [
        json.loads(line) for line in (earlier / "metrics.whole.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == list(range(1, 21))
    for name in ("loss", "val_loss", "grad_norm"):
        assert [line[name] for line in lines] == pytest.approx(
            [line[name] for line in wanted], abs=1e-4
        ), name
    for name in ("lr", "tokens", "batch_tokens"):
        assert [line[name] for line in lines] == [line[name] for line in wanted], name
    ours, theirs = (
        load_model(earlier / "run").state_dict(),
        load_model(earlier / "finished").state_dict(),
    )
    assert ours.keys() == theirs.keys()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-4 for name in ours)


def test_an_earlier_model_is_evaluated_to_the_same_report(earlier: Path, gpt: Gpt) -> None:
    report = json.loads(gpt("eval", "finished", "--data", "shards", "--json").stdout)
    wanted = json.loads((earlier / "eval.json").read_text())
    assert report["schema"] == wanted["schema"] == "gpt.eval/1"
    (now,), (before,) = report["losses"], wanted["losses"]
    assert before.keys() <= now.keys()
    assert now["tokens"] == before["tokens"]
    for name in ("loss", "loss_stderr", "perplexity", "bits_per_byte"):
        assert now[name] == pytest.approx(before[name], abs=1e-4), name


def test_an_earlier_model_writes_the_same_text(earlier: Path, gpt: Gpt) -> None:
    report = json.loads(
        gpt("sample", "finished", "the river", "--max-tokens", 8, "--greedy", "--json").stdout
    )
    assert (
        report["samples"][0]["tokens"]
        == json.loads((earlier / "sample.json").read_text())["samples"][0]["tokens"]
    )


def test_earlier_documents_make_the_same_tokenizer_and_shards(earlier: Path, gpt: Gpt) -> None:
    gpt("tokenize", "train", "documents.jsonl", "--vocab-size", 280, "-o", "tokenizer.json")
    merges = [
        json.loads((earlier / name / "tokenizer.json").read_text())["model"]["merges"]
        for name in (".", "shards")
    ]
    assert [pair if isinstance(pair, str) else " ".join(pair) for pair in merges[0]] == [
        pair if isinstance(pair, str) else " ".join(pair) for pair in merges[1]
    ]
    gpt(
        "build-shards",
        "documents.jsonl",
        "-t",
        "tokenizer.json",
        "-o",
        "new",
        "--val-fraction",
        "0.1",
    )
    for path in (earlier / "shards").glob("*-0*"):
        assert (earlier / "new" / path.name).read_bytes() == path.read_bytes(), path.name
    now, before = (read_manifest(earlier / name) for name in ("new", "shards"))
    assert [shard.sha256 for shard in now.shards] == [shard.sha256 for shard in before.shards]


def test_an_earlier_run_toml_is_a_configuration(earlier: Path, gpt: Gpt) -> None:
    done = gpt("train", "--config", "run/run.toml", "--out", "new", "--dry-run", "--json")
    plan = json.loads(done.stdout)
    assert (plan["steps"], plan["config"]["lr"], plan["config"]["batch_tokens"]) == (20, 0.01, 256)
