"""Devices: which one is chosen, and what an Apple GPU refuses. No machine with one is needed."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import gptcli
from gptcli import cli, devices
from gptcli.cost.layout import Layout
from gptcli.devices import check_apple_gpu, device_type, find_device, gpu_name, is_out_of_memory
from gptcli.distributed.gpu import out_of_memory_as_run_error
from gptcli.errors import RunError, UsageError
from gptcli.evals.evaluate import load_for_evaluation
from gptcli.evals.runner import Processes, local_device
from gptcli.model.config import ModelConfig
from gptcli.runs.record import device_name
from gptcli.sampling.engine import free_memory
from gptcli.sampling.load import load
from gptcli.shards.manifest import read_manifest
from gptcli.trainer import auto, memory
from gptcli.trainer.machine import this_machine
from gptcli.trainer.monitors import peak_memory
from gptcli.trainer.preflight import check_run
from tests.small_runs import make_run, shards  # noqa: F401

MPS = torch.device("mps")
GPT2 = ModelConfig(vocab_size=50257, n_ctx=1024, n_layer=12, n_head=12, d_model=768)
GIB = 1 << 30


@pytest.fixture
def mac(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A Mac with macOS 14 and an Apple GPU, of whose 16 GiB 1 is in use."""
    monkeypatch.delenv(devices.HIDE_MPS, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.backends.mps, "is_macos_or_newer", lambda *version: version <= (14, 0)
    )
    monkeypatch.setattr(torch.backends.mps, "get_name", lambda: "Apple M4", raising=False)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 16 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: GIB)
    return monkeypatch


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("mps", [False, True])
@pytest.mark.parametrize("hidden", [None, "", "0", " 0 ", "1"])
def test_cuda_comes_before_mps_and_mps_before_the_cpu(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, hidden: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if hidden is None:
        monkeypatch.delenv(devices.HIDE_MPS, raising=False)
    else:
        monkeypatch.setenv(devices.HIDE_MPS, hidden)
    seen = mps and (hidden or "").strip() != "0"
    expected = "cuda" if cuda else "mps" if seen else "cpu"
    assert device_type() == find_device("auto").type == expected
    assert find_device("cpu").type == "cpu"
    if seen:
        assert find_device("mps") == MPS
    else:
        with pytest.raises(UsageError, match="PyTorch sees no Apple GPU"):
            find_device("mps")


@pytest.mark.parametrize("name", ["mps:0", "MPS", "metal", "mps "])
def test_other_names_are_refused_with_the_names_there_are(
    mac: pytest.MonkeyPatch, name: str
) -> None:
    with pytest.raises(UsageError, match="one of: auto, cpu, cuda, cuda:1, mps"):
        find_device(name)
    with pytest.raises(UsageError, match=r"did you mean cuda\?"):
        find_device("gpu")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"precision": "fp8"}, "has no fp8"),
        ({"processes": 2}, "2 processes cannot share"),
        ({"compiled": True}, "torch.compile does not support"),
        ({"deterministic": True}, "no deterministic kernels"),
        ({"quantize": "int8"}, "int8 does not run"),
    ],
)
def test_what_an_apple_gpu_lacks_is_refused_with_a_way_out(
    mac: pytest.MonkeyPatch, asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message) as error:
        check_apple_gpu(**asked)
    assert "GPT_MPS=0" in str(error.value)
    assert error.value.code == "not_on_apple_gpu"


def test_bf16_needs_macos_14(mac: pytest.MonkeyPatch) -> None:
    for precision in ("fp32", "fp16", "bf16"):
        check_apple_gpu(precision=precision)
    mac.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: version < (14, 0))
    with pytest.raises(UsageError, match="needs macOS 14"):
        check_apple_gpu(precision="bf16")
    check_apple_gpu(precision="fp16")


