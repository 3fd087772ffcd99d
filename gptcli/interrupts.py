"""Ctrl-C, and SIGTERM, SIGHUP and SIGUSR1, which mean the same: stop.

Python turns Ctrl-C into an exception in the main thread, between two bytecodes. Libraries swallow
or replace that exception, C++ aborts the process when it meets one, and a long call into C delays
it. So nothing is raised here. A dedicated thread waits for signals and calls the `Answer` in force;
by default it ends the process, whatever the main thread is doing, with its children, its temporary
files and one line of output. Nothing is lost, because every output appears whole or not at all.

Importing this module installs nothing. It imports little, so that the command line can install it
before anything else.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import functools
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, TracebackType
    from typing import Any, NoReturn, Self

SIGNALS = [
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")
    if hasattr(signal, name)
]
CODE = 130
# seconds for Python code to see a KeyboardInterrupt, before a line says what keeps it waiting
RAISE_TIMEOUT_S = 1.0
# seconds for the main thread to come out of a call into C; whatever it does there, the process ends
PARK_TIMEOUT_S = 0.2
PARENT_CHECK_S = 0.5  # between two looks at whether the parent is still there
LAUNCHED_BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # set in the environment of its processes
SETTLED = 0  # on the pipe to the thread, beside signal numbers

_answers: list[Answer] = []  # the last is in force
_cleanups: list[Callable[[], object]] = []
_handlers: dict[int, Any] = {}  # those before ours
_pipe: tuple[int, int] | None = None  # where the interpreter writes the number of each signal
_settled, _parked = _thread.allocate_lock(), _thread.allocate_lock()
_parked.acquire()
_leaving = False
_last_words, _code = "", CODE


class Answer:
    """Response to a signal within a `with` block; this base class ends the process at once.

    In a thread other than the main one, where Python handles no signals, the block changes nothing.
    """

    unfinished = ""
    """Line that says how to go on after the process has ended at once, because torchrun did."""

    def note(self, number: int) -> None:
        """Run in the main thread, between two bytecodes; signals that arrive together count once."""
        _park()

    def act(self, number: int) -> None:
        """Run in the signal thread, once per signal."""
        leave()

    def __enter__(self) -> Self:
        """Make this the answer in force."""
        _settle()
        _answers.append(self)
        if len(_answers) == 1:
            _install()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Restore the answer that was in force before."""
        _settle()
        if len(_answers) == 1:
            _uninstall()
        if self in _answers:  # they are gone in a fork
            _answers.remove(self)


class Raise(Answer):
    """Make Ctrl-C raise KeyboardInterrupt in the main thread, as Python does by default.

    An interrupt that cannot be raised yet is announced, and the next one ends the process.
    """

    def __init__(self, until: str) -> None:
        """Say in `until` what the main thread may be waiting for."""
        self.until, self.late, self.over = until, False, False
        # interrupts raised, and signals answered: a thread that is late answers each of them
        self.raised = self.answered = 0

    def __enter__(self) -> Self:
        self.before, sys.unraisablehook = sys.unraisablehook, self._again
        super().__enter__()
        return self

    def __exit__(self, *what: Any) -> None:
        self.over = True
        super().__exit__(*what)
        sys.unraisablehook = self.before

    def _again(self, lost: Any) -> None:
        """Raise a KeyboardInterrupt again a millisecond later if a destructor or callback dropped
        it.
        """
        if lost.exc_type is KeyboardInterrupt:
            signal.signal(signal.SIGVTALRM, lambda *_: signal.raise_signal(signal.SIGINT))
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.001)
        else:
            self.before(lost)

    def note(self, number: int) -> None:
        """Raise KeyboardInterrupt in the main thread."""
        if number != signal.SIGINT or self.over:
            super().note(number)
        self.raised += 1
        raise KeyboardInterrupt

    def act(self, number: int) -> None:
        """Announce an interrupt that is delayed; end the process at the second one."""
        if number != signal.SIGINT or self.late:
            leave()
        last = time.monotonic() + RAISE_TIMEOUT_S
        while self.raised <= self.answered:
            if time.monotonic() > last:
                if self.over:
                    leave()
                self.late = True
                until = f"stopping after {self.until}"
                write(2, f"\n{until}; a second Ctrl-C ends the session at once\n")
                return
            time.sleep(0.01)
        self.answered += 1


