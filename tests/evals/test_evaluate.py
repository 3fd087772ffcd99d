"""`gpt train --eval-task`: the figures of `gpt eval`, in metrics.jsonl, at every checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gptcli.cli import build_app
from gptcli.errors import GptError
from tests.small_runs import make_shards

SMALL = "--n-layer 1 --n-head 1 --d-model 8 --n-ctx 16 --tokens 640 --batch-tokens 64 --checkpoint-every 4 --compile off"


def gpt(*words: str) -> str:
    done = CliRunner().invoke(build_app(list(words)), list(words), catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_tasks_at_every_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shards(tmp_path / "shards")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    rows = [{"text": f"{'a b ' * number}c d"} for number in range(1, 9)]
    Path("lambada.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(GptError, match="did you mean lambada"):
        gpt("train", "--size", "125M", *SMALL.split(), "--eval-task", "lambda")
    with pytest.raises(GptError, match="name the folder with --eval-data"):
        gpt("train", "--size", "125M", *SMALL.split(), "--eval-task", "lambada")
    gpt(
        "train",
        "--size",
        "125M",
        *SMALL.split(),
        "--eval-task",
        "lambada",
        "--eval-data",
        ".",
        "--eval-items",
        "5",
        "--out",
        "run",
    )
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "lambada_accuracy" in line] == [4, 8, 10]
    [told] = json.loads(
        gpt("eval", "run", "--task", "lambada", "--data", ".", "--limit", "5", "--json")
    )["tasks"][:1]
    assert lines[-1]["lambada_perplexity"] == pytest.approx(told["perplexity"], rel=1e-4)
    assert lines[-1]["lambada_accuracy"] == told["accuracy"]
    assert 'eval_task = ["lambada"]' in Path("run/run.toml").read_text()
