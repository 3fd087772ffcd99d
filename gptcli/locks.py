"""One writer per output: a lock file names the process that writes there.

`.lock` in a folder, or `.NAME.lock` next to a single file, is created exclusively: of several
processes one gets it. The lock of a dead holder is never removed, because a process that looked too
long ago could remove the next holder's instead. It is succeeded: whoever first creates
`.lock.TOKEN`, with the dead holder's token, is the next owner, and so on. The owner is the last of
this chain, and removes it on release, `.lock` first. Tokens are unique, so a process that acts on
an outdated read creates a file that no chain leads to; it notices that, removes the file and looks
again.

A holder on this machine is dead if its process is gone, by process number and start time. A holder
elsewhere touches its lock every few seconds, and is dead if the lock stays untouched, by the file
system's own clock and while we watch. flock is not used: network file systems do not agree on its
meaning.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

from gptcli import toml_json
from gptcli.errors import UsageError, close_to
from gptcli.events import SILENT, Events
from gptcli.files import (
    LOCK,
    NAME_BYTES,
    PARTIAL,
    check_writable,
    claim_output,
    contents,
    written_through,
)
from gptcli.interrupts import Cleanup
from gptcli.runtime import process_gone, process_place, process_start

BEAT = 5.0  # seconds between two signs of life
SILENCE = 60.0  # seconds without a sign after which a holder elsewhere is dead, if
WATCHED = 15.0  # this many of them were watched: a file server that hung for a minute is no death
POLL = 0.5  # seconds between two looks
MAX_LOST = 40  # times that a folder is gone before nothing can be in it, as in /proc
TRIES = 100  # to take a lock that others take and release meanwhile
NO_WRITING = (errno.EACCES, errno.EPERM, errno.EROFS)
HINT = "wait for it to end, or stop it first"


@dataclass(frozen=True, slots=True)
class Holder:
    """The process that owns a lock, as the lock file describes it in JSON."""

    token: str
    """Unique among all locks."""
    pid: int = 0
    host: str = ""
    since: str = ""
    command: str = ""
    place: str = ""
    """Boot and PID namespace in which `pid` and `started` identify one process; "" if unknown."""
    started: str = ""
    """Start time of the process in the system's own format; "" if unknown."""

    def __str__(self) -> str:
        if not self.pid:
            return "a process that does not say who it is"
        text = f"process {self.pid} on host {self.host} since {self.since} ({self.command})"
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class Lock:
    """The lock file `path` for the output `subject`, owned by this process from `acquire` to
    `release`.
    """

    def __init__(self, path: Path, subject: Path, *, events: Events = SILENT) -> None:
        self.path, self.subject, self.events = path, subject, events
        self._me: Holder | None = None
        self._chain = [path]
        """Lock file and its successors; once the lock is taken, the last names this process."""
        self._made: list[Path] = []
        self._released = threading.Event()
        self._cleanup = Cleanup(self._remove)

    def __enter__(self) -> Lock:
        """Acquire the lock.

        Raises UsageError too if the output's path explains why it cannot be written.
        """
        try:
            return self.acquire()
        except OSError:
            check_writable(self.subject)
            raise

    def __exit__(self, *error: object) -> None:
        """Release the lock."""
        self.release()

    def acquire(self) -> Lock:
        """Take the lock, at once or from a dead holder; missing folders are created.

        Raises UsageError if another process owns it, and OSError if nothing can be written there.
        """
        self._me = this_process()
        self._cleanup.__enter__()  # before there is anything to remove
        try:
            self._take(self._me)
        except BaseException as error:
            self.release()
            if isinstance(error, OSError):  # name what the user named, not a file of ours
                raise OSError(error.errno, error.strerror, str(self.subject)) from None
            raise
        threading.Thread(target=self._beat, args=(self._me,), name="lock", daemon=True).start()
        return self

    def release(self) -> None:
        """Release the lock, and remove folders that were created for it and are empty.

        A forked child leaves its parent's lock alone, and an owner a lock that it has lost.
        """
        if self._me is None or self._me.pid != os.getpid():
            return
        self._released.set()
        self._remove()
        self._cleanup.__exit__()
        self._me = None

    def _remove(self) -> None:
        """Remove this process's lock files, at any moment of acquiring or removing them."""
        with contextlib.suppress(OSError):  # what cannot be removed is a dead process's in a moment
            chain = read_chain(self.path)
            if self._me not in chain.values():
                if _read(self._chain[-1]) == self._me:  # and no chain leads to it
                    for file in self._chain[1:] or self._chain:
                        file.unlink(missing_ok=True)
            elif _last(chain) == (self._chain[-1], self._me):
                for file in chain:
                    file.unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _take(self, me: Holder) -> None:
        lost = 0
        for _ in range(TRIES):
            try:
                self._make_folder()
                before = refuse_held(self.path, self.subject, self.events)
                file = self.path if before is None else successor(self.path, before)
                self._chain = [file]
                if _create(file, me):
                    chain = read_chain(self.path)
                    if chain.get(file) == me:
                        self._chain = list(chain)
                        self._sweep({*chain, successor(self.path, me)})
                        return
                    file.unlink(missing_ok=True)  # the chain it continued is gone
            except FileNotFoundError:  # the folder was removed by a process that had made it
                lost += 1
                if lost == MAX_LOST:
                    raise UsageError(
                        "no file can be created there",
                        where=self.subject,
                        hint="choose another {option:out}",
                    ) from None
            time.sleep(POLL / 10)
        raise UsageError(
            "in use: its lock changes hands all the time", where=self.subject, hint=HINT
        )

    def _sweep(self, kept: Collection[Path]) -> None:
        """Remove what processes left that were killed while they took or released this lock.

        A file of a living process that leads nowhere may be removed too; that process looks again.
        """
        leftover = re.compile(
            rf"{re.escape(self.path.name)}(\.[0-9a-z]+|(\.[0-9a-z]+){{1,2}}{re.escape(PARTIAL)})"
        )
        with contextlib.suppress(OSError):
            for file in self.path.parent.iterdir():
                if leftover.fullmatch(file.name) and file not in kept:
                    file.unlink(missing_ok=True)

    def _beat(self, me: Holder) -> None:
        """Touch the lock until it is released or removed by hand.

        Ends this process if another one has taken over: nothing more may be written.
        """
        file = self._chain[-1]
        while not self._released.wait(BEAT):
            with contextlib.suppress(OSError):
                chain = read_chain(self.path)
                if chain.get(file) != me:
                    return
                if _last(chain) != (file, me):
                    self.events.warn(
                        f"{self.subject}: taken over by another process, which saw no sign of life: this one ends"
                    )
                    os._exit(1)
                os.utime(file)

    def _make_folder(self) -> None:
        """Create the lock's folder and its parents, and note those that were missing, innermost
        first.
        """
        folder, missing = self.path.parent, []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        self._made += missing
        for one in reversed(missing):
            one.mkdir(exist_ok=True)


