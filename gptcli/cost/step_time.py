"""How long a step takes on a layout: the sum of what it spends on products, attention, memory,
launches, collectives and the bubble.

Each part is a count that the model and the layout give, over a speed that the hardware gives, times
one constant of throughput.toml, which tests/benchmarks/throughput_fit.py fits to published
measurements. What a trainer hides behind its products is in the constants.
"""

from __future__ import annotations

import functools
import math
from dataclasses import asdict, dataclass

from gptcli.cost.flops import mean_keys
from gptcli.cost.hardware import Gpu, peak_flops, read_table
from gptcli.cost.layout import Layout, layers_of_stage
from gptcli.cost.rank_memory import ELEMENT_BYTES, StepConfig, layer_parameters
from gptcli.model.config import ModelConfig

NODE = 8  # GPUs of a machine
OPTIMIZER_BYTES = 28  # a parameter: weight and two moments read and written, gradient read, in fp32
AGAIN = {
    "none": (1.0, 1.0),
    "selective": (1.0, 4 / 3),
    "full": (4 / 3, 4 / 3),
}  # work of products, and of memory, with what is computed again


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """The fitted constants, all above zero."""

    products: float
    """Share of the peak that matrix products reach."""
    attention: float
    """Share of the peak that fused attention reaches, counted causally."""
    path: float
    """Bytes that norms, GELU, residuals and the like move, a token and unit of width of a layer,
    forward and backward.
    """
    head: float
    """Bytes that the loss moves, a token and entry of the vocabulary."""
    launch: float
    """Seconds a layer and micro-batch that do not depend on its size."""
    exposed: float
    """Share of the collectives' time, at the link's own speed, that a step waits for."""
    spread: float
    """Of collectives over machines: more of it for every doubling of them."""
    hopper_products: float
    """A Hopper GPU's share over an Ampere GPU's, of products: its power does not suffice for its
    peak.
    """
    hopper_attention: float
    fp8: float
    """How much faster products are in fp8 than in bf16."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """By which factor a prediction may be wrong, either way."""

    known: float
    """Like the measurements that it is fitted to: FSDP on A100 and H100."""
    other: float
    """Elsewhere: other GPUs, other layouts, another trainer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of a step by what they go to, on the slowest pipeline stage."""

    products: float
    attention: float
    memory: float
    """What moves bytes more than it multiplies: norms, GELU, residuals, the loss, the optimizer."""
    launch: float
    tensor: float
    """Collectives of tensor parallelism."""
    shard: float
    """Weights gathered and gradients divided."""
    replicas: float
    """Gradients averaged over replicas."""
    bubble: float
    """Waiting for the pipeline to fill and to drain."""

    @property
    def total(self) -> float:
        return sum(asdict(self).values())

    @property
    def waits(self) -> float:
        """The share that goes to collectives and the pipeline."""
        return (self.tensor + self.shard + self.replicas + self.bubble) / self.total


@functools.cache
def fitted() -> tuple[Constants, Range]:
    table = read_table("throughput.toml")
    return Constants(**table["constants"]), Range(**table["range"])


def step_time(
    config: ModelConfig,
    layout: Layout,
    work: StepConfig,
    gpu: Gpu,
    constants: Constants | None = None,
) -> StepTime:
    """Seconds of one update of the weights, every rank at work."""
    k = constants or fitted()[0]
    C, T, tp, pp = config.d_model, config.n_ctx, layout.tp, layout.pp
    tokens, e = work.micro_batch * T, ELEMENT_BYTES[work.precision]
    layers, vocab = (
        layers_of_stage(config.n_layer, pp, 0),
        config.vocab_size / pp if pp > 1 else config.vocab_size,
    )
    hopper = gpu.family == "hopper"
    peak = peak_flops(gpu, work.precision)
    if work.precision == "fp8":  # only products are in fp8, and gain less than their peak does
        peak = gpu.peak_flops
    speed = peak * k.products * (k.hopper_products if hopper else 1)
    products_again, memory_again = AGAIN[work.recompute]

    products = tokens * (72 * layers * C**2 * products_again + 6 * vocab * C) / tp / speed
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
        * products_again
        / tp
        / (peak * k.attention * (k.hopper_attention if hopper else 1))
    )
    memory = tokens * (layers * C * k.path * memory_again + vocab * k.head) / tp / gpu.bandwidth
    launch = k.launch * layers

    tensor = shard = replicas = 0.0
    # parameters of the rank's slice and stage, before sharding
    mine = layers * layer_parameters(config, tp) + vocab * C / tp
    # a reduce-scatter and an all-gather stand for each of Megatron's all-reduces, two forward and
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
        shard *= _farther(layout.shard * tp, k)
    if layout.dp > 1:  # of fp32 gradients, once a step; an all-reduce moves everything twice
        replicas = k.exposed * 2 * 4 * mine / layout.shard * (layout.dp - 1) / layout.dp
        replicas *= _farther(layout.replicas * tp, k) / _bandwidth(
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
    """Of each GPU."""
    tokens = work.micro_batch * work.micro_batches * config.n_ctx
    return tokens / step_time(config, layout, work, gpu, constants).total / (layout.tp * layout.pp)


def uncertainty(layout: Layout, gpu: Gpu) -> float:
    """The factor by which a predicted speed may be wrong, either way."""
    within = fitted()[1]
    return within.known if gpu.family and layout.tp == layout.pp == layout.dp == 1 else within.other


def _bandwidth(gpu: Gpu, span: int, stride: int) -> float:
    """Bytes per second and GPU of a collective whose members stand `stride` apart among `span`
    neighbouring GPUs: tensor slices stand next to each other, shards around them, replicas around
    these.

    Inside a machine, the link; between machines all network cards of the members on one machine.
    Infinite where the figure is unknown.
    """
    link = gpu.link or math.inf
    if span <= NODE:
        return link
    return min(link, (gpu.network or math.inf) * max(1, NODE // stride))


def _farther(span: int, constants: Constants) -> float:
    return 1 + constants.spread * max(0.0, math.log2(span / NODE))
