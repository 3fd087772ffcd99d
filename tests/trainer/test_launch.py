"""Several processes, and processes that die. Each start of a worker costs seconds, so few do much."""

from __future__ import annotations

import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from gptcli.errors import InputError, RunError
from gptcli.events import SILENT
from gptcli.trainer.launch import launch
from gptcli.trainer.metrics import read_metrics
from gptcli.trainer.preflight import find_checkpoint

TOLERANCE = 1e-4  # of 20 steps in fp32


def losses(run):
    return [line["loss"] for line in read_metrics(run.out)]


def test_two_processes_follow_one_and_checkpoints_move_between_layouts(make_run):
    one = make_run("one")
    launch(one, SILENT)
    for layout in ("dp=2", "shard=2"):
        run = make_run(layout, layout=layout, micro_batch=1, checkpoint_every=10, keep=9)
        report = launch(run, SILENT)
        assert report["step"] == 20
        assert losses(run) == pytest.approx(losses(one), abs=TOLERANCE)
        assert report["val_loss"] == pytest.approx(read_metrics(one.out)[-1]["val_loss"], abs=TOLERANCE)
    half = run.out / "checkpoints" / "step-00000010"  # written by shard=2
    for layout in ("dp=1", "dp=2"):
        moved = make_run(f"from shard=2 to {layout}", layout=layout)
        shutil.copytree(run.out, moved.out)
        launch(replace(moved, checkpoint=half), SILENT)
        assert losses(moved) == pytest.approx(losses(one), abs=TOLERANCE)


def test_a_run_killed_at_ten_random_moments_ends_with_the_same_bytes(make_run):
    """Children are forked from a server that has imported torch, so that a start takes milliseconds."""
    whole, killed = (make_run(name, tokens=19_200, checkpoint_every=9, dropout=0.1, seed=7) for name in ("whole", "killed"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gptcli.trainer.launch"])

    def start(run, checkpoint=None):
        process = context.Process(target=launch, args=(replace(run, checkpoint=checkpoint), SILENT))
        process.start()
        return process

    process = start(whole)
    process.join()
    assert process.exitcode == 0
    begin = time.monotonic()
    shutil.rmtree(whole.out)
    process = start(whole)
    process.join()
    once = time.monotonic() - begin
    chance = random.Random(os.getpid())
    kills, lost = 0, 0
    while True:
        checkpoint, at_end = find_checkpoint(killed, SILENT)
        process = start(killed, checkpoint)
        process.join(chance.uniform(0.3, 1.0) * once if kills < 10 else None)
        if process.exitcode is not None:
            break
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        kills += 1
        lost += not at_end
    assert process.exitcode == 0
    assert (killed.out / "model.safetensors").read_bytes() == (whole.out / "model.safetensors").read_bytes()
    assert [line["loss"] for line in read_metrics(killed.out)] == losses(whole)


def wait_for(condition, seconds=60.0):
    """Whether `condition` came true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_an_error_of_a_worker_is_the_runs_error(make_run, tmp_path):
    with pytest.raises(InputError, match="no such shard folder") as caught:
        launch(replace(make_run(layout="dp=2"), data=tmp_path / "gone"), SILENT)
    assert caught.value.where == str(tmp_path / "gone")
    assert "build-shards" in caught.value.hint


def test_a_worker_that_is_killed_ends_the_run_with_its_name(make_run):
    run = make_run(layout="dp=2", tokens=6_400_000)

    def kill_one() -> None:
        wait_for(lambda: len(read_metrics(run.out)) > 2)
        os.kill(multiprocessing.active_children()[1].pid, signal.SIGKILL)

    killer = threading.Thread(target=kill_one)
    killer.start()
    with pytest.raises(RunError, match=r"process \d was lost"):
        launch(run, SILENT)
    killer.join()
    assert not multiprocessing.active_children()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds child processes through /proc")
def test_workers_die_with_a_parent_that_is_killed(make_run):
    run = make_run(layout="dp=2", tokens=6_400_000)
    parent = multiprocessing.get_context("spawn").Process(target=launch, args=(run, SILENT))
    parent.start()
    assert wait_for(lambda: len(read_metrics(run.out)) > 2)
    children = [int(pid) for task in Path(f"/proc/{parent.pid}/task").iterdir() for pid in (task / "children").read_text().split()]
    parent.kill()
    parent.join()
    assert len(children) >= 2

    def gone(pid: int) -> bool:
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    assert wait_for(lambda: all(gone(pid) for pid in children), 20)