@contextlib.contextmanager
def own_folder(folder: Path, *, read_only: bool = False, events: Events = SILENT) -> Iterator[None]:
    """Be the only process that writes in `folder`, which is created if it is missing.

    With `read_only`, for work that may turn out to be done already, no lock is needed where nobody
    can write one. Raises UsageError if another process writes there, or if it is not a folder.
    """
    real = _real(folder)
    with contextlib.ExitStack() as held:
        lock = Lock(real / LOCK, folder, events=events)
        try:
            lock.acquire()
            held.callback(lock.release)
        except OSError as error:
            if not (read_only and real.is_dir() and error.errno in NO_WRITING):
                check_writable(folder)
                raise
            yield
            return
        for part in sorted(real.glob(f".part-*{LOCK}")):
            refuse_held(part, folder, events)
            for file in read_chain(part):
                file.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def own_part(folder: Path, part: str, *, events: Events = SILENT) -> Iterator[None]:
    """Be the only process that does `part` of the work in `folder`, next to those that do other
    parts.

    Raises UsageError if another process does this part, or writes in the folder as a whole.
    """
    real = _real(folder)
    with Lock(real / f".part-{part}{LOCK}", folder, events=events):
        # after taking our own: of two that start at once, one sees the other
        refuse_held(real / LOCK, folder, events)
        yield


