"""Joining of the processes that torchrun, Slurm or Open MPI has started: in bounded time, with one
message a host, before anything is written. Joined, they check that they share what a run needs: the
run itself, the software, and a run folder that all of them see.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
import torch.distributed as dist

from gptcli import __version__
from gptcli.cost.layout import Layout
from gptcli.devices import device_type
from gptcli.distributed.context import RankContext
from gptcli.distributed.gpu import configure_cuda, own_gpu
from gptcli.errors import InputError, RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import PARTIAL
from gptcli.interrupts import LAUNCHED_BY_TORCHRUN
from gptcli.numbers import counted
from gptcli.runtime import (
    ADDRESS,
    Launch,
    is_main_on_node,
    launch_environment,
    launched_processes,
    share_malloc_arena,
)

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

SILENT_WAIT_S = 10  # of a process that waits for the others, before it says so
JOIN_WAIT_S = 600  # for all processes to join
CHECK_TIMEOUT = timedelta(days=1)  # for the other processes to read their shards
SHARED_WAIT_S = 5  # for a new file to be seen on another host
MISSING_NAMED = 8  # of the processes that have not joined
# in the message of a process that lost its connection to another
PEER_LOST = re.compile(r"gloo|NCCL|[Cc]onnection|[Ss]ocket")
_joins = itertools.count()  # of this process: a command may train several runs


class Launchable(Protocol):
    """Dataclass that describes a run, as far as its launch is concerned."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def out(self) -> Path:
        """Folder of the run."""
        ...

    @property
    def layout(self) -> Layout:
        """Layout of the run, which gives the number of processes."""
        ...

    @property
    def timeout(self) -> int:
        """Seconds that a process waits for another one in a step before it gives it up."""
        ...

    def shared_values(self) -> dict[str, Any]:
        """Return the values that must be equal on all processes, by name."""
        ...

    @property
    def resume(self) -> bool:
        """True to continue from the newest checkpoint, which a restart sets."""
        ...


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
    """Make the process group, unless that is done, and return this process's place in it.

    Raises RunError if a process does not join in time, UsageError if they do not belong together.
    """
    launch = launch_environment()
    assert launch is not None, "called only in a process that a launcher started"
    device, timeout = own_device(run, launch.local_rank), timedelta(seconds=run.timeout)
    context = RankContext(device, launch.rank, launch.world_size, run.layout, timeout)
    if dist.is_initialized():
        return context
    if device.type == "cpu":
        share_malloc_arena()
    import_ahead()
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


def check_together(run: Launchable, check: Callable[[int, int], None]) -> None:
    """Call `check` on every process of a machine, with its number there and how many there are.

    A collective call, for after `join`. The checks may take long. If some raise InputError, the
    first of them raises it, and the other processes end.
    """
    launch = launch_environment()
    if launch is None or launch.world_size == 1:
        return check(0, 1)
    context, failure = join_group(run, SILENT), None
    with peer_loss_as_run_error(run):
        group = context.new_group(CHECK_TIMEOUT)
        try:
            check(launch.local_rank, launch.local_world_size)
        except InputError as error:
            failure = error
        failed = context.all_gather(failure is not None, group)
        dist.destroy_process_group(group)
    if failure is not None and not any(failed[: launch.rank]):
        raise failure
    if any(failed):
        raise SystemExit(InputError.exit_code)
    return None


def import_ahead() -> None:
    """Import what torch otherwise imports in the first step or when a model is divided.

    That takes a second: of the timeout that the other hosts already count, or of each process that
    is forked afterwards.
    """
    for name in ("torch._dynamo", "torch.distributed.pipelining"):
        importlib.import_module(name)


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
    return f"{len(ranks):,} of {counted(len(names), 'process')} (rank {listed}{more})"


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
            "torchrun now waits for the hosts to join again (for as few as its nnodes allows), "
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


def check_agreement(run: Launchable, context: RankContext) -> None:
    """Check that all processes were started for one run, with one software, and share its folder.

    A collective call, before any work. Raises UsageError on every process.
    """
    mine = {
        "gpt": __version__,
        "torch": torch.__version__,
        **run.shared_values(),
    }
    facts = context.all_gather((socket.gethostname(), mine))
    (first, expected), others = facts[0], facts[1:]
    for host, found in others:
        different = [
            f"{name} is {found.get(name)!r} there and {expected.get(name)!r} on {first}"
            for name in expected.keys() | found.keys()
            if found.get(name) != expected.get(name)
        ]
        if different:
            raise UsageError(
                f"started differently from {first}: {'; '.join(sorted(different))}",
                where=host,
                code="processes_disagree",
                hint="start the same command, on the same data and with the same versions, "
                "on every host",
            )
    token = run.out / f".gpt.shared-{secrets.token_hex(8)}{PARTIAL}"
    token = context.all_gather(token)[0]
    if context.is_main:
        run.out.mkdir(parents=True, exist_ok=True)
        token.touch()
    dist.barrier()
    sees = _appears(token)
    blind = sorted(
        {host for host, there in context.all_gather((facts[context.rank][0], sees)) if not there}
    )
    if context.is_main:
        token.unlink(missing_ok=True)
    if blind:
        raise UsageError(
            f"the run folder of {first} is not seen by {', '.join(blind)}",
            where=run.out,
            field="out",
            code="folder_not_shared",
            hint="name an {option:out} on a file system that all hosts share: "
            "each writes its part of every checkpoint there",
        )


def _appears(file: Path) -> bool:
    """Return whether a file that another host has made is seen here, at last after some seconds."""
    end = time.monotonic() + SHARED_WAIT_S
    while True:
        with contextlib.suppress(OSError):  # NFS asks its server for a folder that is listed
            if file in file.parent.iterdir():
                return True
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
