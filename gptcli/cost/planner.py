"""Find the layouts that fit a model on a number of GPUs, and the fastest of them.

The candidates depend on the model and the batch alone. A number of GPUs admits those of no more
processes, and the rest of the GPUs are idle; so another GPU never makes the best plan slower, and
what fits on some GPUs fits on more.
"""

from __future__ import annotations

import functools
import heapq
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from gptcli.cost.hardware import Gpu, Precision
from gptcli.cost.layout import AXES, Layout, check_layout, division_problem
from gptcli.cost.memory import RECOMPUTE, Recompute, StateRecipe, padded_micro_batches
from gptcli.cost.rank_memory import RankMemory, StepConfig, rank_memory, undivided_bytes
from gptcli.cost.step_time import (
    DEFAULT_TRAINER,
    NODE,
    Constants,
    StepTime,
    Trainer,
    constants_for,
    layer_time,
    step_time,
)
from gptcli.model.config import ModelConfig

MICRO_BATCHES = (1, 2, 4, 8, 16, 32, 64)  # candidate sizes, in sequences
# bytes per parameter: weight, gradient and Adam's two moments in fp32, a lower bound for any layout
STATE_BYTES = 16
MAX_INTERLEAVE = 8  # stages per process; published runs of Megatron-LM have 1 to 20