@contextlib.contextmanager
def own_file(file: Path, *, events: Events = SILENT) -> Iterator[None]:
    """Be the only process that writes `file`. A device or pipe may have several writers.

    Raises UsageError if another process writes it.
    """
    if written_through(file):
        yield
        return
    real = Path(os.path.realpath(file))
    with Lock(real.with_name(_lock_name(real.name)), file, events=events):
        yield


def claim_owned(
    folder: Path, *, resume: bool, force: bool, own: str = "", events: Events = SILENT
) -> None:
    """Take an output folder that this process owns, by the rule of `claim_output`.

    Raises UsageError too if `force` would delete an output inside it that a process is writing.
    """
    if force:
        real = _real(folder)
        for path in sorted(real.rglob(f"*{LOCK}")):
            # of its own locks the folder's owner has made sure
            is_own = path.parent == real and (path.name == LOCK or path.name.startswith(".part-"))
            if path.name.startswith(".") and not is_own:
                inside = path.parent.relative_to(real)
                refuse_held(path, Path(folder) / inside, events)
    claim_output(folder, resume=resume, force=force, own=own)
    if resume and not contents(folder):
        events.info(nothing_to_resume(folder, own))


def nothing_to_resume(output: Path, mark: str = "") -> str:
    """Return a line that says that there is no unfinished work at `output`, and where there is, if
    the name may be misspelled.

    `mark` is a file that folders with such work contain. A name that differs in its number alone,
    as run-2 from run-1, is no misspelling. A first start is told as such.
    """
    output = Path(output)
    is_new = not contents(output) if output.is_dir() else not output.exists()
    line = f"{output}: nothing to resume there, so it starts from the beginning"
    first = f"{output}: new, so it starts from the beginning" if is_new else line
    try:
        others = [
            path.name
            for path in output.absolute().parent.iterdir()
            if mark
            and re.sub(r"\d+", "0", path.name) != re.sub(r"\d+", "0", output.name)
            and (path / mark).is_file()
        ]
    except OSError:
        return first
    close = close_to(output.name, others)
    return f"{line}; {output.with_name(close[0])} has some" if close else first


def refuse_held(path: Path, subject: Path, events: Events = SILENT) -> Holder | None:
    """Return the dead holder of the lock `path`, or None if there is no lock.

    Raises UsageError, which names the output as `subject`, if the holder is alive.
    """
    last = _last(read_chain(path))
    if last is None:
        return None
    file, holder = last
    if not is_dead(holder, file, subject, events):
        raise UsageError(f"in use by {holder}", where=subject, hint=HINT)
    return holder


def read_chain(path: Path) -> dict[Path, Holder]:
    """Return the lock file `path` and its successors, each with the holder it names, oldest
    first.
    """
    chain: dict[Path, Holder] = {}
    with contextlib.suppress(FileNotFoundError):
        # NFS remembers missing names until their folder is opened
        next(path.parent.iterdir(), None)
        file = path
        while file not in chain:
            chain[file] = _read(file)
            file = successor(path, chain[file])
    return chain


def successor(path: Path, holder: Holder) -> Path:
    """Return the file that names the next owner of the lock `path` after `holder` has died."""
    return path.with_name(f"{path.name}.{holder.token}")


def is_dead(holder: Holder, file: Path, subject: Path, events: Events = SILENT) -> bool:
    """Return whether the holder of the lock `file` has ended; watch for signs of life if only they
    can tell.
    """
    gone = process_gone(holder.pid, holder.place, holder.started)
    return _is_silent(holder, file, subject, events) if gone is None else gone


