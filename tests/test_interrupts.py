"""Being told to stop: the program ends whatever its main thread is doing, and leaves nothing
behind.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gptcli import interrupts
from gptcli.interrupts import SIGNALS, Answer, Held, Raise
from tests.waiting import HANG_S, wait_until

WORDS = "gpt: interrupted\n"
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """A program that answers signals as the command line does; returns once it has printed a
    line.
    """
    started: list[subprocess.Popen[str]] = []

    def begin(
        program: str, *words: str, before: Callable[[], object] | None = None
    ) -> subprocess.Popen[str]:
        text = f"from gptcli import interrupts\ninterrupts.begin({WORDS!r})\n{textwrap.dedent(program)}"
        command = [sys.executable, "-c", text, *words]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=before,
            start_new_session=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline()
        return process

    yield begin
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def stop(process: subprocess.Popen[str], number: int = signal.SIGINT) -> tuple[int, str]:
    """Exit code and stderr of a process that is sent a signal."""
    process.send_signal(number)
    errors = process.communicate(timeout=HANG_S)[1]
    return process.returncode, errors


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize(
    "busy",
    [
        # a call into C of half an hour, which looks for no signals
        "hashlib.pbkdf2_hmac('sha256', b'', b'', (1 << 31) - 1)",
        "while True:\n    try:\n        time.sleep(60)\n    except BaseException:\n        pass",
        "time.sleep(1000)",
        "sys.stdin.read()",
        # which Python waits for at its end
        "threading.Thread(target=time.sleep, args=(60,)).start()",
    ],
    ids=["in C", "swallowed", "asleep", "reading", "at the end"],
)
def test_it_ends_with_one_line_and_130_whatever_it_does(
    start: Start, number: int, busy: str
) -> None:
    process = start(f"import hashlib, sys, threading, time\nprint('busy', flush=True)\n{busy}")
    assert stop(process, number) == (130, WORDS)


def test_it_ends_while_a_reader_of_its_output_sleeps(start: Start) -> None:
    """stdout and stderr are full pipes."""
    process = start(
        """
        import os, threading
        os.write(1, b"busy\\n")
        threading.Thread(target=lambda: os.write(2, bytes(1 << 20)), daemon=True).start()
        print("x" * (1 << 20), flush=True)
        """
    )
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=HANG_S) == 130


def test_its_children_and_theirs_end_with_it(start: Start) -> None:
    process = start(
        """
        import subprocess, sys
        child = subprocess.Popen(["sh", "-c", "trap '' INT TERM; sleep 1000 & sleep 1000"])
        print(child.pid, flush=True)
        child.wait()
        """
    )
    assert stop(process) == (130, WORDS)
    if Path("/proc/self/task").exists():
        wait_until(lambda: not running(process.pid))


@pytest.mark.skipif(
    not Path("/dev/shm").exists(),
    reason="looks for semaphores and signal masks where Linux shows them",
)
def test_workers_of_multiprocessing_end_without_a_word_and_their_semaphores_go(
    start: Start, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text(
        "import time\nfrom multiprocessing import get_context\n\n\ndef work(held):\n    time.sleep(1000)\n\n\n"
        "def begin():\n    context = get_context('spawn')\n    held = context.Lock()\n"
        "    child = context.Process(target=work, args=(held,))\n    child.start()\n    return held, child\n"
    )
    process = start(
        """
        import sys, time
        from multiprocessing.resource_tracker import _resource_tracker as tracker
        sys.path.insert(0, "")
        import worker
        with interrupts.Held():
            held, child = worker.begin()
        blocked = open(f"/proc/{child.pid}/status").read().partition("SigBlk:")[2].split()[0]
        open("facts", "w").write(f"{held._semlock.name} {blocked} {tracker._pid}")
        print("ready", flush=True)
        time.sleep(1000)
        """
    )
    name, blocked, tracker = (tmp_path / "facts").read_text().split()
    semaphore = Path("/dev/shm", f"sem.{name.removeprefix('/')}")
    assert semaphore.exists()
    assert all(int(blocked, 16) >> (number - 1) & 1 for number in SIGNALS), (
        "the parent alone decides what they mean"
    )
    # a closed terminal and Slurm send them to it too
    status = Path("/proc", tracker, "status").read_text()
    deaf = 0
    for what in ("SigBlk:", "SigIgn:"):
        deaf |= int(status.partition(what)[2].split()[0], 16)
    assert all(deaf >> (number - 1) & 1 for number in SIGNALS)
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=HANG_S)[1] == WORDS
    assert process.returncode == 130
    wait_until(lambda: not running(process.pid))
    assert not semaphore.exists()


def running(group: int) -> list[str]:
    """The processes of a group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] not in "ZX":
                found.append(folder.name)
    return found


