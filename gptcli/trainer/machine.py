"""What this machine offers, and what "auto" picks on it: pure functions of the machine and the configuration, so that a run that is
resumed takes the same way."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import sys

import torch

from gptcli.cost.flops import flops_per_token
from gptcli.cost.layout import Layout
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig

SHARED_CORES = 8  # processes that may share a CPU's cores, however few they are: for trying a layout out
WIDE = (
    256  # d_model from which bf16 products repay their conversions on a CPU where nothing is compiled (AMX: slower at 128, faster at 256)
)
REPAID = 30  # seconds of work, at the nominal speeds below, from which compiling (about 10 s on a CPU) pays
NOMINAL = {"cpu": 2e11, "cuda": 1e14}  # FLOP/s
MICRO_TOKENS = {"cpu": 4096, "cuda": 65536}  # tokens that a process runs at a time: more gains no speed
GPU_SHARE = 0.7  # of a GPU's memory that state and activations may fill
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def launched() -> int | None:
    """How many processes torchrun or Slurm started for this run; None where none did."""
    return int(os.environ["WORLD_SIZE"]) if "RANK" in os.environ and "WORLD_SIZE" in os.environ else None


def auto_layout() -> Layout:
    """All processes, or else all GPUs of the machine, sharded."""
    return Layout(shard=launched() or max(1, torch.cuda.device_count()))


def check_layout(layout: Layout, sequences: int) -> None:
    """Raises UsageError where this machine, or a batch of `sequences`, cannot meet the layout."""
    processes = layout.processes
    where = "--layout"
    if (world := launched()) is not None:
        if processes != world:
            raise UsageError(f"{layout} is {processes} processes, but {world} were started", where=where, hint="make the product equal")
    elif torch.cuda.is_available():
        if processes > (gpus := torch.cuda.device_count()):
            raise UsageError(f"{layout} needs {processes} GPUs; this machine has {gpus}", where=where, hint=f"for example dp={gpus}")
    elif processes > (most := max(SHARED_CORES, os.cpu_count() or 1)):
        raise UsageError(
            f"{layout} is {processes} processes on {os.cpu_count()} CPU cores", where=where, hint=f"use at most {most} processes here"
        )
    if processes > sequences:
        raise UsageError(
            f"{layout} is {processes} processes, but a batch is {sequences} sequences",
            where=where,
            hint="raise --batch-tokens, or use fewer processes",
        )


def auto_precision(model: ModelConfig, compiled: bool) -> tuple[str, str]:
    """The precision of products, and why."""
    if device_type() == "cuda":
        return (
            ("bf16", "this GPU has bf16") if torch.cuda.is_bf16_supported(including_emulation=False) else ("fp32", "this GPU has no bf16")
        )
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "fp32", "this CPU has no bf16"
    if model.d_model < WIDE and not compiled:
        return "fp32", f"d_model is below {WIDE}, and nothing is compiled"
    return "bf16", "this CPU has bf16"


def auto_compile(model: ModelConfig, tokens: int, layout: Layout) -> tuple[bool, str]:
    """Whether to compile, and why."""
    kind = device_type()
    if not has_compiler():
        return False, "no compiler here"
    seconds = flops_per_token(model, "palm") * tokens / layout.processes / NOMINAL[kind]
    if seconds < REPAID:
        return False, "the run is short"
    return True, "the run is long enough"


def has_compiler() -> bool:
    """What torch.compile needs: triton for a GPU, a C++ compiler for a CPU."""
    if device_type() == "cuda":
        return importlib.util.find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++", "cl"))


def auto_micro_batch(model: ModelConfig, layout: Layout, sequences: int) -> tuple[int, str]:
    """Sequences that a process runs at a time, and why: a divisor of its share of the batch, so that none is padding."""
    share = -(-sequences // layout.processes)
    room, why = MICRO_TOKENS[device_type()] // model.n_ctx, "the batch's share, or enough tokens to keep the device busy"
    if device_type() == "cuda":
        memory = GPU_SHARE * torch.cuda.get_device_properties(0).total_memory - 16 * model.parameters / layout.shard
        if (fits := int(memory // activation_bytes(model))) < room:
            room, why = fits, "what fits in the GPU's memory"
    room = max(1, min(room, share))
    return next(size for size in range(room, 0, -1) if share % size == 0), why


def activation_bytes(model: ModelConfig) -> int:
    """Kept for the backward pass of one sequence: 34·T·C a layer in 16 bits with fused attention (Korthikanti et al. 2022), and as much
    again where autocast keeps the residual stream and the inputs of its casts in fp32."""
    return 2 * 34 * model.n_ctx * model.d_model * (model.n_layer + 1)


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for the next tensor. It would give each back to the system, and a CPU step would spend a
    tenth of its time and more on getting zeroed pages again."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def share_cores(processes: int) -> None:
    """Divide the CPU's cores among the processes of this machine."""
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
