from __future__ import annotations

from typing import Any

import pytest
import torch

from gptcli import optional_kernels
from gptcli.distributed import environment
from gptcli.events import Events


@pytest.fixture(autouse=True)
def _cpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_thread_count_of_a_resumed_run_is_kept_if_there_are_cores(monkeypatch):
    warnings: list[str] = []
    events = Events()
    monkeypatch.setattr(events, "warn", warnings.append)
    monkeypatch.setattr(environment, "available_cores", lambda: 2)
    try:
        assert environment.pin_thread_count(None, events) == 1
        assert environment.pin_thread_count(2, events) == torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert not warnings
        assert environment.pin_thread_count(3, events) == torch.get_num_threads() == 1
        assert "the run used 3 threads, but this machine has 2 cores" in warnings[0]
    finally:
        torch.set_num_threads(1)


def test_resuming_in_another_numeric_environment_warns(monkeypatch):
    warnings: list[str] = []
    events = Events()
    monkeypatch.setattr(events, "warn", warnings.append)
    monkeypatch.setattr(optional_kernels, "available", lambda kernel: True)
    compiled: dict[str, Any] = {"precision": "bf16", "compiled": True}
    first = environment.check_numeric_environment(None, events, **compiled)
    assert environment.check_numeric_environment(first, events, **compiled) == first
    assert not warnings
    # neither a compiler nor AMX
    monkeypatch.setattr(optional_kernels, "available", lambda kernel: False)
    other = environment.check_numeric_environment(first, events, precision="bf16", compiled=False)
    assert other != first
    assert f"computed by {first} and continues on {other}:" in warnings[0]
    assert first.endswith(", compiled, kernels in C")
