"""Joining of the processes that torchrun, Slurm or Open MPI has started: in bounded time, with one
message a host, before anything is written.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from gptcli.devices import device_type
from gptcli.distributed.agreement import Launchable, check_agreement
from gptcli.distributed.context import RankContext
from gptcli.distributed.gpu import configure_cuda, own_gpu
from gptcli.errors import RunError, UsageError
from gptcli.events import Events
from gptcli.interrupts import LAUNCHED_BY_TORCHRUN
from gptcli.runtime import ADDRESS, Launch, is_main_on_node, launch_environment, launched_processes

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

SILENT_WAIT_S = 10  # of a process that waits for the others, before it says so
JOIN_WAIT_S = 600  # for all processes to join: each host may read its shards before
MISSING_NAMED = 8  # of the processes that have not joined
# in the message of a process that lost its connection to another
PEER_LOST = re.compile(r"gloo|NCCL|[Cc]onnection|[Ss]ocket")
_joins = itertools.count()  # of this process: a command may train several runs


def join(run: Launchable, events: Events) -> None:
    """Join the processes that a launcher started for `run`, and agree with them on it.

    A collective call, for before anything of the run folder is changed; without a launcher, and if
    joined already, it does nothing. Raises UsageError if the processes were started for different
    runs, RunError if some do not join in time.
    """
    if (launched_processes() or 1) > 1:
        with peer_loss_as_run_error(run):
            join_group(run, events)


def join_group(run: Launchable, events: Events) -> RankContext:
    """Make the process group, unless that is done, and return this process's place in it."""
    launch = launch_environment()
    assert launch is not None, "called only in a process that a launcher started"
    device, timeout = own_device(run, launch.local_rank), timedelta(seconds=run.timeout)
    context = RankContext(device, launch.rank, launch.world_size, run.layout, timeout)
    if dist.is_initialized():
        return context
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=meet(launch, run, events),
        rank=launch.rank,
        world_size=launch.world_size,
        timeout=timeout,
        # connects all GPUs now: a broken link is found before the model is built
        device_id=device if device.type == "cuda" else None,
    )
    context.watch_connections()
    try:
        check_agreement(run, context)
    except UsageError:
        if is_main_on_node():
            raise
        raise SystemExit(UsageError.exit_code) from None  # one message a host
    return context


def own_device(run: Launchable, local_rank: int) -> torch.device:
    """Return the device of the process with this rank on its machine, set up for the run."""
    kind = device_type()
    if kind != "cuda":
        return torch.device(kind)
    device = own_gpu(local_rank)
    configure_cuda(run.out)
    torch.cuda.set_device(device)
    return device


def meet(launch: Launch, run: Launchable, events: Events) -> Store:
    """Return the store in which the processes of a launch find each other, once all are there.

    Says who is missing after SILENT_WAIT_S. Raises RunError after JOIN_WAIT_S, or the run's timeout
    if that is longer; torch would wait 30 minutes.
    """
    bound = timedelta(seconds=max(JOIN_WAIT_S, run.timeout))
    address, port = (os.environ[name].strip() for name in ADDRESS)
    at = f"{address}:{port}"
    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)  # by torchrun itself
    with _saying(f"waiting at {at} for the first process of the run", events):
        try:
            store: Store = dist.TCPStore(  # type: ignore[attr-defined]
                address,
                int(port),
                launch.world_size,
                is_master=launch.rank == 0 and not hosted,
                timeout=bound,
                wait_for_workers=False,
                multi_tenant=True,
            )
        except dist.DistNetworkError as error:
            if launch.rank == 0 and not hosted:
                what = f"cannot listen at {at}: {str(error).splitlines()[0]}"
            else:
                what = f"no answer from the first process of the run at {at}"
            raise _not_joined(what, run) from None
    # torchrun keeps one store across restarts, in which the addresses of dead workers remain
    prefix = f"restart-{launch.restarts}-{next(_joins)}"
    store = dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
    names = [f"joined-{rank}" for rank in range(launch.world_size)]
    store.set(names[launch.rank], "")
    end = time.monotonic() + bound.total_seconds()
    try:
        store.wait(names, min(timedelta(seconds=SILENT_WAIT_S), bound))
    except dist.DistStoreError:
        events.info(f"waiting at {at} for {_missing(store, names)} to join")
    try:
        store.wait(names, timedelta(seconds=max(0.001, end - time.monotonic())))
    except dist.DistStoreError:
        waited = f"within {bound.total_seconds():.0f} s"
        what = f"{_missing(store, names)} did not join at {at} {waited}"
        raise _not_joined(what, run) from None
    store.set_timeout(timedelta(seconds=run.timeout))
    return store


def _missing(store: Store, names: list[str]) -> str:
    """Return which processes have not joined, in words."""
    ranks = [rank for rank, name in enumerate(names) if not store.check([name])]
    listed = ", ".join(map(str, ranks[:MISSING_NAMED]))
    more = ", …" if len(ranks) > MISSING_NAMED else ""
    return f"{len(ranks):,} of {len(names):,} processes (rank {listed}{more})"


def _not_joined(what: str, run: Launchable) -> BaseException:
    """Return the error of a launch that is not complete; one message a host."""
    if not is_main_on_node():
        return SystemExit(RunError.exit_code)
    return RunError(
        f"on {socket.gethostname()}: {what}",
        where=run.out,
        hint=f"start the same command on every host, with the same {' and '.join(ADDRESS)}, "
        "which all hosts must reach",
    )


@contextlib.contextmanager
def peer_loss_as_run_error(run: Launchable) -> Iterator[None]:
    """Raise RunError in place of torch's errors about a lost process; one message a host."""
    try:
        yield
    except RuntimeError as error:
        from_store = isinstance(error, dist.DistStoreError | dist.DistNetworkError)
        if not from_store and PEER_LOST.search(str(error)) is None:
            raise
        if not is_main_on_node():
            raise SystemExit(RunError.exit_code) from None
        raise RunError(
            f"on {socket.gethostname()}: another process of this run was lost, or gave no sign "
            f"for {run.timeout} s",
            where=run.out,
            hint=after_a_loss(),
        ) from None


def after_a_loss() -> str:
    """Return what to do once a process of another host is lost."""
    launch = launch_environment()
    most = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")
    if launch is not None and most.isdecimal() and launch.restarts < int(most):
        return (
            "torchrun now waits for the hosts to join again (with --nnodes MIN:MAX, for MIN of them), "
            "and continues from the newest checkpoint: start torchrun again where it has ended; or stop it here by Ctrl-C, and "
            "continue later with {option:resume}"
        )
    ends = (
        "; torchrun itself may wait minutes for the lost host: end it here by Ctrl-C or kill -9"
        if LAUNCHED_BY_TORCHRUN in os.environ
        else ""
    )
    return (
        "{option:resume} continues from the newest checkpoint, once all hosts are "
        f"back; {{option:timeout}} waits longer{ends}"
    )


@contextlib.contextmanager
def _saying(words: str, events: Events) -> Iterator[None]:
    """Say what this process waits for, if it still does after a few seconds."""
    timer = threading.Timer(SILENT_WAIT_S, lambda: events.info(words))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
