from __future__ import annotations

import signal
import threading
from dataclasses import replace

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.errors import InputError
from gptcli.events import SILENT, Events
from gptcli.trainer import loop
from gptcli.trainer.callbacks import BackgroundCallback, Callback, Cancelled, RunProgress
from gptcli.trainer.loop import Trainer, train
from gptcli.trainer.schedule import Schedule
from tests.waiting import HANG_S

CPU = RankContext(torch.device("cpu"))


class Recorder(Callback):
    """Callback that keeps the order of its hooks, and counts steps over resumes."""

    state_key = "recorder"

    def __init__(self, progress):
        super().__init__(progress)
        self.calls: list[str] = []
        self.steps = 0

    def _call(self, hook):
        self.calls.append(f"{hook} {self.progress.position.step}")

    def on_start(self):
        self._call("start")

    def on_step_end(self, result, line):
        self.steps += 1
        self._call("step")

    def before_checkpoint(self):
        self._call("before checkpoint")

    def after_checkpoint(self, checkpoint):
        assert (checkpoint.folder / "state.json").is_file()
        assert checkpoint.tokens == checkpoint.step * 64
        self._call("after checkpoint")

    def on_evaluation(self, line):
        line["recorder"] = self.steps
        self._call("evaluation")

    def on_record(self, line):
        assert line["recorder"] == self.steps
        self._call("record")

    def on_end(self, *, interrupted):
        self._call("interrupted" if interrupted else "end")

    def close(self):
        self._call("close")

    def state_dict(self):
        return self.steps

    def load_state_dict(self, state):
        self.steps = state


@pytest.fixture
def recorders(monkeypatch):
    """Add a Recorder to every Trainer, and return them in order."""
    made, right = [], Trainer._build_callbacks

    def build_callbacks(self, validation):
        made.append(Recorder(self.progress))
        return [*right(self, validation), made[-1]]

    monkeypatch.setattr(loop.Trainer, "_build_callbacks", build_callbacks)
    return made


def test_hooks_run_in_the_order_step_checkpoint_evaluation_record(make_run, train_here, recorders):
    train_here(make_run(tokens=192, checkpoint_every=2))
    checkpoint = ["before checkpoint", "after checkpoint"]
    steps = {1: [], 2: checkpoint, 3: checkpoint}
    expected = ["start 0"]
    for step, saved in steps.items():
        expected += [f"{hook} {step}" for hook in ["step", *saved, "evaluation", "record"]]
    assert recorders[0].calls == [*expected, "end 3", "close 3"]


def test_a_resume_restores_the_state_and_repeats_the_record_of_its_checkpoint(
    make_run, train_here, recorders
):
    class StopAt(Events):
        def progress(self, task, done, *args, **facts):
            if done == 5 * 64:
                signal.raise_signal(signal.SIGTERM)

    run = make_run(checkpoint_every=100)
    assert train(run, CPU, StopAt())["step"] == 6
    assert recorders[0].calls[-2:] == ["interrupted 6", "close 6"]
    train_here(replace(run, resume=True))
    assert recorders[1].calls[:4] == ["start 6", "evaluation 6", "record 6", "step 7"]
    assert (recorders[0].steps, recorders[1].steps) == (6, 20)


def test_callbacks_are_closed_if_training_fails(make_run, recorders):
    class Fails(Events):
        def progress(self, *args, **facts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(make_run(), CPU, Fails())
    assert recorders[0].calls[-1] == "close 1"


def test_ranks_other_than_the_main_one_have_no_callback_that_writes(make_run, monkeypatch):
    trainer = object.__new__(Trainer)
    run = replace(make_run(samples=2), track=("tensorboard",), profile=True)
    trainer.run, trainer.context = run, RankContext(CPU.device, 1, 2)
    trainer.progress = RunProgress(run, trainer.context, SILENT, Schedule(run.train, 16))
    callbacks = trainer._build_callbacks({})
    assert callbacks
    assert not any(callback.main_only for callback in callbacks)
    assert not run.out.exists()


class Slow(BackgroundCallback):
    """Callback that processes a checkpoint once it may."""

    product = "slow product"

    def __init__(self, progress):
        super().__init__(progress)
        self.may_process, self.processed = threading.Event(), []
        self.error: Exception | None = None

    def process(self, checkpoint):
        while not self.may_process.wait(0.01):
            if self.cancelled.is_set():
                raise Cancelled
        if self.error is not None:
            raise self.error
        self.processed.append(checkpoint.step)


class Warnings(Events):
    def __init__(self):
        self.texts: list[str] = []

    def warn(self, text):
        self.texts.append(text)


@pytest.fixture
def slow(make_run):
    run = make_run()
    callback = Slow(RunProgress(run, CPU, Warnings(), Schedule(run.train, 16)))
    yield callback
    callback.close()


def at_step(callback, step):
    progress = callback.progress
    progress.position = replace(progress.position, step=step)
    return progress.checkpoint


def test_a_background_callback_leaves_out_checkpoints_while_busy_but_not_the_last(slow):
    for step in (1, 2, 3):
        slow.after_checkpoint(at_step(slow, step))
    slow.may_process.set()
    slow.finish()
    assert slow.processed == [1, 3]


def test_a_closed_background_callback_stops_early_and_starts_nothing_more(slow):
    slow.after_checkpoint(at_step(slow, 1))
    slow.close()
    assert slow.thread is not None
    slow.thread.join(HANG_S)
    assert not slow.thread.is_alive()
    slow.after_checkpoint(at_step(slow, 2))
    assert slow.processed == []
    assert slow.progress.events.texts == []


def test_a_failed_background_callback_warns(slow):
    slow.error = InputError("broken", where="here")
    slow.may_process.set()
    slow.after_checkpoint(at_step(slow, 4))
    slow.finish()
    assert len(slow.progress.events.texts) == 1
    assert slow.progress.events.texts[0].startswith("no slow product from step 4: ")