def test_cleanups_run_last_first_and_only_those_of_open_blocks(
    start: Start, tmp_path: Path
) -> None:
    process = start(
        """
        import os, time
        from pathlib import Path
        from gptcli.files import atomic_write
        note = lambda text: os.write(1, text.encode())
        with interrupts.Cleanup(note, "never"):
            pass
        with interrupts.Cleanup(note, "second"), interrupts.Cleanup(1 .__truediv__, 0), interrupts.Cleanup(note, "first "):
            with atomic_write(Path("result")) as file:
                file.write(b"half")
                file.flush()
                print(len(os.listdir()), flush=True)
                time.sleep(1000)
        """
    )
    assert len(list(tmp_path.iterdir())) == 1
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=HANG_S) == ("first second", WORDS)
    assert not list(tmp_path.iterdir())


def test_scratch_folders_come_to_their_end(start: Start, tmp_path: Path) -> None:
    process = start(
        """
        import time
        from pathlib import Path
        from gptcli.files import scratch_folder
        with scratch_folder(Path()) as folder, open(folder / "spool", "w"):
            print("ready", flush=True)
            Path("silent").touch()
            time.sleep(1000)
        """
    )
    wait_until((tmp_path / "silent").exists, process)
    assert stop(process) == (130, WORDS)
    assert [path.name for path in tmp_path.iterdir()] == ["silent"]


def test_ignored_signals_stay_ignored(start: Start) -> None:
    """SIGHUP under nohup, SIGINT in the background of a script."""

    def ignore() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    process = start(
        "import sys\nprint('ready', flush=True)\nsys.stdin.readline()\nprint('lives', flush=True)\nsys.stdin.read()",
        before=ignore,
    )
    for number in (signal.SIGHUP, signal.SIGINT):
        process.send_signal(number)
    assert stop(process, signal.SIGTERM) == (130, WORDS)


def test_after_the_last_message_a_signal_says_nothing_and_changes_no_exit_code(
    start: Start,
) -> None:
    for code, left in (("0", 0), ("3", 3), ("'text'", 1)):
        process = start(
            f"import time\nprint('res', end='')\ninterrupts.finish({code})\nprint('ult', flush=True)\ntime.sleep(1000)"
        )
        assert stop(process) == (left, "")


def test_the_end_runs_what_was_registered_for_it_and_writes_what_is_buffered(start: Start) -> None:
    process = start(
        """
        import atexit, threading, time
        print("ready", flush=True)
        atexit.register(print, "registered", end="")
        threading.Thread(target=lambda: (time.sleep(0.2), print("thread "))).start()
        interrupts.finish(3)
        """
    )
    assert process.communicate(timeout=HANG_S) == ("thread \nregistered", "")
    assert process.returncode == 3


def test_debug_shows_where_it_was(start: Start) -> None:
    process = start(
        "import time\ndef asleep():\n    print('x', flush=True)\n    time.sleep(1000)\nasleep()",
        "--debug",
    )
    code, errors = stop(process)
    assert code == 130
    assert "in asleep" in errors
    assert errors.endswith(WORDS)


