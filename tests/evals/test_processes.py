"""A single process; tests/system/test_task_scores.py covers several."""

from __future__ import annotations

import pytest

from gptcli.evals.processes import SINGLE_PROCESS, init_processes, local_device
from gptcli.evals.records import Records


def test_a_single_process_gathers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("RANK", "1")  # set by another program
    assert init_processes() is SINGLE_PROCESS
    records = Records(None, "t", {})
    records.add([{"index": 0}])
    assert list(SINGLE_PROCESS.gather(records)) == []
    SINGLE_PROCESS.shut_down()


def test_each_process_uses_its_own_gpu_if_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    launch = {
        "RANK": "7",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "3",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "29500",
    }
    for name, value in launch.items():
        monkeypatch.setenv(name, value)
    for there, device in ((True, "cuda:3"), (False, "cpu")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        assert local_device() == device
