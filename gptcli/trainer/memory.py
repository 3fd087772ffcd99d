"""Memory of a run's processes on this machine, and the layouts and steps that fit in it.

Memory and speed are those of `gptcli.cost`'s model.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch

from gptcli import optional_kernels
from gptcli.cost.cpu import MICRO_BATCH_TOKENS, cpu_memory, on_cpu
from gptcli.cost.flops import layer_matrices
from gptcli.cost.hardware import Gpu, Precision, find_gpu, identify_gpu, usual_precision
from gptcli.cost.layout import Layout, division_problem, divisors
from gptcli.cost.memory import RECOMPUTE, PipelineSchedule, Recompute, padded_micro_batches
from gptcli.cost.planner import layouts, make_plan
from gptcli.cost.rank_memory import StepConfig, rank_memory, undivided_bytes
from gptcli.devices import apple_gpu_memory, device_type
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, short_name
from gptcli.numbers import in_bytes
from gptcli.papers.models import MODELS
from gptcli.runtime import launch_environment
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
FP32_BYTES = 4


@dataclass(frozen=True, slots=True)
class Extras:
    """Options that change the memory of a run and are not part of its step."""

    ema: bool = False
    """An average of the weights is kept."""
    muon: bool = False
    """The matrices of the layers have one moment instead of AdamW's two."""
    compiled: bool = False
    """The compiler's libraries are loaded."""

    @classmethod
    def of(cls, train: TrainConfig) -> Extras:
        """Return the options of a configuration; a user's own optimizer counts as AdamW."""
        return cls(train.ema > 0, train.optimizer == "muon", train.compile)


ADAMW = Extras()


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


def work_of(layout: Layout, train: TrainConfig, sequences: int) -> StepConfig:
    """Return the step of a replica on its share of a batch of `sequences`."""
    micro_batches = -(-sequences // (layout.replicas * train.micro_batch))
    return StepConfig(
        micro_batch=train.micro_batch,
        micro_batches=padded_micro_batches(micro_batches, layout.pp, train.pipeline_schedule),
        precision=train.precision,
        recompute=train.recompute,
        schedule=train.pipeline_schedule,
    )


def process_memory(model: ModelConfig, layout: Layout, train: TrainConfig, sequences: int) -> int:
    """Return the peak bytes of a process of this run, for full batches of `sequences`.

    On a GPU they are those of tensors, on a CPU of the whole process.
    """
    return peak_memory(model, layout, work_of(layout, train, sequences), Extras.of(train))


def expected_memory(model: ModelConfig, layout: Layout, needs: int, has: int | None) -> int:
    """Return the expected peak bytes of a process that needs at least `needs` of the `has` available:
    a GPU with spare memory keeps weights and gradients undivided.
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
    """Return the fastest step on a replica's share of a batch that fits; None if none fits.

    No micro-batch is padded.
    """
    share = -(-sequences // layout.replicas)
    most = max(1, MAX_MICRO_BATCH_TOKENS["cuda"] // model.n_ctx)
    sizes = (
        [micro_batch] if isinstance(micro_batch, int) else [n for n in divisors(share) if n <= most]
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
    """Return the predicted tokens per second of a step, by which steps are ranked.

    On a GPU without fp8, which may stand for an unknown one, fp8 counts as the usual precision.
    """
    if work.precision == "fp8" and gpu.fp8_flops is None:
        work = replace(work, precision=usual_precision(gpu))
    return make_plan(model, layout, work, gpu).tokens_per_second


def divides(layout: Layout, model: ModelConfig, sequences: int, precision: Precision) -> bool:
    """Return whether a batch of `sequences` can be trained on the layout, on any machine."""
    return division_problem(layout, model, sequences, precision=precision) is None


def able_layouts(
    model: ModelConfig, processes: int, sequences: int, precision: Precision
) -> list[Layout]:
    """Return the layouts of `processes` on which a batch of `sequences` can be trained."""
    return [
        layout
        for layout in dict.fromkeys(layouts(model, processes))
        if divides(layout, model, sequences, precision)
    ]


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


def _alternatives(model: ModelConfig, layout: Layout, sequences: int) -> str:
    """Return a hint with layouts of as many processes that can divide the batch, or ""."""
    able = [str(other) for other in able_layouts(model, layout.processes, sequences, "bf16")]
    return f"for example {{option:layout}} {', or '.join(able[:MAX_SUGGESTIONS])}" if able else ""
