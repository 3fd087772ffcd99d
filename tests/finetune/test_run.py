"""`gpt train --finetune` and `gpt eval` of its run, as a user meets them: a task so easy that it is
learnt.
"""

from __future__ import annotations

import json
import os
import re
import signal
import string
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.cost.layout import Layout, parse_layout
from gptcli.distributed.context import RankContext
from gptcli.distributed.launch import launch
from gptcli.errors import InputError, RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.finetune import run as module
from gptcli.finetune.model import SINGLE_PROCESS, accuracy, load_classifier
from gptcli.finetune.run import FinetuneRun, check_layout, finetune, finetune_from_folder
from gptcli.finetune.task import SPECIAL_TOKENS, FinetuneTask, InputTransform, read_examples
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.runs.metrics import read_metrics
from gptcli.sampling.load import load
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet
from gptcli.trainer.checkpoint import newest_step
from gptcli.trainer.preflight import resumed_state

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


def test_missing_and_unsupported_options_are_refused(gpt: Gpt, workplace: Path) -> None:
    assert "needs a model to start from" in gpt("train", "--finetune", "task.toml", code=2).stderr
    refused = gpt(
        "train", "--init-from", "base", "--finetune", "task.toml", "--lr", "1e-3", code=2
    ).stderr
    assert "--lr has no effect with --finetune" in refused
    divided = gpt(
        "train", "--init-from", "base", "--finetune", "task.toml", "--layout", "tp=2", code=2
    ).stderr
    assert "--layout: tp=2 divides the model, but fine-tuning supports replicas only" in divided
    assert not (workplace / "runs").exists()


TOKENIZER = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])
ROWS = [{"premise": p, "hypothesis": h, "label": int(p == h)} for p in "abcdef" for h in "abcdef"]
STEPS = 14  # two epochs of 7


@pytest.fixture(autouse=True)
def _a_checkpoint_every_third_step(monkeypatch):
    monkeypatch.setattr(module, "EVALS_PER_EPOCH", 2)


