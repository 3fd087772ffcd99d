"""Time of a step on a layout: the sum of products, attention, memory, launches, collectives and the
pipeline bubble. And the bytes that one process communicates in a step of `gpt train`.

Each term of the time is a count given by model and layout, divided by a speed of the hardware, times
a constant of throughput.toml: what a family of GPUs reaches of its peak, and what a trainer adds.
They are fitted to published measurements (measured.csv) by tests/benchmarks/throughput_fit.py, and
include what a trainer overlaps with its products.

`gpt train --dry-run` builds the processes and compares their traffic. A collective counts the bytes
of the whole tensor that is gathered or summed, a message its own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from gptcli.cost.flops import Shape, attention_width, layer_matrices, mean_keys
from gptcli.cost.hardware import Gpu, peak_flops, read_table
from gptcli.cost.layout import (
    Layout,
    ShardedTensor,
    layer_tensors,
    layers_of,
    layers_of_stage,
    outer_tensors,
)
from gptcli.cost.memory import SCHEDULES
from gptcli.cost.rank_memory import ELEMENT_BYTES, StepConfig, layer_parameters
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig

NODE = 8  # GPUs per node
OPTIMIZER_BYTES = 28  # per parameter: read and write weight and moments, read the gradient, in fp32
RECOMPUTE_FACTORS = {
    "none": (1.0, 1.0),
    "selective": (1.0, 4 / 3),
    "full": (4 / 3, 4 / 3),
}  # FLOPs and memory traffic with recomputation, relative to none
FP32 = 4  # bytes per element
SYNC_BYTES = 8  # per parameter of the replicas' exchange: fp32 gradients, reduced and gathered
WATTS_PER_FLOPS = 1000 / 2250e12  # of a B200
# bytes per attention score that is written to memory: product, softmax, dropout and its mask forward,
# their gradients backward, the forward part again (Megatron's fused softmax, 16 bits)
SCORE_BYTES = {"none": 32, "selective": 45, "full": 45}

Overlap = Literal["none", "replicas", "all"]
"""Collectives that a trainer overlaps with products: none, those of replicas and shards, or those of
tensor parallelism too.
"""
Evidence = Literal["measured", "family", "none"]
"""Published speeds behind a predicted one: of the GPU itself, of others of its family, or of neither,
so that the mean of the measured families is taken.
"""
Trainer = Literal["gpt", "fused", "fsdp", "megatron"]
TRAINERS: tuple[Trainer, ...] = get_args(Trainer)
"""Trainers whose speed is modelled.

- gpt: `gpt train`, by counted kernels and bytes; not yet measured.
- fused: llm.c, LLM.Q, nanochat and other compiled trainers for one node.
- fsdp: llm-foundry and other trainers of unfused layers on FSDP.
- megatron: Megatron-LM and NeMo, with a distributed optimizer and sequence parallelism.
"""
DEFAULT_TRAINER: Trainer = "gpt"
SHARED = ("spread", "fp8", "cast", "latency", "overlap", "weights")  # constants of every trainer


class Constants(NamedTuple):
    """Constants of one trainer on one family of GPUs, all positive."""

    products: float
    """Share of the peak that matrix products reach."""
    attention: float
    """Share of the peak that fused attention reaches, counted causally."""
    path: float
    """Bytes that norms, GELU and residuals move per token, layer and unit of width, forward and
    backward.
    """
    head: float
    """Bytes that the loss moves per token and vocabulary entry."""
    launch: float
    """Seconds per layer and micro-batch that do not depend on the size of the layer."""
    step: float
    """Seconds of a step that depend on no size: those between two steps, as of the norm of the
    gradients, the launches of the optimizer and the input.
    """
    exposed: float
    """Share of the time of FSDP's and the replicas' collectives, at the speed of the link, that is
    not overlapped.
    """
    tensor: float
    """The same share for tensor parallelism."""
    cast: float
    """Bytes that casts to fp8 move per token, layer and unit of width."""
    latency: float
    """Seconds of a collective of tensor parallelism that do not depend on its size."""
    overlap: float
    """Share of tensor parallelism that is left where the trainer overlaps it with products."""
    weights: float
    """Share of the time in which products move weights and gradients that is not overlapped."""
    spread: float
    """Growth of the collectives' time for every doubling of the number of nodes."""
    fp8: float
    """Speed of fp8 products over bf16 products."""


