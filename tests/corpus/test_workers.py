"""Worker processes: results, errors, a lost worker, and no orphans. Tasks are standard functions: a
spawned process can import those.
"""

from __future__ import annotations

import operator
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gptcli.corpus.workers import Workers
from gptcli.errors import InputError, RunError
from gptcli.files import read_json
from tests.waiting import HANG_S, wait_until


@pytest.mark.parametrize("count", [1, 2])
def test_every_task_gets_the_state(count: int) -> None:
    with Workers(count, abs) as workers:
        assert sorted(workers.map(operator.call, range(-20, 0))) == list(range(1, 21))
        assert list(workers.map(operator.call, [])) == []


def test_tasks_are_made_no_faster_than_they_are_worked_off() -> None:
    made = 0

    def tasks() -> Iterator[int]:
        nonlocal made
        for made in range(1, 101):
            yield -made

    with Workers(2, abs) as workers:
        results = workers.map(operator.call, tasks())
        next(results)
        assert made <= 4
        assert len(list(results)) == 99


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_task_raises_is_raised_here(count: int, tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="no such file") as caught,
        Workers(count, read_json) as workers,
    ):
        list(workers.map(operator.call, [tmp_path / "none.json"]))
    assert caught.value.where == str(tmp_path / "none.json")


def test_a_killed_worker_is_an_error_and_no_wait() -> None:
    with (
        pytest.raises(RunError, match="a worker process died"),
        Workers(2, signal.raise_signal) as workers,
    ):
        list(workers.map(operator.call, [signal.SIGKILL, signal.SIGCONT]))


def test_an_error_does_not_wait_for_running_tasks() -> None:
    start = time.monotonic()
    with pytest.raises(ZeroDivisionError), Workers(2, time.sleep) as workers:
        for _ in workers.map(operator.call, [0.0, 2 * HANG_S]):
            raise ZeroDivisionError
    assert time.monotonic() - start < HANG_S, "it waited for the task that sleeps"


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import multiprocessing, operator, time\n"
        "from gptcli.corpus.workers import Workers\n"
        "if __name__ == '__main__':\n"
        "    with Workers(2, time.sleep) as workers:\n"
        "        for _ in workers.map(operator.call, [0.0, 3600.0, 3600.0]):\n"
        "            print(*[child.pid for child in multiprocessing.active_children()], flush=True)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    ) as parent:
        assert parent.stdout is not None
        children = [int(pid) for pid in parent.stdout.readline().split()]
        assert children
        assert all(alive(pid) for pid in children)
        parent.kill()
    wait_until(lambda: not any(alive(pid) for pid in children))
