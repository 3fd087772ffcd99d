"""One owner for each output: live holders are refused, dead ones succeeded, by exactly one of
many.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gptcli import interrupts, locks, runtime
from gptcli.errors import UsageError
from gptcli.events import SILENT, Events
from gptcli.files import LOCK, PARTIAL
from gptcli.locks import (
    Holder,
    Lock,
    claim_owned,
    nothing_to_resume,
    own_file,
    own_folder,
    own_part,
    read_chain,
    refuse_held,
    successor,
    this_process,
)
from gptcli.runtime import GONE, process_gone, process_place, process_start
from tests.waiting import wait_until


class Recorder(Events):
    """Events that collect their messages."""

    def __init__(self, messages: list[str]) -> None:
        self.messages = messages

    def info(self, text: str) -> None:
        self.messages.append(text)

    def warn(self, text: str) -> None:
        self.messages.append(text)


DEAD = Holder(
    token="dead",
    pid=1,
    host="node7",
    since="2026-01-01 10:00:00 UTC",
    command="gpt train",
    place="another boot",
)


def lock(folder: Path) -> Lock:
    return Lock(folder / LOCK, folder)


def forge(folder: Path, holder: Holder) -> Path:
    """A lock file that names `holder`."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / LOCK
    file.write_text(json.dumps(asdict(holder)))
    return file


def child(folder: Path, then: str) -> subprocess.Popen[str]:
    """A process that takes the lock of `folder`, says so, and goes on with `then`."""
    program = f"""
import os, sys, time
from pathlib import Path
from gptcli.locks import Lock
lock = Lock(Path({str(folder / LOCK)!r}), Path({str(folder)!r})).acquire()
print("held", flush=True)
{then}
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.fixture
def never_watches(monkeypatch):
    """A holder on this machine is judged by its process alone."""
    monkeypatch.setattr(locks, "_is_silent", lambda *_: pytest.fail("watched for signs of life"))


@pytest.fixture
def clock(monkeypatch):
    """A clock that only sleeping moves; `asleep` runs in every sleep."""
    clock = SimpleNamespace(now=0.0, asleep=lambda: None)

    def sleep(seconds: float) -> None:
        clock.now += seconds
        clock.asleep()

    monkeypatch.setattr(locks, "time", SimpleNamespace(monotonic=lambda: clock.now, sleep=sleep))
    return clock


def test_a_lock_says_who_holds_it_and_leaves_nothing(tmp_path, never_watches):
    folder = tmp_path / "runs" / "a"
    with lock(folder):
        written = json.loads((folder / LOCK).read_text())
        assert written["pid"] == os.getpid()
        with pytest.raises(UsageError) as refused, lock(folder):
            pass
        text = str(refused.value)
        assert (
            f"{folder}: in use by process {os.getpid()} on host {written['host']} since {written['since']} (gpt"
            in text
        )
        assert "stop it" in text
        assert [path.name for path in folder.iterdir()] == [LOCK]
    assert not list(tmp_path.iterdir())  # what was made for it is gone
    folder.mkdir(parents=True)
    with pytest.raises(ZeroDivisionError), lock(folder):
        raise ZeroDivisionError
    assert not list(folder.iterdir())


def test_force_deletes_no_output_inside_that_is_being_written(tmp_path, monkeypatch):
    run = tmp_path / "runs" / "a"
    run.mkdir(parents=True)
    (run / "metrics.jsonl").touch()
    with own_folder(tmp_path / "runs"):
        with lock(run), pytest.raises(UsageError, match=r"runs/a: in use by process"):
            claim_owned(tmp_path / "runs", resume=False, force=True)
        with own_file(run / "x.json"), pytest.raises(UsageError, match=r"runs/a: in use by"):
            claim_owned(tmp_path / "runs", resume=False, force=True)
        assert (run / "metrics.jsonl").exists()
        monkeypatch.setattr(locks, "process_gone", lambda *_: True)
        forge(run, DEAD)
        claim_owned(tmp_path / "runs", resume=False, force=True)
        assert not run.exists()


def test_force_replaces_an_output_of_its_own_kind_alone(tmp_path):
    with own_folder(tmp_path / "a"):
        (tmp_path / "a" / "run.toml").touch()
        with pytest.raises(UsageError, match="contains a run of gpt train"):
            claim_owned(tmp_path / "a", resume=False, force=True, own="manifest.json")
        claim_owned(tmp_path / "a", resume=False, force=True, own="run.toml")
        assert not (tmp_path / "a" / "run.toml").exists()


def test_a_process_that_was_killed_holds_nothing_even_before_its_parent_knows(
    tmp_path, never_watches
):
    process = child(tmp_path, "sys.stdin.read()")
    with pytest.raises(UsageError, match=f"in use by process {process.pid} "), lock(tmp_path):
        pass
    process.send_signal(signal.SIGSTOP)  # asleep is not dead
    with pytest.raises(UsageError, match="in use"), lock(tmp_path):
        pass
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and stays a zombie
    with lock(tmp_path):
        assert (tmp_path / LOCK).exists()
    assert not list(tmp_path.iterdir())
    process.communicate()


def test_an_ended_process_and_one_that_has_its_number_again(tmp_path, never_watches):
    process = child(tmp_path, "os._exit(0)")
    process.communicate()
    with lock(tmp_path):
        pass
    me = this_process()
    assert process_gone(me.pid, me.place, me.started) is False
    forge(tmp_path, replace(me, token="earlier", started="1"))
    with lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no call ends one thread alone")
def test_a_process_lives_as_long_as_one_of_its_threads(tmp_path, never_watches):
    """The first thread is the first to be seen as ended, also of a process that was just killed."""
    then = """