def this_process() -> Holder:
    """Return a holder that describes this process, with a new token."""
    return Holder(
        token=secrets.token_hex(8),
        pid=os.getpid(),
        host=socket.gethostname(),
        since=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC",
        command=shlex.join(["gpt", *sys.argv[1:]]),
        place=process_place(),
        started=process_start(os.getpid()),
    )


def _is_silent(holder: Holder, file: Path, subject: Path, events: Events) -> bool:
    """Watch a holder elsewhere until it gives a sign of life, or has given none for SILENCE
    seconds.
    """
    first = _touched(file)
    if first is None:
        return True
    age, began = max(0.0, _clock(file) - first), time.monotonic()
    events.info(
        f"{subject}: locked by {holder}: waiting for a sign of life, at most {max(WATCHED, SILENCE - age):.0f} s"
    )
    while (touched := _touched(file)) == first:
        watched = time.monotonic() - began
        if watched >= WATCHED and age + watched >= SILENCE:
            return True
        time.sleep(POLL)
    return touched is None  # the lock was released


def _touched(file: Path) -> float | None:
    """Return the time at which the file was touched, by its file system's clock; None if it is
    gone.
    """
    try:
        # NFS asks its server for the times of a file that is opened
        with open(file, "rb") as handle:
            return os.fstat(handle.fileno()).st_mtime
    except FileNotFoundError:
        return None


def _clock(file: Path) -> float:
    """Return the time by the clock of the file system that a lock file is on."""
    probe = file.with_name(f"{file.name}.{secrets.token_hex(8)}{PARTIAL}")
    with _temporary(probe):
        probe.touch()
        os.utime(probe)
        return probe.stat().st_mtime


def _create(file: Path, holder: Holder) -> bool:
    """Create a lock file, complete from its first moment, unless it exists; return whether this
    process created it.
    """
    data = toml_json.dumps(asdict(holder), indent=1).encode() + b"\n"
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}{PARTIAL}")
    with _temporary(partial):
        with open(partial, "xb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        try:
            os.link(partial, file)
        except FileExistsError:
            # a file server did it, and its first answer was lost
            return partial.stat().st_nlink == 2
        except FileNotFoundError:
            raise
        except (OSError, AttributeError, NotImplementedError):  # a file system without hard links
            try:
                with open(file, "xb", buffering=0) as handle:
                    handle.write(data)
            except FileExistsError:
                return False
        return True


@contextlib.contextmanager
def _temporary(file: Path) -> Iterator[None]:
    """Remove `file` after the block, and if the program ends in it."""
    with Cleanup(file.unlink):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _read(file: Path) -> Holder:
    """Return the holder that a lock file names; an unknown one if it is incomplete.

    Raises FileNotFoundError.
    """
    with open(file, "rb") as handle:
        data, stamp = handle.read(), os.fstat(handle.fileno()).st_mtime_ns
    try:
        table = json.loads(data)
        holder = Holder(**{field.name: table[field.name] for field in fields(Holder)})
        if isinstance(holder.pid, int) and holder.token.isalnum():
            return holder
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    return Holder(token=f"{stamp:x}")


def _lock_name(name: str) -> str:
    """Return the name of a file's lock; for a name that would become too long, a fingerprint of it."""
    if len(os.fsencode(name)) > NAME_BYTES - 64:
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}{LOCK}"


def _last(chain: dict[Path, Holder]) -> tuple[Path, Holder] | None:
    return next(reversed(chain.items()), None)


def _real(folder: Path) -> Path:
    """Return the folder that a path or link leads to. Raises UsageError if it is something else."""
    if folder.exists() and not folder.is_dir():
        raise UsageError("is not a folder", where=folder, hint="choose another {option:out}")
    return Path(os.path.realpath(folder))
