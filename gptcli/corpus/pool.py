"""Worker pools: processes of this machine, or actors on a Ray cluster.

Both pools map tasks to results in any order, with a bounded number of tasks in flight. They leave
no orphans, and report a worker that died instead of waiting for it. Workers exchange only the names
of files with the coordinator, so a task that was lost is simply run again by `--resume`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, get_args

from gptcli.errors import RunError, UsageError, install_hint, nearest
from gptcli.events import Events
from gptcli.interrupts import Held, start_resource_tracker

Task = TypeVar("Task")
Result = TypeVar("Result")

Runner = Literal["local", "ray"]
RUNNERS: tuple[Runner, ...] = get_args(Runner)
TASKS_PER_WORKER = 2  # tasks waiting or running, for each worker
WAIT_S = 0.5  # between two calls of `Pool.on_wait`
RAY_GRACE_S = 20  # seconds in which the cores that are free start their actors
RAY_START_S = 60  # seconds to wait for the first actor if none is free
RAY_ATTEMPTS = 3  # of a task whose actor is lost
RAY_CONNECT_S = 10  # seconds the head of a cluster may take to answer
_NO_TASK: Any = object()
_EXIT = os._exit  # whatever a filter of one's own makes of it
_state: Any = None  # of this worker process


class Pool(Protocol):
    """Workers that each have a copy of a state and call functions with it."""

    count: int
    """Number of workers."""
    on_wait: Callable[[], None] | None
    """Function to call every WAIT_S while the pool waits for its workers."""

    def map(
        self, function: Callable[[Any, Task], Result], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """Yield `function(state, task)` for each task, in any order.

        `tasks` is consumed no faster than tasks are finished. An exception of a worker is raised
        here. Raises RunError if a worker dies.
        """

    def __enter__(self) -> Pool: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


def check_runner(runner: str) -> None:
    """Check that a runner exists, and connect to the cluster if it is "ray".

    Raises UsageError if there is no such runner or no cluster.
    """
    if runner not in RUNNERS:
        raise UsageError(
            f"unknown runner {runner!r}",
            field="runner",
            code="unknown_runner",
            hint=nearest(runner, RUNNERS),
        )
    if runner == "ray":
        connect_to_ray()


def open_pool(runner: Runner, count: int, state: Any) -> Pool:
    """Return a pool of `count` local processes, or of all cores of a Ray cluster.

    Raises UsageError like `check_runner`.
    """
    check_runner(runner)
    return LocalPool(count, state) if runner == "local" else RayPool(state)


def startable(count: int, events: Events) -> int:
    """Return `count`, or 1 with a warning where the system allows no semaphores, which processes
    need to take turns. On Linux they are files of /dev/shm, which a container may lack.
    """
    try:
        if count > 1:
            start_resource_tracker()
            multiprocessing.get_context("spawn").Lock()
    except (OSError, ImportError) as error:  # ImportError without sem_open
        what = error.strerror if isinstance(error, OSError) else "this system has none"
        events.warn(
            f"one worker instead of {count}: no semaphore could be made "
            f"({(what or str(error)).lower()}; on Linux they are made in /dev/shm)"
        )
        return 1
    return count


class LocalPool:
    """Pool of `count` processes on this machine; `state` is pickled and sent to each once.

    A single worker is the calling process itself. Others are spawned, not forked: the tokenizer's
    threads do not survive a fork.
    """

    def __init__(self, count: int, state: Any) -> None:
        self.count, self._state = count, state
        self.on_wait: Callable[[], None] | None = None
        self._earlier_children = multiprocessing.active_children()
        self._pool: ProcessPoolExecutor | None = None
        if count > 1:
            # A process that dies at its start does not read its arguments, and writing more than
            # the pipe holds would wait for it for ever. A queue is written by a thread.
            start_resource_tracker()
            context = multiprocessing.get_context("spawn")
            self._states = context.Queue()
            for _ in range(count):
                self._states.put(state)
            self._pool = ProcessPoolExecutor(
                count, context, initializer=_start_worker, initargs=(self._states,)
            )

    def map(
        self, function: Callable[[Any, Task], Result], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """Yield `function(state, task)` for each task; see `Pool.map`."""
        if self._pool is None:
            for task in tasks:
                yield function(self._state, task)
            return
        pending: set[Future[Result]] = set()
        try:
            for task in tasks:
                with Held():  # submitting a task may start a process
                    pending.add(self._pool.submit(_run_task, function, task))
                if len(pending) >= TASKS_PER_WORKER * self.count:
                    done, pending = self._wait(pending)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = self._wait(pending)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise RunError(
                "a worker process died; most often the system killed it because memory ran out",
                hint="run again with {option:resume} and fewer {option:workers}: all finished work is kept",
            ) from None

    def _wait(
        self, pending: set[Future[Result]]
    ) -> tuple[set[Future[Result]], set[Future[Result]]]:
        """Return the results that have come, at least one, and those that have not."""
        while True:
            done, waiting = wait(pending, WAIT_S, return_when=FIRST_COMPLETED)
            if self.on_wait is not None:
                self.on_wait()
            if done:
                return done, waiting

    def __enter__(self) -> LocalPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._pool is None:
            return
        if kind is not None:  # do not wait for running tasks
            for child in set(multiprocessing.active_children()) - set(self._earlier_children):
                child.kill()
        self._pool.shutdown(cancel_futures=True)
        self._states.cancel_join_thread()
        self._states.close()


def _start_worker(states: Any) -> None:
    global _state
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_exit_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one process, one core
    _state = states.get()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    _EXIT(1)  # a worker must not outlive a parent that was killed


def _run_task(function: Callable[[Any, Task], Result], task: Task) -> Result:
    return function(_state, task)


class RayPool:
    """Pool with one actor on each core of a running Ray cluster that is free when it starts.

    A task whose actor is lost, with its machine or for want of memory, is given to another one. All
    machines have to see the output folder and the inputs, on a shared file system or as URLs:
    workers exchange files, and so the bytes are those of local workers.
    """

    def __init__(self, state: Any) -> None:
        """Start the actors.

        Raises UsageError like `connect_to_ray`, RunError if no core becomes free.
        """
        ray = self._ray = connect_to_ray()
        self.on_wait: Callable[[], None] | None = None
        cores = int(ray.cluster_resources()["CPU"])
        shared_state, kind = ray.put(state), ray.remote(num_cpus=1)(_Actor)
        actors = [kind.remote(shared_state, str(Path.cwd())) for _ in range(cores)]
        started = {actor.start.remote(): actor for actor in actors}
        ready, late = ray.wait(list(started), num_returns=cores, timeout=RAY_GRACE_S)
        if not ready:
            ready, late = ray.wait(list(started), num_returns=1, timeout=RAY_START_S)
        for reference in late:  # another job has its core
            ray.kill(started[reference])
        self._actors: list[Any] = [started[reference] for reference in ready]
        self.count = len(self._actors)
        if not self._actors:
            raise RunError(
                f"no core of the Ray cluster became free in {RAY_GRACE_S + RAY_START_S} s",
                hint="wait until its other jobs have ended, or use {option:runner} local",
            )

    def map(
        self, function: Callable[[Any, Task], Result], tasks: Iterable[Task]
    ) -> Iterator[Result]:
        """Yield `function(state, task)` for each task; see `Pool.map`."""
        pending: dict[Any, tuple[Any, Task, int]] = {}  # result to come: actor, task, attempt
        idle = self._actors * TASKS_PER_WORKER
        again: list[tuple[Task, int]] = []  # tasks of lost actors, with their next attempt
        waiting = iter(tasks)
        is_end = False
        while pending or again or not is_end:
            while idle and (again or not is_end):
                task, attempt = again.pop() if again else (next(waiting, _NO_TASK), 1)
                if task is _NO_TASK:
                    is_end = True
                    break
                actor = idle.pop()
                pending[actor.run.remote(function, task)] = actor, task, attempt
            if not pending:
                continue
            finished, _ = self._ray.wait(list(pending), num_returns=1, timeout=WAIT_S)
            if self.on_wait is not None:
                self.on_wait()
            if not finished:
                continue
            (done,) = finished
            actor, task, attempt = pending.pop(done)
            try:
                result = self._ray.get(done)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except (
                self._ray.exceptions.RayActorError,
                self._ray.exceptions.ObjectLostError,
            ):
                # Tasks write whole files or none, so that they can be run again.
                again.append((task, attempt + 1))
                idle = [other for other in idle if other is not actor]
                self._actors = [other for other in self._actors if other is not actor]
                if attempt == RAY_ATTEMPTS or not self._actors:
                    raise RunError(
                        "a worker on the cluster died; most often because memory ran out",
                        hint="run again with {option:resume}: all finished work is kept",
                    ) from None
                continue
            idle.append(actor)
            yield result

    def __enter__(self) -> RayPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for actor in self._actors:
            self._ray.kill(actor)


class _Actor:
    """Ray actor that keeps the state, like a local worker process."""

    def __init__(self, state: Any, folder: str) -> None:
        os.chdir(folder)  # relative paths are relative to the command's folder
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one actor, one core
        self._state = state

    def start(self) -> None:
        """Return when the actor runs."""

    def run(self, function: Callable[[Any, Task], Result], task: Task) -> Result:
        """Return `function(state, task)`."""
        return function(self._state, task)


def _check_address(address: str) -> None:
    """Connect to the head of a cluster once: Ray itself tries for a quarter of an hour.

    Raises OSError if it does not answer in RAY_CONNECT_S.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=RAY_CONNECT_S).close()


def connect_to_ray() -> Any:
    """Return the module `ray`, connected to the cluster of RAY_ADDRESS or of this machine.

    Raises UsageError if Ray is not installed or no cluster is running.
    """
    try:
        import ray
    except ImportError:
        raise UsageError(
            "ray is not installed", field="runner", code="not_installed", hint=install_hint("ray")
        ) from None
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "")
        try:
            _check_address(address)
            ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, TimeoutError, socket.gaierror):
            if address:
                what = f"no Ray cluster answers at {address}"
                hint = "set RAY_AUTH_MODE=token if the cluster asks for a token"
            else:
                what = "no Ray cluster is running"
                hint = "start one with ray start --head, or set RAY_ADDRESS to the head of another"
            raise UsageError(what, field="runner", code="no_ray_cluster", hint=hint) from None
    return ray