import ctypes, threading
threading.Thread(target=lambda: (sys.stdin.readline(), os._exit(0))).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)  # exit(2), of this thread
"""
    process = child(tmp_path, then)
    status = Path(f"/proc/{process.pid}/stat")
    wait_until(lambda: status.read_text().rpartition(")")[2].split()[0] == "Z")
    with pytest.raises(UsageError, match=f"in use by process {process.pid} "), lock(tmp_path):
        pass
    process.communicate("\n")
    with lock(tmp_path):
        pass


@pytest.mark.parametrize("unknown", ["place", "started", "hidden"])
def test_a_holder_that_cannot_be_seen_is_judged_by_its_signs_of_life(
    tmp_path, monkeypatch, clock, unknown
):
    holder = replace(this_process(), token="other")
    if unknown == "hidden":
        monkeypatch.setattr(runtime, "process_start", lambda pid: "")
    else:
        changes: dict[str, Any] = {unknown: ""}
        holder = replace(holder, **changes)
    assert process_gone(holder.pid, holder.place, holder.started) is None
    file = forge(tmp_path, holder)
    clock.asleep = lambda: os.utime(file, (clock.now, clock.now))
    with pytest.raises(UsageError, match="in use"):
        lock(tmp_path).acquire()


def test_a_holder_elsewhere_that_gives_signs_is_refused_however_old_the_last_was(tmp_path, clock):
    file = forge(tmp_path, DEAD)
    os.utime(file, (0, 0))

    def asleep() -> None:
        if clock.now > locks.WATCHED - 1:
            os.utime(file)

    clock.asleep = asleep
    with pytest.raises(
        UsageError,
        match=r"in use by process 1 on host node7 since 2026-01-01 10:00:00 UTC \(gpt train\)",
    ):
        lock(tmp_path).acquire()
    assert clock.now < locks.WATCHED
    assert file.exists()


@pytest.mark.parametrize(
    ("touched", "waits"),
    [("long ago", locks.WATCHED), ("now", locks.SILENCE), ("in an hour", locks.SILENCE)],
)
def test_a_silent_holder_elsewhere_is_succeeded(tmp_path, clock, touched, waits):
    file = forge(tmp_path, DEAD)
    now = locks._clock(tmp_path / LOCK)
    at = {"long ago": 0, "now": now, "in an hour": now + 3600}[touched]
    os.utime(file, (at, at))
    told: list[str] = []
    with Lock(tmp_path / LOCK, tmp_path, events=Recorder(told)):
        assert waits - 30 < clock.now < waits + 1
        assert f"locked by {DEAD}: waiting for a sign of life" in told[0]
    assert not list(tmp_path.iterdir())


def test_a_lock_that_is_released_while_we_watch_is_ours(tmp_path, clock):
    file = forge(tmp_path, DEAD)
    clock.asleep = lambda: file.unlink(missing_ok=True)
    with lock(tmp_path):
        assert clock.now < 2 * locks.POLL


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"token": 1}', '{"token": "../../x", "pid": 1}', "\udcff"]
)
def test_a_lock_that_does_not_read_is_somebodys_until_it_is_silent(tmp_path, clock, text):
    file = tmp_path / LOCK
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    clock.asleep = lambda: os.utime(file, (clock.now, clock.now))
    with pytest.raises(UsageError, match="a process that does not say who it is"):
        lock(tmp_path).acquire()
    clock.asleep = lambda: None
    with lock(tmp_path):
        assert len(read_chain(tmp_path / LOCK)) == 2
    assert not list(tmp_path.iterdir())


def test_the_dead_of_several_deaths_are_succeeded_in_turn(tmp_path, clock):
    first = forge(tmp_path, DEAD)
    second = successor(first, DEAD)
    second.write_text(json.dumps(asdict(replace(DEAD, token="dead2"))))
    with lock(tmp_path):
        assert list(read_chain(first)) == [first, second, tmp_path / ".lock.dead2"]
        assert refused(tmp_path) == f"in use by {read_chain(first)[tmp_path / '.lock.dead2']}"
    assert not list(tmp_path.iterdir())


def refused(folder: Path) -> str:
    with pytest.raises(UsageError) as error:
        lock(folder).acquire()
    return error.value.what


def test_a_process_that_looked_too_long_ago_withdraws(tmp_path, monkeypatch, clock):
    """Between its look at the dead holder and its own file, others take over, end, and a third
    begins.
    """
    forge(tmp_path, DEAD)
    create, third = locks._create, lock(tmp_path)

    def slow(file: Path, holder: Holder) -> bool:
        monkeypatch.setattr(locks, "_create", create)
        with lock(tmp_path):
            assert (tmp_path / ".lock.dead").exists()
        third.acquire()
        return create(file, holder)

    monkeypatch.setattr(locks, "_create", slow)
    assert "in use by" in refused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    third.release()
    assert not list(tmp_path.iterdir())


def test_one_of_many_threads_gets_a_stale_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "_is_silent", lambda *_: True)
    for round_ in range(25):
        folder = tmp_path / str(round_)
        forge(folder, DEAD)
        start = threading.Barrier(8)
        won: list[Any] = []

        def race(folder=folder, start=start, won=won) -> None:
            start.wait()
            with suppress(UsageError):
                won.append(lock(folder).acquire())

        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        won[0].release()
        assert not list(folder.iterdir())


def test_one_of_many_processes_gets_each_stale_lock(tmp_path):
    """Each holds what it has won until all have tried; dead holders of this machine, so that no one
    waits.
    """
    rounds = 40
    for number in range(rounds):
        forge(tmp_path / str(number), replace(this_process(), token="dead", started="1"))
    program = f"""
