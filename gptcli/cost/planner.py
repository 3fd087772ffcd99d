"""Find the layouts that fit a model on a number of GPUs, and the fastest of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from gptcli.cost.hardware import Gpu, Precision
from gptcli.cost.layout import Layout, check_layout
from gptcli.cost.memory import RECOMPUTE
from gptcli.cost.rank_memory import RankMemory, StepConfig, rank_memory
from gptcli.cost.step_time import NODE, StepTime, step_time
from gptcli.model.config import ModelConfig

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)  # candidate sizes, in sequences
MAX_RANKS_PER_SEQUENCE = 64  # more ranks per sequence of the batch are not useful
# bytes per parameter: weight and Adam's two moments in fp32, a lower bound for any layout
STATE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout with its memory and speed."""

    layout: Layout
    work: StepConfig
    memory: RankMemory
    time: StepTime
    tokens_per_second: float
    """Tokens per second of all GPUs together."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as it appears in `gpt cost --json`."""
        return {
            "layout": str(self.layout),
            **asdict(self.work),
            "memory_bytes": {**asdict(self.memory), "total": self.memory.total},
            "step_seconds": {**asdict(self.time), "total": self.time.total},
            "tokens_per_second": self.tokens_per_second,
        }


def make_plan(config: ModelConfig, layout: Layout, work: StepConfig, gpu: Gpu) -> Plan:
    """Return the memory and time of a layout, whether or not it fits.

    Raises UsageError if the layout does not divide the model, or the GPU lacks the precision.
    """
    time = step_time(config, layout, work, gpu)
    tokens = work.micro_batch * work.micro_batches * layout.replicas * config.n_ctx
    return Plan(layout, work, rank_memory(config, layout, work), time, tokens / time.total)


def plans(
    config: ModelConfig,
    gpu: Gpu,
    gpus: int,
    sequences: int,
    precision: Precision,
    *,
    most: int | None = None,
) -> list[Plan]:
    """Return up to `most` layouts of `gpus` GPUs that fit, fastest first, each with its best
    micro-batch and recomputation.

    `sequences` is the batch of a step over all replicas; if the replicas do not divide it, the last
    micro-batch of each is partly empty.
    """
    found: dict[Layout, Plan] = {}
    for layout in layouts(config, gpus):
        if layout.replicas > sequences:
            continue
        for work in step_configs(-(-sequences // layout.replicas), precision):
            if rank_memory(config, layout, work).total > gpu.memory_bytes:
                continue
            plan = make_plan(config, layout, work, gpu)
            # padding does not count
            speed = (
                plan.tokens_per_second
                * sequences
                / (work.micro_batch * work.micro_batches * layout.replicas)
            )
            if layout not in found or speed > found[layout].tokens_per_second:
                found[layout] = replace(plan, tokens_per_second=speed)
    return sorted(found.values(), key=lambda plan: -plan.tokens_per_second)[:most]


def layouts(config: ModelConfig, gpus: int) -> Iterator[Layout]:
    """Yield every sensible layout of `gpus` processes.

    Tensor parallelism stays inside a node, stages are powers of two, and the rest is shards,
    replicas of a node's shards, or replicas.
    """
    for tp in (n for n in (1, 2, 4, 8) if config.n_head % n == 0 and gpus % n == 0):
        for pp in (
            2**n
            for n in range(config.n_layer.bit_length())
            if 2**n <= config.n_layer and gpus // tp % 2**n == 0
        ):
            rest = gpus // tp // pp
            yield from {
                Layout(shard=shard, dp=rest // shard, tp=tp, pp=pp)
                for shard in (rest, math.gcd(rest, NODE), 1)
            }


def step_configs(sequences: int, precision: Precision) -> Iterator[StepConfig]:
    """Yield the ways in which a replica can run `sequences`."""
    for micro_batch in (n for n in MICRO_BATCHES if n <= sequences):
        for recompute in RECOMPUTE:
            yield StepConfig(
                micro_batch=micro_batch,
                micro_batches=-(-sequences // micro_batch),
                precision=precision,
                recompute=recompute,
            )


def typical_plan(
    config: ModelConfig, gpu: Gpu, gpus: int, sequences: int, precision: Precision
) -> Plan | None:
    """Return the fastest plan on `gpus` GPUs, doubled until the model fits.

    Returns None if the batch is too small for that many.
    """
    while gpus <= sequences * MAX_RANKS_PER_SEQUENCE:
        may_fit = STATE_BYTES * config.parameters <= gpus * gpu.memory_bytes
        if may_fit and (best := plans(config, gpu, gpus, sequences, precision, most=1)):
            return best[0]
        gpus *= 2
    return None


def nearest_that_fits(
    config: ModelConfig, layout: Layout, work: StepConfig, gpu: Gpu
) -> tuple[Layout, StepConfig] | None:
    """Return the smallest change of layout, micro-batch and recomputation, in powers of two, that
    fits the same number of GPUs; None if there is none.
    """
    sequences = work.micro_batch * work.micro_batches * layout.replicas
    best: tuple[float, float, Layout, StepConfig] | None = None
    for other in layouts(config, layout.processes):
        check_layout(other, config)
        axes = sum(
            abs(math.log2(getattr(other, axis) / getattr(layout, axis)))
            for axis in ("dp", "shard", "tp", "pp")
        )
        if other.replicas > sequences:
            continue
        for way in step_configs(-(-sequences // other.replicas), work.precision):
            if (
                way.micro_batch > work.micro_batch
                or rank_memory(config, other, way).total > gpu.memory_bytes
            ):
                continue
            again = abs(RECOMPUTE.index(way.recompute) - RECOMPUTE.index(work.recompute))
            distance = axes + again + math.log2(work.micro_batch / way.micro_batch)
            key = (distance, -make_plan(config, other, way, gpu).tokens_per_second, other, way)
            if best is None or key[:2] < best[:2]:
                best = key
    return None if best is None else best[2:]