def test_a_fork_answers_nothing_and_ends_at_sigterm(start: Start) -> None:
    process = start(
        """
        import os, signal, time
        if (child := os.fork()) == 0:
            os.kill(os.getpid(), signal.SIGINT)
            print("lives", flush=True)
            time.sleep(1000)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        print("parent lives", flush=True)
        time.sleep(1000)
        """
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "parent lives\n"
    assert stop(process) == (130, WORDS)


class Noted(Answer):
    def __init__(self) -> None:
        self.noted: list[int] = []
        self.acted: list[int] = []

    def note(self, number: int) -> None:
        self.noted.append(number)

    def act(self, number: int) -> None:
        self.acted.append(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_an_answer_is_given_in_its_block_alone_to_every_signal(number: int) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with Noted() as outer:
        for _ in range(3):
            signal.raise_signal(number)
        with Noted() as inner:
            signal.raise_signal(number)
        assert inner.noted == inner.acted == [number]
        signal.raise_signal(number)
    assert outer.noted == outer.acted == [number] * 4, (
        "all that came in the block is answered when it ends"
    )
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_outside_the_main_thread_nothing_changes() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def other() -> None:
        with Noted():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before]


def test_held_signals_come_when_the_block_ends() -> None:
    with Noted() as answer:
        with Held():
            signal.raise_signal(signal.SIGTERM)  # to this thread alone
            assert not answer.noted
        assert answer.noted == [signal.SIGTERM]


def test_raise_is_pythons_own_way(capfd: pytest.CaptureFixture[str]) -> None:
    with Raise("a call"), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err == ""


def test_an_exception_that_a_destructor_drops_is_raised_again() -> None:
    class Dropping:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    with Raise("a call"), pytest.raises(KeyboardInterrupt):
        value: Dropping | None = Dropping()
        assert value
        value = None
        while True:
            pass


def test_a_thread_that_is_late_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two interrupts have been raised, and the block is over, before the first is answered."""
    monkeypatch.setattr("gptcli.interrupts.leave", lambda: pytest.fail("it ended the process"))
    monkeypatch.setattr("gptcli.interrupts.RAISE_TIMEOUT_S", 0.0)
    answer = Raise("a call")
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            answer.note(signal.SIGINT)
    answer.over = True
    answer.act(signal.SIGINT)
    answer.act(signal.SIGINT)


def test_the_second_ctrl_c_of_a_busy_session_ends_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As long as the main thread raises nothing."""

    class Left(BaseException):
        pass

    def leave() -> None:
        raise Left

    monkeypatch.setattr(interrupts, "leave", leave)
    monkeypatch.setattr(interrupts, "RAISE_TIMEOUT_S", 0.01)
    answer = Raise("a call")
    with pytest.raises(KeyboardInterrupt):
        answer.note(signal.SIGINT)
    answer.act(signal.SIGINT)
    assert capfd.readouterr().err == ""
    answer.act(signal.SIGINT)
    assert (
        capfd.readouterr().err
        == "\nstopping after a call; a second Ctrl-C ends the session at once\n"
    )
    with pytest.raises(Left):
        answer.act(signal.SIGINT)
    with pytest.raises(Left):
        Raise("a call").act(signal.SIGTERM)


def test_importing_the_package_or_the_entry_point_installs_nothing() -> None:
    program = (
        "import signal, sys, threading\nimport gptcli.__main__, gptcli.interrupts, gptcli.files\n"
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "
        "threading.active_count())"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        == "True True 1\n"
    )


def test_signals_are_answered_before_anything_else_is_imported() -> None:
    program = (
        "import sys\nfrom gptcli import __main__, interrupts\nearly = {*sys.modules}\n"
        "interrupts.begin = lambda words: print(*sorted(name for name in sys.modules if name.split('.')[0] in ('gptcli', 'typer')))\n"
        "sys.argv = ['gpt', '--version']\n__main__.main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[0] == "gptcli gptcli.__main__ gptcli.interrupts"


def test_nothing_waits_where_nothing_is_installed() -> None:
    assert not interrupts._answers
    interrupts._settle()


CHILD = """
from gptcli import interrupts
interrupts.begin("interrupted\\n")
class Stop(interrupts.Answer):
    unfinished = "  how to go on\\n"
    def act(self, number):
        print("announced", flush=True)
Stop().__enter__()
import os, subprocess, sys, time
parent = os.getppid()
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"], stdin=subprocess.DEVNULL)
print("ready", flush=True)
while os.getppid() == parent:
    time.sleep(0.1)
time.sleep(3 * interrupts.PARENT_CHECK_S)
print("outlived", flush=True)
"""


@pytest.mark.parametrize("torchrun", [True, False])
def test_a_process_of_torchrun_ends_with_it_and_another_outlives_its_parent(
    start: Start, tmp_path: Path, torchrun: bool
) -> None:
    """The parent is killed, and its child has a child of its own. All three write to one pipe.

    The child announces nothing that it does not do: it has no time to stop in order.
    """
    (tmp_path / "child.py").write_text(CHILD)
    parent = start(
        """
        import os, subprocess, sys
        if sys.argv[1] == "True":
            os.environ["TORCHELASTIC_RUN_ID"] = "none"
        subprocess.run([sys.executable, "child.py"])
        """,
        str(torchrun),
    )
    parent.kill()
    assert parent.stdout is not None
    assert parent.stdout.readline() == ("" if torchrun else "outlived\n")
    if torchrun:
        assert parent.stderr is not None
        assert parent.stderr.read() == (
            "gpt: torchrun was killed, and its processes end with it\n  how to go on\n"
        )