class Cleanup:
    """Call `function` if the process ends at once within the `with` block.

    The function must not wait for the main thread: no lock, no buffered stream, no import.
    """

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = functools.partial(function, *arguments)

    def __enter__(self) -> Self:
        _cleanups.append(self.call)
        return self

    def __exit__(self, *_: object) -> None:
        if self.call in _cleanups:  # they are gone in a fork
            _cleanups.remove(self.call)


class Held:
    """Block signals in the main thread within the `with` block, and permanently in child processes
    started there.

    Only this process decides what the signals mean; its signal thread still receives them.
    """

    def __init__(self, *but: int) -> None:
        self.held = {*SIGNALS} - {*but}

    def __enter__(self) -> Self:
        start_resource_tracker()  # with the first process, and it lets signals through again
        if hasattr(signal, "pthread_sigmask"):
            self.before = signal.pthread_sigmask(signal.SIG_BLOCK, self.held)
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_SETMASK, self.before)


def start_resource_tracker() -> None:
    """Start multiprocessing's resource tracker with all signals blocked: call this before the first
    semaphore or child process is made.

    It ignores Ctrl-C and SIGTERM. A closed terminal or Slurm sends SIGHUP or SIGUSR1 to it too, and
    one that takes its place knows none of the names of the first.
    """
    if hasattr(signal, "pthread_sigmask"):
        from multiprocessing.resource_tracker import ensure_running

        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        ensure_running()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave(last_words: str | None = None, code: int | None = None) -> NoReturn:
    """End the process at once: kill its children, clean up, print `last_words` (those given to
    `begin`), exit with `code` (130).
    """
    global _leaving
    _leaving = True
    last_words = _last_words if last_words is None else last_words
    try:
        # so that the main thread makes no new files meanwhile, if it runs Python at all
        for number in [*_handlers][:1]:
            _thread.interrupt_main(signal.Signals(number))
            _parked.acquire(timeout=PARK_TIMEOUT_S)
        _kill_children()
        for cleanup in [*reversed(_cleanups), _remove_semaphores]:
            _quietly(cleanup)
        # of the processes that torchrun or Slurm started, the first speaks
        if os.environ.get("RANK", "0") == "0" or not os.environ.get("WORLD_SIZE"):
            if "--debug" in sys.argv:
                _show_stack()
            # over the ^C that a terminal shows
            write(2, f"\r{last_words}" if os.isatty(2) else last_words)
    finally:
        os._exit(_code if code is None else code)


def begin(last_words: str) -> None:
    """Handle signals from now on; `last_words` is the line that `leave` prints.

    A process of torchrun also leaves when torchrun is gone.
    """
    global _last_words
    _last_words = last_words
    for number in range(3):  # before the pipe that wakes the handlers gets the number of a stream
        reserve_descriptor(number)
    Answer().__enter__()
    atexit.register(_end)  # the first to be registered is the last to run
    if LAUNCHED_BY_TORCHRUN in os.environ:
        _thread.start_new_thread(_leave_with_parent, (os.getppid(),))


def reserve_descriptor(number: int) -> None:
    """Keep the next open file from getting the number of a standard stream that is closed.

    Messages, and the output of child processes, would be written to that file.
    """
    try:
        os.fstat(number)
    except OSError:
        null = os.open(os.devnull, os.O_RDWR)
        if null != number:
            os.dup2(null, number)
            os.close(null)


def finish(code: object) -> None:
    """Mark the command as finished: a later signal ends the process silently with exit code `code`."""
    global _last_words, _code
    with contextlib.suppress(OSError, ValueError):  # Python tries again, and says what is wrong
        sys.stdout.flush()
    _last_words, _code = "", code if isinstance(code, int) else int(code is not None)
    del _answers[1:]


def _end() -> None:
    """Skip the interpreter's own shutdown, which handles no signals and takes long with torch
    imported.
    """
    if not _last_words:  # `finish` was called
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(_code)


def write(file: int, text: str) -> None:
    """Write to a file descriptor past Python's buffers and locks; write nothing if a reader would
    block.
    """
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [file], [], 0)[1]:
            os.write(file, text.encode())


