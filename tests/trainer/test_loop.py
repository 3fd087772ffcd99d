from __future__ import annotations

import os
import signal
from dataclasses import replace

import pytest
import torch

from gptcli.errors import RunError
from gptcli.events import SILENT, Events
from gptcli.trainer.layout import Place
from gptcli.trainer.loop import train
from gptcli.trainer.metrics import read_metrics

CPU = Place(torch.device("cpu"))


class SignalAt(Events):
    """Sends this process a signal as soon as `tokens` are done."""

    def __init__(self, tokens: int, number: int) -> None:
        self.tokens, self.number = tokens, number

    def progress(self, task, done, total=None, unit="", **facts):
        if done == self.tokens:
            os.kill(os.getpid(), self.number)


def without_time(run):
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in read_metrics(run.out)]


def test_it_learns_and_leaves_a_whole_folder(make_run, train_here):
    run = make_run(tokens=6400, decay_tokens=6400)
    report = train_here(run)
    files = {"README.md", "checkpoints", "config.json", "generation_config.json", "metrics.jsonl", "model.safetensors", "report.html"}
    assert {path.name for path in run.out.iterdir()} == files | {"tokenizer.json"}
    assert report["step"] == 100
    assert report["tokens"] == 6400
    assert not report["interrupted"]
    lines = read_metrics(run.out)
    assert [line["step"] for line in lines] == list(range(1, 101))
    assert [line["step"] for line in lines if "val_loss" in line] == list(range(5, 101, 5))
    assert set(lines[0]) == {"step", "tokens", "loss", "lr", "grad_norm", "batch_tokens", "tokens_per_second", "mfu"}
    assert lines[0]["loss"] == pytest.approx(5.56, abs=0.1)  # ln 260
    assert lines[-1]["val_loss"] < lines[0]["loss"] - 0.5
    assert lines[-1]["lr"] == pytest.approx(3e-4)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2, "ramp_tokens": 640, "ramp_from": 16, "micro_batch": 3}])
def test_stopped_and_resumed_is_the_run_that_was_never_stopped(make_run, train_here, number, changes):
    whole, halved = make_run("whole", **changes), make_run("halved", **changes)
    train_here(whole)
    tokens = read_metrics(whole.out)[9]["tokens"]
    before = signal.getsignal(number)
    report = train(halved, CPU, SignalAt(tokens, number))
    assert report["interrupted"]
    assert report["step"] == 11  # the signal came after step 10; the next one was finished
    assert signal.getsignal(number) is before
    assert not (halved.out / "model.safetensors").exists()
    train_here(replace(halved, checkpoint=halved.out / "checkpoints" / "step-00000011"))
    assert (whole.out / "model.safetensors").read_bytes() == (halved.out / "model.safetensors").read_bytes()
    assert without_time(whole) == without_time(halved)


def test_the_checkpoint_comes_before_the_evaluation_and_a_resume_makes_up_for_it(make_run, train_here, monkeypatch):
    whole, broken = make_run("whole", checkpoint_every=10), make_run("broken", checkpoint_every=10)
    train_here(whole)

    class Killed(BaseException):
        pass

    def evaluation(*args):
        if (broken.out / "checkpoints" / "step-00000010").exists():
            raise Killed
        return 0.0

    with monkeypatch.context() as patch:
        patch.setattr("gptcli.trainer.loop.validation_loss", evaluation)
        with pytest.raises(Killed):
            train_here(broken)
    assert len(read_metrics(broken.out)) == 9
    train_here(replace(broken, checkpoint=broken.out / "checkpoints" / "step-00000010"))
    assert without_time(broken)[5:] == without_time(whole)[5:]


def test_a_loss_that_is_not_finite_stops_the_run_at_its_step(make_run):
    run = make_run(lr=1e30, warmup_tokens=0, clip=1e30)
    with pytest.raises(RunError, match=r"at step [234]\b"):
        train(run, CPU, SILENT)
    assert not (run.out / "model.safetensors").exists()


def test_the_curve_does_not_depend_on_the_micro_batch(make_run, train_here):
    curves = []
    for size in (1, 3, 4):
        run = make_run(f"micro-{size}", micro_batch=size)
        train_here(run)
        curves.append([line["loss"] for line in read_metrics(run.out)])
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], abs=1e-4)
