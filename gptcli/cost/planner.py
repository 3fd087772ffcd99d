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
from typing import Any, NamedTuple

from gptcli.cost.hardware import Gpu, Precision
from gptcli.cost.layout import AXES, Layout, check_layout, division_problem, layers_of_stage
from gptcli.cost.memory import (
    RECOMPUTE,
    Recompute,
    StateRecipe,
    layers_in_flight,
    padded_micro_batches,
)
from gptcli.cost.rank_memory import (
    RankMemory,
    StepConfig,
    rank_memory,
    saved_by_layer,
    undivided_bytes,
)
from gptcli.cost.step_time import (
    DEFAULT_TRAINER,
    FP32,
    NODE,
    Constants,
    StepTime,
    Trainer,
    constants_for,
    head_time,
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
            "step_seconds": {**self.time._asdict(), "total": self.time.total},
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
    kinds = RECOMPUTE if recompute is None else (recompute,)
    constants = constants_for(trainer, gpu)
    # what may be the fastest, the least lower bound first; more recomputation only where less does
    # not fit
    queue: list[tuple[float, int, int, _MicroBatch, int, int]] = []

    def consider(tp: int, pp: int, micro: _MicroBatch, v: int, replicas: int) -> None:
        if replicas and replicas * tp * pp >= least:
            seconds = micro.least_seconds(config.n_layer, pp, v, -(-sequences // replicas))
            heapq.heappush(queue, (seconds, tp, pp, micro, v, replicas))

    for tp, pp, limit in grids(config, gpus, sequences, precision):
        for size in sizes:
            # more replicas do not have as many sequences
            replicas = limit if size == 1 else min(limit, (sequences - 1) // (size - 1))
            if size <= sequences and replicas * tp * pp >= least:
                micro = _micro_batch(config, tp, size, kinds[0], precision, gpu, constants)
                for v in interleaves(config.n_layer, pp, recipe):
                    consider(tp, pp, micro, v, _useful(sequences, replicas))
    best: dict[Layout, Plan] = {}
    state = (STATE_BYTES - FP32) * config.parameters  # without gradients
    # micro-batches that did not fit; the one size that may need less than a smaller one, a whole share
    # without gradients of others beside it, has the least lower bound and comes before them
    too_large: dict[tuple[Layout, Recompute, int], int] = {}
    slowest = math.inf  # seconds that a further plan must beat
    while queue and queue[0][0] < slowest:
        _, tp, pp, micro, v, replicas = heapq.heappop(queue)
        size, kind, share = micro.size, micro.recompute, -(-sequences // replicas)
        if kind == kinds[0] and replicas > 1:
            consider(tp, pp, micro, v, _useful(sequences, replicas - 1))
        work = StepConfig(
            micro_batch=size,
            micro_batches=rounds_of(-(-share // size), pp, v),
            precision=precision,
            recompute=kind,
        )
        needs = micro.saved * layers_in_flight(
            layers_of_stage(config.n_layer, pp, 0), pp, 0, work.micro_batches
        )
        needs += state / (replicas * tp * pp)
        # a lower bound for `gpt train`: the gradients may come after the activations
        fits = recipe == "megatron" or needs <= gpu.memory_bytes
        for layout in _shardings(config, replicas, tp, pp, recipe) if fits else ():
            holders = layout.shard * tp * pp if recipe == "fp32" else layout.processes
            if holders < least:
                continue
            if size >= too_large.get((layout, kind, v), size + 1):
                fits = False
                continue
            time = step_time(config, layout, work, gpu, constants, trainer=trainer, interleave=v)
            known = best.get(layout)
            if time.total >= (slowest if known is None else known.time.total):
                continue
            memory = rank_memory(config, layout, work, recipe, interleave=v)
            if memory.total > gpu.memory_bytes:
                too_large[layout, kind, v] = size
                fits = False
                continue
            speed = sequences * config.n_ctx / time.total
            best[layout] = Plan(layout, work, memory, time, speed, sequences, v)
            if most is not None and len(best) >= most:
                times = (plan.time.total for plan in best.values())
                slowest = heapq.nsmallest(most, times)[-1]
        if not fits and kind != kinds[-1]:
            again = kinds[kinds.index(kind) + 1]
            micro = _micro_batch(config, tp, size, again, precision, gpu, constants)
            consider(tp, pp, micro, v, replicas)
    ranked = sorted(best.values(), key=lambda plan: (plan.time.total, plan.layout.processes))
    return [_filled(plan, config, gpu, trainer) for plan in ranked[:most]]


class _MicroBatch(NamedTuple):
    """A micro-batch of tensor-parallel ranks, with its seconds but for the collectives of shards."""

    size: int
    """Sequences."""
    recompute: Recompute
    layer: float
    """Seconds of one layer."""
    head: float
    """Seconds of the head."""
    saved: float
    """Bytes that a layer saves for its backward pass."""

    def least_seconds(self, n_layer: int, pp: int, interleave: int, share: int) -> float:
        """Return a lower bound of a step in which every replica has `share` sequences: the slowest
        stage and the pipeline's bubble, without collectives of shards and replicas, and the update.
        """
        first, last = layers_of_stage(n_layer, pp, 0), layers_of_stage(n_layer, pp, pp - 1)
        busy = max(first * self.layer, last * self.layer + self.head)
        rounds = rounds_of(-(-share // self.size), pp, interleave)
        return rounds * busy + (n_layer * self.layer + self.head - busy) / interleave


@functools.lru_cache(maxsize=1024)
def _micro_batch(
    config: ModelConfig,
    tp: int,
    size: int,
    recompute: Recompute,
    precision: Precision,
    gpu: Gpu,
    constants: Constants,
) -> _MicroBatch:
    work = StepConfig(micro_batch=size, precision=precision, recompute=recompute)
    layer = layer_time(config, tp, work, gpu, constants).total
    head = sum(head_time(config, tp, work, gpu, constants))
    saved, _ = saved_by_layer(config, tp, size, precision, recompute, fused=work.fused)
    return _MicroBatch(size, recompute, layer, head, saved)


def grids(
    config: ModelConfig, gpus: int, sequences: int, precision: Precision
) -> Iterator[tuple[int, int, int]]:
    """Yield every tensor-parallel size, number of stages and most replicas on `gpus` GPUs.

    Tensor parallelism stays inside a node. Of the numbers of stages whose largest has as many
    layers, only the smallest is of use.
    """
    stages = sorted(_all_useful(config.n_layer, config.n_layer))
    for tp in range(1, NODE + 1):
        if division_problem(Layout(tp=tp), config, sequences, precision=precision) is not None:
            continue
        for pp in stages:
            if limit := min(gpus // (tp * pp), sequences // pp):
                yield tp, pp, limit


def _useful(n: int, limit: int) -> int:
    """Return the largest number of parts of `n`, at most `limit`, of which no smaller one has parts
    as small: more replicas with as many sequences each would only be padded.
    """
    return -(-n // -(-n // min(n, limit)))


def _useful_from(n: int, least: int) -> int:
    """Return the smallest useful number of parts of `n` that is at least `least`; above `n` if there
    is none.
    """
    found = _useful(n, least)
    if found >= least:
        return found
    return least if least > n else -(-n // (-(-n // found) - 1))


def _all_useful(n: int, limit: int) -> Iterator[int]:
    """Yield the useful numbers of parts of `n` up to `limit`, the largest first."""
    while limit:
        yield (found := _useful(n, limit))
        limit = found - 1


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
    # full recomputation needs least, but in Megatron-LM, which makes all that a layer saves again, not
    # on a stage of one layer; a step of one micro-batch keeps no gradients beside its activations
    kinds: tuple[Recompute, ...] = ("full",) if recipe == "fp32" else RECOMPUTE[::-1]
    queue: list[tuple[int, int, int, int]] = []

    def consider(tp: int, pp: int, replicas: int) -> None:
        if replicas <= sequences // pp:
            heapq.heappush(queue, (replicas * tp * pp, tp, pp, replicas))

    for tp, pp, _ in grids(config, 10**9, sequences, precision):
        consider(tp, pp, _useful_from(sequences, -(-least // (tp * pp))))
    while queue:
        _, tp, pp, replicas = heapq.heappop(queue)
        consider(tp, pp, _useful_from(sequences, replicas + 1))
        layout = _shardings(config, replicas, tp, pp, recipe)[0]
        if recipe == "fp32" and layout.shard * tp * pp < least:
            continue
        share = -(-sequences // replicas)
        for size in (1, share) if pp == 1 and share in MICRO_BATCHES else (1,):
            rounds = rounds_of(-(-share // size), pp, 1)
            for kind in kinds:
                work = StepConfig(
                    micro_batch=size, micro_batches=rounds, precision=precision, recompute=kind
                )
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
