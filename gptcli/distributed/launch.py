"""Start of the processes of a run.

A run on one process works in this one. A run on several starts them through torch's elastic agent,
and restarts them from the newest checkpoint if one is killed; if torchrun or Slurm has started this
process, it is one of them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist

from gptcli import errors, toml_json
from gptcli.distributed.context import RankContext, share_cores
from gptcli.distributed.gpu import out_of_memory_as_run_error
from gptcli.distributed.join import (
    PEER_LOST,
    Launchable,
    join_group,
    own_device,
    peer_loss_as_run_error,
)
from gptcli.errors import GptError, Interrupted, RunError
from gptcli.events import SILENT, Events
from gptcli.files import scratch_folder, sweep
from gptcli.interrupts import Answer, Held, leave
from gptcli.runtime import launch_environment, launched_processes

MAX_RESTARTS = 3  # in a row, without a new checkpoint in between

Report = dict[str, Any]


R = TypeVar("R", bound=Launchable)
Work = Callable[[R, RankContext, Events], Report]
"""Function that every process of a run calls, with the run, its own context and its events."""
NewestStep = Callable[[Path], int | None]
"""Function that returns the step of the newest checkpoint in a run folder; None without one."""


def launch(run: R, events: Events, work: Work[R], newest_step: NewestStep) -> Report:
    """Call `work` on as many processes as the layout asks for; return the main process's report.

    Raises RunError if a process is lost and a restart does not help, Interrupted if a signal ends
    the workers before they have stopped by themselves, and any GptError that one of them raises.
    """
    processes = run.layout.processes
    if launched_processes() is not None:
        with peer_loss_as_run_error(run):
            return _work_as_rank(run, events, work)
    if processes == 1:
        device = own_device(run, 0)
        with out_of_memory_as_run_error(device):
            return work(run, RankContext(device), events)
    return _spawn(run, events, processes, work, newest_step)


def _spawn(
    run: R, events: Events, processes: int, work: Work[R], newest_step: NewestStep
) -> Report:
    """Start `processes` workers, and all of them again if one is killed."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _silence_elastic()
    config = partial(
        LaunchConfig,
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,  # the agent would restart after any error, a bug or a bad file included
        # ForwardSignals sends the others to the workers, which stop by themselves
        signals_to_handle="SIGQUIT",
    )
    restarts_left, newest = MAX_RESTARTS, newest_step(run.out)
    with (
        _scratch_folder(run.out) as folder,
        ForwardSignals() as stopping,
        Held(signal.SIGTERM),
    ):
        while True:
            try:
                start = elastic_launch(config(run_id=uuid.uuid4().hex), _child)
                return start(run, events, folder, work)[0]
            except ChildFailedError as error:
                if stopping.stop_requested:
                    raise _interrupted(run.out, newest_step(run.out)) from None
                if (reported := _first_error(folder)) is not None:
                    raise reported from None
                lost, was_killed = _diagnose(error)
                before, newest = newest, newest_step(run.out)
                restarts_left = MAX_RESTARTS if newest != before else restarts_left - 1
                if not was_killed or restarts_left < 0:
                    raise lost from None
                events.warn(f"{lost.what}; restarting all processes from the newest checkpoint")
                sweep(run.out, keep=folder)
                run = replace(run, resume=True)


def _child(run: R, events: Events, folder: Path, work: Work[R]) -> Report:
    """Run one spawned worker, and write a GptError to `folder` for the parent to raise."""
    _exit_with_parent()
    try:
        return _work_as_rank(run, events, work)
    except GptError as error:
        message = {
            "kind": type(error).__name__,
            "what": error.what,
            "where": error.where,
            "hint": error.hint,
            "field": error.field,
            "code": error.code,
        }
        (folder / f"{time.time_ns()}-{os.getpid()}.json").write_text(
            toml_json.dumps(message, ascii_only=True)
        )
        raise


