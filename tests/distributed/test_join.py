"""Processes of a launcher wait for each other in bounded time, and say who is missing."""

from __future__ import annotations

import itertools
import socket
import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from gptcli.distributed import join
from gptcli.distributed.context import RankContext
from gptcli.distributed.join import check_agreement
from gptcli.errors import RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.runtime import Launch
from tests.distributed.run_ranks import run_ranks


class Heard(Events):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.words: list[str] = []

    def info(self, text: str) -> None:
        self.words.append(text)


@pytest.fixture
def place(monkeypatch, free_port) -> str:
    """Set the place where two processes meet, and how long they wait there."""
    port = free_port()
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(join, "SILENT_WAIT_S", 0.05)
    monkeypatch.setattr(join, "JOIN_WAIT_S", 0.5)
    monkeypatch.setattr(join, "_joins", itertools.repeat(0))
    return f"127.0.0.1:{port}"


def test_a_host_that_does_not_join_is_named_and_the_wait_ends(make_run, place):
    run, events = replace(make_run(), timeout=1), Heard()
    with pytest.raises(RunError) as caught:
        join.meet(Launch(0, 2, 0, 1), run, events)
    assert f"1 of 2 processes (rank 1) did not join at {place} within 1 s" in caught.value.what
    assert events.words == [f"waiting at {place} for 1 of 2 processes (rank 1) to join"]


def test_a_host_that_finds_no_first_process_says_where_it_looked(make_run, place):
    run, events = replace(make_run(), timeout=1), Heard()
    with pytest.raises(RunError) as caught:
        join.meet(Launch(1, 2, 0, 1), run, events)
    assert f"no answer from the first process of the run at {place}" in caught.value.what
    assert "MASTER_ADDR" in str(caught.value.hint)
    assert events.words == [f"waiting at {place} for the first process of the run"]


def test_a_place_that_is_taken_is_said(make_run, place):
    run = replace(make_run(), timeout=1)
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", int(place.rpartition(":")[2])))
        taken.listen()
        with pytest.raises(RunError, match="cannot listen at"):
            join.meet(Launch(0, 2, 0, 1), run, SILENT)


def test_processes_that_are_all_there_say_nothing(make_run, place, monkeypatch):
    monkeypatch.setattr(join, "SILENT_WAIT_S", 60)
    run, events = replace(make_run(), timeout=60), Heard()
    found = {}

    def go(rank: int) -> None:
        found[rank] = join.meet(Launch(rank, 2, rank, 2), run, events)

    threads = [threading.Thread(target=go, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found[0].set("greeting", "hello")
    assert found[1].get("greeting") == b"hello"
    assert events.words == []


def test_after_a_loss_the_message_says_what_torchrun_does(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert "{option:timeout}" in join.after_a_loss()
    values = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "1"}
    for name, value in {**values, "MASTER_ADDR": "host", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert "start torchrun again where it has ended" in join.after_a_loss()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")  # none is left
    assert "start torchrun" not in join.after_a_loss()
    assert "torchrun itself" not in join.after_a_loss()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert "torchrun itself may wait minutes" in join.after_a_loss()


@pytest.mark.parametrize(
    "lost",
    [
        dist.DistStoreError("wait timeout after 6000ms, keys: /5//cpu//0/1"),
        dist.DistNetworkError("failed to recv"),
        RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"),
    ],
)
def test_a_host_that_is_lost_is_one_message(make_run, lost):
    with (
        pytest.raises(RunError, match="another process of this run was lost"),
        join.peer_loss_as_run_error(make_run()),
    ):
        raise lost
    with pytest.raises(RuntimeError, match="shapes"), join.peer_loss_as_run_error(make_run()):
        raise RuntimeError("shapes do not match")


class TwoHosts(RankContext):
    """The context of the first of two processes; the other one's values are made from its own."""

    def all_gather(self, value: Any, group: Any = None) -> list[Any]:
        return [value, there(value)]


def there(value: Any) -> Any:
    if isinstance(value, tuple) and isinstance(value[1], dict):
        return ("second", {**value[1], **DIFFERENT})
    return ("second", SEES) if isinstance(value, tuple) else value


DIFFERENT: dict[str, Any] = {}
SEES = True


def test_processes_that_were_started_for_different_runs_are_refused(make_run, monkeypatch):
    run, here = make_run(), socket.gethostname()
    context = TwoHosts(torch.device("cpu"), 0, 2, run.layout)
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    check_agreement(run, context)
    assert list(run.out.iterdir()) == []
    monkeypatch.setitem(DIFFERENT, "lr", 1.0)
    monkeypatch.setitem(DIFFERENT, "data", "0f")
    with pytest.raises(UsageError) as caught:
        check_agreement(run, context)
    assert caught.value.where == "second"
    assert f"lr is 1.0 there and 0.003 on {here}" in caught.value.what
    assert "data is '0f' there" in caught.value.what


def test_a_run_folder_that_a_host_does_not_see_is_refused_before_the_first_step(
    make_run, monkeypatch
):
    run = make_run()
    context = TwoHosts(torch.device("cpu"), 0, 2, run.layout)
    monkeypatch.setattr("torch.distributed.barrier", lambda: None)
    monkeypatch.setattr(f"{__name__}.SEES", False)
    with pytest.raises(UsageError, match="is not seen by second") as caught:
        check_agreement(run, context)
    assert (caught.value.where, caught.value.code) == (str(run.out), "folder_not_shared")
    assert list(run.out.iterdir()) == []


CHECKED = """
import os
from pathlib import Path
from types import SimpleNamespace
import pytest
from gptcli.cost.layout import parse_layout
from gptcli.distributed.join import check_together
from gptcli.errors import InputError

names = ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
os.environ |= zip(names, ("127.0.0.1", "1", str(rank), "2", str(rank), "2"), strict=True)
run = SimpleNamespace(out=Path(folder), layout=parse_layout("dp=2"), timeout=60)
parts = []
check_together(run, lambda part, of: parts.append((part, of)))
assert parts == [(rank, 2)]

def fail(part, of):
    if part in altered:
        raise InputError(f"{part} is altered")

for altered in ({1}, {0, 1}):
    first = min(altered)
    with pytest.raises(InputError if rank == first else SystemExit) as caught:
        check_together(run, fail)
    if rank == first:
        assert caught.value.what == f"{first} is altered"
    else:
        assert caught.value.code == InputError.exit_code
"""


def test_a_check_that_fails_on_one_process_ends_all_with_one_message(tmp_path):
    run_ranks(CHECKED, tmp_path)
