"""OpenMP threads sleep while other processes need the processor, and spin again when it is free."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gptcli import openmp
from gptcli.cli import run_command
from gptcli.errors import UsageError
from gptcli.openmp import (
    SPIN_ENVIRONMENT,
    SpinWatcher,
    check_thread_environment,
    set_spin_environment,
    watch_spinning,
)


def until(condition: Callable[[], bool]) -> bool:
    for _ in range(2000):
        if condition():
            return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("given", ["foo", "0", "-3", "1.5", "2,", "99999999999"])
def test_a_number_of_threads_that_is_none_is_refused(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with pytest.raises(UsageError, match=f"OMP_NUM_THREADS is '{given}'"):
        run_command(["cost", "--size", "gpt2"])


@pytest.mark.parametrize("given", ["", " ", "1", " 2 ", "02", "4,2", "4, 3,2", "+2"])
def test_numbers_of_threads_are_those_of_openmp(
    monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    check_thread_environment()


@pytest.mark.parametrize(
    ("own", "all_cores", "busy"),
    [
        (2.0, 2.0, False),  # alone
        (0.5, 0.6, False),  # alone and mostly waiting
        (1.9, 2.0, False),  # a desktop's background
        (1.3, 2.0, True),  # beside one busy process
        (0.3, 2.0, True),  # beside many
        (0.0, 1.0, True),  # one that would need the core of the second thread
    ],
)
def test_the_processor_is_busy_if_all_work_needs_more_than_its_cores(
    monkeypatch: pytest.MonkeyPatch, own: float, all_cores: float, busy: bool
) -> None:
    watcher = SpinWatcher(2, lambda count: None)
    watcher.cores = [0, 1]
    seconds = iter([(5.0, 7.0, 3.0), (6.0, 7.0 + all_cores, 3.0 + own), None])
    found: list[bool] = []
    monkeypatch.setattr(watcher, "used_seconds", lambda: next(seconds))
    monkeypatch.setattr(watcher, "set_busy", found.append)
    monkeypatch.setattr(openmp, "WATCH_INTERVAL_S", 0)
    watcher.run()
    assert found == [busy]


def test_the_second_team_is_there_once_and_only_while_it_is_busy() -> None:
    teams: list[int] = []
    watcher = SpinWatcher(2, teams.append)
    watcher.cores = list(range(8))
    before = threading.active_count()
    for busy in (False, True, True, True):
        watcher.set_busy(busy)
    assert until(lambda: teams == [8])  # with the two of the first team and its own, one too many
    assert threading.active_count() == before + 1
    watcher.set_busy(False)
    watcher.set_busy(False)
    assert until(lambda: threading.active_count() == before)
    watcher.set_busy(True)
    assert until(lambda: teams == [8, 8])
    watcher.set_busy(False)


@pytest.mark.skipif(sys.platform != "linux", reason="GNU's OpenMP")
def test_a_team_of_the_runtime_ends_with_its_thread() -> None:
    before, threads = torch.get_num_threads(), lambda: len(os.listdir("/proc/self/task"))
    torch.set_num_threads(2)
    watch_spinning.cache_clear()
    try:
        wanted = torch.ones(1 << 17).exp()
        watcher = watch_spinning()
        assert watcher is not None
        watcher.set_busy(False)
        alone = threads()
        watcher.parallel(1)
        extra = SpinWatcher(2, watcher.parallel)
        extra.cores = [0, 1, 2]  # a team of three
        extra.set_busy(True)
        assert until(lambda: threads() >= alone + 3)
        assert torch.equal(torch.ones(1 << 17).exp(), wanted)
        extra.set_busy(False)
        assert until(lambda: threads() < alone + 3)
    finally:
        torch.set_num_threads(before)


def test_used_seconds_grow_by_the_work_that_is_done() -> None:
    watcher = SpinWatcher(2, lambda count: None)
    if not Path("/proc/stat").exists():
        assert watcher.used_seconds() is None
        return
    first = watcher.used_seconds()
    end = time.process_time() + 0.1
    while time.process_time() < end:
        pass
    second = watcher.used_seconds()
    assert first is not None
    assert second is not None
    assert second[2] - first[2] >= 0.08
    assert second[1] >= first[1]
    assert second[0] > first[0]


def test_the_environment_of_the_user_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_WAIT_POLICY", *SPIN_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KMP_BLOCKTIME", "7")
    set_spin_environment()
    assert os.environ["GOMP_SPINCOUNT"] == SPIN_ENVIRONMENT["GOMP_SPINCOUNT"]
    assert os.environ["KMP_BLOCKTIME"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    set_spin_environment()
    assert "GOMP_SPINCOUNT" not in os.environ
    watch_spinning.cache_clear()
    assert watch_spinning() is None
    watch_spinning.cache_clear()


def test_every_command_sets_it_before_torch_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from gptcli.cli import main

    seen: list[str | None] = []
    for name in ("OMP_WAIT_POLICY", *SPIN_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["gpt", "--version"])

    def build_app(argv: list[str]) -> Callable[..., int]:
        seen.append(os.environ.get("GOMP_SPINCOUNT"))
        return lambda *_words, **_settings: 0

    monkeypatch.setattr("gptcli.cli.build_app", build_app)
    with pytest.raises(SystemExit):
        main()
    assert seen == [SPIN_ENVIRONMENT["GOMP_SPINCOUNT"]]
