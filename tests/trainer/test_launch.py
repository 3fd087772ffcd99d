"""Several processes, and processes that die. Each start of a worker costs seconds, so few do
much.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from gptcli.errors import InputError, Interrupted, RunError
from gptcli.events import SILENT, Events
from gptcli.interrupts import SIGNALS
from gptcli.runs.metrics import read_metrics
from gptcli.trainer.checkpoint import newest_state
from gptcli.trainer.launch import RESTARTS, PassOn, launch
from tests.waiting import wait_until

TOLERANCE = 1e-4


class Warnings(Events):
    """Stays in this process: what its copies in the workers hear is not heard here."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str) -> None:
        self.texts.append(text)


def losses(run):
    return [line["loss"] for line in read_metrics(run.out)]


def test_an_error_of_a_worker_is_the_runs_error(make_run, tmp_path):
    with pytest.raises(InputError, match="no such shard folder") as caught:
        launch(replace(make_run(layout="dp=2"), data=tmp_path / "gone"), SILENT)
    assert caught.value.where == str(tmp_path / "gone")
    assert "build-shards" in caught.value.hint


def test_a_worker_that_is_killed_starts_again_by_itself(make_run):
    run = make_run(layout="dp=2", tokens=6400, checkpoint_every=10)
    events = Warnings()

    def kill_one() -> None:
        wait_until(lambda: newest_state(run.out) is not None)
        os.kill(multiprocessing.active_children()[1].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    report = launch(run, events)
    killer.join()
    assert report["step"] == 100
    assert len(events.texts) == 1
    assert "all start again from the newest checkpoint" in events.texts[0]
    one = make_run("one", tokens=6400)
    launch(one, SILENT)
    assert losses(run) == pytest.approx(losses(one), abs=TOLERANCE)
    assert report["val_loss"] == pytest.approx(read_metrics(one.out)[-1]["val_loss"], abs=TOLERANCE)
    assert not list(run.out.glob(".*")), "what the workers told each other is swept away"


@pytest.mark.parametrize(
    ("failure", "starts"),
    [
        # killed, and again each time
        (ProcessFailure(1, 7, -signal.SIGKILL, "none"), 1 + RESTARTS),
        (ProcessFailure(1, 7, 1, "none"), 1),  # a bug would come again
    ],
)
def test_what_comes_again_without_progress_ends_the_run(make_run, monkeypatch, failure, starts):
    tried = []

    def start(config, entrypoint):
        def run(*args):
            tried.append(args[0].resume)
            raise ChildFailedError("worker", {1: failure})

        return run

    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)
    with pytest.raises(RunError, match="process 1 was lost") as caught:
        launch(make_run(layout="dp=2"), SILENT)
    assert "resume" in str(caught.value)
    assert tried == [False] + [True] * (starts - 1)


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_that_end_because_the_run_was_told_to_stop_are_not_started_again(
    make_run, monkeypatch, number
):
    def start(config, entrypoint):
        def run(*args):
            os.kill(os.getpid(), number)
            wait_until(lambda: stopping[-1].passing)
            raise ChildFailedError("worker", {1: ProcessFailure(1, 7, -signal.SIGTERM, "none")})

        return run

    stopping = []
    begun = PassOn.__init__
    monkeypatch.setattr(PassOn, "__init__", lambda self: (stopping.append(self), begun(self))[1])
    monkeypatch.setattr("torch.distributed.launcher.api.elastic_launch", start)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="interrupted before its first checkpoint"):
        launch(make_run(layout="dp=2"), SILENT)
    assert len(stopping) == 1
    assert signal.getsignal(number) is before
    monkeypatch.setattr("gptcli.trainer.launch.leave", lambda: stopping.append("left"))
    stopping[0].act(number)
    assert stopping[-1] == "left", "the second signal ends it at once"


@pytest.mark.skipif(
    not Path("/proc/self/task").exists(), reason="finds child processes through /proc"
)
def test_workers_die_with_a_parent_that_is_killed(make_run):
    run = make_run(layout="dp=2", tokens=6_400_000)
    parent = multiprocessing.get_context("spawn").Process(target=launch, args=(run, SILENT))
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
