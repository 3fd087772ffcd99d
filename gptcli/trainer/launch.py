"""Starting the processes of a run: in this one where one is enough, through torch's elastic agent
where there are several, or as one of those that torchrun or Slurm started."""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import re
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from gptcli import errors, strict_json
from gptcli.distributed.context import Place
from gptcli.errors import GptError, Interrupted, RunError
from gptcli.events import SILENT, Events
from gptcli.files import scratch_folder, sweep
from gptcli.interrupts import Answer, Held, leave
from gptcli.runtime import device_type, divide_cores, launch_environment, launched_processes
from gptcli.trainer.checkpoint import newest_state
from gptcli.trainer.config import Run
from gptcli.trainer.loop import train

if TYPE_CHECKING:
    from gptcli.trainer.finetune import Finetuning

RESTARTS = 3  # in a row, without a new checkpoint between them
# in what a process says that lost another
PEER_GONE = re.compile(r"gloo|NCCL|[Cc]onnection|[Ss]ocket")

Report = dict[str, Any]
AnyRun = TypeVar("AnyRun", Run, "Finetuning")
Work = Callable[[AnyRun, Place, Events], Report]


def launch(run: AnyRun, events: Events, work: Work[AnyRun] = train) -> Report:  # type: ignore[assignment]
    """Train, or do other `work`, on as many processes as the layout asks for; returns the first
    one's report.
    """
    processes = run.layout.processes
    if launched_processes() is not None:
        try:
            return _worker(run, events, work)
        except RuntimeError as error:
            if PEER_GONE.search(str(error)) is None:
                raise
            raise RunError(
                "another process of this run was lost",
                hint="{option:resume} goes on from the newest checkpoint",
            ) from None
    if processes == 1:
        device = torch.device("cuda", 0) if device_type() == "cuda" else torch.device("cpu")
        return work(run, Place(device), events)
    return _spawn(run, events, processes, work)


def _spawn(run: AnyRun, events: Events, processes: int, work: Work[AnyRun]) -> Report:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _quiet()
    config = partial(
        LaunchConfig,
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # the agent would start over after any error
        # the others are passed on to the workers, which stop by themselves
        signals_to_handle="SIGQUIT",
    )
    left, reached = RESTARTS, newest_state(run.out)
    with _scratch(run.out) as folder, PassOn() as stopping, Held(signal.SIGTERM):
        while True:
            try:
                return elastic_launch(config(run_id=uuid.uuid4().hex), _child)(
                    run, events, folder, work
                )[0]
            except ChildFailedError as error:
                if stopping.told:
                    raise _stopped(run.out) from None
                if (told := _told(folder)) is not None:
                    raise told from None
                lost, died = _lost(error)
                before, reached = reached, newest_state(run.out)
                left = RESTARTS if reached != before else left - 1
                if not died or left < 0:
                    raise lost from None
                events.warn(f"{lost.what}: all start again from the newest checkpoint")
                sweep(run.out, keep=folder)
                run = replace(run, resume=True)


def _child(run: AnyRun, events: Events, folder: Path, work: Work[AnyRun]) -> Report:
    """What each started process runs; an error that a user can meet goes to the parent through
    `folder`.
    """
    _die_with_parent()
    try:
        return _worker(run, events, work)
    except GptError as error:
        told = {
            "kind": type(error).__name__,
            "what": error.what,
            "where": error.where,
            "hint": error.hint,
            "field": error.field,
            "code": error.code,
        }
        (folder / f"{time.time_ns()}-{os.getpid()}.json").write_text(
            strict_json.dumps(told, ascii_only=True)
        )
        raise


def _worker(run: AnyRun, events: Events, work: Work[AnyRun]) -> Report:
    """One of several processes; who it is stands in the environment."""
    launch = launch_environment()
    assert launch is not None, "called in a process of a launch alone"
    rank, world = launch.rank, launch.world_size
    divide_cores(launch.local_world_size)
    device = torch.device("cpu")
    if device_type() == "cuda":
        device = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(device)
    if world == 1:
        return work(run, Place(device), events)
    store, _, _ = next(rendezvous("env://", rank, world))
    # torchrun keeps one store for all its restarts: addresses of workers that are gone would still
    # stand in it.
    store = PrefixStore(f"restart-{launch.restarts}", store)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=rank,
        world_size=world,
    )
    report = work(run, Place(device, rank, world, run.layout), events if rank == 0 else SILENT)
    dist.barrier()  # and only after success: destroying a group that others still wait in hangs
    dist.destroy_process_group()
    return report


def _told(folder: Path) -> GptError | None:
    """The first error that a worker reported."""
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text())
        return getattr(errors, told.pop("kind"))(told.pop("what"), **told)
    return None


def _lost(error: Any) -> tuple[RunError, bool]:
    """A worker that died without a word, or of a bug; and whether one was killed, by this failure
    or before it: of that a new start can come out better, of a bug it cannot."""
    rank, failure = error.get_first_failure()
    data = (
        failure.error_file_data.get("message")
        if isinstance(failure.error_file_data, dict)
        else None
    )
    text = data.get("message") if isinstance(data, dict) else None
    killed = failure.exitcode < 0
    what = (
        f"killed by {signal.Signals(-failure.exitcode).name}"
        if killed
        else text or f"exit {failure.exitcode}"
    )
    lost = RunError(
        f"process {rank} was lost: {what}", hint="{option:resume} goes on from the last checkpoint"
    )
    return lost, killed or PEER_GONE.search(what) is not None


@contextlib.contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    """A folder for what the workers tell and for torch's own temporary files, under a name that the
    next start sweeps away if need be.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = tempfile.tempdir
    with scratch_folder(out) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before


class PassOn(Answer):
    """A signal to stop goes to the workers: those that train finish the step and write a
    checkpoint, the others end at once. The second one ends them all, and this process."""

    def __init__(self) -> None:
        self.told = self.passing = self.over = False

    def note(self, number: int) -> None:
        self.told = True

    def act(self, number: int) -> None:
        if self.passing:
            leave()
        self.told = self.passing = True
        threading.Thread(target=self._pass_on, daemon=True).start()

    def __exit__(self, *what: Any) -> None:
        self.over = True
        super().__exit__(*what)

    def _pass_on(self) -> None:
        """Tell every worker once, those too that are only being started."""
        knowing: set[int | None] = set()
        while not self.over:
            for child in multiprocessing.active_children():
                if child.pid not in knowing:
                    child.terminate()
                    knowing.add(child.pid)
            time.sleep(0.05)


def _stopped(out: Path) -> Interrupted:
    state = newest_state(out)
    if state is None:
        return Interrupted("interrupted before its first checkpoint", where=out)
    return Interrupted(
        f"interrupted; its newest checkpoint is of step {state.position.step:,}",
        where=out,
        hint="{option:resume} goes on",
    )


def _die_with_parent() -> None:
    """End this process as soon as its parent is gone, even by kill -9."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _quiet() -> None:
    """The agent's own log says in many lines what our one message says."""
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
