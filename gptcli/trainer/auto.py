"""Automatic settings: what "auto" chooses on this machine.

All choices are pure functions of machine and configuration, so that a resumed run makes the same
ones.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import torch

from gptcli import optional_kernels
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import Precision
from gptcli.cost.layout import Layout
from gptcli.devices import check_apple_gpu, device_type, has_bf16
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.numbers import counted, in_bytes
from gptcli.runtime import (
    has_fast_bf16,
    launched_processes,
    processor,
    restarted,
)
from gptcli.trainer.memory import (
    ADAMW,
    AUTO,
    MAX_MICRO_BATCH_TOKENS,
    Extras,
    RecomputeChoice,
    able_layouts,
    best_work,
    device,
    divides,
    fitting,
)

# processes that may share a CPU's cores, however few there are: for trying a layout out
MIN_CPU_PROCESSES = 8
MIN_FP16_CAPABILITY = (7, 0)  # of Volta, the first GPUs with tensor cores, which take fp16
# d_model from which bf16 products are faster on a CPU without compilation, conversions included
# (AMX: slower at 128, faster at 256)
MIN_BF16_D_MODEL = 256
# and by kernels that compute whole layers (AMX: faster at 128)
MIN_KERNEL_D_MODEL = 128
# d_model up to which these are faster in bf16 than PyTorch in fp32 where the processor does not
# multiply bf16 (AVX2 and AVX-512: 11 to 18 % at 128, equal at 384; at 768 AVX-512 is slower)
MAX_WIDENED_D_MODEL = 384
# seconds of work, at NOMINAL_FLOPS, from which compiling may pay off: on a CPU it takes 6 to 18 s,
# and saves up to 4 % of a step in fp32
COMPILE_PAYBACK_S = {"cpu": 300, "cuda": 30}
NOMINAL_FLOPS = {"cpu": 2e11, "cuda": 1e14}  # FLOP/s


def auto_processes() -> int:
    """Return the number of processes that a launcher started, or else of GPUs, at least 1."""
    return launched_processes() or max(1, torch.cuda.device_count())


def auto_layout(
    model: ModelConfig,
    sequences: int,
    precision: Precision,
    *,
    recompute: RecomputeChoice,
    micro_batch: int | str,
    extras: Extras = ADAMW,
) -> tuple[Layout, str]:
    """Return the fastest layout of all processes or GPUs that holds the model, and the reason.

    On CPUs, whose memory the processes share, the model is sharded as far as its batch can be
    divided. If no layout holds the model, it is sharded too, and `check_memory` later refuses it
    with a suggestion. Raises UsageError if no layout can divide the batch.
    """
    processes = auto_processes()
    if processes == 1:
        return Layout(), "one process"
    sharded, why = _most_sharded(model, processes, sequences, precision)
    if device_type() != "cuda":
        return sharded, why
    gpu = device(processes)
    if found := fitting(
        model,
        processes,
        sequences,
        precision,
        gpu,
        recompute=recompute,
        micro_batch=micro_batch,
        extras=extras,
    ):
        return found[0][
            0
        ], f"the fastest of {len(found)} that hold the model on {counted(processes, 'GPU')}"
    why = (
        f"no layout of {counted(processes, 'GPU')} with {in_bytes(gpu.memory_bytes)} holds the "
        "model"
    )
    return sharded, why


def _most_sharded(
    model: ModelConfig, processes: int, sequences: int, precision: Precision
) -> tuple[Layout, str]:
    """Return the layout with the most shards that divides the batch, and the reason."""
    whole = Layout(shard=processes)
    if divides(whole, model, sequences, precision):
        return whole, "all processes, sharded"
    if able := able_layouts(model, processes, sequences, precision):
        batch = counted(sequences, "sequence")
        return max(able, key=lambda other: other.shard), f"all processes, with a batch of {batch}"
    raise UsageError(
        f"a batch of {counted(sequences, 'sequence')} is too small to divide among "
        f"{counted(processes, 'GPU' if device_type() == 'cuda' else 'process')}",
        field="batch_tokens",
        code="batch_too_small_for_layout",
        hint=f"raise {{option:batch_tokens}} to {processes * model.n_ctx:,}, or "
        + (
            "start fewer processes"
            if launched_processes() is not None
            else "use one of them: {option:layout} dp=1"
        ),
    )


def auto_precision(model: ModelConfig, compiled: bool, *, kernels: bool) -> tuple[str, str]:
    """Return the precision of matrix products, and the reason.

    `kernels` says that the C kernels compute whole layers of this run (see `kernels_train`).
    """
    if device_type() == "cuda":
        if has_bf16("cuda"):
            return "bf16", "this GPU has bf16"
        if torch.cuda.get_device_capability() >= MIN_FP16_CAPABILITY:
            return "fp16", "this GPU has no bf16; the loss is scaled"
        return "fp32", "this GPU has no tensor cores"
    if device_type() == "mps":
        return "fp32", "bf16 has not been measured on Apple GPUs"
    if not has_fast_bf16():
        if kernels and not compiled:
            return "bf16", "the kernels store it, and multiply in fp32"
        if "avx512_bf16" in processor()[1]:
            return "fp32", "this CPU multiplies it faster than bf16"
        return "fp32", "this CPU has no bf16"
    if model.d_model < MIN_BF16_D_MODEL and not compiled and not kernels:
        return "fp32", f"d_model is below {MIN_BF16_D_MODEL}, and nothing is compiled"
    return "bf16", "this CPU has bf16"


def auto_compile(
    model: ModelConfig, tokens: int, processes: int, *, kernels: bool
) -> tuple[bool, str]:
    """Return whether to use torch.compile, and the reason.

    `kernels` says that the C kernels compute whole layers of this run (see `kernels_train`).
    """
    if device_type() == "mps":
        return False, "torch.compile does not support Apple GPUs yet"
    if kernels:
        return False, "the kernels compute whole layers without it"
    if missing := compiler_lacks():
        return False, f"no {missing} here"
    seconds = flops_per_token(model, "palm") * tokens / processes / NOMINAL_FLOPS[device_type()]
    if seconds < COMPILE_PAYBACK_S[device_type()]:
        return False, "the run is short"
    return True, "the run is long enough"


def kernels_train(model: ModelConfig, processes: int) -> bool:
    """Return whether the C kernels train whole layers of a model here, in bf16.

    Nothing is left then for torch.compile to fuse: a compiled layer calls the same kernels. Where
    the processor does not multiply bf16, they are for one process on x86: layers that are gathered
    from shards are PyTorch's, and ARM has not been measured.
    """
    supported = model.norm == "pre" and model.gelu == "tanh" and not model.dropout
    if device_type() != "cpu" or not supported or model.d_model < MIN_KERNEL_D_MODEL:
        return False
    if not has_fast_bf16():
        x86 = platform.machine() in ("x86_64", "AMD64")
        small = processes == 1 and model.d_model <= MAX_WIDENED_D_MODEL
        # built here and now: PyTorch's own products of bf16 would take several times as long
        return x86 and small and optional_kernels.instruction_set() is not None
    return optional_kernels.can_be_built()


def has_compiler() -> bool:
    """Return whether torch.compile can work here."""
    return not compiler_lacks()


def compiler_lacks() -> str:
    """Return what torch.compile lacks here; empty if it can work.

    It needs Python's headers, which distributions package separately, and a compiler: for a CPU of
    C++, for a GPU of C, with which Triton builds what starts its kernels.
    """
    language, names = "C++", [os.environ.get("CXX") or "g++", "clang++", "cl"]
    if device_type() == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "package triton"
        language, names = "C", [os.environ.get("CC") or "gcc", "cc", "clang"]
    if not any(shutil.which(name) for name in names):
        return f"{language} compiler"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "headers of Python (Debian: python3-dev)"
    return ""


def auto_micro_batch(
    model: ModelConfig,
    layout: Layout,
    sequences: int,
    precision: Precision,
    recompute: RecomputeChoice,
    extras: Extras = ADAMW,
) -> tuple[int, str, str]:
    """Return sequences per micro-batch, what to recompute, and the reason for the micro-batch.

    The micro-batch divides the process's share of the batch, so that no sequence is padding. If
    nothing fits in memory, the smallest settings are returned.
    """
    if device_type() == "cuda":
        gpu = device(layout.processes)
        work = best_work(
            model, layout, sequences, precision, gpu, recompute=recompute, extras=extras
        )
        if work is not None:
            return work.micro_batch, work.recompute, "the fastest that fits in the GPU's memory"
        return 1, "full" if recompute == AUTO else recompute, "nothing fits in the GPU's memory"
    share = -(-sequences // layout.replicas)
    most = min(MAX_MICRO_BATCH_TOKENS[device_type()] // model.n_ctx, share // layout.pp)
    size = next((size for size in range(most, 0, -1) if share % size == 0), 1)
    return (
        size,
        "none" if recompute == AUTO else recompute,
        "the batch's share, or enough tokens to keep the device busy",
    )


def layout_after_restart(layout: Layout) -> Layout:
    """Return a layout with `dp` for the processes with which torchrun restarts the run.

    Their number changes with that of the hosts that are left (`torchrun --nnodes 1:4`). The data
    order does not depend on it. The layout is returned as it is where the other axes do not divide
    the processes, which `check_processes` refuses.
    """
    world = launched_processes() or layout.processes
    dp, rest = divmod(world, layout.shard * layout.tp * layout.pp)
    return replace(layout, dp=dp) if restarted() and dp and not rest else layout


def check_processes(layout: Layout) -> None:
    """Raise UsageError if the processes of `layout` are not those launched, or too many here."""
    processes = layout.processes
    if device_type() == "mps":
        check_apple_gpu(processes=processes)
    if (world := launched_processes()) is not None:
        if processes != world:
            again = (
                "only dp can follow the hosts that are left: start torchrun with as many as before, "
                "or with {option:resume} and another {option:layout}"
            )
            raise UsageError(
                f"{layout} is {counted(processes, 'process')}, but {world} were started",
                field="layout",
                code="layout_is_not_the_launch",
                hint=again if restarted() else f"choose axes whose product is {world}",
            )
    elif torch.cuda.is_available():
        if processes > (gpus := torch.cuda.device_count()):
            raise UsageError(
                f"{layout} needs {counted(processes, 'GPU')}; this machine has {gpus}",
                field="layout",
                code="too_few_gpus",
                hint=f"for example shard={gpus}",
            )
    elif processes > (most := max(MIN_CPU_PROCESSES, os.cpu_count() or 1)):
        raise UsageError(
            f"{layout} is {counted(processes, 'process')} on {os.cpu_count()} CPU cores",
            field="layout",
            code="too_few_cores",
            hint=f"use at most {counted(most, 'process')} here",
        )