class StepTime(NamedTuple):
    """Seconds of a step by activity, on the slowest pipeline stage."""

    products: float
    attention: float
    memory: float
    """Operations bound by memory bandwidth: norms, GELU, residuals, the loss, the optimizer."""
    launch: float
    """Launches, and what a step takes besides whatever its size."""
    tensor: float
    """Collectives of tensor parallelism."""
    shard: float
    """All-gathers of weights and reduce-scatters of gradients."""
    replicas: float
    """All-reduce of gradients over replicas."""
    bubble: float
    """Idle time while the pipeline fills and drains."""

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return (
            self.products
            + self.attention
            + self.memory
            + self.launch
            + self.tensor
            + self.shard
            + self.replicas
            + self.bubble
        )

    @property
    def waits(self) -> float:
        """Share of the step spent in collectives and in the pipeline bubble."""
        return (self.tensor + self.shard + self.replicas + self.bubble) / self.total


def check_trainer(name: str) -> None:
    """Raise UsageError, with the nearest names, for an unknown trainer."""
    if name not in TRAINERS:
        raise UsageError(
            f"unknown trainer {name!r}",
            field="trainer",
            code="unknown_trainer",
            hint=nearest(name, TRAINERS),
        )


@functools.cache
def constants_for(trainer: Trainer, gpu: Gpu) -> Constants:
    """Return the constants of throughput.toml for a trainer on a GPU."""
    return constants_from(read_table("throughput.toml"), trainer, gpu)


def constants_from(table: dict[str, Any], trainer: Trainer, gpu: Gpu) -> Constants:
    """Return the constants of a table like throughput.toml.

    A family that was never measured has those of the row "other".
    """
    own = table["trainers"][trainer]
    row = table["families"].get(gpu.family, table["families"]["other"])
    products = row["products"] * own["products"]
    # the power of the board limits products, and its GPUs differ in watts for a peak
    if "power" in row and gpu.watts is not None:
        products *= (gpu.watts / gpu.peak_flops / WATTS_PER_FLOPS) ** row["power"]
    return Constants(
        products=products,
        attention=row["attention"] * own["attention"],
        **{name: table[name] for name in SHARED},
        **{name: own[name] for name in ("path", "head", "launch", "step", "exposed", "tensor")},
    )


class LayerTime(NamedTuple):
    """Seconds of one layer and micro-batch, without the collectives of FSDP."""

    products: float
    attention: float
    memory: float
    launch: float
    tensor: float

    @property
    def total(self) -> float:
        """Sum of all parts."""
        return self.products + self.attention + self.memory + self.launch + self.tensor


def layer_time(
    config: ModelConfig | Shape,
    tp: int,
    work: StepConfig,
    gpu: Gpu,
    k: Constants,
    *,
    overlap: Overlap = "replicas",
) -> LayerTime:
    """Return the seconds of one layer and micro-batch on each of `tp` tensor-parallel ranks.

    `overlap` are the collectives that run during products.
    """
    C, tokens = config.d_model, work.micro_batch * config.n_ctx
    recompute, traffic = RECOMPUTE_FACTORS[work.recompute]
    peak = gpu.peak_flops if work.precision == "fp8" else peak_flops(gpu, work.precision)
    attention = 12 * tokens * attention_width(config) * _keys(config) * recompute
    tensor = 0.0
    # a reduce-scatter and an all-gather replace each of Megatron's all-reduces, two forward and
    # two backward
    if tp > 1:
        pairs = 4 if work.recompute != "full" else 6
        each = 2 * (tp - 1) / tp * tokens * C * ELEMENT_BYTES[work.precision]
        tensor = pairs * (each * k.tensor / _bandwidth(gpu, tp, 1) + 2 * k.latency)
        tensor *= k.overlap if overlap == "all" else 1
    moved = tokens * C * _path_width(config) * k.path * traffic
    if work.precision == "fp8":
        moved += tokens * C * _path_width(config) * k.cast * traffic
    moved += layer_matrices(config) * weight_bytes(work) * k.weights
    if not work.fused:
        moved += tokens * config.n_head * config.n_ctx * SCORE_BYTES[work.recompute]
    return LayerTime(
        6 * tokens * layer_matrices(config) * recompute / tp / _product_speed(gpu, work, k),
        attention / tp / (peak * k.attention),
        moved / tp / gpu.bandwidth,
        k.launch,
        tensor,
    )


def head_time(
    config: ModelConfig | Shape, tp: int, work: StepConfig, gpu: Gpu, k: Constants
) -> tuple[float, float]:
    """Return the seconds of the head's products and of the loss's memory traffic, of one micro-batch
    on each of `tp` ranks.
    """
    logits = work.micro_batch * config.n_ctx * config.vocab_size / tp
    return 6 * logits * config.d_model / _product_speed(
        gpu, work, k
    ), logits * k.head / gpu.bandwidth


