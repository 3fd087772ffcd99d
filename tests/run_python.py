"""Run a Python program as a user would, in another folder."""

from __future__ import annotations

from pathlib import Path

from tests.fork_server import python


def run_python(*words: object, cwd: Path, started: bool = False) -> str:
    """Run Python in another folder, with one thread, and return its stdout.

    It is a fork with the libraries imported; `started=True` starts a process of its own.
    """
    done = python(*map(str, words), cwd=cwd, env={"OMP_NUM_THREADS": "1"}, started=started)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()