def _install() -> None:
    """Install the signal handlers.

    A signal that is ignored, as SIGHUP is under nohup and SIGINT in a background job of a script,
    stays ignored.
    """
    global _pipe
    if _pipe is None:
        _pipe = os.pipe()
        os.set_blocking(_pipe[1], False)
        _thread.start_new_thread(_watch, (_pipe[0],))
    try:
        signal.set_wakeup_fd(_pipe[1], warn_on_full_buffer=False)
    except ValueError:  # not the main thread
        return
    for number in SIGNALS:
        if (before := signal.getsignal(number)) is not signal.SIG_IGN:
            _handlers[number] = before  # first: what is received is answered
            signal.signal(number, _receive)


def _uninstall() -> None:
    if _handlers:
        for number, before in _handlers.items():
            signal.signal(number, before)
        signal.set_wakeup_fd(-1)
        _handlers.clear()


def _receive(number: int, frame: FrameType | None) -> None:
    if _leaving:
        _park()
    if _answers:
        _answers[-1].note(number)


def _park() -> NoReturn:
    """Keep the main thread waiting until the signal thread ends the process."""
    if _parked.locked():
        _parked.release()
    while True:
        signal.pause()


def _watch(pipe: int) -> None:
    while True:
        for number in os.read(pipe, 512):
            if number == SETTLED:
                _settled.release()
            elif number in _handlers and _answers and not _leaving:  # `leave` sends one, too
                try:
                    _answers[-1].act(number)
                except Exception:
                    leave()


def _leave_with_parent(parent: int) -> None:
    """End this process once its parent is gone.

    torchrun, killed, leaves its processes behind, which would train on unseen and keep their run
    locked.
    """
    while os.getppid() == parent:
        time.sleep(PARENT_CHECK_S)
    unfinished = _answers[-1].unfinished if _answers else ""
    # nothing after `finish`
    leave(
        f"gpt: torchrun was killed, and its processes end with it\n{unfinished}"
        if _last_words
        else ""
    )


def _settle() -> None:
    """Wait until every signal received so far has been answered."""
    if _handlers and _pipe is not None:
        _settled.acquire(blocking=False)
        os.write(_pipe[1], bytes([SETTLED]))
        _settled.acquire()


def _forget() -> None:
    """Drop the handlers in a forked child, which has no signal thread; its parent ends it."""
    global _pipe, _settled
    if _handlers:
        signal.set_wakeup_fd(-1)
    for number in _handlers:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    for held in (_handlers, _answers, _cleanups):
        held.clear()
    _pipe, _settled = None, _thread.allocate_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _quietly(function: Callable[..., object], *arguments: object) -> None:
    with contextlib.suppress(Exception):  # the rest matters more
        function(*arguments)


def _show_stack() -> None:
    """Print the stack of every thread, for --debug."""
    import faulthandler

    _quietly(faulthandler.dump_traceback, 2)


def _kill_children() -> None:
    """Kill all descendants. While one of them ends, /proc may leave out others, and a child may be
    starting: so they are listed again until there is no new one.
    """
    killed: set[int] = set()
    for _ in range(10):
        new = [child for child in _children(os.getpid()) if child not in killed]
        for child in new:
            _quietly(os.kill, child, signal.SIGKILL)
        if not new:
            return
        killed.update(new)


def _children(parent: int) -> list[int]:
    """Return all descendants of a process, nearest first: by /proc or, without it, those that
    multiprocessing started.
    """
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{parent}/task")  # noqa: PTH208  pathlib takes long to import
    except OSError:
        process = sys.modules.get("multiprocessing.process")
        started = list(getattr(process, "_children", ())) if parent == os.getpid() else []
        return [child.pid for child in started if child.pid]
    for thread in threads:
        # unless it has ended
        with contextlib.suppress(OSError), open(f"/proc/{parent}/task/{thread}/children") as file:
            found += map(int, file.read().split())
    return found + [below for child in found for below in _children(child)]


def _remove_semaphores() -> None:
    """Remove multiprocessing's semaphores, which otherwise its resource tracker removes with a
    warning.
    """
    util, synchronize = (
        sys.modules.get(f"multiprocessing.{name}") for name in ("util", "synchronize")
    )
    if util is not None and synchronize is not None:
        for finalizer in list(util._finalizer_registry.values()):
            if finalizer._callback is synchronize.SemLock._cleanup:
                _quietly(sys.modules["_multiprocessing"].sem_unlink, *finalizer._args)
