"""Workers of multiprocessing that start in milliseconds: forks of a server that has imported the
libraries.

A spawned worker imports torch anew, which takes seconds, and most tests of workers ask about
something else. Here the fork server of multiprocessing starts it, and it takes over environment,
folder and output streams of the process that asked, as a spawned one does.

What it cannot show is the start of a process, its imports, and signals to a process group: workers
are children of the server.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from multiprocessing import context, forkserver, popen_forkserver, reduction
from multiprocessing.process import BaseProcess
from typing import Any

LIBRARIES = (
    "torch._dynamo",
    "gptcli.cli.train",
    "gptcli.corpus.build",
    "gptcli.distributed.launch",
    "gptcli.kernels.installation",
    "gptcli.trainer.loop",
)


def start() -> None:
    """Start the server, as a child of this process. No thread may run in it: it forks."""
    before = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    forkserver.set_forkserver_preload(list(LIBRARIES))
    forkserver.ensure_running()
    del os.environ["OPENBLAS_NUM_THREADS"]
    if before is not None:
        os.environ["OPENBLAS_NUM_THREADS"] = before


def install_in_fork() -> None:
    """Let this process, a fork of the one that started the server, start workers through it."""
    # looks for a child of its own, and would start another server
    vars(forkserver._forkserver)["ensure_running"] = lambda: None
    CONTEXTS["spawn"] = Context()


class _Surroundings:
    """Environment, folder and output streams of this process, taken over where it is unpickled."""

    def __reduce__(self) -> Any:
        streams = [reduction.DupFd(number) for number in (1, 2)]
        return _take_over, (dict(os.environ), os.getcwd(), streams)  # noqa: PTH109


def _take_over(environment: dict[str, str], folder: str, streams: Sequence[Any]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, stream in enumerate(streams, 1):
        os.dup2(stream.detach(), number)


class _Popen(popen_forkserver.Popen):
    def __init__(self, process: BaseProcess) -> None:
        # first: what the worker is to do is unpickled in these surroundings
        process.__dict__ = {"surroundings": _Surroundings(), **vars(process)}
        super().__init__(process)


class _Process(context.ForkServerProcess):
    @staticmethod
    def _Popen(process: BaseProcess) -> Any:
        return _Popen(process)


class Context(context.ForkServerContext):
    """Context that stands in for the one named "spawn"."""

    _name = "spawn"
    Process = _Process


CONTEXTS: dict[str, Any] = context._concrete_contexts  # type: ignore[attr-defined]