def test_auto_avoids_what_an_apple_gpu_lacks_and_says_why(mac: pytest.MonkeyPatch) -> None:
    mac.setattr(auto, "compiler_lacks", lambda: "")
    assert auto.auto_compile(GPT2, 10**12, 1, kernels=False) == (
        False,
        "torch.compile does not support Apple GPUs yet",
    )
    assert auto.auto_precision(GPT2, False, kernels=False) == (
        "fp32",
        "bf16 has not been measured on Apple GPUs",
    )
    layout, why = auto.auto_layout(GPT2, 64, "fp32", recompute="auto", micro_batch="auto")
    assert (layout, why) == (Layout(), "one process")
    assert auto.auto_micro_batch(GPT2, layout, 64, "fp32", "auto")[:2] == (4, "none")
    assert memory.device_memory(1) == int(0.93 * 16 * GIB)
    auto.check_processes(layout)
    with pytest.raises(UsageError, match="4 processes cannot share an Apple GPU"):
        auto.check_processes(Layout(dp=4))
    mac.setenv(devices.HIDE_MPS, "0")
    auto.check_processes(Layout(dp=4))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp8"}, "has no fp8"),
        ({"compile": True}, "torch.compile does not support"),
        ({"deterministic": True}, "no deterministic kernels"),
        ({}, None),
    ],
)
def test_a_run_is_refused_before_it_begins(
    mac: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    changes: dict[str, Any],
    message: str | None,
) -> None:
    run = request.getfixturevalue("make_run")()
    run = replace(run, train=replace(run.train, **changes))
    manifest = read_manifest(run.data)
    if message is None:
        check_run(run, manifest)
        return
    with pytest.raises(UsageError, match=message):
        check_run(run, manifest)
    mac.setenv(devices.HIDE_MPS, "0")
    if changes.get("precision") != "fp8":
        check_run(run, manifest)


def test_int8_and_an_old_macos_are_refused_before_a_model_is_read(
    mac: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="int8 does not run on an Apple GPU"):
        load(tmp_path / "none", quantize="int8")
    mac.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version: False)
    with pytest.raises(UsageError, match="needs macOS 14"):
        load(tmp_path / "none", device="mps", precision="bf16")


def test_several_processes_evaluate_on_the_cpu(mac: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert local_device() == "cpu"
    with pytest.raises(UsageError, match="2 processes cannot share an Apple GPU"):
        load_for_evaluation(
            tmp_path, Processes(0, 2), checkpoint=None, device="mps", precision="fp32"
        )


def test_names_and_memory_are_those_of_the_gpu(
    mac: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    assert gpu_name() == device_name(1) == "Apple M4"
    assert free_memory(MPS) == 15 * GIB
    assert peak_memory(MPS) == GIB
    run = request.getfixturevalue("make_run")(layout="dp=1")
    machine = this_machine(run.model, run.train, run.out)
    assert (machine.name, machine.tokens_per_second) == ("Apple M4", None)
    assert machine.memory_bytes == int(0.93 * 16 * GIB)
    mac.setenv(devices.HIDE_MPS, "0")
    assert gpu_name() is None


def test_fp64_is_computed_on_the_cpu_where_a_gpu_has_none() -> None:
    assert devices.fp64_device(MPS).type == "cpu"
    for kind in ("cpu", "cuda"):
        assert devices.fp64_device(torch.device(kind)).type == kind


def test_out_of_memory_of_metal_is_one_message() -> None:
    error = RuntimeError("MPS backend out of memory (MPS allocated: 9 GB). Tried to allocate 2 GB")
    assert is_out_of_memory(error)
    with pytest.raises(RunError, match="out of memory on mps"), out_of_memory_as_run_error(MPS):
        raise error
    with pytest.raises(RuntimeError, match="another"), out_of_memory_as_run_error(MPS):
        raise RuntimeError("another")


def test_the_command_line_speaks_of_metal_s_memory_without_nvidia_s_tool(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)")

    monkeypatch.setattr(cli, "build_app", lambda argv: fail)
    monkeypatch.setattr("sys.argv", ["gpt", "eval", "run"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    message = capsys.readouterr().err
    assert stopped.value.code == 1
    assert "out of memory: MPS backend" in message
    assert "--device cpu" in message
    assert "nvidia" not in message
    assert "bug" not in message


def test_only_this_module_asks_what_gpus_can_do() -> None:
    """A new question about a device gets its answer for Apple GPUs where the others are."""
    asks = re.compile(
        r"mps\.is_available|mps\.is_macos|torch\.mps\.|is_bf16_supported|\.is_built\("
    )
    package = Path(gptcli.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if asks.search(path.read_text(encoding="utf-8"))
    }
    assert found == {"devices.py"}
