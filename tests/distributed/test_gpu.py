"""Checks of GPUs and their errors, by facts that stand in for a GPU's."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gptcli.distributed import gpu
from gptcli.distributed.context import RankContext
from gptcli.distributed.gpu import (
    FLIGHT_RECORDER,
    check_gpus,
    configure_cuda,
    judge_gpus,
    no_gpu_reason,
    out_of_memory_as_run_error,
    own_gpu,
    product_is_right,
    use_deterministic_kernels,
)
from gptcli.errors import RunError
from gptcli.events import SILENT, Events

GB = 1e9


class Recorder(Events):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


HEALTHY = [1.0, 70 * GB, 80 * GB, 90.0, 0.0]


@pytest.mark.parametrize(("visible", "expected"), [(8, [0, 1, 7]), (1, [0, 0, 0]), (4, [0, 1, 3])])
def test_a_process_finds_its_gpu(
    visible: int, expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all GPUs visible, with one GPU a task, and with four of a machine."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert [own_gpu(local).index for local in (0, 1, 7)] == expected


def test_healthy_gpus_are_told_nothing() -> None:
    events = Recorder()
    judge_gpus([HEALTHY] * 8, int(60 * GB), events)
    assert events.warnings == []


@pytest.mark.parametrize(
    ("row", "code", "message"),
    [
        ([0.0, 70 * GB, 80 * GB, 90.0, 0.0], "broken_gpu", "process 3 computes wrong products"),
        ([1.0, 10 * GB, 80 * GB, 90.0, 0.0], "gpu_is_full", "process 3 has 10 GB free of 80 GB"),
    ],
)
def test_a_bad_gpu_is_named(row: list[float], code: str, message: str) -> None:
    with pytest.raises(RunError, match=message) as raised:
        judge_gpus([HEALTHY] * 3 + [row], int(60 * GB), SILENT)
    assert raised.value.code == code
    assert raised.value.hint


def test_mixed_gpus_are_a_warning() -> None:
    events = Recorder()
    judge_gpus([HEALTHY, [1.0, 70 * GB, 80 * GB, 80.0, 0.0]], int(60 * GB), events)
    assert len(events.warnings) == 1
    assert "differ" in events.warnings[0]


def test_nothing_is_checked_on_a_cpu() -> None:
    check_gpus(RankContext(torch.device("cpu")), 1 << 60, SILENT)


def test_mig_slices_of_one_run_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    properties = SimpleNamespace(major=9, minor=0, name=name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (9 * 10**9, 10**10))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 0)
    monkeypatch.setattr(gpu, "product_is_right", lambda _: True)
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: None)
    with pytest.raises(RunError, match="MIG"):
        check_gpus(RankContext(torch.device("cuda", 0), 0, 2), 1, SILENT)


def test_the_product_of_a_cpu_is_right() -> None:
    assert product_is_right(torch.device("cpu"))


def test_out_of_memory_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50 * 10**9)
    with (
        pytest.raises(RunError, match=r"this process has 50 GB, others have 29 GB") as raised,
        out_of_memory_as_run_error(torch.device("cuda", 0)),
    ):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    assert raised.value.code == "out_of_memory"
    assert "{option:micro_batch}" in (raised.value.hint or "")


def test_other_errors_pass() -> None:
    with (
        pytest.raises(RuntimeError, match="a bug"),
        out_of_memory_as_run_error(torch.device("cuda", 0)),
    ):
        raise RuntimeError("a bug")


def test_an_old_driver_is_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable() -> bool:
        text = "CUDA initialization: The NVIDIA driver on your system is too old (Triggered at x)"
        warnings.warn(text, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", unavailable)
    reason = no_gpu_reason()
    assert reason == "CUDA initialization: The NVIDIA driver on your system is too old"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert no_gpu_reason() is None


def test_hung_collectives_are_written_into_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "TORCH_NCCL_DUMP_ON_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(gpu, "set_cuda_arithmetic", lambda **_: None)
    configure_cuda(tmp_path)
    assert os.environ["TORCH_NCCL_DUMP_ON_TIMEOUT"] == "1"
    assert os.environ["TORCH_FR_DUMP_TEMP_FILE"] == str(tmp_path / FLIGHT_RECORDER)
    assert "expandable_segments" in os.environ["PYTORCH_CUDA_ALLOC_CONF"]


def test_deterministic_kernels_are_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    try:
        use_deterministic_kernels(torch.device("cpu"), SILENT)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
