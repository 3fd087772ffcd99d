"""Which layouts this machine and this batch can meet, and what of them is fastest: by
`gptcli.cost`'s model of memory and time.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import torch

from gptcli.cost import layout as division
from gptcli.cost.activations import RECOMPUTE, SCHEDULES
from gptcli.cost.hardware import Gpu, find_gpu, identify_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.planner import layouts, make_plan
from gptcli.cost.rank_memory import StepConfig, rank_memory
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, short_name
from gptcli.numbers import in_bytes
from gptcli.papers.models import MODELS
from gptcli.runtime import launch_environment
from gptcli.trainer.config import TrainConfig

# tokens that a process runs at a time: more gains no speed
MICRO_TOKENS = {"cpu": 4096, "cuda": 65536}
# of a device's memory; the rest is for its context and the allocator's gaps (80 GB are sold where
# 85.5e9 bytes are)
TENSORS = 0.93
STAND_IN = "a100"  # whose speeds rank the layouts of a device that has no row
AUTO = "auto"
NAMED = 3  # layouts that a refusal names
# bytes, or "max" (Linux, control groups of version 2)
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def device_memory(processes: int) -> int:
    """Bytes for the tensors of each process of this machine, `processes` of them in all."""
    if torch.cuda.is_available():
        return int(TENSORS * torch.cuda.get_device_properties(0).total_memory)
    launch = launch_environment()
    here = processes if launch is None else launch.local_world_size
    return int(TENSORS * host_memory()) // here


def host_memory() -> int:
    """Bytes of this machine's memory, or what its container may use of it."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def device(processes: int) -> Gpu:
    """This machine's GPU as `gptcli.cost` knows it, with the memory that is here."""
    row = identify_gpu(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    return replace(row or find_gpu(STAND_IN), memory_bytes=device_memory(processes))


def check_division(model: ModelConfig, layout: Layout, schedule: str, sequences: int) -> None:
    """Raises UsageError where model or batch cannot be divided so, whatever the machine."""
    division.check_layout(layout, model)
    if model.n_ctx % layout.tp:
        raise UsageError(
            f"tp={layout.tp} does not divide a context of {model.n_ctx}",
            field="layout",
            code="layout_does_not_divide",
            hint="tp also divides the sequence: make tp a divisor",
        )
    if layout.tp > 1 and model.d_model % (layout.tp * layout.shard):
        raise UsageError(
            f"{layout} does not divide a width of {model.d_model}",
            field="layout",
            code="layout_does_not_divide",
            hint="with tp, make tp times shard divide d_model",
        )
    if (stages := SCHEDULES[schedule] * layout.pp) > model.n_layer and layout.pp > 1:
        raise UsageError(
            f"{schedule} makes {stages} stages of pp={layout.pp}, more than the model's {model.n_layer} layers",
            field="pipeline_schedule",
            code="too_many_stages",
            hint="1f1b makes half as many",
        )
    if layout.replicas > sequences:
        raise UsageError(
            f"{layout} reads {layout.replicas} sequences at a time, but a batch is {sequences} sequences",
            field="layout",
            code="batch_too_small_for_layout",
            hint=_instead(model, layout, sequences)
            or "raise {option:batch_tokens}, or use fewer processes",
        )
    if layout.replicas * layout.pp > sequences:
        raise UsageError(
            f"{layout} keeps {layout.pp} micro-batches of {layout.replicas} replicas at work, but a batch is {sequences} sequences",
            field="layout",
            code="batch_too_small_for_layout",
            hint="raise {option:batch_tokens}, or use fewer stages",
        )


def process_memory(model: ModelConfig, layout: Layout, train: TrainConfig, sequences: int) -> int:
    """Bytes that a process of this run needs at its fullest moment; `sequences` are those of a full
    batch.
    """
    return rank_memory(model, layout, work_of(layout, train, sequences)).total


def check_memory(model: ModelConfig, layout: Layout, train: TrainConfig, sequences: int) -> None:
    """Raises UsageError if a process has less memory than it needs, with what would fit."""
    needs, has = process_memory(model, layout, train, sequences), device_memory(layout.processes)
    if needs > has:
        field = "layout" if layout.processes > 1 else None
        raise UsageError(
            shortage(layout, needs, has),
            field=field,
            code="does_not_fit_in_memory",
            hint=memory_advice(model, layout, train, sequences),
        )


def shortage(layout: Layout, needs: int, has: int) -> str:
    """Say by how much a run does not fit."""
    if layout.processes == 1:
        return f"does not fit: the run needs {in_bytes(needs)} of memory, and this machine has {in_bytes(has)} for it"
    return f"does not fit: a process of {layout} needs {in_bytes(needs)} of memory, and has {in_bytes(has)}"


def memory_advice(model: ModelConfig, layout: Layout, train: TrainConfig, sequences: int) -> str:
    """Name what would fit this machine: ways to run the model on as many processes, or else the
    largest paper size.
    """
    gpu = device(layout.processes)
    if found := fitting(model, layout.processes, sequences, train.precision, gpu)[:NAMED]:
        return "; or ".join(
            f"{{option:layout}} {plan} {{option:micro_batch}} {work.micro_batch} "
            f"{{option:recompute}} {work.recompute}"
            for plan, work in found
        )
    size = largest_that_fits(model, layout.processes, train.precision, gpu)
    largest = (
        "no paper size fits here"
        if size is None
        else f"the largest paper size that fits here is {size}"
    )
    more = (
        "a machine with more memory, or several GPUs" if layout.processes == 1 else "more processes"
    )
    return f"{largest}; for this model use {more}"


def largest_that_fits(model: ModelConfig, processes: int, precision: str, gpu: Gpu) -> str | None:
    """The largest size of the papers, with the vocabulary of `model`, that some layout of
    `processes` holds; None if none does.
    """
    for paper in sorted(MODELS, key=lambda paper: -paper.parameters):
        config = ModelConfig.from_paper(paper, vocab_size=model.vocab_size)
        if fitting(config, processes, processes, precision, gpu, micro_batch=1):
            return short_name(paper)
    return None


def rounded(micro_batches: int, pp: int, schedule: str) -> int:
    """How many a pipeline runs for so many: each process has one at work at least; interleaved,
    they go in rounds of one each.
    """
    return max(micro_batches, pp) if SCHEDULES[schedule] == 1 else -(-micro_batches // pp) * pp


def work_of(layout: Layout, train: TrainConfig, sequences: int) -> StepConfig:
    """How a replica runs its share of a batch."""
    micro_batches = -(-sequences // (layout.replicas * train.micro_batch))
    return StepConfig(
        micro_batch=train.micro_batch,
        micro_batches=rounded(micro_batches, layout.pp, train.pipeline_schedule),
        precision=train.precision,
        recompute=train.recompute,
        schedule=train.pipeline_schedule,
    )


def fitting(
    model: ModelConfig,
    processes: int,
    sequences: int,
    precision: str,
    gpu: Gpu,
    *,
    recompute: str = AUTO,
    micro_batch: int | str = AUTO,
) -> list[tuple[Layout, StepConfig]]:
    """The layouts that hold the model and divide it, fastest first, each with its best micro-batch
    and recomputation.
    """
    found = []
    for layout in dict.fromkeys(layouts(model, processes)):
        work = best_work(
            model, layout, sequences, precision, gpu, recompute=recompute, micro_batch=micro_batch
        )
        if work is not None and _divides(model, layout, sequences):
            found.append((make_plan(model, layout, work, gpu).tokens_per_second, layout, work))
    return [(layout, work) for _, layout, work in sorted(found, key=lambda row: -row[0])]


def best_work(
    model: ModelConfig,
    layout: Layout,
    sequences: int,
    precision: str,
    gpu: Gpu,
    *,
    recompute: str = AUTO,
    micro_batch: int | str = AUTO,
) -> StepConfig | None:
    """The fastest way to run a replica's share that fits; None where none does. No micro-batch is
    padded.
    """
    share = -(-sequences // layout.replicas)
    room = max(1, MICRO_TOKENS["cuda"] // model.n_ctx)
    sizes = (
        [micro_batch]
        if isinstance(micro_batch, int)
        else [n for n in range(1, min(room, share) + 1) if share % n == 0]
    )
    ways = [
        StepConfig(
            micro_batch=size, micro_batches=-(-share // size), precision=precision, recompute=way
        )
        for size in sizes
        for way in ([recompute] if recompute != AUTO else RECOMPUTE)
    ]
    fits = [way for way in ways if rank_memory(model, layout, way).total <= gpu.memory_bytes]
    return max(
        fits, key=lambda way: make_plan(model, layout, way, gpu).tokens_per_second, default=None
    )


def _divides(model: ModelConfig, layout: Layout, sequences: int) -> bool:
    divides = layout.tp == 1 or (
        model.n_ctx % layout.tp == 0 and model.d_model % (layout.tp * layout.shard) == 0
    )
    return divides and layout.replicas * layout.pp <= sequences


def _instead(model: ModelConfig, layout: Layout, sequences: int) -> str:
    """Layouts of as many processes that would divide the batch, in words."""
    able = [
        str(other)
        for other in dict.fromkeys(layouts(model, layout.processes))
        if _divides(model, other, sequences)
    ]
    return f"for example {{option:layout}} {', or '.join(able[:NAMED])}" if able else ""
