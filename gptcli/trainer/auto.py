"""Automatic settings: what "auto" chooses on this machine, and which settings fit it.

All choices are pure functions of machine and configuration, so that a resumed run makes the same
ones. Memory and time are those of `gptcli.cost`'s model.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sysconfig
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch

from gptcli import optional_kernels
from gptcli.cost.cpu import MICRO_BATCH_TOKENS, cpu_memory, on_cpu
from gptcli.cost.flops import flops_per_token, layer_matrices
from gptcli.cost.hardware import Gpu, Precision, find_gpu, identify_gpu, usual_precision
from gptcli.cost.layout import Layout, division_problem
from gptcli.cost.memory import (
    RECOMPUTE,
    PipelineSchedule,
    Recompute,
    padded_micro_batches,
)
from gptcli.cost.planner import layouts, make_plan
from gptcli.cost.rank_memory import StepConfig, rank_memory, undivided_bytes
from gptcli.devices import apple_gpu_memory, check_apple_gpu, device_type, has_bf16
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, short_name
from gptcli.numbers import counted, in_bytes
from gptcli.papers.models import MODELS
from gptcli.runtime import (
    has_fast_bf16,
    launch_environment,
    launched_processes,
    processor,
    restarted,
)
from gptcli.trainer.config import TrainConfig

AUTO: Final = "auto"
RecomputeChoice = Literal["auto", Recompute]
# more tokens at a time gain no speed (an Apple GPU's number is a CPU's: not measured)
MAX_MICRO_BATCH_TOKENS = {
    "cpu": MICRO_BATCH_TOKENS,
    "mps": MICRO_BATCH_TOKENS,
    "cuda": 65536,
}
# share of a device's memory for tensors; the rest is for its context and the allocator's gaps
# (a GPU sold with 80 GB has 85.5e9 bytes)
TENSOR_MEMORY_SHARE = 0.93
MARGIN = f"{1 - TENSOR_MEMORY_SHARE:.0%}".replace("%", " %")  # as messages say it
PROXY_GPU = "a100"  # its speeds rank the layouts of a GPU without a row in hardware.toml
MAX_SUGGESTIONS = 3  # layouts that an error message names
# bytes, or "max" (Linux, control groups of version 2)
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
# processes that may share a CPU's cores, however few there are: for trying a layout out
MIN_CPU_PROCESSES = 8
MIN_FP16_CAPABILITY = (7, 0)  # of Volta, the first GPUs with tensor cores, which take fp16
# d_model from which bf16 products are faster on a CPU without compilation, conversions included
# (AMX: slower at 128, faster at 256)
MIN_BF16_D_MODEL = 256
# and by kernels that compute whole layers (AMX: faster at 128)
MIN_KERNEL_D_MODEL = 128
# seconds of work, at NOMINAL_FLOPS, from which compiling (about 10 s on a CPU) pays off
COMPILE_PAYBACK_S = 30
FP32_BYTES = 4
NOMINAL_FLOPS = {"cpu": 2e11, "cuda": 1e14}  # FLOP/s


@dataclass(frozen=True, slots=True)
class Extras:
    """Options of a run that change its memory, beside its step."""

    ema: bool = False
    """An average of the weights is kept."""
    muon: bool = False
    """The matrices of the layers have one moment instead of AdamW's two."""
    compiled: bool = False
    """The compiler's libraries are loaded."""

    @classmethod
    def of(cls, train: TrainConfig) -> Extras:
        """Return those of a configuration; a user's own optimizer counts as AdamW."""
        return cls(train.ema > 0, train.optimizer == "muon", train.compile)


ADAMW = Extras()


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
    able = [
        other for other in layouts(model, processes) if divides(other, model, sequences, precision)
    ]
    if able:
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