import sys
from pathlib import Path
from gptcli.errors import UsageError
from gptcli.locks import Lock
print("ready", flush=True)
sys.stdin.readline()
won = []
for number in range({rounds}):
    folder = Path({str(tmp_path)!r}, str(number))
    try:
        won.append(Lock(folder / {LOCK!r}, folder).acquire())
        print(number, flush=True)
    except UsageError:
        pass
print("done", flush=True)
sys.stdin.readline()
for lock in won:
    lock.release()
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(8)
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    won = []
    for process in processes:
        assert process.stdout is not None
        while (line := process.stdout.readline()) != "done\n":
            won.append(int(line))
    assert sorted(won) == list(range(rounds))
    for process in processes:
        process.communicate("end\n")
        assert process.returncode == 0
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_system_without_hard_links_and_one_that_loses_an_answer(
    tmp_path, monkeypatch, never_watches
):
    link = os.link

    def none(*_: object) -> None:
        raise PermissionError("no hard links here")

    def lost(source: Path, target: Path) -> None:
        link(source, target)
        raise FileExistsError(target)

    for answer in (none, lost):
        monkeypatch.setattr(os, "link", answer)
        with lock(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
            assert refused(tmp_path).startswith("in use by process")
        assert not list(tmp_path.iterdir())


def test_an_output_below_a_file_is_refused_by_its_own_name(tmp_path):
    (tmp_path / "notes").write_text("x")
    out = tmp_path / "notes" / "out"
    for taken in (
        own_folder(out),
        own_folder(out, read_only=True),
        own_part(out, "1-of-2"),
        own_file(out),
    ):
        with pytest.raises(UsageError, match="notes is a file, not a folder") as error, taken:
            pass
        assert error.value.where == str(out)


def test_an_unwritable_output_is_named(tmp_path, monkeypatch):
    def denied(*_: object) -> bool:
        raise PermissionError(13, "Permission denied", "a name of ours")

    monkeypatch.setattr(locks, "_create", denied)
    for taken in (
        own_folder(tmp_path / "out"),
        own_folder(tmp_path / "out", read_only=True),
        own_file(tmp_path / "out"),
    ):
        with pytest.raises(PermissionError) as error, taken:
            pass
        assert error.value.filename == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with own_folder(tmp_path, read_only=True):  # what is done already can be found to be done
        assert not list(tmp_path.iterdir())
    forge(tmp_path, replace(this_process(), token="other"))
    with pytest.raises(UsageError, match="in use"), own_folder(tmp_path, read_only=True):
        pass


def test_a_forked_child_leaves_its_parents_lock(tmp_path):
    with lock(tmp_path) as held:
        pid = os.fork()
        if not pid:
            held.release()
            os._exit(0)
        os.waitpid(pid, 0)
        assert read_chain(tmp_path / LOCK)[tmp_path / LOCK].pid == os.getpid()
        assert refused(tmp_path)


@contextmanager
def beating(held: Lock, times: int):
    """The holder's own sign of life, `times` times, without waiting."""
    left = iter([False] * times + [True])
    before = held._released
    held._released = cast(threading.Event, SimpleNamespace(wait=lambda seconds: next(left)))
    yield
    held._released = before


def test_a_holder_gives_signs_of_life(tmp_path):
    with lock(tmp_path) as held, beating(held, 1):
        os.utime(tmp_path / LOCK, (0, 0))
        assert held._me is not None
        held._beat(held._me)
        assert (tmp_path / LOCK).stat().st_mtime > 0


def test_a_holder_whose_lock_was_removed_keeps_no_others_alive(tmp_path):
    with lock(tmp_path) as held, beating(held, 3):
        (tmp_path / LOCK).unlink()
        file = forge(tmp_path, DEAD)
        os.utime(file, (0, 0))
        assert held._me is not None
        held._beat(held._me)
        assert file.stat().st_mtime == 0
    assert file.exists()


def test_a_holder_that_was_believed_dead_ends(tmp_path, monkeypatch):
    def ended(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", ended)
    told: list[str] = []
    with Lock(tmp_path / LOCK, tmp_path, events=Recorder(told)) as held, beating(held, 1):
        assert held._me is not None
        after = successor(tmp_path / LOCK, held._me)
        after.write_text(json.dumps(asdict(DEAD)))
        with pytest.raises(SystemExit):
            held._beat(held._me)
    assert "taken over by another process" in told[0]
    # the other's: not released
    assert list(read_chain(tmp_path / LOCK)) == [tmp_path / LOCK, after]


class Ended(BaseException):
    pass


def end_at(moment: int, folder: Path) -> list[Path] | None:
    """Take and release a lock of `folder` in a program that ends before the so-many-th line of
    that.

    Returns the files that it leaves, None if the lines are fewer.
    """
    left: list[Path] = []

    def trace(frame, event, argument):
        nonlocal moment
        if frame.f_code.co_filename != locks.__file__:
            return None
        moment -= event == "line"
        if moment == 0:
            for cleanup in reversed(interrupts._cleanups):
                with suppress(Exception):
                    cleanup()
            left.extend(folder.parent.rglob("*"))
            raise Ended
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        lock(folder).acquire().release()
    except Ended:
        return left
    finally:
        sys.settrace(before)
    return None


@pytest.mark.parametrize("dead", [False, True])
def test_a_program_that_ends_at_any_moment_leaves_no_lock(
    tmp_path, never_watches, monkeypatch, dead
):
    monkeypatch.setattr(locks, "process_gone", lambda pid, *_: pid == DEAD.pid)
    folder, ends = tmp_path / "out", 0
    while True:
        if dead:
            forge(folder, DEAD)
        left = end_at(ends + 1, folder)
        if left is None:
            break
        ends += 1
        assert {*left} <= ({folder, folder / LOCK} if dead else set()), f"at line {ends}"
        for file in (folder / LOCK, *folder.glob("*")):
            file.unlink(missing_ok=True)
        if folder.exists():
            folder.rmdir()
    assert ends > 50


def test_parts_share_a_folder_which_has_one_owner_as_a_whole(tmp_path, never_watches):
    out = tmp_path / "out"
    with own_part(out, "1-of-2"), own_part(out, "2-of-2"):
        for other in (own_part(out, "1-of-2"), own_folder(out)):
            with pytest.raises(UsageError, match=r"out: in use by process"), other:
                pass
    with (
        own_folder(out),
        pytest.raises(UsageError, match="in use by process"),
        own_part(out, "1-of-2"),
    ):
        pass
    assert not out.exists()
    part = forge(out, replace(this_process(), token="dead", started="1")).rename(
        out / ".part-2-of-2.lock"
    )
    with own_folder(out):
        assert not part.exists()
    assert not list(out.iterdir())


def test_a_file_and_links_to_it_are_one_output_and_a_device_is_nobodys(tmp_path, never_watches):
    (tmp_path / "link").symlink_to("real.json")
    with own_file(tmp_path / "link"):
        with (
            pytest.raises(UsageError, match=r"real\.json: in use"),
            own_file(tmp_path / "real.json"),
        ):
            pass
        with own_file(tmp_path / "other.json"), own_folder(tmp_path):
            pass
    with own_file(Path("/dev/null")), own_file(Path("/dev/null")):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["link"]


def test_a_folder_through_a_link_that_leads_nowhere_yet(tmp_path, never_watches):
    (tmp_path / "link").symlink_to("big")
    with own_folder(tmp_path / "link"):
        assert (tmp_path / "big" / LOCK).exists()
        with pytest.raises(UsageError, match="big: in use"), own_folder(tmp_path / "big"):
            pass
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a folder"), own_folder(tmp_path / "file"):
        pass


def test_this_process_can_be_told_from_all_others():
    me = this_process()
    assert me.place == process_place() != ""
    assert me.started not in ("", GONE)
    assert process_gone(me.pid, me.place, me.started) is False
    assert this_process().token != me.token
    assert "\x1b" not in str(replace(me, command="gpt \x1b[31m"))
    assert refuse_held(Path("nowhere", LOCK), Path("nowhere")) is None


def test_systems_without_proc_ask_ps(monkeypatch):
    def no_file(self: Path, **how: object) -> str:
        raise FileNotFoundError

    began = start = process_start(os.getpid())
    monkeypatch.setattr(Path, "read_text", no_file)
    monkeypatch.setattr(sys, "platform", "darwin")
    process_place.cache_clear()
    try:
        assert process_place()
        start = process_start(os.getpid())
    finally:
        process_place.cache_clear()
    assert start != began
    assert process_start(2**22 + 1) == ""
    assert SILENT.info("") is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("subject", [".", "a.json"])
def test_the_next_owner_removes_leftovers_of_a_killed_process(tmp_path, never_watches, subject):
    """Killed before its lock had its name, or after `.lock` was removed and before its successors
    were; nothing else goes.
    """
    stem = LOCK if subject == "." else f".{subject}{LOCK}"
    left = [
        f"{stem}.0123abcd{PARTIAL}",
        f"{stem}.89abcdef01234567",
        f"{stem}.89abcdef01234567.0123abcd{PARTIAL}",
    ]
    others = [f"{stem}.y{LOCK}", f".b.json{LOCK}.0123abcd{PARTIAL}", f"{stem}y", "a.json"]
    for name in [*left, *others]:
        (tmp_path / name).write_text("{}")
    own = own_folder(tmp_path) if subject == "." else own_file(tmp_path / subject)
    with own:
        assert {path.name for path in tmp_path.iterdir()} == {*others, stem}
    assert {path.name for path in tmp_path.iterdir()} == set(others)


@pytest.mark.parametrize("length", [180, 192, 240, 255])
def test_a_file_of_any_name_has_a_lock(tmp_path, never_watches, length):
    file = tmp_path / ("ä" * (length // 2) + "x" * (length % 2))
    with own_file(file):
        with pytest.raises(UsageError, match="in use by"), own_file(file):
            pass
        with own_file(file.with_name("y" * length)):
            pass
    assert not list(tmp_path.iterdir())


def test_nothing_to_resume_names_the_folder_that_may_be_meant(tmp_path: Path) -> None:
    folder = tmp_path / "small"
    assert (
        nothing_to_resume(folder, "run.toml") == f"{folder}: new, so it starts from the beginning"
    )
    folder.mkdir()
    (folder / "a").touch()
    assert nothing_to_resume(folder, "run.toml") == (
        f"{folder}: nothing to resume there, so it starts from the beginning"
    )
    (tmp_path / "smal").mkdir()
    (tmp_path / "smal" / "run.toml").touch()
    assert nothing_to_resume(folder, "run.toml").endswith(f"; {tmp_path / 'smal'} has some")


def test_the_next_number_is_no_misspelling(tmp_path: Path) -> None:
    (tmp_path / "run-3").mkdir()
    (tmp_path / "run-3" / "run.toml").touch()
    folder = tmp_path / "run-12"
    assert (
        nothing_to_resume(folder, "run.toml") == f"{folder}: new, so it starts from the beginning"
    )


def test_a_resume_of_nothing_is_said(tmp_path: Path) -> None:
    said: list[str] = []

    class Told(Events):
        def info(self, text: str) -> None:
            said.append(text)

    claim_owned(tmp_path / "new", resume=True, force=False, events=Told())
    assert said == [f"{tmp_path / 'new'}: new, so it starts from the beginning"]
    (tmp_path / "new" / "a").touch()
    claim_owned(tmp_path / "new", resume=True, force=False, events=Told())
    assert len(said) == 1


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_place_where_no_folder_can_be_made_is_not_a_lock_that_changes_hands() -> None:
    with pytest.raises(UsageError, match="no file can be created there"):
        own_folder(Path("/proc/no-such-folder")).__enter__()
