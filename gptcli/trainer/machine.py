"""What this machine offers, and what "auto" picks on it: pure functions of the machine and the
configuration, so that a run that is resumed takes the same way."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from pathlib import Path

import torch

from gptcli.cost.flops import flops_per_token
from gptcli.cost.layout import Layout
from gptcli.errors import UsageError
from gptcli.events import Events
from gptcli.model import linear_kernel
from gptcli.model.config import ModelConfig
from gptcli.numbers import in_bytes
from gptcli.runtime import launch_environment
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.fit import AUTO, MICRO_TOKENS, best_work, device, fitting

# processes that may share a CPU's cores, however few they are: for trying a layout out
SHARED_CORES = 8
WIDE = (
    # d_model from which bf16 products repay their conversions on a CPU where nothing is compiled
    # (AMX: slower at 128, faster at 256)
    256
)
# seconds of work, at the nominal speeds below, from which compiling (about 10 s on a CPU) pays
REPAID = 30
NOMINAL = {"cpu": 2e11, "cuda": 1e14}  # FLOP/s


def device_type() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def launched() -> int | None:
    """How many processes a launcher started for this run; None if none did. Raises UsageError as
    `launch_environment`.
    """
    launch = launch_environment()
    return None if launch is None else launch.world_size


def auto_processes() -> int:
    """All that were started, or else one for each GPU of the machine."""
    return launched() or max(1, torch.cuda.device_count())


def auto_layout(
    model: ModelConfig, sequences: int, precision: str, *, recompute: str, micro_batch: int | str
) -> tuple[Layout, str]:
    """The fastest layout of all processes, or else all GPUs of the machine, that holds the model;
    on CPUs, whose memory the processes share, shards; shards too if nothing holds it, which
    `gptcli.trainer.fit.check_memory` refuses with what would fit."""
    processes = auto_processes()
    if processes == 1 or device_type() == "cpu":
        return Layout(shard=processes), "all processes, sharded" if processes > 1 else "one process"
    gpu = device(processes)
    if found := fitting(
        model, processes, sequences, precision, gpu, recompute=recompute, micro_batch=micro_batch
    ):
        return found[0][0], f"the fastest of {len(found)} that hold the model on {processes} GPUs"
    return Layout(
        shard=processes
    ), f"no layout of {processes} GPUs with {in_bytes(gpu.memory_bytes)} holds the model"


def check_layout(layout: Layout) -> None:
    """Raises UsageError where this machine, or those who started the processes, have not as many as
    the layout.
    """
    processes = layout.processes
    if (world := launched()) is not None:
        if processes != world:
            raise UsageError(
                f"{layout} is {processes} processes, but {world} were started",
                field="layout",
                code="layout_is_not_the_launch",
                hint="make the product equal",
            )
    elif torch.cuda.is_available():
        if processes > (gpus := torch.cuda.device_count()):
            raise UsageError(
                f"{layout} needs {processes} GPUs; this machine has {gpus}",
                field="layout",
                code="too_few_gpus",
                hint=f"for example shard={gpus}",
            )
    elif processes > (most := max(SHARED_CORES, os.cpu_count() or 1)):
        raise UsageError(
            f"{layout} is {processes} processes on {os.cpu_count()} CPU cores",
            field="layout",
            code="too_few_cores",
            hint=f"use at most {most} processes here",
        )


def auto_precision(model: ModelConfig, compiled: bool) -> tuple[str, str]:
    """The precision of products, and why."""
    if device_type() == "cuda":
        return (
            ("bf16", "this GPU has bf16")
            if torch.cuda.is_bf16_supported(including_emulation=False)
            else ("fp32", "this GPU has no bf16")
        )
    if not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()):
        return "fp32", "this CPU has no bf16"
    if model.d_model < WIDE and not compiled:
        return "fp32", f"d_model is below {WIDE}, and nothing is compiled"
    return "bf16", "this CPU has bf16"


def auto_compile(model: ModelConfig, tokens: int, processes: int) -> tuple[bool, str]:
    """Whether to compile, and why."""
    kind = device_type()
    if not has_compiler():
        return False, "no compiler here"
    seconds = flops_per_token(model, "palm") * tokens / processes / NOMINAL[kind]
    if seconds < REPAID:
        return False, "the run is short"
    return True, "the run is long enough"


def has_compiler() -> bool:
    """What torch.compile needs: triton for a GPU; for a CPU a C++ compiler and Python's headers,
    which distributions pack apart.
    """
    if device_type() == "cuda":
        return importlib.util.find_spec("triton") is not None
    headers = Path(sysconfig.get_path("include"), "Python.h").is_file()
    return headers and any(
        shutil.which(name) for name in (os.environ.get("CXX") or "g++", "clang++", "cl")
    )


def auto_micro_batch(
    model: ModelConfig, layout: Layout, sequences: int, precision: str, recompute: str
) -> tuple[int, str, str]:
    """Sequences that a process runs at a time, and why: a divisor of its share of the batch, so
    that none is padding; and what it computes again, where that is left to choose. What does not
    fit in memory gets the least that there is."""
    if device_type() == "cuda":
        work = best_work(
            model, layout, sequences, precision, device(layout.processes), recompute=recompute
        )
        if work is not None:
            return work.micro_batch, work.recompute, "the fastest that fits in the GPU's memory"
        return 1, "full" if recompute == AUTO else recompute, "nothing fits in the GPU's memory"
    share = -(-sequences // layout.replicas)
    room = min(MICRO_TOKENS["cpu"] // model.n_ctx, share // layout.pp)
    size = next((size for size in range(room, 0, -1) if share % size == 0), 1)
    return (
        size,
        "none" if recompute == AUTO else recompute,
        "the batch's share, or enough tokens to keep the device busy",
    )


def hold_threads(before: int | None, events: Events) -> int:
    """Fix how many threads a product on the CPU is cut into: sums, and so weights, differ in their
    last bits with the number. `before` is what a resumed run had, from its checkpoint; None for a
    new run. Returns the number from here on."""
    threads = torch.get_num_threads()
    if before is not None and before != threads:
        if before <= cores():
            threads = before
        else:
            events.warn(
                f"the run had {before} threads, and {cores()} cores are here: its last bits will not be those of a run on one machine"
            )
    torch.set_num_threads(threads)  # once set, the library below chooses no other by itself
    return threads


def same_arithmetic(before: str | None, config: TrainConfig, events: Events) -> str:
    """By what sums are made here: with another torch, processor or compiler their last bits are
    others, and where that was so `before`, by a resumed run's checkpoint, it is said. None for a
    new run."""
    cpu = f"a CPU with {torch.backends.cpu.get_cpu_capability()}"
    words = [
        f"torch {torch.__version__}",
        torch.cuda.get_device_name() if device_type() == "cuda" else cpu,
    ]
    if config.compile:
        words.append("compiled")
    if device_type() == "cpu" and config.precision == "bf16" and linear_kernel.runs_here():
        words.append("kernels in C")
    now = ", ".join(words)
    if before not in (None, now):
        events.warn(
            f"the run was made by {before}; here it is {now}: its last bits will not be those of a run on one machine"
        )
    return now


def cores() -> int:
    """Of the CPU, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(processes: int) -> None:
    """Divide the CPU's cores among the processes of this machine."""
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
