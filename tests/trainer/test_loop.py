from __future__ import annotations

import json
import math
import os
import signal
import time
from dataclasses import replace
from datetime import datetime
from typing import Any

import pytest
import torch

from gptcli.distributed import context
from gptcli.distributed.context import RankContext
from gptcli.errors import Interrupted, RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.interrupts import SIGNALS
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.config import Run
from gptcli.trainer.loop import StopSignal, train
from gptcli.trainer.monitors import TimeLeft
from gptcli.trainer.preflight import check_resume
from gptcli.trainer.step import TrainStep

CPU = RankContext(torch.device("cpu"))


class SignalAt(Events):
    """Sends this process a signal as soon as `tokens` are done."""

    def __init__(self, tokens: int, number: int) -> None:
        self.tokens, self.number = tokens, number

    def progress(self, task, done, total=None, unit="", **facts):
        if done == self.tokens:
            os.kill(os.getpid(), self.number)


# of the machine, not of the run
MEASURED = {
    "tokens_per_second", "tflops", "mfu", "mfu_causal", "peak_memory", "data_seconds", "time",
}  # fmt: skip


def without_time(run):
    return [
        {key: value for key, value in line.items() if key not in MEASURED}
        for line in read_metrics(run.out)
    ]


def test_a_run_learns_and_leaves_a_complete_folder(make_run, train_here):
    run = make_run(tokens=6400, decay_tokens=6400)
    report = train_here(run)
    files = {
        "README.md",
        "checkpoints",
        "config.json",
        "generation_config.json",
        "metrics.jsonl",
        "model.safetensors",
        "report.html",
    }
    assert {path.name for path in run.out.iterdir()} == files | {
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert report["step"] == 100
    assert report["tokens"] == 6400
    assert not report["interrupted"]
    lines = read_metrics(run.out)
    assert [line["step"] for line in lines] == list(range(1, 101))
    assert [line["step"] for line in lines if "val_loss" in line] == list(range(5, 101, 5))
    assert (
        set(lines[0])
        == {"step", "tokens", "loss", "lr", "grad_norm", "batch_tokens", "noise_scale"} | MEASURED
    )
    assert lines[0]["mfu"] is None  # a CPU's peak is unknown
    assert lines[0]["tflops"] > 0
    assert all(datetime.fromisoformat(line["time"]) for line in lines)
    assert (report["loss"], report["smoothed_steps"]) == (lines[-1]["loss"], 5)
    assert report["smoothed_loss"] == pytest.approx(sum(line["loss"] for line in lines[-5:]) / 5)
    assert lines[0]["loss"] == pytest.approx(5.56, abs=0.1)  # ln 260
    assert lines[-1]["val_loss"] < lines[0]["loss"] - 0.5
    assert lines[-1]["lr"] == pytest.approx(3e-4)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dropout": 0.2, "ramp_tokens": 640, "ramp_from": 16, "micro_batch": 3},
        {"optimizer": "muon", "lr_schedule": "wsd", "ema": 0.9},
    ],
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(make_run, train_here, changes):
    whole = make_run("whole", **changes)
    train_here(whole)
    tokens = read_metrics(whole.out)[9]["tokens"]
    for number in SIGNALS:
        halved = make_run(f"halved by {number.name}", **changes)
        before = signal.getsignal(number)
        report = train(halved, CPU, SignalAt(tokens, number))
        assert report["interrupted"]
        assert report["step"] == 11  # the signal came after step 10; the next one was finished
        assert signal.getsignal(number) is before
        assert not (halved.out / "model.safetensors").exists()
        train_here(replace(halved, resume=True))
        assert (whole.out / "model.safetensors").read_bytes() == (
            halved.out / "model.safetensors"
        ).read_bytes()
        assert without_time(whole) == without_time(halved)


def test_a_signal_after_the_last_step_stops_the_run_before_its_export(make_run, train_here):
    whole, halved = make_run("whole"), make_run("halved")
    train_here(whole)
    with pytest.raises(Interrupted, match=r"stopped after step 20, with a checkpoint"):
        train(halved, CPU, SignalAt(halved.train.tokens, signal.SIGTERM))
    assert not (halved.out / "model.safetensors").exists()
    train_here(replace(halved, resume=True))
    assert (whole.out / "model.safetensors").read_bytes() == (
        halved.out / "model.safetensors"
    ).read_bytes()