def weight_bytes(work: StepConfig) -> int:
    """Return the bytes per weight that the products of a micro-batch move: the weight, read forward
    and backward, and again if that is recomputed; and its gradient, added to an fp32 sum.
    """
    reads = 3 if work.recompute == "full" else 2
    return reads * ELEMENT_BYTES[work.precision] + (2 * FP32 if work.micro_batches > 1 else FP32)


def _product_speed(gpu: Gpu, work: StepConfig, k: Constants) -> float:
    """Return the FLOP/s of matrix products. Raises UsageError if the GPU lacks the precision."""
    peak = peak_flops(gpu, work.precision)
    if work.precision == "fp8":  # products gain less than the peak does
        peak = gpu.peak_flops * k.fp8
    return peak * k.products


@functools.lru_cache(maxsize=256)
def _keys(config: ModelConfig | Shape) -> float:
    """Return the keys per query, averaged over layers."""
    layers = range(config.n_layer)
    return sum(mean_keys(config.n_ctx, config.band_of(layer)) for layer in layers) / config.n_layer


def step_time(
    config: ModelConfig | Shape,
    layout: Layout,
    work: StepConfig,
    gpu: Gpu,
    constants: Constants | None = None,
    *,
    trainer: Trainer = DEFAULT_TRAINER,
    interleave: int | None = None,
    overlap: Overlap = "replicas",
    sync_bytes: int = SYNC_BYTES,
) -> StepTime:
    """Return the seconds of one optimizer step, all ranks busy.

    `constants` replaces the fitted ones of the trainer; `interleave` is the number of stages per
    process, by default that of the schedule; `sync_bytes` are those per parameter that replicas
    exchange in each direction: the gradient reduced and the sum, or a weight, gathered.
    """
    k = constants or constants_for(trainer, gpu)
    C, L, tp, pp = config.d_model, config.n_layer, layout.tp, layout.pp
    e = ELEMENT_BYTES[work.precision]
    one = layer_time(config, tp, work, gpu, k, overlap=overlap)
    products_of_head, memory_of_head = head_time(config, tp, work, gpu, k)
    # parameters of the rank under tp and pp, before sharding
    per_layer, table = _layer_parameters(config, tp), config.vocab_size * C / tp
    exposed = k.tensor if overlap == "none" else k.exposed
    shard = 0.0  # seconds per parameter
    if layout.shard > 1:
        shard = exposed * 3 * e * (layout.shard - 1) / layout.shard
        shard *= _node_factor(gpu, layout.shard * tp, k) / _bandwidth(gpu, layout.shard * tp, tp)
    of_layer = one.total + shard * per_layer
    of_head = products_of_head + memory_of_head + shard * table

    # the slowest stage: the first has most layers, the last has the head
    first, last = layers_of_stage(L, pp, 0), layers_of_stage(L, pp, pp - 1)
    has_head = pp == 1 or last * of_layer + of_head > first * of_layer
    layers = last if has_head else first
    tables = (1 if pp > 1 or config.tied else 2) if has_head or pp > 1 else 1
    mine = layers * per_layer + tables * table
    replicas = 0.0
    if layout.dp > 1:  # once per step
        replicas = exposed * sync_bytes * mine / layout.shard * (layout.dp - 1) / layout.dp
        replicas *= _node_factor(gpu, layout.replicas * tp, k) / _bandwidth(
            gpu, layout.replicas * tp, layout.shard * tp
        )
    # Megatron's distributed optimizer updates a part on each replica
    parts = layout.replicas if trainer == "megatron" else layout.shard
    update = OPTIMIZER_BYTES * mine / parts / gpu.bandwidth

    m = work.micro_batches
    head = int(has_head)
    busy = layers * of_layer + head * of_head
    bubble = (L * of_layer + of_head - busy) / (interleave or SCHEDULES[work.schedule])
    return StepTime(
        products=m * (layers * one.products + head * products_of_head),
        attention=m * layers * one.attention,
        memory=m * (layers * one.memory + head * memory_of_head) + update,
        launch=m * layers * one.launch + k.step,
        tensor=m * layers * one.tensor,
        shard=m * shard * (layers * per_layer + head * table),
        replicas=replicas,
        bubble=bubble if pp > 1 else 0.0,
    )


def uncertainty(gpu: Gpu, trainer: Trainer = DEFAULT_TRAINER) -> float:
    """Return the factor, either way, that holds about eight of ten predicted speeds.

    It is the trainer's own where its speed was measured on this family of GPUs, and wider for
    another family.
    """
    table = read_table("throughput.toml")
    row = table["trainers"][trainer]
    return row["known"] if gpu.family in row["families"] else table["extrapolated"]