@pytest.fixture
def run(tmp_path: Path) -> FinetuneRun:
    for name, rows in (("train", ROWS[:27]), ("dev", ROWS[27:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = FinetuneTask(
        kind="entailment",
        train="train.jsonl",
        validation="dev.jsonl",
        labels=[0, 1],
        batch=4,
        epochs=2,
        lr=1e-2,
    )
    return FinetuneRun(task=task, data=tmp_path, out=tmp_path / "run", start="base", seed=3)


def base(*, tied: bool = True) -> GPT:
    model = GPT(
        ModelConfig(
            n_layer=1, n_head=2, d_model=16, n_ctx=16, vocab_size=TOKENIZER.vocab_size, tied=tied
        )
    )
    model.init_weights(0)
    return model


class At(Events):
    """Does something as soon as `step` is done."""

    def __init__(self, step: int, act) -> None:
        self.step, self.act = step, act

    def progress(self, task, done, total=None, unit="", **facts):
        if done == self.step:
            self.act()


class Killed(BaseException):
    pass


def kill() -> None:
    raise Killed


def contents(folder: Path) -> dict[str, bytes]:
    """Every file's bytes, but for the times in the metrics."""
    return {
        path.name: re.sub(rb', "time": "[^"]+"', b"", path.read_bytes())
        for path in folder.iterdir()
        if path.is_file()
    }


def test_a_run_killed_at_any_step_and_resumed_writes_the_same_bytes(run, tmp_path):
    report = finetune(run, base(), TOKENIZER)
    assert (report["steps"], report["step"], report["interrupted"]) == (STEPS, STEPS, False)
    assert [line["step"] for line in read_metrics(run.out)] == list(range(1, STEPS + 1))
    assert [line["step"] for line in read_metrics(run.out) if "val_accuracy" in line] == [
        3,
        6,
        9,
        12,
        14,
    ]
    broken = replace(run, out=tmp_path / "broken")
    for step in (2, 4, 5, 12):
        with pytest.raises(Killed):
            finetune(replace(broken, resume=step > 2), base(), TOKENIZER, events=At(step, kill))
    finetune(replace(broken, resume=True), base(), TOKENIZER)
    assert contents(broken.out) == contents(run.out)


def test_a_stop_signal_ends_the_run_with_a_checkpoint(run, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    report = finetune(
        run, base(), TOKENIZER, events=At(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    )
    # the signal came after step 4; the next one was finished
    assert (report["interrupted"], report["step"]) == (True, 5)
    assert signal.getsignal(signal.SIGTERM) is before
    assert not (run.out / "finetune.json").exists()
    state = resumed_state(run.out, run.identity())
    assert state is not None
    assert state.position.step == 5
    whole = replace(run, out=tmp_path / "whole")
    finetune(replace(run, resume=True), base(), TOKENIZER)
    finetune(whole, base(), TOKENIZER)
    assert contents(whole.out) == contents(run.out)


def in_two(run: FinetuneRun, context: RankContext, events: Events) -> dict[str, Any]:
    """Do the work of one of two processes: a run without dropout, one with, and that one again,
    killed twice.
    """
    torch.set_num_threads(1)
    module.EVALS_PER_EPOCH = 2
    finetune_from_folder(run, context, events)
    drops = replace(run, task=replace(run.task, dropout=0.1))
    report = finetune_from_folder(replace(drops, out=run.out.with_name("whole")), context, events)
    for step in (4, 13):
        with pytest.raises(Killed):
            finetune_from_folder(
                replace(drops, out=run.out.with_name("broken"), resume=step > 4),
                context,
                At(step, kill),
            )
    finetune_from_folder(
        replace(drops, out=run.out.with_name("broken"), resume=True), context, events
    )
    return report


def test_two_processes_train_as_one_does_and_resume_to_the_same_bytes(run, tmp_path):
    """Batches of three, the last of an epoch a single example: one process always has fewer than
    the other, and then none.
    """
    save_model(tmp_path / "base", base(), base().config, eot_id=TOKENIZER.eot_id)
    TOKENIZER.save(tmp_path / "base" / "tokenizer.json")
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS[:25])))
    task = replace(run.task, batch=3, dropout=0.0)
    one = replace(run, task=task, start=str(tmp_path / "base"), out=tmp_path / "one")
    finetune_from_folder(one, SINGLE_PROCESS, SILENT)
    two = replace(one, out=tmp_path / "two", layout=Layout(dp=2))
    assert launch(two, SILENT, in_two, newest_step)["step"] == 18

    lines = read_metrics(one.out)
    for ours, theirs in zip(read_metrics(two.out), lines, strict=True):
        assert ours.keys() == theirs.keys()
        del ours["time"], theirs["time"]
        assert ours == {name: pytest.approx(value, abs=1e-5) for name, value in theirs.items()}
    assert contents(tmp_path / "whole") == contents(tmp_path / "broken")
    assert (
        contents(tmp_path / "whole")["model.safetensors"] != contents(two.out)["model.safetensors"]
    )


def test_layouts_that_divide_the_model_are_refused(run):
    for layout, message in (
        ("tp=2", "supports replicas only"),
        ("dp=2,shard=2", "supports replicas only"),
        ("dp=5", "more processes than a batch"),
    ):
        with pytest.raises(UsageError, match=message):
            check_layout(parse_layout(layout), run.task)


def test_a_run_with_other_settings_or_data_is_not_resumed(run):
    finetune(run, base(), TOKENIZER)
    changes: dict[str, dict[str, Any]] = {
        "seed was 3, now 4": {"seed": 4}, "start was base, now other": {"start": "other"},
        "lr was 0.01, now 0.001": {"task": replace(run.task, lr=1e-3)},
    }  # fmt: skip
    for message, change in changes.items():
        with pytest.raises(UsageError, match=message):
            resumed_state(run.out, replace(run, **change).identity())
    (run.data / "dev.jsonl").write_text(json.dumps(ROWS[0]))
    with pytest.raises(UsageError, match="the data changed"):
        resumed_state(run.out, run.identity())


def test_a_loss_that_is_not_finite_ends_the_run(run):
    with pytest.raises(RunError, match="lower lr"):
        finetune(replace(run, task=replace(run.task, lr=1e9, clip=1e9)), base(), TOKENIZER)
    with pytest.raises(InputError, match="no such file"):
        finetune(replace(run, task=replace(run.task, train="gone.jsonl")), base(), TOKENIZER)


@pytest.mark.parametrize("tied", [True, False])
def test_the_run_folder_is_a_classifier_and_a_language_model(run, tied):
    report = finetune(run, base(tied=tied), TOKENIZER)
    model, task, tokenizer, validation = load_classifier(run.out)
    assert task == run.task
    found = accuracy(
        model, read_examples(task, validation, InputTransform(task.kind, tokenizer, 16)), batch=5
    )
    assert (found.examples, found.fraction) == (9, report["val_accuracy"])

    loaded = load(run.out, device="cpu", precision="fp32")
    assert (
        loaded.model.config.vocab_size
        == loaded.tokenizer.vocab_size
        == model.gpt.config.vocab_size - len(SPECIAL_TOKENS)
    )
    assert (loaded.model.lm_head.weight is loaded.model.wte.weight) == tied
    idx = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded.model(idx), model.gpt(idx)[..., : loaded.tokenizer.vocab_size]
        )
    again = replace(run, out=run.out.with_name("again"))
    assert finetune(again, loaded.model, loaded.tokenizer)["step"] == STEPS