def auto_precision(model: ModelConfig, compiled: bool) -> tuple[str, str]:
    """Return the precision of matrix products, and the reason."""
    if device_type() == "cuda":
        if has_bf16("cuda"):
            return "bf16", "this GPU has bf16"
        if torch.cuda.get_device_capability() >= MIN_FP16_CAPABILITY:
            return "fp16", "this GPU has no bf16; the loss is scaled"
        return "fp32", "this GPU has no tensor cores"
    if device_type() == "mps":
        return "fp32", "bf16 has not been measured on Apple GPUs"
    if not has_fast_bf16():
        if "avx512_bf16" in processor()[1]:
            return "fp32", "this CPU multiplies it faster than bf16"
        return "fp32", "this CPU has no bf16"
    if model.d_model < MIN_BF16_D_MODEL and not compiled and not kernels_train(model):
        return "fp32", f"d_model is below {MIN_BF16_D_MODEL}, and nothing is compiled"
    return "bf16", "this CPU has bf16"


def auto_compile(
    model: ModelConfig, tokens: int, processes: int, *, plain: bool = True
) -> tuple[bool, str]:
    """Return whether to use torch.compile, and the reason.

    `plain` says that nothing in the run's options keeps the kernels from computing whole layers.
    """
    if device_type() == "mps":
        return False, "torch.compile does not support Apple GPUs yet"
    if plain and kernels_train(model):
        return False, "the kernels compute whole layers without it"
    if missing := compiler_lacks():
        return False, f"no {missing} here"
    seconds = flops_per_token(model, "palm") * tokens / processes / NOMINAL_FLOPS[device_type()]
    if seconds < COMPILE_PAYBACK_S:
        return False, "the run is short"
    return True, "the run is long enough"


def kernels_train(model: ModelConfig) -> bool:
    """Return whether the C kernels train whole layers of a model here, in bf16.

    Nothing is left then for torch.compile to fuse: a compiled layer calls the same kernels.
    """
    supported = model.norm == "pre" and model.gelu == "tanh" and not model.dropout
    wide = model.d_model >= MIN_KERNEL_D_MODEL
    on_cpu = device_type() == "cpu" and has_fast_bf16()
    return supported and wide and on_cpu and optional_kernels.can_be_built()


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


def device_memory(processes: int) -> int:
    """Return the bytes for tensors of each process here, if `processes` run on this machine.

    An Apple GPU shares the machine's memory, and has what Metal recommends to use at most.
    Of several GPUs, that is the memory of the smallest. A single process reads how much of its GPU
    is free; of several, each would have to read the same.
    """
    if torch.cuda.is_available():
        totals = [
            torch.cuda.get_device_properties(gpu).total_memory
            for gpu in range(torch.cuda.device_count())
        ]
        has = int(TENSOR_MEMORY_SHARE * min(totals))
        return min(has, torch.cuda.mem_get_info(0)[0]) if processes == 1 else has
    if device_type() == "mps":
        return int(TENSOR_MEMORY_SHARE * apple_gpu_memory())
    launch = launch_environment()
    here = processes if launch is None else launch.local_world_size
    return int(TENSOR_MEMORY_SHARE * host_memory()) // here


