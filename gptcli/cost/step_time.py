"""Time of a step on a layout: the sum of products, attention, memory, launches, collectives and the
pipeline bubble. And the bytes that one process communicates in a step of `gpt train`.

Each term of the time is a count given by model and layout, divided by a speed of the hardware, times one
constant of throughput.toml, fitted to published measurements by tests/benchmarks/throughput_fit.py.
The constants include what a trainer overlaps with its products.

`gpt train --dry-run` builds the processes and compares their traffic. A collective counts the bytes
of the whole tensor that is gathered or summed, a message its own.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass

from gptcli.cost.flops import mean_keys
from gptcli.cost.hardware import Gpu, peak_flops, read_table
from gptcli.cost.layout import (
    Layout,
    ShardedTensor,
    layer_tensors,
    layers_of,
    layers_of_stage,
    outer_tensors,
)
from gptcli.cost.rank_memory import ELEMENT_BYTES, StepConfig, layer_parameters
from gptcli.model.config import ModelConfig

NODE = 8  # GPUs per node
OPTIMIZER_BYTES = 28  # per parameter: read and write weight and moments, read the gradient, in fp32
RECOMPUTE_FACTORS = {
    "none": (1.0, 1.0),
    "selective": (1.0, 4 / 3),
    "full": (4 / 3, 4 / 3),
}  # FLOPs and memory traffic with recomputation, relative to none
FP32 = 4  # bytes per element


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Fitted constants, all positive."""

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
    exposed: float
    """Share of the collectives' time, at the speed of the link, that is not overlapped."""
    spread: float
    """Growth of that time for every doubling of the number of nodes."""
    hopper_products: float
    """Share of the peak on a Hopper GPU over that on Ampere, for products: its power limit is below
    its peak.
    """
    hopper_attention: float
    """The same ratio for attention."""
    fp8: float
    """Speed of fp8 products over bf16 products."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uncertainty:
    """Factor by which a prediction may be wrong, either way."""

    known: float
    """For runs like those that the constants were fitted to: FSDP on A100 and H100."""
    other: float
    """For other GPUs, other layouts and other trainers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step by activity, on the slowest pipeline stage."""

    products: float
    attention: float
    memory: float
    """Operations bound by memory bandwidth: norms, GELU, residuals, the loss, the optimizer."""
    launch: float
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
        return sum(asdict(self).values())

    @property
    def waits(self) -> float:
        """Share of the step spent in collectives and in the pipeline bubble."""
        return (self.tensor + self.shard + self.replicas + self.bubble) / self.total


@functools.cache
def fitted_constants() -> tuple[Constants, Uncertainty]:
    """Return the constants of throughput.toml and the uncertainty of predictions."""
    table = read_table("throughput.toml")
    return Constants(**table["constants"]), Uncertainty(**table["range"])


def step_time(
    config: ModelConfig,
    layout: Layout,
    work: StepConfig,
    gpu: Gpu,
    constants: Constants | None = None,
) -> StepTime:
    """Return the seconds of one optimizer step, all ranks busy.

    `constants` replaces the fitted ones.
    """
    k = constants or fitted_constants()[0]
    C, T, tp, pp = config.d_model, config.n_ctx, layout.tp, layout.pp
    tokens, e = work.micro_batch * T, ELEMENT_BYTES[work.precision]
    layers, vocab = (
        layers_of_stage(config.n_layer, pp, 0),
        config.vocab_size / pp if pp > 1 else config.vocab_size,
    )
    hopper = gpu.family == "hopper"
    peak = peak_flops(gpu, work.precision)
    if work.precision == "fp8":  # only products are in fp8, and gain less than the peak does
        peak = gpu.peak_flops
    speed = peak * k.products * (k.hopper_products if hopper else 1)
    products_factor, memory_factor = RECOMPUTE_FACTORS[work.recompute]

    products = tokens * (72 * layers * C**2 * products_factor + 6 * vocab * C) / tp / speed
    if work.precision == "fp8":
        products /= k.fp8
    keys = (
        sum(mean_keys(T, config.band_of(layer)) for layer in range(config.n_layer)) / config.n_layer
    )
    attention = (
        tokens
        * 12
        * layers
        * C
        * keys
        * products_factor
        / tp
        / (peak * k.attention * (k.hopper_attention if hopper else 1))
    )
    memory = tokens * (layers * C * k.path * memory_factor + vocab * k.head) / tp / gpu.bandwidth
    launch = k.launch * layers

    tensor = shard = replicas = 0.0
    # parameters of the rank under tp and pp, before sharding
    mine = layers * layer_parameters(config, tp) + vocab * C / tp
    # a reduce-scatter and an all-gather replace each of Megatron's all-reduces, two forward and
    # two backward
    if tp > 1:
        each = 2 * (tp - 1) / tp * tokens * C * e
        tensor = (4 if work.recompute != "full" else 6) * layers * each / _bandwidth(gpu, tp, 1)
    if layout.shard > 1:
        shard = (
            k.exposed
            * 3
            * e
            * mine
            * (layout.shard - 1)
            / layout.shard
            / _bandwidth(gpu, layout.shard * tp, tp)
        )
        shard *= _node_factor(layout.shard * tp, k)
    if layout.dp > 1:  # fp32 gradients once per step; an all-reduce moves all bytes twice
        replicas = k.exposed * 2 * 4 * mine / layout.shard * (layout.dp - 1) / layout.dp
        replicas *= _node_factor(layout.replicas * tp, k) / _bandwidth(
            gpu, layout.replicas * tp, layout.shard * tp
        )
    update = OPTIMIZER_BYTES * mine / layout.shard / gpu.bandwidth

    m = work.micro_batches
    busy = products + attention + memory + launch + tensor + shard
    return StepTime(
        products=m * products, attention=m * attention, memory=m * memory + update, launch=m * launch, tensor=m * tensor, shard=m * shard,
        replicas=replicas, bubble=(pp - 1) * busy,
    )  # fmt: skip


def tokens_per_second(
    config: ModelConfig,
    layout: Layout,
    work: StepConfig,
    gpu: Gpu,
    constants: Constants | None = None,
) -> float:
    """Return tokens per second of each GPU."""
    tokens = work.micro_batch * work.micro_batches * config.n_ctx
    return tokens / step_time(config, layout, work, gpu, constants).total / (layout.tp * layout.pp)


def uncertainty(layout: Layout, gpu: Gpu) -> float:
    """Return the factor by which a predicted speed may be wrong, either way."""
    uncertainties = fitted_constants()[1]
    return (
        uncertainties.known
        if gpu.family and layout.tp == layout.pp == layout.dp == 1
        else uncertainties.other
    )


def _bandwidth(gpu: Gpu, span: int, stride: int) -> float:
    """Return the bytes per second and GPU of a collective whose members are `stride` apart among
    `span` neighbouring GPUs.

    Tensor-parallel ranks are adjacent, shards are strided by them, replicas by both. Inside a node
    the link counts, between nodes all network cards of the members on one node. Infinite if the
    figure is unknown.
    """
    link = gpu.link or math.inf
    if span <= NODE:
        return link
    return min(link, (gpu.network or math.inf) * max(1, NODE // stride))


def _node_factor(span: int, constants: Constants) -> float:
    return 1 + constants.spread * max(0.0, math.log2(span / NODE))


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