def test_a_second_signal_ends_the_run_at_once(make_run, monkeypatch):
    """A launcher that sends each signal again does not end it."""

    class Left(BaseException):
        pass

    class Telling(Events):
        def __init__(self):
            self.texts = []

        def info(self, text):
            self.texts.append(text)

    def left():
        raise Left

    monkeypatch.setattr("gptcli.trainer.loop.leave", left)
    events = Telling()
    stop = StopSignal(events)
    stop.act(signal.SIGINT)
    assert stop.requested
    with pytest.raises(Left):
        stop.act(signal.SIGTERM)
    assert events.texts == [
        "stopping: this step and a checkpoint first; a second Ctrl-C stops at once"
    ]
    launch = {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "LOCAL_RANK": "0",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "15000",
    }
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    patient = StopSignal(events)
    patient.act(signal.SIGINT)
    patient.act(signal.SIGINT)
    assert events.texts[1:] == ["stopping: this step and a checkpoint first"]
    # of this command's own processes, each gets what the whole group gets, and again from the first
    monkeypatch.setattr("multiprocessing.parent_process", object)
    worker = StopSignal(events)
    worker.act(signal.SIGTERM)
    worker.act(signal.SIGTERM)
    assert events.texts[2:] == [
        "stopping: this step and a checkpoint first; a second Ctrl-C stops at once"
    ]
    assert "no checkpoint was written now" in StopSignal.unfinished  # where torchrun is killed


def test_a_resume_repeats_an_evaluation_that_was_killed_after_its_checkpoint(
    make_run, train_here, monkeypatch
):
    whole, broken = make_run("whole", checkpoint_every=10), make_run("broken", checkpoint_every=10)
    train_here(whole)

    class Killed(BaseException):
        pass

    def evaluation(self, order, windows, micro_batch):
        if (broken.out / "checkpoints" / "step-00000010").exists():
            raise Killed
        return 0.0

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "validation_loss", evaluation)
        with pytest.raises(Killed):
            train_here(broken)
    assert len(read_metrics(broken.out)) == 9
    train_here(replace(broken, resume=True))
    assert without_time(broken)[5:] == without_time(whole)[5:]


class Warnings(Events):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text):
        self.texts.append(text)


def test_a_diverging_run_stops_after_max_skipped_updates_in_a_row(make_run):
    run, events = make_run(lr=1e30, warmup_tokens=0, clip=1e30, max_skipped=3), Warnings()
    with pytest.raises(
        RunError, match=r"3 updates in a row were skipped; at step [456] the loss is nan"
    ):
        train(run, CPU, events)
    assert not (run.out / "model.safetensors").exists()
    assert len(events.texts) == 3
    assert events.texts[0].endswith("its update is skipped")


def test_metrics_of_a_diverging_run_are_strict_json(make_run, train_here):
    """Its loss, gradient and validation loss, which are not numbers, are null in the file."""
    run = make_run(lr=1e6, warmup_tokens=0, spike=0)
    with pytest.raises(RunError, match="skipped"):
        train_here(run)

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    lines = [
        json.loads(line, parse_constant=refuse)
        for line in (run.out / "metrics.jsonl").read_text().splitlines()
    ]
    assert None in [line["val_loss"] for line in lines if "val_loss" in line]


@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_skipped_update_changes_no_weight_and_is_restored_on_resume(
    make_run, train_here, monkeypatch, wrong
):
    """Step 9 goes wrong: the weights are those of a run that never took it, and a resume remembers
    it.
    """
    right = TrainStep.forward_backward

    def forward_backward(self, batches, tokens, step):
        loss = right(self, batches, tokens, step)
        if step == 9:
            broken = next(self.model.parameters()).grad
            broken.fill_(math.nan)
            return loss * math.nan if wrong == "loss" else loss
        return loss

    monkeypatch.setattr(TrainStep, "forward_backward", forward_backward)
    updates = []
    update = TrainStep.update
    monkeypatch.setattr(
        TrainStep,
        "update",
        lambda self, lr: (updates.append(lr), update(self, lr)),  # type: ignore[func-returns-value]
    )
    whole, halved = make_run("whole", checkpoint_every=6), make_run("halved", checkpoint_every=10)
    assert train_here(whole)["skipped"] == 1
    lines = read_metrics(whole.out)
    assert [line["step"] for line in lines if "skipped" in line] == [9]
    assert len(updates) == 19
    assert lines[8]["grad_norm"] is None
    assert "NaN" not in (whole.out / "metrics.jsonl").read_text()
    assert train(halved, CPU, SignalAt(640, signal.SIGTERM))["interrupted"]
    assert train_here(replace(halved, resume=True))["skipped"] == 1
    assert without_time(whole) == without_time(halved)
    assert (whole.out / "model.safetensors").read_bytes() == (
        halved.out / "model.safetensors"
    ).read_bytes()


def test_losses_do_not_depend_on_the_micro_batch(make_run, train_here):
    curves = []
    for size in (1, 3, 4):
        run = make_run(f"micro-{size}", micro_batch=size)
        train_here(run)
        curves.append([line["loss"] for line in read_metrics(run.out)])
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)