def host_memory() -> int:
    """Return the bytes of memory of this machine, or of its container if that is limited."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def device(processes: int) -> Gpu:
    """Return this machine's GPU as `gptcli.cost` describes it, with the memory that it has here and
    as many GPUs in a node as a launcher has started processes on a machine.
    """
    row = identify_gpu(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    found, launch = row or find_gpu(PROXY_GPU), launch_environment()
    node = found.node if launch is None else launch.local_world_size
    return replace(found, memory_bytes=device_memory(processes), node=node)


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


def check_division(
    model: ModelConfig,
    layout: Layout,
    schedule: PipelineSchedule,
    sequences: int,
    precision: str = "bf16",
) -> None:
    """Raise UsageError if `layout` cannot divide the model or a batch, on any machine."""
    problem = division_problem(layout, model, sequences, schedule, precision)
    if problem is None:
        return
    if problem.code == "batch_too_small_for_layout" and layout.replicas > sequences:
        problem.hint = _alternatives(model, layout, sequences) or problem.hint
    raise problem


def process_memory(model: ModelConfig, layout: Layout, train: TrainConfig, sequences: int) -> int:
    """Return the peak bytes of a process of this run, for full batches of `sequences`.

    On a GPU they are those of tensors, on a CPU of the whole process.
    """
    return peak_memory(model, layout, work_of(layout, train, sequences), Extras.of(train))


def expected_memory(model: ModelConfig, layout: Layout, needs: int, has: int | None) -> int:
    """Return the peak bytes of a process that `needs` so many and `has` so many: on a GPU it keeps
    weights and gradients undivided where there is room.
    """
    if has is None or device_type() != "cuda":
        return needs
    return needs + undivided_bytes(model, layout, needs, has)


def peak_memory(
    model: ModelConfig, layout: Layout, work: StepConfig, extras: Extras = ADAMW
) -> int:
    """Return the peak bytes of a process here: of tensors on a GPU, of all on a CPU."""
    parts = layout.processes // layout.dp
    average_bytes = FP32_BYTES * model.parameters // parts * extras.ema
    # Muon keeps one moment of the matrices in the layers, where AdamW keeps two
    fewer_moments = model.n_layer * layer_matrices(model) // parts * extras.muon
    if device_type() != "cpu":
        found = rank_memory(model, layout, work)
        return found.total + average_bytes - FP32_BYTES * fewer_moments
    has_kernels = layout.tp == 1 and not optional_kernels.lack_compiler()
    return cpu_memory(
        model,
        layout,
        on_cpu(work, model, has_kernels=has_kernels),
        average_bytes=average_bytes,
        fewer_moments=fewer_moments,
        compiled=extras.compiled,
    ).total


def check_memory(model: ModelConfig, layout: Layout, train: TrainConfig, sequences: int) -> None:
    """Raise UsageError, with what would fit, if a process has less memory than it needs."""
    needs, has = process_memory(model, layout, train, sequences), device_memory(layout.processes)
    if needs > has:
        raise UsageError(
            shortage(layout, needs, has),
            field="layout" if layout.processes > 1 else None,
            code="does_not_fit_in_memory",
            hint=memory_advice(model, layout, train, sequences),
        )


def shortage(layout: Layout, needs: int, has: int) -> str:
    """Return a message that compares the bytes a run needs with those it has."""
    if layout.processes == 1:
        return (
            f"does not fit: the run needs {in_bytes(needs)} of memory, "
            f"and this machine has {in_bytes(has)} for it, with {MARGIN} kept free"
        )
    return (
        f"does not fit: a process of {layout} needs {in_bytes(needs)} of memory, "
        f"and has {in_bytes(has)}, with {MARGIN} kept free"
    )


def memory_advice(model: ModelConfig, layout: Layout, train: TrainConfig, sequences: int) -> str:
    """Return a hint with what fits: settings for as many processes, or the largest paper size."""
    gpu = device(layout.processes)
    processes, extras = layout.processes, Extras.of(train)
    found = fitting(model, processes, sequences, train.precision, gpu, extras=extras)
    if found := found[:MAX_SUGGESTIONS]:
        return "; or ".join(
            f"{{option:layout}} {plan} {{option:micro_batch}} {work.micro_batch} "
            f"{{option:recompute}} {work.recompute}"
            for plan, work in found
        )
    size = largest_that_fits(model, layout.processes, train, gpu)
    largest = (
        "no paper size fits here"
        if size is None
        else f"the largest paper size that fits here is {size}"
    )
    more = (
        "a machine with more memory, or several GPUs" if layout.processes == 1 else "more processes"
    )
    return f"{largest}; for this model use {more}"


def largest_that_fits(
    model: ModelConfig, processes: int, train: TrainConfig, gpu: Gpu
) -> str | None:
    """Return the largest paper size, with the vocabulary of `model`, that fits; None if none."""
    extras = Extras.of(train)
    for paper in sorted(MODELS, key=lambda paper: -paper.parameters):
        config = ModelConfig.from_paper(paper, vocab_size=model.vocab_size)
        if fitting(
            config, processes, processes, train.precision, gpu, micro_batch=1, extras=extras
        ):
            return short_name(paper)
    return None


def work_of(layout: Layout, train: TrainConfig, sequences: int) -> StepConfig:
    """Return how a replica runs its share of a batch of `sequences`."""
    micro_batches = -(-sequences // (layout.replicas * train.micro_batch))
    return StepConfig(
        micro_batch=train.micro_batch,
        micro_batches=padded_micro_batches(micro_batches, layout.pp, train.pipeline_schedule),
        precision=train.precision,
        recompute=train.recompute,
        schedule=train.pipeline_schedule,
    )


def fitting(
    model: ModelConfig,
    processes: int,
    sequences: int,
    precision: Precision,
    gpu: Gpu,
    *,
    recompute: RecomputeChoice = AUTO,
    micro_batch: int | str = AUTO,
    extras: Extras = ADAMW,
) -> list[tuple[Layout, StepConfig]]:
    """Return the layouts that hold and divide the model, fastest first, each with its best step."""
    found = []
    for layout in dict.fromkeys(layouts(model, processes, gpu.node)):
        work = best_work(
            model,
            layout,
            sequences,
            precision,
            gpu,
            recompute=recompute,
            micro_batch=micro_batch,
            extras=extras,
        )
        if work is not None and divides(layout, model, sequences, precision):
            found.append((_speed(model, layout, work, gpu), layout, work))
    return [(layout, work) for _, layout, work in sorted(found, key=lambda row: -row[0])]


def divides(layout: Layout, model: ModelConfig, sequences: int, precision: Precision) -> bool:
    """Return whether a batch of `sequences` can be trained on the layout, on any machine."""
    return division_problem(layout, model, sequences, precision=precision) is None


def best_work(
    model: ModelConfig,
    layout: Layout,
    sequences: int,
    precision: Precision,
    gpu: Gpu,
    *,
    recompute: RecomputeChoice = AUTO,
    micro_batch: int | str = AUTO,
    extras: Extras = ADAMW,
) -> StepConfig | None:
    """Return the fastest way to run a replica's share of a batch that fits; None if none fits.

    No micro-batch is padded.
    """
    share = -(-sequences // layout.replicas)
    most = max(1, MAX_MICRO_BATCH_TOKENS["cuda"] // model.n_ctx)
    sizes = (
        [micro_batch]
        if isinstance(micro_batch, int)
        else [n for n in range(1, min(most, share) + 1) if share % n == 0]
    )
    steps = [
        StepConfig(
            micro_batch=size, micro_batches=-(-share // size), precision=precision, recompute=name
        )
        for size in sizes
        for name in ([recompute] if recompute != AUTO else RECOMPUTE)
    ]
    fits = [step for step in steps if peak_memory(model, layout, step, extras) <= gpu.memory_bytes]
    return max(fits, key=lambda step: _speed(model, layout, step, gpu), default=None)


def _speed(model: ModelConfig, layout: Layout, work: StepConfig, gpu: Gpu) -> float:
    """Return the tokens per second that rank a way to run: in fp8 as in the usual precision, if the
    GPU that stands for an unknown one has no fp8.
    """
    if work.precision == "fp8" and gpu.fp8_flops is None:
        work = replace(work, precision=usual_precision(gpu))
    return make_plan(model, layout, work, gpu).tokens_per_second


def _alternatives(model: ModelConfig, layout: Layout, sequences: int) -> str:
    """Return a hint with layouts of as many processes that can divide the batch, or ""."""
    able = [
        str(other)
        for other in dict.fromkeys(layouts(model, layout.processes))
        if divides(other, model, sequences, "bf16")
    ]
    return f"for example {{option:layout}} {', or '.join(able[:MAX_SUGGESTIONS])}" if able else ""
