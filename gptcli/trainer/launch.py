"""Starting the processes of a run: in this one where one is enough, through torch's elastic agent where there are several, or as one of
those that torchrun or Slurm started."""

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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gptcli import errors
from gptcli.errors import GptError, RunError
from gptcli.events import SILENT, Events
from gptcli.trainer.config import Run
from gptcli.trainer.layout import Place, parse_layout
from gptcli.trainer.loop import train
from gptcli.trainer.machine import device_type, launched, share_cores

Report = dict[str, Any]


def launch(run: Run, events: Events) -> Report:
    """Train, on as many processes as the layout asks for; returns the first one's report."""
    processes = parse_layout(run.train.layout).processes
    if launched() is not None:
        return _worker(run, events)
    if processes == 1:
        device = torch.device("cuda", 0) if device_type() == "cuda" else torch.device("cpu")
        return train(run, Place(device), events)
    return _spawn(run, events, processes)


def _spawn(run: Run, events: Events, processes: int) -> Report:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    _quiet()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",
        max_restarts=0,
        signals_to_handle="SIGQUIT",  # the others are passed on to the workers, which stop by themselves
    )
    with tempfile.TemporaryDirectory(prefix="gpt-train-") as folder, _passing_on_signals():
        try:
            return elastic_launch(config, _child)(run, events, folder)[0]
        except ChildFailedError as error:
            raise _told(Path(folder)) or _lost(error) from None


def _child(run: Run, events: Events, folder: str) -> Report:
    """What each started process runs; an error that a user can meet goes to the parent through `folder`."""
    _die_with_parent()
    try:
        return _worker(run, events)
    except GptError as error:
        told = {"kind": type(error).__name__, "what": error.what, "where": error.where, "hint": error.hint}
        (Path(folder) / f"{time.time_ns()}-{os.environ['RANK']}.json").write_text(json.dumps(told))
        raise


def _worker(run: Run, events: Events) -> Report:
    """One of several processes; who it is stands in the environment."""
    rank, world, local = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ.get("LOCAL_RANK", "0"))
    share_cores(int(os.environ.get("LOCAL_WORLD_SIZE", world)))
    device = torch.device("cpu")
    if device_type() == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    if world == 1:
        return train(run, Place(device), events)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    report = train(run, Place(device, rank, world), events if rank == 0 else SILENT)
    dist.barrier()  # and only after success: destroying a group that others still wait in hangs
    dist.destroy_process_group()
    return report


def _told(folder: Path) -> GptError | None:
    """The first error that a worker reported."""
    for path in sorted(folder.glob("*.json")):
        told = json.loads(path.read_text())
        return getattr(errors, told.pop("kind"))(told.pop("what"), **told)
    return None


def _lost(error: Any) -> RunError:
    """A worker that died without a word, or of a bug."""
    rank, failure = error.get_first_failure()
    data = failure.error_file_data.get("message") if isinstance(failure.error_file_data, dict) else None
    text = data.get("message") if isinstance(data, dict) else None
    what = f"exit {failure.exitcode}" if failure.exitcode >= 0 else f"killed by {signal.Signals(-failure.exitcode).name}"
    return RunError(f"process {rank} was lost: {text or what}", hint="--resume goes on from the last checkpoint")


@contextlib.contextmanager
def _passing_on_signals() -> Iterator[None]:
    """SIGTERM and SIGINT go to the workers, who finish the step, write a checkpoint and return."""

    def pass_on(number: int, frame: object) -> None:
        for child in multiprocessing.active_children():
            child.terminate()

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
    logger = logging.getLogger("torch.distributed.elastic")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
