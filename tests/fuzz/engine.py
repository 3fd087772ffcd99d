"""Coverage-guided fuzzing in plain Python: valid files are changed a little, run through a reader,
and kept where they reached a line of `gptcli` that none had reached before.

A reader may return, or raise what a user can meet: a GptError, or an OSError, which the command
line turns into one message. Anything else is a crash: another exception, a signal, more than
CPU_SECONDS, more memory than ROOM, or a file opened outside of the folder that it was given. Limits
count CPU time, and the first run of a reader, which imports libraries, is not limited: a busy
machine fails nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gptcli.errors import GptError

CPU_SECONDS = 10  # that one input may take, tracing included
# bytes of address space on top of what is used at the start: threads and maps take much of it
ROOM = 2 << 30
LARGEST = 1 << 16  # bytes of a file, so that the corpus stays small
OUTSIDE = "canary"  # stands beside the folder that a reader is given; no file may be opened there
PACKAGE = f"{os.sep}gptcli{os.sep}"
TOKENS = [
    b"../canary/a", b"/etc/passwd", b"..", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\r\n", b"\n", b"\xed\xa0\x80", b"NaN", b"1e999", b"-1",
    b"null", b"true", b"[" * 2000, b'{"a":' * 2000, b"9" * 5000, b"1000000000000000", b"{{7*7}}", b"{0.__class__}", b"%s%n", b"\\ud800",
]  # fmt: skip
NUMBERS = [
    0,
    1,
    -1,
    127,
    255,
    256,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    10**15,
    2**63 - 1,
    2**63,
    2**64 - 1,
    -(2**31),
]
VALUES: list[Any] = [
    None, True, False, "", "../canary/a", "/etc/passwd", "a\0b", "é", "\ud800", [], {}, [[]], [None], 0.5, -0.0, 1e308, float("nan"),
    float("inf"), *NUMBERS, 10**30, "F32", [0, 2**62], {"a": 1},
]  # fmt: skip

SPELT = [
    b"0", b"-1", b"9223372036854775807", b"1e308", b"nan", b"true", b"1979-05-27", b'""', b"'x'", b"[]", b"{}", b"[[1]]", b'["", 1]',
    b'["a", "b"]', b'{items = "../canary/*"}', b'{a = 1}', b'"../canary/a"', b'"/etc/passwd"', b'"**"', b'"\\u0000"', b'"{a}"',
    b'"{query}"', b'"{query.__class__}"', b'"{0}"', b'"{query!r:>{gold}}"', b'"{query[0]}"', b'"{"', b'"text"', b'"freeform"', b'"id"',
]  # fmt: skip

Files = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Target:
    """Files that belong together, and what reads them."""

    name: str
    files: Files
    read: Callable[[Path], object]
    seal: Callable[[Path], object] = lambda folder: None
    """Makes checksums right again, so that what lies behind them is reached too."""
    fixed: tuple[str, ...] = ()
    """Files that stay as they are."""


@dataclass(slots=True)
class Found:
    """Result of a session."""

    runs: int = 0
    kept: int = 0
    lines: int = 0
    seconds: float = 0.0
    crashes: dict[str, tuple[str, Files]] = field(default_factory=dict)
    """By where they happened: the traceback, and the files."""


class SlowError(Exception):
    """One input took too long."""


class EscapeError(BaseException):
    """A file was opened outside; no reader may catch this."""


def mutated(
    files: Files, others: list[Files], fixed: tuple[str, ...], chance: random.Random
) -> Files:
    """One of the files changed in a few places."""
    name = chance.choice([name for name in files if name not in fixed])
    data = files[name]
    for _ in range(chance.choice((1, 1, 1, 2, 3, 6))):
        data = chance.choice(MUTATIONS)(data, chance)
    if chance.random() < 0.1 and (other := chance.choice(others).get(name)):
        cut = chance.randrange(len(data) + 1)
        data = data[:cut] + other[chance.randrange(len(other) + 1) :]
    return {**files, name: data[:LARGEST]}


def _flip(data: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(data) + 1)
    return data[:at] + bytes([chance.randrange(256)]) + data[at + 1 :]


def _cut(data: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data) + 1), chance.choice((1, 4, 64, len(data)))
    return data[:at] + data[at + size :]


def _again(data: bytes, chance: random.Random) -> bytes:
    at, size = chance.randrange(len(data) + 1), chance.randrange(1, 256)
    return data[:at] + data[at : at + size] + data[at:]


def _token(data: bytes, chance: random.Random) -> bytes:
    at, token = chance.randrange(len(data) + 1), chance.choice(TOKENS)
    return data[:at] + token + data[at + chance.choice((0, len(token))) :]


def _integer(data: bytes, chance: random.Random) -> bytes:
    size = chance.choice((1, 2, 4, 8))
    at = min(len(data), chance.choice((chance.randrange(len(data) + 1), 4 * chance.randrange(16))))
    return (
        data[:at]
        + (chance.choice(NUMBERS) % 256**size).to_bytes(size, chance.choice(("little", "big")))
        + data[at + size :]
    )


def _digits(data: bytes, chance: random.Random) -> bytes:
    runs = list(re.finditer(rb"\d+", data))
    if not runs:
        return data
    run = chance.choice(runs)
    return data[: run.start()] + str(chance.choice(NUMBERS)).encode() + data[run.end() :]


def _assigned(data: bytes, chance: random.Random) -> bytes:
    """Another value behind one of the first equals signs of TOML lines, as TOML spells it."""
    places = list(re.finditer(rb"= ?([^\n]+)", data))
    if not places:
        return data
    place = chance.choice(places)
    return data[: place.start(1)] + chance.choice(SPELT) + data[place.end(1) :]


def _value(data: bytes, chance: random.Random) -> bytes:
    """Another value in the first JSON object of the file; a safetensors header keeps its length
    right.
    """
    begin = data.find(b"{")
    try:
        text = data[begin:].decode("utf-8", "surrogateescape")
        table, end = json.JSONDecoder().raw_decode(text)
        changed = json.dumps(_changed(table, chance)).encode()
    except (ValueError, RecursionError):
        return data
    rest = text[end:].encode("utf-8", "surrogateescape")
    return (len(changed).to_bytes(8, "little") if begin == 8 else data[:begin]) + changed + rest


def _changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one part of it replaced, dropped or doubled."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        if (turn := chance.random()) < 0.1:
            return {name: part for name, part in value.items() if name != key}
        if turn < 0.2:
            return {**value, str(chance.choice(VALUES)): value[key]}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.9:
        at = chance.randrange(len(value))
        if (turn := chance.random()) < 0.1:
            return value[:at] + value[at + 1 :]
        return (
            value[:at]
            + [value[at]] * (turn < 0.2)
            + [_changed(value[at], chance)]
            + value[at + 1 :]
        )
    return chance.choice(VALUES)


MUTATIONS = (_flip, _cut, _again, _token, _integer, _digits, _assigned, _value, _value, _value)


def fuzz(target: Target, work: Path, seconds: float, seed: int, runs: int | None = None) -> Found:
    """Fuzz one reader in this process, which should be a child that can be lost."""
    chance, found, corpus = random.Random(f"{seed} {target.name}"), Found(), [target.files]
    folder = work / "in"
    seen: set[tuple[str, int]] = set()
    reached: set[tuple[str, int]] = set()
    _watch(work / OUTSIDE)
    lay(folder, target.files)
    with contextlib.suppress(GptError, OSError):
        target.read(folder)  # warm up: imports take time and memory
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
    signal.signal(signal.SIGPROF, _too_slow)
    begin = time.process_time()
    files = target.files
    while time.process_time() - begin < seconds and (runs is None or found.runs < runs):
        lay(folder, files)
        reached.clear()
        crash = _run(target, folder, reached)
        found.runs += 1
        if crash is not None:
            found.crashes.setdefault(crash[0], (crash[1], files))
        elif reached - seen:
            corpus.append(files)
        seen |= reached
        files = mutated(
            chance.choice(corpus[-50:] if chance.random() < 0.5 else corpus),
            corpus,
            target.fixed,
            chance,
        )
    found.kept, found.lines, found.seconds = len(corpus), len(seen), time.process_time() - begin
    return found


def lay(folder: Path, files: Files) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def files_in(folder: Path) -> Files:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def crash_of(target: Target, folder: Path) -> tuple[str, str] | None:
    """Return where and how the reader crashes on the files in `folder`, or None."""
    return _run(target, folder, set())


def _run(target: Target, folder: Path, reached: set[tuple[str, int]]) -> tuple[str, str] | None:
    def trace(frame: Any, event: str, argument: object) -> Any:
        if PACKAGE not in frame.f_code.co_filename:
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    with contextlib.suppress(Exception, EscapeError):  # what cannot be sealed is read as it is
        target.seal(folder)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    sys.settrace(trace)
    try:
        target.read(folder)
    except (GptError, OSError):
        return None
    except BaseException as error:  # CheckpointException, for one, is no Exception
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if PACKAGE in frame.filename
        ]
        where = (
            f"{frames[-1].filename.rpartition(PACKAGE)[2]}:{frames[-1].lineno}" if frames else "?"
        )
        return f"{target.name} {where} {type(error).__name__}", "".join(
            traceback.format_exception(error)[-12:]
        )[-3000:]
    finally:
        sys.settrace(None)
        signal.setitimer(signal.ITIMER_PROF, 0)
    return None


def _too_slow(*_: object) -> None:
    raise SlowError(f"longer than {CPU_SECONDS} s of CPU")


def _watch(outside: Path) -> None:
    outside.mkdir(parents=True, exist_ok=True)
    (outside / "a").write_text("{}")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if (
            event == "open"
            and isinstance(arguments[0], str)
            and (OUTSIDE in arguments[0] or arguments[0] == "/etc/passwd")
        ):
            raise EscapeError(arguments[0])

    sys.addaudithook(audit)


def in_child(work: Callable[[], Any]) -> Any:
    """Return the value that `work` returns in a fork, through JSON; or {"died": exit status}."""
    sys.stdout.flush()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        try:
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(told) if status == 0 else {"died": os.waitstatus_to_exitcode(status)}