def evidence(gpu: Gpu) -> Evidence:
    """Return whose published speeds the predicted one of a GPU rests on."""
    table = read_table("throughput.toml")
    if gpu.name in table["gpus"]:
        return "measured"
    return "family" if gpu.family in table["families"] else "none"


def _path_width(config: ModelConfig | Shape) -> float:
    """Return the width of norms, residuals and activations of a layer relative to a GPT's."""
    if not isinstance(config, Shape):
        return 1.0
    return (8 + (3 if config.gated else 2) * config.d_ff / config.d_model) / 16


def _layer_parameters(config: ModelConfig | Shape, tp: int) -> float:
    if isinstance(config, Shape):
        return layer_matrices(config) / tp + 2 * config.d_model
    return layer_parameters(config, tp)


def _bandwidth(gpu: Gpu, span: int, stride: int) -> float:
    """Return the bytes per second and GPU of a collective whose members are `stride` apart among
    `span` neighbouring GPUs.

    Tensor-parallel ranks are adjacent, shards are strided by them, replicas by both. Inside a node
    the link counts, between nodes all network cards of the members on one node. Infinite if the
    figure is unknown.
    """
    link = gpu.link or math.inf
    if span <= gpu.node:
        return link
    return min(link, (gpu.network or math.inf) * max(1, gpu.node // stride))


def _node_factor(gpu: Gpu, span: int, constants: Constants) -> float:
    return 1 + constants.spread * max(0.0, math.log2(span / gpu.node))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTraffic:
    """Bytes of a step by the mesh axis over which they are sent."""

    tp: int = 0
    """Bytes of collectives between tensor-parallel ranks."""
    shard: int = 0
    """Bytes of FSDP's all-gathers and reduce-scatters."""
    dp: int = 0
    """Bytes of the all-reduce between replicas."""
    pp: int = 0
    """Bytes sent to other stages: activations forward, their gradients backward, and those of a
    tied embedding.
    """


def step_traffic(
    config: ModelConfig, layout: Layout, work: StepConfig, stage: int, *, each: int = 1
) -> StepTraffic:
    """Return the bytes of one process in a step without recomputation.

    How often FSDP gathers the shards of a stage depends on the pipeline schedule, which may keep
    them: they are counted for every pass.
    """
    tp, shard, pp, m = layout.tp, layout.shard, layout.pp, work.micro_batches
    layers, first, last = layers_of(config, pp, stage, each), stage == 0, stage == pp - 1
    positions = work.micro_batch * config.n_ctx
    e, stream = ELEMENT_BYTES[work.precision], positions * config.d_model
    layer, outer = layer_tensors(config), outer_tensors(config, pp, stage)
    # FSDP pads every shard to the size of the first
    of_layer, of_outer = (
        shard * sum(t.local_numel(layout, 0, 0) for t in part) for part in (layer, outer)
    )
    mine = layers * of_layer + of_outer

    # stages and replicas reduce gradients once, after the last micro-batch
    exchanges = m if shard > 1 and pp == 1 else 1
    by_tp = by_shard = by_dp = by_pp = 0
    if tp > 1:
        # A branch all-gathers its input and reduce-scatters its output, and the reverse for their
        # gradients; so does the head; those of the embedding are in fp32. The loss all-reduces
        # two sums and one maximum per position.
        by_tp = m * (
            8 * layers * e * stream
            + first * 2 * FP32 * stream
            + last * (2 * e * stream + 3 * FP32 * positions)
        )
        partial = [
            sum(t.rows * t.columns for t in part if t.partial_grad) for part in (layer, outer)
        ]
        # bytes per element of a layer's gradients, before accumulation
        width = e if shard > 1 and pp == 1 else FP32
        by_tp += exchanges * (width * layers * partial[0] + FP32 * partial[1])
    # layers are gathered for forward and backward, the rest once in fp32; gradients are in fp32
    if shard > 1:
        by_shard = m * (2 * layers * e * of_layer + FP32 * of_outer) + exchanges * FP32 * mine
    if layout.dp > 1:
        by_dp = FP32 * mine // shard
    if pp > 1:  # a stage sends its output forward and the gradient of its input back
        by_pp = m * (2 * each - first - last) * FP32 * stream // tp
        if config.tied and (first or last):
            by_pp += FP32 * ShardedTensor(config.vocab_size, config.d_model, 0).local_numel(
                layout, 0, 0
            )
    return StepTraffic(tp=by_tp, shard=by_shard, dp=by_dp, pp=by_pp)