@pytest.fixture
def weighted(make_run, write_sources):
    """Runs on two sources with the same tokens, of which "b" has any weight."""

    def make(weight: float, name: str = "", **changes: Any) -> Run:
        return make_run(name or f"weight {weight}", write_sources(a=1.0, b=weight), **changes)

    return make


def test_several_sources_are_mixed_in_training_and_validation(weighted, train_here):
    run = replace(weighted(3.0), val_by_source=True)
    assert train_here(run)["val_loss"] > 0
    last = read_metrics(run.out)[-1]
    assert last["val_loss_a"] == last["val_loss_b"] == pytest.approx(last["val_loss"], abs=0.2)
    assert weighted(1.0).data_sha256 != run.data_sha256
    assert check_resume(replace(run, resume=True))
    with pytest.raises(UsageError, match="the data changed"):
        check_resume(replace(weighted(2.0), out=run.out))


def test_a_mixture_changes_by_tokens_and_each_source_is_recorded(weighted, train_here):
    changes = {"mixture": "640: a=0,b=1", "micro_batch": 3, "checkpoint_every": 4}
    run, halved = (weighted(1.0, name, **changes) for name in ("whole", "halved"))
    train_here(run)
    lines, seen = read_metrics(run.out), {"a": 0, "b": 0}
    for line in lines:
        total = 0.0
        for name, before in seen.items():
            seen[name] = line[f"tokens_{name}"]
            assert line[f"passes_{name}"] == pytest.approx(seen[name] / 16 / 187, abs=1e-4)
            assert (f"loss_{name}" in line) == (seen[name] > before)
            total += line.get(f"loss_{name}", 0.0) * (seen[name] - before)
        assert sum(seen.values()) == line["tokens"]
        assert total / line["batch_tokens"] == pytest.approx(line["loss"], rel=1e-5)
    half = lines[9]
    assert (half["tokens"], half["tokens_a"]) == (640, lines[-1]["tokens_a"])
    assert 0.3 < half["tokens_a"] / 640 < 0.7
    train(halved, CPU, SignalAt(576, signal.SIGTERM))
    train_here(replace(halved, resume=True))
    assert without_time(halved) == without_time(run)
    assert (run.out / "model.safetensors").read_bytes() == (
        halved.out / "model.safetensors"
    ).read_bytes()
    page = (run.out / "report.html").read_text()
    assert "Training loss by source" in page
    assert ">passes</th>" in page
    with pytest.raises(UsageError, match=r"mixture was 640: a=0,b=1, now None"):
        check_resume(weighted(1.0, "whole"))
    with pytest.raises(UsageError, match="no source of the shards is named 'c'"):
        train_here(weighted(1.0, "other", mixture="a=1,b=1,c=1"))


def test_a_resume_uses_as_many_threads_as_before(make_run, monkeypatch):
    """The number of threads decides the last bits of every sum, and another process may begin with
    another number.
    """
    options = {"tokens": 384, "decay_tokens": 384, "checkpoint_every": 3, "micro_batch": 1}
    whole, halved = make_run("whole", **options), make_run("halved", **options)
    monkeypatch.setattr(context, "available_cores", lambda: 2)

    class Killed(Events):
        def progress(self, task, done, *args, **facts):
            if done >= 4 * 64:
                raise KeyboardInterrupt

    try:
        torch.set_num_threads(2)
        train(whole, CPU, SILENT)
        with pytest.raises(KeyboardInterrupt):
            train(halved, CPU, Killed())
        torch.set_num_threads(1)
        train(replace(halved, resume=True), CPU, SILENT)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert (whole.out / "model.safetensors").read_bytes() == (
        halved.out / "model.safetensors"
    ).read_bytes()


class Heard(Events):
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.infos: list[str] = []
        self.warnings: list[str] = []

    def info(self, text):
        self.infos.append(text)

    def warn(self, text):
        self.warnings.append(text)


@pytest.mark.parametrize(("slower", "loud"), [(1, False), (10**9, True)])
def test_the_time_left_is_reported_once_and_is_a_warning_above_a_week(
    make_run, monkeypatch, slower, loud
):
    now = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: slower * float(next(now)))
    events = Heard()
    train(make_run(), CPU, events)
    quiet, warned = (
        [text for text in texts if "left, by the first steps: " in text]
        for texts in (events.infos, events.warnings)
    )
    assert (len(quiet), len(warned)) == ((0, 1) if loud else (1, 0))
    assert (quiet + warned)[0].startswith("about ")


def test_reporting_the_time_left_changes_no_weight(make_run, train_here, monkeypatch):
    train_here(make_run("quick"))
    monkeypatch.setattr(TimeLeft, "MIN_SECONDS", 0.0)
    events = Heard()
    train(make_run("told"), CPU, events)
    assert [text for text in events.infos if "by the first steps" in text]
    quick, told = (make_run(name).out / "model.safetensors" for name in ("quick", "told"))
    assert quick.read_bytes() == told.read_bytes()
