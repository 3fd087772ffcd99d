"""`gpt train --finetune` and `gpt eval` of its run, as a user meets them: a task so easy that it is
learnt.
"""

from __future__ import annotations

import json
import os
import string
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

Gpt = Callable[..., Any]


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """base/, a model that has learnt nothing yet; a task whose answer is a word of its text."""
    config = ModelConfig(n_layer=1, n_head=2, d_model=32, n_ctx=16, vocab_size=257, norm="post")
    model = GPT(config)
    model.init_weights(0)
    save_model(tmp_path / "base", model, config, eot_id=256)
    Tokenizer([*byte_alphabet(), END_OF_TEXT], []).save(tmp_path / "base" / "tokenizer.json")
    rows = [
        {"sentence": f"{a} {word}", "label": label}
        for a in string.ascii_lowercase
        for word, label in (("good", "yes"), ("sad", "no"))
    ]
    for name, part in (("train", rows[:40]), ("dev", rows[40:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, part)), encoding="utf-8")
    (tmp_path / "task.toml").write_text(
        'kind = "classification"\ntrain = "train.jsonl"\nvalidation = "dev.jsonl"\nlabels = ["no", "yes"]\n'
        'batch = 8\nepochs = 12\nlr = 1e-2\nlm_weight = 0.1\n[fields]\ntext = "sentence"\n'
    )
    return tmp_path


def test_from_a_task_to_an_accuracy(gpt: Gpt, workplace: Path) -> None:
    argv = ("train", "--init-from", "base", "--finetune", "task.toml", "--out")
    report = json.loads(gpt(*argv, "run", "--json", OMP_NUM_THREADS="1").stdout)
    assert (report["schema"], report["steps"], report["examples"]) == ("gpt.train/1", 60, 40)
    assert report["val_accuracy"] == 1.0
    assert report["lr"] == 0.0
    lines = [
        json.loads(line) for line in (workplace / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    assert len(lines) == 60
    assert sum("val_accuracy" in line for line in lines) == 60
    assert lines[-1]["task_loss"] < 0.1 < lines[0]["task_loss"]
    assert gpt("eval", "run").stdout == "accuracy 100.00% (12 of 12) on dev.jsonl\n"
    assert (
        json.loads(gpt("eval", "run", "--data", "train.jsonl", "--json").stdout)["examples"] == 40
    )

    def figures(name: str) -> list[dict[str, float]]:
        """The lines of a run's metrics, but for when each was written."""
        texts = (workplace / name / "metrics.jsonl").read_text().splitlines()
        return [
            {key: value for key, value in json.loads(text).items() if key != "time"}
            for text in texts
        ]

    command = [sys.executable, "-m", "gptcli", *argv, "killed"]
    process = subprocess.Popen(
        command,
        cwd=workplace,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    while not list(workplace.glob("killed/checkpoints/step-*")):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert not (workplace / "killed" / "finetune.json").exists()
    assert "resuming after step" in gpt(*argv, "killed", "--resume", OMP_NUM_THREADS="1").stderr
    assert [figures(run) for run in ("run", "killed")] == [figures("run")] * 2
    for name in ("model.safetensors", "classifier.safetensors", "finetune.json"):
        assert (workplace / "run" / name).read_bytes() == (
            workplace / "killed" / name
        ).read_bytes(), name
    assert "is finished" in gpt(*argv, "run", "--resume").stderr
    assert "not empty" in gpt(*argv, "run", code=2).stderr
    shared = json.loads(
        gpt(*argv, "shared", "--layout", "dp=2", "--json", OMP_NUM_THREADS="1").stdout
    )
    assert (shared["steps"], shared["val_accuracy"]) == (60, 1.0)
    assert (workplace / "shared" / "model.safetensors").read_bytes() != (
        workplace / "run" / "model.safetensors"
    ).read_bytes()
    assert gpt("sample", "run", "a good", "--max-tokens", 8).stdout.startswith("a good")


def test_what_it_needs_and_what_it_does_not_take(gpt: Gpt, workplace: Path) -> None:
    assert "needs a model to start from" in gpt("train", "--finetune", "task.toml", code=2).stderr
    refused = gpt(
        "train", "--init-from", "base", "--finetune", "task.toml", "--lr", "1e-3", code=2
    ).stderr
    assert "--lr: is not supported with --finetune" in refused
    divided = gpt(
        "train", "--init-from", "base", "--finetune", "task.toml", "--layout", "tp=2", code=2
    ).stderr
    assert "--layout: tp=2 divides the model, but fine-tuning supports replicas only" in divided
    assert not (workplace / "runs").exists()