def _work_as_rank(run: R, events: Events, work: Work[R]) -> Report:
    """Join the process group that the environment describes, and call `work`."""
    launch = launch_environment()
    assert launch is not None, "called only in a process that a launcher started"
    share_cores(launch.local_world_size)
    if launch.world_size == 1:
        device = own_device(run, launch.local_rank)
        with out_of_memory_as_run_error(device):
            return work(run, RankContext(device), events)
    # silent: a launcher's processes have joined before, and spawned ones start together
    context = join_group(run, SILENT)
    with out_of_memory_as_run_error(context.device):
        report = work(run, context, events if context.is_main else SILENT)
    # only after success: destroying a group in which others still wait would hang
    dist.barrier()
    dist.destroy_process_group()
    return report


def _first_error(folder: Path) -> GptError | None:
    """Return the first error that a worker wrote to `folder`."""
    for path in sorted(folder.glob("*.json")):
        message = json.loads(path.read_text())
        return getattr(errors, message.pop("kind"))(message.pop("what"), **message)
    return None


def _diagnose(error: Any) -> tuple[RunError, bool]:
    """Describe a worker that failed without a GptError, and say whether a process was killed.

    A restart can help after a kill, of this worker or of a peer it was connected to; after a bug it
    cannot.
    """
    rank, failure = error.get_first_failure()
    data = (
        failure.error_file_data.get("message")
        if isinstance(failure.error_file_data, dict)
        else None
    )
    text = data.get("message") if isinstance(data, dict) else None
    was_killed = failure.exitcode < 0
    if was_killed:
        reason = f"killed by {signal.Signals(-failure.exitcode).name}"
    else:
        reason = text or f"exit {failure.exitcode}"
    lost = RunError(
        f"process {rank} was lost: {reason}",
        hint="{option:resume} continues from the newest checkpoint",
    )
    return lost, was_killed or PEER_LOST.search(reason) is not None


@contextlib.contextmanager
def _scratch_folder(out: Path) -> Iterator[Path]:
    """Make a folder in `out` for the errors of workers and for torch's temporary files.

    Its name is that of a partial output, which the next start removes if this process cannot.
    """
    out.mkdir(parents=True, exist_ok=True)
    before = tempfile.tempdir
    with scratch_folder(out) as folder:
        tempfile.tempdir = str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before


class ForwardSignals(Answer):
    """Answer to a signal that forwards it to the workers.

    Workers that train finish their step and write a checkpoint; others exit at once. A second
    signal kills them all and ends this process.
    """

    def __init__(self) -> None:
        self.stop_requested = self.forwarding = self.closed = False

    def note(self, number: int) -> None:
        """Remember that a stop was requested."""
        self.stop_requested = True

    def act(self, number: int) -> None:
        """Start forwarding; end this process if that has begun already."""
        if self.forwarding:
            leave()
        self.stop_requested = self.forwarding = True
        threading.Thread(target=self._forward, daemon=True).start()

    def __exit__(self, *exception: Any) -> None:
        """Stop forwarding."""
        self.closed = True
        super().__exit__(*exception)

    def _forward(self) -> None:
        """Terminate each worker once, including those that are still being started.

        `multiprocessing.active_children` would also wait for those that have ended. The main thread
        waits for them too, and finds no exit code for a worker that this thread has waited for;
        torch does not expect that.
        """
        informed: set[int | None] = set()
        while not self.closed:
            for child in list(multiprocessing.process._children):  # type: ignore[attr-defined]
                if child.pid not in informed:
                    child.terminate()
                    informed.add(child.pid)
            time.sleep(0.05)


def _interrupted(out: Path, step: int | None) -> Interrupted:
    """Return the error of a run that was told to stop and ended without a new checkpoint."""
    if step is None:
        return Interrupted("interrupted before its first checkpoint", where=out)
    return Interrupted(
        f"interrupted; the newest checkpoint is from step {step:,}",
        where=out,
        hint="{option:resume} continues from it",
    )


def _exit_with_parent() -> None:
    """Make this process exit as soon as its parent is gone, even after kill -9."""

    def watch() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _silence_elastic() -> None:
    """Drop the elastic agent's own log, which repeats the one error message in many lines."""
    for name in ("torch.distributed.elastic", "torch.multiprocessing.spawn"):
        logger = logging.getLogger(name)
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
