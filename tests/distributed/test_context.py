from __future__ import annotations

import itertools
import socket
import sys
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from gptcli import optional_kernels
from gptcli.cost.layout import Layout
from gptcli.distributed import context as module
from gptcli.distributed.context import RankContext
from gptcli.events import Events

CPU = torch.device("cpu")
LAYOUTS = [
    Layout(),
    Layout(dp=3),
    Layout(2, 3, 2, 2),
    Layout(dp=16, tp=8, pp=8),
    Layout(shard=4, pp=3),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_ranks_and_coordinates_correspond_one_to_one(layout):
    contexts = [
        RankContext(CPU, rank, layout.processes, layout) for rank in range(layout.processes)
    ]
    roles = [(context.pp_rank, context.replica_rank, context.tp_rank) for context in contexts]
    assert sorted(roles) == list(
        itertools.product(range(layout.pp), range(layout.replicas), range(layout.tp))
    )


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_one_process_of_each_replica_owns_the_loss(layout):
    contexts = [
        RankContext(CPU, rank, layout.processes, layout) for rank in range(layout.processes)
    ]
    told = [context.replica_rank for context in contexts if context.owns_loss]
    assert sorted(told) == list(range(layout.replicas))


def test_processes_without_a_layout_are_replicas():
    assert [RankContext(CPU, rank, 3).replica_rank for rank in range(3)] == [0, 1, 2]


@pytest.fixture(autouse=True)
def _cpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_thread_count_of_a_resumed_run_is_kept_if_there_are_cores(monkeypatch):
    warnings: list[str] = []
    events = Events()
    monkeypatch.setattr(events, "warn", warnings.append)
    monkeypatch.setattr(module, "available_cores", lambda: 2)
    try:
        assert module.pin_thread_count(None, events) == 1
        assert module.pin_thread_count(2, events) == torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert not warnings
        assert module.pin_thread_count(3, events) == torch.get_num_threads() == 1
        assert "the run used 3 threads, but this machine has 2 cores" in warnings[0]
    finally:
        torch.set_num_threads(1)


def test_resuming_in_another_numeric_environment_warns(monkeypatch):
    warnings: list[str] = []
    events = Events()
    monkeypatch.setattr(events, "warn", warnings.append)
    monkeypatch.setattr(optional_kernels, "available", lambda kernel: True)
    monkeypatch.setattr(optional_kernels, "instruction_set", lambda: "amx")
    compiled: dict[str, Any] = {"precision": "bf16", "compiled": True, "fused": False}
    first = module.check_numeric_environment(None, events, **compiled)
    assert module.check_numeric_environment(first, events, **compiled) == first
    assert not warnings
    # no compiler
    monkeypatch.setattr(optional_kernels, "available", lambda kernel: False)
    eager = {**compiled, "compiled": False}
    other = module.check_numeric_environment(first, events, **eager)
    assert other != first
    lost = "compiled, kernels in C"
    assert f"computed with {lost} and continues with no {lost}:" in warnings[0]
    assert first.endswith(", compiled, kernels in C")
    monkeypatch.setattr(optional_kernels, "available", lambda kernel: True)
    monkeypatch.setattr(optional_kernels, "instruction_set", lambda: "avx2")
    narrower = module.check_numeric_environment(first, events, **compiled)
    assert narrower == f"{first} for avx2"
    assert "with kernels in C and continues with kernels in C for avx2:" in warnings[1]
    # layers by kernels without compilation, which such a run was not computed with at first
    before = f"{other}, kernels in C for avx2"
    assert module.check_numeric_environment(before, events, **eager) == before
    eager["fused"] = True
    fused = module.check_numeric_environment(before, events, **eager)
    assert fused == f"{before}, layers in C"
    assert "with no layers in C and continues with layers in C:" in warnings[2]
    assert module.check_numeric_environment(fused, events, **eager) == fused
    assert len(warnings) == 3


@pytest.mark.skipif(sys.platform != "linux", reason="the open files are listed in /proc")
def test_connections_between_hosts_end_when_the_other_end_is_gone():
    context = RankContext(torch.device("cpu"), 0, 2, Layout(dp=2), timedelta(seconds=8))
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as connection,
        socket.socket(type=socket.SOCK_DGRAM) as datagrams,
    ):
        context.watch_connections()
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 8000
        assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 2
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert datagrams.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 0
        connection.sendall(b"still open")
        assert server.accept()[0].recv(10) == b"still open"


class Group:
    """Group of processes that remembers how long its operations may take."""

    def __init__(self, ranks: list[int] | None, timeout: timedelta) -> None:
        self.ranks, self.made_within, self.timeout = ranks, timeout, timeout

    def set_timeout(self, timeout: timedelta) -> None:
        self.timeout = timeout


def test_groups_are_made_within_the_timeout_of_the_run(monkeypatch):
    """A host that is lost meanwhile would be waited for: half an hour, or a day."""
    made: list[Group] = []

    def new_group(ranks=None, timeout=None, backend=None):
        made.append(Group(ranks, timeout))
        return made[-1]

    monkeypatch.setattr(dist, "new_group", new_group)
    monkeypatch.setattr(dist.ProcessGroup, "set_timeout", None, raising=False)
    monkeypatch.setattr(DeviceMesh, "from_group", lambda groups, *_, **__: groups)
    run, day = timedelta(seconds=7), timedelta(days=1)
    context = RankContext(CPU, 5, 8, Layout(dp=2, tp=2, pp=2), run)
    group: Any = context.new_group(day)
    assert (group.made_within, group.timeout) == (run, day)
    own: Any = context._gloo_mesh((2, 2, 1, 2))
    assert [group.ranks for group in own] == [[1, 5], [5, 7], [5], [4, 5]]
    assert {group.made_within for group in made} == {run}
    assert len(made) == 1 + 4 + 4 + 8 + 4, "every process makes all of them"