@dataclass(frozen=True, slots=True)
class Plan:
    """A layout with its memory and speed."""

    layout: Layout
    work: StepConfig
    memory: RankMemory
    time: StepTime
    tokens_per_second: float
    """Tokens of the batch per second of all GPUs together; padding does not count."""
    sequences: int
    """Sequences of the batch."""
    interleave: int = 1
    """Pipeline stages per process: more of them in Megatron-LM alone."""

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as it appears in `gpt cost --json`."""
        return {
            "layout": str(self.layout),
            "gpus": self.layout.processes,
            "interleave": self.interleave,
            **asdict(self.work),
            "memory_bytes": {**asdict(self.memory), "total": self.memory.total},
            "step_seconds": {**asdict(self.time), "total": self.time.total},
            "tokens_per_second": self.tokens_per_second,
        }


def make_plan(
    config: ModelConfig,
    layout: Layout,
    work: StepConfig,
    gpu: Gpu,
    *,
    sequences: int | None = None,
    trainer: Trainer = DEFAULT_TRAINER,
) -> Plan:
    """Return the memory and time of a layout, whether or not it fits.

    `sequences` is the batch, by default all that the micro-batches hold. Raises UsageError if the
    layout does not divide the model, or the GPU lacks the precision.
    """
    recipe = recipe_of(trainer)
    found = []
    for interleave in interleaves(config.n_layer, layout.pp, recipe):
        each = replace(work, micro_batches=rounds_of(work.micro_batches, layout.pp, interleave))
        time = step_time(config, layout, each, gpu, trainer=trainer, interleave=interleave)
        places = each.micro_batch * each.micro_batches * layout.replicas
        batch = places if sequences is None else min(sequences, places)
        speed = batch * config.n_ctx / time.total
        memory = rank_memory(config, layout, each, recipe, interleave=interleave)
        found.append(Plan(layout, each, memory, time, speed, batch, interleave))
    fitting = [plan for plan in found if plan.memory.total <= gpu.memory_bytes]
    best = max(fitting or found[:1], key=lambda plan: plan.tokens_per_second)
    return _filled(best, config, gpu, trainer)


def _filled(plan: Plan, config: ModelConfig, gpu: Gpu, trainer: Trainer) -> Plan:
    """Return a plan whose memory counts what `gpt train` keeps undivided where there is room."""
    if trainer != "gpt":
        return plan
    kept = undivided_bytes(config, plan.layout, plan.memory.total, gpu.memory_bytes)
    return replace(plan, memory=replace(plan.memory, undivided=kept))


def interleaves(n_layer: int, pp: int, recipe: StateRecipe) -> tuple[int, ...]:
    """Return the numbers of stages per process to try: one, and in Megatron-LM as many as each
    process has layers.
    """
    most = min(MAX_INTERLEAVE, n_layer // pp) if recipe == "megatron" and pp > 1 else 1
    return (1, most) if most > 1 else (1,)


def rounds_of(micro_batches: int, pp: int, interleave: int) -> int:
    """Return the micro-batches of a step, padded for the schedule of `interleave` stages."""
    return padded_micro_batches(micro_batches, pp, "1f1b" if interleave == 1 else "interleaved1f1b")


def recipe_of(trainer: Trainer) -> StateRecipe:
    """Return how a trainer keeps weights, gradients and optimizer: Megatron-LM in its own way, the
    others are counted as `gpt train`.
    """
    return "megatron" if trainer == "megatron" else "fp32"


def plans(
    config: ModelConfig,
    gpu: Gpu,
    gpus: int,
    sequences: int,
    precision: Precision,
    *,
    most: int | None = None,
    micro_batch: int | None = None,
    recompute: Recompute | None = None,
    trainer: Trainer = DEFAULT_TRAINER,
) -> list[Plan]:
    """Return up to `most` layouts of at most `gpus` GPUs that fit, fastest first, each with its
    best micro-batch and recomputation.

    `sequences` is the batch of a step over all replicas; `micro_batch` and `recompute` restrict the
    search. `gpt train` accepts every one of them, but for those of "megatron", which need less memory.
    """
    recipe = recipe_of(trainer)
    least = -(-STATE_BYTES * config.parameters // gpu.memory_bytes)  # processes that hold the state
    if least > gpus:
        return []
    sizes = (micro_batch,) if micro_batch else MICRO_BATCHES
    constants = constants_for(trainer, gpu)
    groups = []
    for tp, pp, limit in grids(config, gpus, sequences, precision):
        if tp * pp * limit < least:
            continue
        layers, share = -(-config.n_layer // pp), -(-sequences // limit)
        for kind in RECOMPUTE if recompute is None else (recompute,):
            for size in sizes:
                if size <= sequences:
                    each = _layer_seconds(config, tp, size, precision, kind, gpu, constants)
                    for v in interleaves(config.n_layer, pp, recipe):
                        floor = _least_seconds(config, layers, pp, share, size, each, v)
                        groups.append((floor, tp, pp, limit, kind, size, each, v))
    best: dict[Layout, Plan] = {}
    too_large: dict[tuple[Layout, Recompute, int], int] = {}  # micro-batches that did not fit
    slowest = math.inf  # seconds that a further plan must beat
    for floor, tp, pp, limit, kind, size, each, v in sorted(groups):
        if floor >= slowest:
            break
        layers = -(-config.n_layer // pp)
        for replicas in _replicas(sequences, limit):
            share = -(-sequences // replicas)
            if tp * pp * replicas < least or size > share:
                continue
            if _least_seconds(config, layers, pp, share, size, each, v) >= slowest:
                break
            rounds = rounds_of(-(-share // size), pp, v)
            work = StepConfig(
                micro_batch=size, micro_batches=rounds, precision=precision, recompute=kind
            )
            for layout in _shardings(config, replicas, tp, pp, recipe):
                holders = layout.shard * tp * pp if recipe == "fp32" else layout.processes
                if holders < least or size >= too_large.get((layout, kind, v), size + 1):
                    continue
                time = step_time(
                    config, layout, work, gpu, constants, trainer=trainer, interleave=v
                )
                known = best.get(layout)
                if time.total >= (slowest if known is None else known.time.total):
                    continue
                memory = rank_memory(config, layout, work, recipe, interleave=v)
                if memory.total > gpu.memory_bytes:
                    too_large[layout, kind, v] = size
                    continue
                speed = sequences * config.n_ctx / time.total
                best[layout] = Plan(layout, work, memory, time, speed, sequences, v)
                if most is not None and len(best) >= most:
                    times = (plan.time.total for plan in best.values())
                    slowest = heapq.nsmallest(most, times)[-1]
    ranked = sorted(best.values(), key=lambda plan: (plan.time.total, plan.layout.processes))
    return [_filled(plan, config, gpu, trainer) for plan in ranked[:most]]


@functools.lru_cache(maxsize=4096)
def _layer_seconds(
    config: ModelConfig,
    tp: int,
    size: int,
    precision: Precision,
    recompute: Recompute,
    gpu: Gpu,
    constants: Constants,
) -> float:
    """Return the seconds of one layer and micro-batch, without the collectives of shards."""
    work = StepConfig(micro_batch=size, precision=precision, recompute=recompute)
    return layer_time(config, tp, work, gpu, constants).total


def _least_seconds(
    config: ModelConfig,
    layers: int,
    pp: int,
    share: int,
    size: int,
    each: float,
    interleave: int,
) -> float:
    """Return a lower bound of a step: the layers of the slowest stage, and of the others once, or
    if stages are interleaved a part of that.
    """
    rounds = rounds_of(-(-share // size), pp, interleave)
    return (rounds * layers + (config.n_layer - layers) / interleave) * each


def grids(
    config: ModelConfig, gpus: int, sequences: int, precision: Precision
) -> Iterator[tuple[int, int, int]]:
    """Yield every tensor-parallel size, number of stages and most replicas on `gpus` GPUs.

    Tensor parallelism stays inside a node. Of the numbers of stages whose largest has as many
    layers, only the smallest is of use.
    """
    stages = sorted(_useful_parts(config.n_layer))
    for tp in range(1, NODE + 1):
        if division_problem(Layout(tp=tp), config, sequences, precision=precision) is not None:
            continue
        for pp in stages:
            if limit := min(gpus // (tp * pp), sequences // pp):
                yield tp, pp, limit


def _replicas(sequences: int, limit: int) -> Iterator[int]:
    """Yield the numbers of replicas up to `limit` that are of use for a batch, largest first.

    More replicas with as many sequences each would only be padded.
    """
    return (n for n in _useful_parts(sequences) if n <= limit)


@functools.lru_cache(maxsize=64)
def _useful_parts(n: int) -> tuple[int, ...]:
    """Return the numbers of parts of `n` of which no smaller one has parts as small, falling."""
    few = range(1, math.isqrt(n) + 1)
    return tuple(sorted({*few, *(-(-n // share) for share in few)}, reverse=True))


def _shardings(
    config: ModelConfig, replicas: int, tp: int, pp: int, recipe: StateRecipe
) -> list[Layout]:
    """Return the ways to divide `replicas` into shards and copies: all sharded, as far as the width
    allows; shards inside a node; or none. Megatron-LM shards none.
    """
    if recipe == "megatron":
        return [Layout(dp=replicas, tp=tp, pp=pp)]
    divisor = config.d_model // tp if tp > 1 else replicas
    whole = math.gcd(replicas, divisor)
    near = max(n for n in range(1, NODE // tp + 1) if replicas % n == 0 and divisor % n == 0)
    return [
        Layout(dp=replicas // shard, shard=shard, tp=tp, pp=pp)
        for shard in dict.fromkeys((whole, near, 1))
    ]


def fewest_gpus(
    config: ModelConfig,
    gpu: Gpu,
    sequences: int,
    precision: Precision,
    trainer: Trainer = DEFAULT_TRAINER,
) -> tuple[Layout, StepConfig] | None:
    """Return the layout with the fewest processes that fits the model; None if none does.

    More GPUs than that always fit.
    """
    recipe = recipe_of(trainer)
    least = -(-STATE_BYTES * config.parameters // gpu.memory_bytes)
    found = sorted(
        (replicas * tp * pp, tp, pp, replicas)
        for tp, pp, limit in grids(config, 10**9, sequences, precision)
        for replicas in _replicas(sequences, limit)
        if replicas * tp * pp >= least
    )
    for _, tp, pp, replicas in found:
        layout = _shardings(config, replicas, tp, pp, recipe)[0]
        if recipe == "fp32" and layout.shard * tp * pp < least:
            continue
        rounds = padded_micro_batches(-(-sequences // replicas), pp, "1f1b")
        work = StepConfig(micro_batches=rounds, precision=precision, recompute="full")
        if rank_memory(config, layout, work, recipe).total <= gpu.memory_bytes:
            return layout, work
    return None


def layouts(config: ModelConfig, gpus: int, node: int = NODE) -> Iterator[Layout]:
    """Yield every sensible layout of exactly `gpus` processes, in nodes of `node`.

    Tensor parallelism stays inside a node, stages are powers of two, and the rest is shards,
    replicas of a node's shards, or replicas.
    """
    slices = [n for n in (1, 2, 4, 8) if config.n_head % n == gpus % n == 0 and n <= node]
    for tp in slices:
        for pp in (
            2**n
            for n in range(config.n_layer.bit_length())
            if 2**n <= config.n_layer and gpus // tp % 2**n == 0
        ):
            rest = gpus // tp // pp
            yield from {
                Layout(shard=shard, dp=rest // shard, tp=tp, pp=pp)
                for shard in (rest, math.gcd(rest, node), 1)
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
        axes = sum(abs(math.log2(getattr(other, axis) / getattr(layout, axis))) for axis in AXES)
        if division_problem(other, config, sequences, precision=work.precision) is not None:
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
