"""Worker processes: results as they come, bounded work in flight, no orphans, and a lost worker
that is told instead of waited for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Any, Protocol, TypeVar

from gptcli.errors import RunError, UsageError, nearest
from gptcli.interrupts import Held

Task = TypeVar("Task")
Result = TypeVar("Result")

RUNNERS = ("local", "ray")
_state: Any = None  # of this worker process


class Pool(Protocol):
    """Processes that hold a state and run functions with it."""

    count: int

    def map(
        self, function: Callable[[Any, Task], Result], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """As `Workers.map`."""

    def __enter__(self) -> Pool: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_runner(runner: str) -> None:
    """Raises UsageError where there is no such runner, or no cluster for it; the connection to one
    stays.
    """
    if runner not in RUNNERS:
        raise UsageError(
            f"unknown runner {runner!r}",
            field="runner",
            code="unknown_runner",
            hint=nearest(runner, RUNNERS),
        )
    if runner == "ray":
        from gptcli.corpus.ray_workers import connect

        connect()


def open_pool(runner: str, count: int, state: Any) -> Pool:
    """`count` processes on this machine, or all that a Ray cluster has room for. Raises UsageError
    where there is no such runner.
    """
    check_runner(runner)
    if runner == "local":
        return Workers(count, state)
    from gptcli.corpus.ray_workers import RayWorkers

    return RayWorkers(state)


class Workers:
    """`count` processes that hold `state` (sent to each once, pickled) and hand it to every
    function they run.

    A single worker is this process itself. Others are spawned, not forked: the tokenizer's threads
    do not survive a fork.
    """

    def __init__(self, count: int, state: Any) -> None:
        self.count, self._state = count, state
        self._others = multiprocessing.active_children()
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            self._pool = ProcessPoolExecutor(
                count, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(state,)
            )

    def map(
        self, function: Callable[[Any, Task], Result], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """`function(state, task)` for each task, in any order; `tasks` is read no faster than they
        are worked off.

        What a worker raises is raised here. Raises RunError where a worker died.
        """
        if self._pool is None:
            for task in tasks:
                yield function(self._state, task)
            return
        pending: set[Future[Result]] = set()
        try:
            for task in tasks:
                with Held():  # submitting is what starts a process
                    pending.add(self._pool.submit(_run, function, task))
                if len(pending) >= 2 * self.count:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise RunError(
                "a worker process died; most often the system ended it because memory ran out",
                hint="run again with {option:resume} and fewer {option:workers}: "
                "what was whole is kept",
            ) from None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if kind is not None:  # nobody waits for what is still running
            for child in set(multiprocessing.active_children()) - set(self._others):
                child.kill()
        self._pool.shutdown(cancel_futures=True)


def _begin(state: Any) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where it could not be held
    threading.Thread(target=_follow_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core
    _state = state


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the parent was killed: its workers must not linger


def _run(function: Callable[[Any, Task], Result], task: Task) -> Result:
    return function(_state, task)
