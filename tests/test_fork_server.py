"""A fork stands for a process of its own: whatever a program can ask about, it gets the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import fork_server
from tests.fork_server import python

pytestmark = pytest.mark.skipif(not fork_server.FORKS, reason="forks")

PROGRAMS = {
    "what it is": """
import os, signal, sys, threading
print(sys.argv, sys.path[0], os.getcwd(), os.environ["NAME"], os.environ.get("GONE"), __name__)
print(sys.stdin.read(), sys.stdin.encoding, sys.stdout.encoding, sys.stderr.errors)
print([stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr)], sys.flags, sys.orig_argv[0])
print([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)])
print(threading.active_count(), [m for m in sys.modules if m.startswith(("gptcli", "tests"))])
print("naïve", file=sys.stderr)
os.write(1, b"past the buffer\\n")
""",
    "an exit code": "import sys; print('no newline', end=''); sys.exit(3)",
    "an exit code of words": "raise SystemExit('words')",
    "a large exit code": "raise SystemExit(258)",
    "a bug": "def f(): return 1 / 0\nf()",
    "a signal": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "at its end": """
import atexit, threading, time
atexit.register(print, "at exit")
threading.Thread(target=lambda: (time.sleep(0.1), print("a thread"))).start()
""",
    "threads": "import torch; print(torch.get_num_threads())",
    "processes": """
import multiprocessing, os
def work(): print("worker", flush=True)
with open("module.py", "w") as file: file.write("def work(): print('worker', flush=True)")
import sys; sys.path.insert(0, "")
from module import work
child = multiprocessing.get_context("spawn").Process(target=work)
child.start(); child.join()
print(child.exitcode)
""",
    "a closed pipe": "import os, sys; os.close(1); print('lost')",
}


def both(*words: str | Path, cwd: Path, **options: str) -> list[tuple[int, bytes, bytes]]:
    """Exit code, stdout and stderr of a fork and of a process."""
    found = []
    for started in (False, True):
        done = python(
            *words, cwd=cwd, env={"NAME": "a name", **options}, stdin=b"text\n", started=started
        )  # fmt: skip
        found.append((done.returncode, done.stdout, done.stderr))
    return found


def without_frames(stderr: bytes) -> list[bytes]:
    """Return the lines of a program without frames: a fork has more frames below it, and other
    words for a lost stdout.
    """
    frames = (b" ", b"Exception ignored", b"OSError: [Errno 9]")
    return [line for line in stderr.splitlines() if not line.startswith(frames)]


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_cannot_tell(tmp_path: Path, program: str) -> None:
    fork, process = both("-c", program, "a", "--b=ü", cwd=tmp_path)
    assert fork[:2] == process[:2]
    assert without_frames(fork[2]) == without_frames(process[2])


@pytest.mark.parametrize("threads", ["1", "2"])
def test_its_threads_are_those_of_the_environment(tmp_path: Path, threads: str) -> None:
    fork, process = both("-c", PROGRAMS["threads"], cwd=tmp_path, OMP_NUM_THREADS=threads)
    assert fork == process
    assert fork[1].startswith(threads.encode())


def test_a_script_and_a_module(tmp_path: Path) -> None:
    (tmp_path / "one.py").write_text("import sys, two; print(sys.argv, __file__, __name__)")
    (tmp_path / "two.py").write_text("print('two', __name__)")
    for words in (["one.py", "a"], ["-m", "one", "a"], [str(tmp_path / "one.py")]):
        fork, process = both(*words, cwd=tmp_path)
        assert fork == process


def test_a_fork_imports_gptcli_itself_and_finds_torch_there(tmp_path: Path) -> None:
    program = "import sys; print('torch' in sys.modules, 'gptcli' in sys.modules, end='')"
    fork, process = both("-c", program, cwd=tmp_path)
    assert (fork[1], process[1]) == (b"True False", b"False False")


def test_an_environment_that_python_reads_first_starts_a_process(tmp_path: Path) -> None:
    program = "import sys; print('torch' in sys.modules, sys.stdout.encoding, end='')"
    assert python("-c", program, cwd=tmp_path).stdout == b"True utf-8"
    done = python("-c", program, cwd=tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert done.stdout == b"False ascii"


def test_forks_draw_different_numbers(tmp_path: Path) -> None:
    program = """
import random, tempfile, numpy, torch
print(random.random(), numpy.random.rand(), torch.rand(1).item(), tempfile.mktemp(), sep="\\n")
"""
    one, two = (python("-c", program, cwd=tmp_path).stdout.splitlines() for _ in range(2))
    assert len(one) == 4
    assert not set(one) & set(two)


def test_the_server_ends_with_the_one_who_asks() -> None:
    server = fork_server._Server()
    server.socket.close()
    assert server.process.wait() == 0
