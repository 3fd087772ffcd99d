"""Workers on a Ray cluster that is running already: an actor a core, the same tasks, the same
files, and so the same bytes.

What local processes share as files, the machines of a cluster share as well: the output folder and
the inputs have to be on a file system that all of them see, or the inputs behind URLs. The cluster
is the one of RAY_ADDRESS, or the one that `ray start` made on this machine.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from gptcli.errors import RunError, UsageError, install_hint

Task = TypeVar("Task")
Result = TypeVar("Result")
AHEAD = 2  # tasks that wait or run on each actor


class _Holder:
    """An actor: holds the state, as a worker process does."""

    def __init__(self, state: Any, folder: str) -> None:
        os.chdir(folder)  # relative paths are the command's
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one actor, one core
        self._state = state

    def run(self, function: Callable[[Any, Task], Result], task: Task) -> Result:
        return function(self._state, task)


def connect() -> Any:
    """Ray's module, connected to a cluster. Raises UsageError where Ray is not installed or no
    cluster is there.
    """
    try:
        import ray
    except ImportError:
        raise UsageError(
            "ray is not installed", field="runner", code="not_installed", hint=install_hint("ray")
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError:
            if address := os.environ.get("RAY_ADDRESS"):
                what, hint = (
                    f"no Ray cluster answers at {address}",
                    "RAY_AUTH_MODE=token, for one that asks for a token",
                )
            else:
                what, hint = (
                    "no Ray cluster is running",
                    "ray start --head begins one; RAY_ADDRESS names another's head",
                )
            raise UsageError(what, field="runner", code="no_ray_cluster", hint=hint) from None
    return ray


class RayWorkers:
    """`gptcli.corpus.workers.Workers`, with an actor on each core of a cluster; where others use
    one, its tasks wait.
    """

    def __init__(self, state: Any) -> None:
        """Raises UsageError as `connect`."""
        ray = self._ray = connect()
        self.count = int(ray.cluster_resources()["CPU"])
        held, actor = ray.put(state), ray.remote(num_cpus=1)(_Holder)
        self._actors: list[Any] = [actor.remote(held, str(Path.cwd())) for _ in range(self.count)]

    def map(
        self, function: Callable[[Any, Task], Result], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """As `Workers.map`."""
        pending: dict[Any, Any] = {}  # what is to come: whose it is
        idle = self._actors * AHEAD
        try:
            for task in tasks:
                if not idle:
                    yield from self._done(pending, idle)
                actor = idle.pop()
                pending[actor.run.remote(function, task)] = actor
            while pending:
                yield from self._done(pending, idle)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None
        except self._ray.exceptions.RayActorError:
            raise RunError(
                "a worker on the cluster died; most often because memory ran out",
                hint="run again with {option:resume}: what was whole is kept",
            ) from None

    def _done(self, pending: dict[Any, Any], idle: list[Any]) -> Iterator[Any]:
        (done,), _ = self._ray.wait(list(pending), num_returns=1)
        idle.append(pending.pop(done))
        yield self._ray.get(done)

    def __enter__(self) -> RayWorkers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for actor in self._actors:
            self._ray.kill(actor)
