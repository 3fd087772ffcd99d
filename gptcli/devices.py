"""Devices: the one this machine computes on, and what that device can do.

A CUDA GPU comes first, then an Apple GPU (PyTorch's `mps`), then the CPU. Every other module asks
here. What is said of Apple GPUs follows PyTorch's documents and source; not run by us.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from gptcli.errors import UsageError
from gptcli.numbers import counted

if TYPE_CHECKING:
    import torch

HIDE_MPS = "GPT_MPS"
"""Environment variable that hides the Apple GPU if it is 0, as CUDA_VISIBLE_DEVICES= does CUDA's.
"""
MPS_BF16_MACOS = (14, 0)
"""First version of macOS whose Metal has bf16."""
MPS_OUT_OF_MEMORY = "MPS backend out of memory"
"""Words of the RuntimeError that PyTorch raises if the memory of an Apple GPU is not enough."""
ON_THE_CPU = f"{HIDE_MPS}=0 in the environment computes on the CPU"


def device_type() -> str:
    """Return the type of device that this machine computes on: "cuda", "mps" or "cpu"."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if has_apple_gpu() else "cpu"


def has_apple_gpu() -> bool:
    """Return whether there is an Apple GPU that PyTorch can use and that is not hidden."""
    import torch

    return os.environ.get(HIDE_MPS, "").strip() != "0" and torch.backends.mps.is_available()


def find_device(name: str) -> torch.device:
    """Return the device that `name` names: auto, cpu, cuda, cuda:1 or mps.

    Raises UsageError if there is none of this name, or this machine lacks it.
    """
    import torch

    if name == "auto":
        return torch.device(device_type())
    match = re.fullmatch(r"cpu|mps|cuda(?::(\d+))?", name)
    if match is None:
        raise UsageError(
            f"unknown device {name!r}",
            field="device",
            code="unknown_value",
            hint="did you mean cuda?" if name == "gpu" else "one of: auto, cpu, cuda, cuda:1, mps",
        )
    if name == "mps" and not has_apple_gpu():
        raise UsageError(
            "mps does not exist: PyTorch sees no Apple GPU",
            field="device",
            hint="use {option:device} cpu; mps needs a Mac with Apple silicon, and that "
            f"{HIDE_MPS} is not 0",
        )
    if name.startswith("cuda") and int(match[1] or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"{name} does not exist: {torch.cuda.device_count() or 'no'} CUDA GPUs are visible",
            field="device",
            hint="use {option:device} cpu, or install PyTorch for CUDA if there is a GPU",
        )
    return torch.device(name)


def gpu_name() -> str | None:
    """Return the name of this machine's GPU; None if it computes on its CPU."""
    import torch

    kind = device_type()
    if kind == "cuda":
        return torch.cuda.get_device_name()
    if kind == "mps":  # PyTorch before 2.9 cannot tell which
        return getattr(torch.backends.mps, "get_name", lambda: "Apple GPU")()
    return None


def has_bf16(kind: str) -> bool:
    """Return whether the GPU of this type multiplies bf16 itself."""
    import torch

    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "mps" and torch.backends.mps.is_macos_or_newer(*MPS_BF16_MACOS)


def fp64_device(device: torch.device) -> torch.device:
    """Return where sums in fp64 of tensors on `device` are computed: an Apple GPU has no fp64."""
    import torch

    return torch.device("cpu") if device.type == "mps" else device


def apple_gpu_memory() -> int:
    """Return the bytes that Metal recommends to use at most: a part of the machine's memory."""
    import torch

    return torch.mps.recommended_max_memory()


def free_gpu_memory(device: torch.device) -> int | None:
    """Return the free memory of a GPU in bytes; None for a CPU.

    Of an Apple GPU, it is what Metal recommends to use at most, less what this process uses.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return max(0, apple_gpu_memory() - torch.mps.driver_allocated_memory())
    return None


def gpu_memory_in_use(device: torch.device) -> int | None:
    """Return the most bytes that this process's tensors had on a GPU; None for a CPU.

    For an Apple GPU, which keeps no record, it is what Metal has allocated now, freed blocks that
    PyTorch keeps for reuse included.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else None


def empty_cache(device: torch.device) -> None:
    """Give the GPU memory that PyTorch keeps for reuse back; does nothing on a CPU."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether torch ran out of memory: a plain RuntimeError on a CPU and an Apple GPU."""
    import torch

    named = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return named or "can't allocate memory" in str(error) or MPS_OUT_OF_MEMORY in str(error)


def check_apple_gpu(
    *,
    precision: str = "fp32",
    compiled: bool = False,
    processes: int = 1,
    quantize: str = "none",
    deterministic: bool = False,
) -> None:
    """Raise UsageError if an Apple GPU cannot do one of these.

    It has no fp8, and bf16 from macOS 14 on; no library connects several processes on it;
    torch.compile for it is a prototype of PyTorch's; nobody promises that it sums in one order; and
    there is no kernel that reads int8 weights.
    """
    problem = None
    if precision == "fp8":
        problem = "an Apple GPU has no fp8", "{option:precision} fp32 runs on it"
    elif precision == "bf16" and not has_bf16("mps"):
        version = MPS_BF16_MACOS[0]
        problem = f"bf16 on an Apple GPU needs macOS {version}", "use {option:precision} fp32"
    elif processes > 1:
        problem = f"{counted(processes, 'process')} cannot share an Apple GPU", "use one process"
    elif compiled:
        problem = "torch.compile does not support Apple GPUs yet", "use {option:compile} off"
    elif deterministic:
        problem = "an Apple GPU has no deterministic kernels", "leave {option:deterministic} out"
    elif quantize != "none":
        problem = f"{quantize} does not run on an Apple GPU", "use {option:quantize} none"
    if problem is not None:
        raise UsageError(
            problem[0], where="mps", code="not_on_apple_gpu", hint=f"{problem[1]}; {ON_THE_CPU}"
        )
