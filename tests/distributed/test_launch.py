"""Launch of several processes, some of which die. A start takes seconds, so each test checks
several things.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from gptcli.distributed.launch import MAX_RESTARTS, ForwardSignals, launch
from gptcli.errors import InputError, Interrupted, RunError
from gptcli.events import SILENT, Events
from gptcli.interrupts import SIGNALS
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.checkpoint import newest_state, newest_step
from gptcli.trainer.loop import train
from gptcli.trainer.step import TrainStep
from tests import forked_workers
from tests.waiting import wait_until

TOLERANCE = 1e-4


@pytest.fixture
def workers_are_forks(monkeypatch):
    """Start workers in milliseconds, where their imports are not the subject."""
    if sys.platform == "linux":  # macOS's own libraries do not survive a fork
        forked_workers.start()
        monkeypatch.setitem(forked_workers.CONTEXTS, "spawn", forked_workers.Context())


class Warnings(Events):
    """Collects the warnings of this process; copies in the workers collect their own."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def train_without_imports(run, context, events):
    """Train as always, where the processes are fresh ones: whatever they import late, the others
    wait for.
    """
    before = set(sys.modules)
    report = train(run, context, events)
    late = sys.modules.keys() - before
    assert not [name for name in late if name.startswith(("torch._dynamo", "torch.distributed."))]
    return report


def losses(run):
    return [line["loss"] for line in read_metrics(run.out)]


@pytest.mark.usefixtures("workers_are_forks")
def test_a_workers_error_is_raised_by_the_parent(make_run, tmp_path):
    with pytest.raises(InputError, match="no such shard folder") as caught:
        launch(replace(make_run(layout="dp=2"), data=tmp_path / "gone"), SILENT, train, newest_step)
    assert caught.value.where == str(tmp_path / "gone")
    assert "build-shards" in str(caught.value.hint)


def test_a_killed_worker_restarts_from_the_newest_checkpoint(make_run):
    run = make_run(layout="dp=2", tokens=6400, checkpoint_every=10)
    events = Warnings()

    def kill_one() -> None:
        wait_until(lambda: newest_state(run.out) is not None)
        pid = multiprocessing.active_children()[1].pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    report = launch(run, events, train_without_imports, newest_step)
    killer.join()
    assert report["step"] == 100
    assert len(events.texts) == 1
    assert "restarting all processes from the newest checkpoint" in events.texts[0]
    one = make_run("one", tokens=6400)
    launch(one, SILENT, train, newest_step)
    assert losses(run) == pytest.approx(losses(one), abs=TOLERANCE)
    assert report["val_loss"] == pytest.approx(read_metrics(one.out)[-1]["val_loss"], abs=TOLERANCE)
    assert not list(run.out.glob(".*")), "the scratch folder is removed"


def dies_in_warm_up(run, context, events):
    """Train, but the second process does not survive its first pass: by an error, or killed."""
    warm_up = TrainStep.forward_backward

    def forward_backward(self, *args, **options):
        if context.rank == 1 and run.name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if context.rank == 1:
            raise RuntimeError("ptxas is broken here")
        return warm_up(self, *args, **options)

    TrainStep.forward_backward = forward_backward  # type: ignore[method-assign]
    torch.compile = lambda function, **_: function  # type: ignore[assignment]
    return train(run, context, events)


@pytest.mark.usefixtures("workers_are_forks")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        # told by the agent or, where it has ended before the agent looks, by the process that is left
        ("killed", "process 1 was lost: killed by SIGKILL|process 0 was lost: .*gloo"),
        ("broken", "torch.compile failed: ptxas is broken here"),
    ],
)
def test_a_process_that_dies_in_the_warm_up_ends_the_others(make_run, monkeypatch, name, message):
    """With one message; a hang would take a process's ten minutes."""
    monkeypatch.setattr("gptcli.distributed.launch.MAX_RESTARTS", 0)
    run, events = replace(make_run(layout="dp=2", compile=True), name=name), Warnings()
    with pytest.raises(RunError) as caught:
        launch(run, events, dies_in_warm_up, newest_step)
    assert re.match(message, caught.value.what, re.DOTALL), caught.value.what
    assert caught.value.hint
    assert events.texts == []
    assert multiprocessing.active_children() == []
    assert not list(run.out.glob(".*")), "the scratch folder is removed"


@pytest.mark.parametrize(
    ("failure", "starts"),
    [
        # killed at every start
        (ProcessFailure(1, 7, -signal.SIGKILL, "none"), 1 + MAX_RESTARTS),
        (ProcessFailure(1, 7, 1, "none"), 1),  # a bug, which a restart does not fix
    ],
)
def test_restarts_without_progress_end_the_run(make_run, monkeypatch, failure, starts):
    tried = []

    def start(config, entrypoint):
        def run(*args):
            tried.append(args[0].resume)
            raise ChildFailedError("worker", {1: failure})

        return run

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)
    with pytest.raises(RunError, match="process 1 was lost") as caught:
        launch(make_run(layout="dp=2"), SILENT, train, newest_step)
    assert "resume" in str(caught.value)
    assert tried == [False] + [True] * (starts - 1)


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_that_were_told_to_stop_are_not_restarted(make_run, monkeypatch, number):
    def start(config, entrypoint):
        def run(*args):
            os.kill(os.getpid(), number)
            wait_until(lambda: stopping[-1].forwarding)
            raise ChildFailedError("worker", {1: ProcessFailure(1, 7, -signal.SIGTERM, "none")})

        return run

    stopping = []
    begun = ForwardSignals.__init__
    monkeypatch.setattr(
        ForwardSignals,
        "__init__",
        lambda self: (stopping.append(self), begun(self))[1],  # type: ignore[func-returns-value]
    )
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="interrupted before its first checkpoint"):
        launch(make_run(layout="dp=2"), SILENT, train, newest_step)
    assert len(stopping) == 1
    assert signal.getsignal(number) is before
    monkeypatch.setattr("gptcli.distributed.launch.leave", lambda: stopping.append("left"))
    stopping[0].act(number)
    assert stopping[-1] == "left", "a second signal ends the process"


def test_the_thread_that_forwards_waits_for_no_worker(monkeypatch):
    """Two threads that wait for one process race: the later one finds no exit code."""
    wait, waiting = os.waitpid, set()

    def waitpid(pid: int, options: int) -> tuple[int, int]:
        waiting.add(threading.current_thread())
        return wait(pid, options)

    child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    child.start()
    monkeypatch.setattr(os, "waitpid", waitpid)
    with ForwardSignals() as stopping:
        stopping.act(signal.SIGTERM)
        child.join()
        time.sleep(0.2)  # some rounds of the thread
    assert child.exitcode == -signal.SIGTERM
    assert waiting == {threading.main_thread()}


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds child processes through /proc"
)
def test_workers_exit_when_their_parent_is_killed(make_run):
    run = make_run(layout="dp=2", tokens=6_400_000)
    parent = multiprocessing.get_context("spawn").Process(
        target=launch, args=(run, SILENT, train, newest_step)
    )
    parent.start()
    wait_until(lambda: len(read_metrics(run.out)) > 2)
    children = [
        int(pid)
        for task in Path(f"/proc/{parent.pid}/task").iterdir()
        for pid in (task / "children").read_text().split()
    ]
    parent.kill()
    parent.join()
    assert len(children) >= 2

    def gone(pid: int) -> bool:
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    wait_until(lambda: all(gone(pid) for pid in children))
