"""Peak memory of one rank under any layout, by which layouts are chosen and refused.

The recipe is that of `gpt train`: weights, gradients, Adam's moments and the residual stream in
fp32; matrix products in `precision` under autocast; layers gathered in that precision if weights
are sharded; fused attention; the loss computed in chunks of positions. Memory peaks at one of three
moments of a step:

    head      the loss of the last positions: all activations, few gradients
    backward  the last layer's backward pass: all activations, the gradient of the head and the widest gradients around GELU
    end       the last gradients of the backward pass, then AdamW: all gradients, no activations

`recipe` "megatron" is Megatron-LM's instead (`megatron_stage`): weights in 16 bits, gradients in
fp32, a distributed optimizer, and all logits at once.

Only tensors count. The GPU's context and the allocator's fragmentation fit in the difference
between the memory that is sold (80 GB) and that which is there (85.5e9 bytes).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from gptcli.cost.flops import Shape, layer_matrices
from gptcli.cost.hardware import Precision
from gptcli.cost.layout import Layout, check_layout, layers_of_stage, rank_parameters
from gptcli.cost.memory import (
    RECOMPUTE,
    SCHEDULES,
    ActivationPolicy,
    PipelineSchedule,
    Recompute,
    StateRecipe,
    layer_bytes,
    layers_in_flight,
    training_memory,
)
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig

CHUNK_BYTES = 512 << 20  # bytes of logits that exist at once: gptcli.model.loss
PIECE = 16_384  # vocabulary entries whose temporary tensors exist at once, at most, on a GPU
# inputs and outputs of products; casts to fp8 are temporary
ELEMENT_BYTES: dict[Precision, int] = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2}
RESIDUAL = 4  # bytes per element of the residual stream, which autocast leaves in fp32
GATHERED_BYTES, GRADIENT_BYTES = 2, 4
"""Bytes of a weight that stays gathered between a layer's passes, and of a gradient that is summed
over micro-batches before it is reduced: what `gpt train` keeps undivided where a GPU has room.
"""
WHOLE_LOGIT_BYTES = 12  # per logit: itself, its probability and its gradient, in either precision


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """Micro-batches, precision and recomputation of a replica's share of a batch.

    Raises UsageError for impossible values.
    """

    micro_batch: int = 1
    """Sequences per forward pass."""
    micro_batches: int = 1
    """Micro-batches per step, whose gradients are accumulated."""
    precision: Precision = "bf16"
    """Precision of matrix products, a key of ELEMENT_BYTES."""
    recompute: Recompute = "none"
    """Activations to recompute, one of `memory.RECOMPUTE`."""
    fused: bool = True
    """Fused attention writes no scores. On a CPU with dropout PyTorch writes them."""
    piece: int = PIECE
    """Vocabulary entries per product of the head: 3,200 on a CPU."""
    in_place: bool = False
    """Exponentials take the place of their logits, as on a CPU."""
    head_kernel: bool = False
    """The loss is that of the kernel for CPUs, in 16 bits (`gptcli.kernels.head_kernel`)."""
    schedule: PipelineSchedule = "1f1b"
    """Pipeline schedule, one of `memory.SCHEDULES`."""
    whole_logits: bool = False
    """All logits of a micro-batch exist at once, as in most trainers; `gpt train` computes them in
    chunks.
    """

    def __post_init__(self) -> None:
        for name in ("micro_batch", "micro_batches", "piece"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} is {getattr(self, name)}", hint=f"{name} must be at least 1"
                )
        for name, choices in (
            ("precision", ELEMENT_BYTES),
            ("recompute", RECOMPUTE),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"unknown {name} {getattr(self, name)!r}",
                    where=f"--{name}",
                    hint=nearest(getattr(self, name), choices),
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class RankMemory:
    """Peak bytes of one rank by what they are for."""

    parameters: int
    optimizer: int
    gradients: int = 0
    activations: int = 0
    """Activations saved for the backward pass, of all micro-batches in flight."""
    logits: int = 0
    """The loss: a chunk of logits and its derivatives, and the gradients of the head's input and
    weights.
    """
    copies: int = 0
    """Weights in the precision of the products: autocast's copies, or the layers that FSDP has
    gathered.
    """
    workspace: int = 0
    """Temporary tensors of a layer."""
    undivided: int = 0
    """Weights and gradients that are not divided by `shard`, where there is room for them."""

    @property
    def total(self) -> int:
        """Sum of all parts."""
        state = self.parameters + self.optimizer + self.gradients + self.activations
        return state + self.logits + self.copies + self.workspace + self.undivided


def rank_memory(
    config: ModelConfig | Shape,
    layout: Layout,
    work: StepConfig,
    recipe: StateRecipe = "fp32",
    *,
    interleave: int = 1,
) -> RankMemory:
    """Return the memory of the fullest rank of a layout.

    Under one-forward-one-backward that is a rank of the first stage, which has the most
    micro-batches in flight, or of the last. `recipe` is "fp32" for `gpt train`, or "megatron", which
    a `Shape` needs, with `interleave` stages per process. Raises UsageError if the layout does not divide the model.
    """
    stages = {0, layout.pp - 1}
    if recipe == "megatron" or isinstance(config, Shape):
        found = [
            megatron_stage(config, layout, work, stage, interleave=interleave) for stage in stages
        ]
    else:
        check_layout(layout, config)
        found = [stage_memory(config, layout, work, stage) for stage in stages]
    return max(found, key=lambda memory: memory.total)


def undivided_bytes(config: ModelConfig, layout: Layout, needed: int, has: int) -> int:
    """Return the bytes of weights and gradients that `gpt train` keeps undivided by `shard`, where a
    GPU of `has` bytes has room for them beside the `needed` ones: 0 without FSDP or room.
    """
    whole = config.parameters
    widths: tuple[int, ...] = ()
    if layout.shard > 1:
        widths = (GATHERED_BYTES + GRADIENT_BYTES, GATHERED_BYTES)
    if layout.shard == 1 and layout.dp not in (1, layout.processes):
        widths = (GATHERED_BYTES,)
    sizes = (width * whole // (layout.tp * layout.pp) for width in widths)
    return next((size for size in sizes if needed + size <= has), 0)


def megatron_stage(
    config: ModelConfig | Shape,
    layout: Layout,
    work: StepConfig,
    stage: int,
    *,
    sequence_parallel: bool = True,
    interleave: int = 1,
) -> RankMemory:
    """Return the memory of each rank of pipeline stage `stage` in Megatron-LM.

    Weights are in 16 bits and gradients in fp32; master copy and moments are divided over the
    replicas. Loss and backward pass need, beside the activations of all micro-batches in flight,

        logits      6 bytes each: in 16 bits, and as fp32 probabilities
        copies      16 bits for every weight of one layer and of the head: products add gradients to
                    the fp32 sum, and the placeholders that autograd gets are kept by shape
        workspace   gradients of the feed-forward layer's activations

    Selective recomputation leaves out the scores of attention; if attention is fused and writes
    none, the outputs of norms and of GELU or the gate.
    """
    tp, pp, first, last = layout.tp, layout.pp, stage == 0, stage == layout.pp - 1
    layers, C = layers_of_stage(config.n_layer, pp, stage), config.d_model
    matrices = layer_matrices(config)
    # positions are learned, and as wide as a vector of the table, in a GPT only
    positions = 0 if isinstance(config, Shape) else config.n_ctx * C * first
    tables = 1 if config.tied and pp == 1 else first + last
    table = config.vocab_size * C / tp
    parameters = round(layers * (matrices / tp + 4 * C) + tables * table + positions)
    state = training_memory(parameters, "megatron")
    fused = work.fused or work.recompute == "selective"
    kept = ActivationPolicy(
        fused=fused,
        recompute="full" if work.recompute == "full" else "none",
        tp=tp,
        sequence_parallel=sequence_parallel,
    )
    tokens = work.micro_batch * config.n_ctx
    each = layer_bytes(config, work.micro_batch, kept)
    if work.fused and work.recompute == "selective":  # outputs of norms, and of GELU or the gate
        e = ELEMENT_BYTES[work.precision]
        each -= e * tokens * (2 * C / (tp if sequence_parallel else 1) + config.d_ff / tp)
    activations = each * layers_in_flight(
        layers, pp, stage, work.micro_batches, interleave=interleave
    )
    again = layer_bytes(config, work.micro_batch, replace(kept, recompute="none"))
    copies = 2 * (matrices / tp + table * last)
    logits = 6 * tokens * config.vocab_size / tp * last
    gate = isinstance(config, Shape) and config.gated
    workspace = 2 * (3 if gate else 2) * tokens * config.d_ff / tp
    workspace += again if work.recompute == "full" else 0.0
    return RankMemory(
        parameters=state["parameters"],
        optimizer=round(state["optimizer"] / layout.replicas),
        gradients=state["gradients"],
        activations=round(activations),
        logits=round(logits) if logits > workspace else 0,
        copies=round(copies),
        workspace=0 if logits > workspace else round(workspace),
    )


def stage_memory(config: ModelConfig, layout: Layout, work: StepConfig, stage: int) -> RankMemory:
    """Return the memory of each rank of pipeline stage `stage`, counted from 0."""
    tp, pp, first, last = layout.tp, layout.pp, stage == 0, stage == layout.pp - 1
    # FSDP, which gathers copies; otherwise DDP or a single process
    engine = layout.shard > 1 or layout.dp not in (1, layout.processes)
    layers, layer = layers_of_stage(config.n_layer, pp, stage), layer_parameters(config, tp)
    table = -(-config.vocab_size // tp) * config.d_model  # the embedding, or the head
    tables = 1 if config.tied and pp == 1 else first + last
    # parameters outside the layers: FSDP's root unit
    norms = 2 * last * (config.norm == "pre")
    outside = table * tables + config.d_model * (config.n_ctx * first + norms)
    parameters = rank_parameters(config, layout, stage, 0, 0)

    e, r = ELEMENT_BYTES[work.precision], RESIDUAL
    each, again = saved_by_layer(
        config, tp, work.micro_batch, work.precision, work.recompute, fused=work.fused
    )
    tokens = work.micro_batch * config.n_ctx
    stream = tokens * config.d_model / tp  # elements
    activations = (
        each * layers_in_flight(layers, pp, stage, work.micro_batches, schedule=work.schedule)
        + (e + r) * stream * last
    )
    logits = (
        loss_memory(-(-config.vocab_size // tp), tokens, work, sliced=tp > 1)
        + 4 * table
        + e * tokens * config.d_model
    )

    copies, gathered = (0 if e == 4 else e * (layers * layer + table * last)), 0
    # the root unit in fp32, with the head in `precision` too; the current layer, the next one,
    # and one gradient
    if engine:
        at_once = layers if pp > 1 else 2  # torch's pipeline schedules do not reshard
        copies, gathered = (
            e * at_once * layer + 4 * outside + (e * table * last if e < 4 else 0),
            4 * layer,
        )
    # gradients between micro-batches; pipeline stages keep them unsharded
    accumulated = 4 * (layers * layer + outside) if pp > 1 else 4 * parameters
    # DDP keeps its buckets, of which gradients are views
    buckets = layout.processes == layout.dp > 1
    before = accumulated if work.micro_batches > 1 or buckets else 0
    moments: dict[str, dict[str, float]] = {
        "head": {
            "gradients": before,
            "activations": activations,
            "logits": logits * last,
            "copies": copies,
        },
        "backward": {
            "gradients": before + 4 * table * last,
            "activations": activations,
            "copies": copies,
            "workspace": (9 * e + r) * stream + again + gathered,
        },
        "end": {
            "gradients": max(before, 4 * parameters),
            "copies": copies if engine else 0,
            "workspace": max(4 * table * first, gathered),
        },
    }
    fullest = max(moments.values(), key=lambda moment: sum(moment.values()))
    return RankMemory(
        parameters=4 * parameters,
        optimizer=8 * parameters,
        **{part: round(n_bytes) for part, n_bytes in fullest.items()},
    )


@lru_cache(maxsize=4096)  # a search for layouts repeats its calls
def saved_by_layer(
    config: ModelConfig,
    tp: int,
    micro_batch: int,
    precision: Precision,
    recompute: Recompute,
    *,
    fused: bool,
) -> tuple[float, float]:
    """Return the bytes that a layer saves for the backward pass, and those that it recomputes."""
    kept = ActivationPolicy(
        element=ELEMENT_BYTES[precision],
        residual=RESIDUAL,
        score=4,
        mask=1 if fused else 4,
        fused=fused,
        recompute=recompute,
        tp=tp,
    )
    each = layer_bytes(config, micro_batch, kept)
    return each, max(0.0, layer_bytes(config, micro_batch, replace(kept, recompute="none")) - each)


def loss_memory(entries: int, tokens: int, work: StepConfig, *, sliced: bool) -> int:
    """Return the bytes of the logits and their derivatives for `tokens` positions and the `entries`
    of the vocabulary on a rank.
    """
    e = ELEMENT_BYTES[work.precision]
    if work.whole_logits:
        return WHOLE_LOGIT_BYTES * tokens * entries
    if sliced:  # gptcli.distributed.tensor_parallel
        return (
            WHOLE_LOGIT_BYTES
            * min(tokens, max(1, CHUNK_BYTES // (WHOLE_LOGIT_BYTES * entries)))
            * entries
        )
    rows, last = (
        min(tokens, max(1, CHUNK_BYTES // (e * entries))),
        entries % work.piece or work.piece,
    )
    if work.head_kernel:  # exponentials alone
        return 2 * rows * entries
    if work.in_place:  # and in 16 bits those of one block in fp32
        return rows * (e * entries + (4 * min(entries, work.piece) if e == 2 else 0))
    # exponentials of all blocks are kept; logits and differences exist for the current block only
    return rows * max(e * entries + (10 if e == 2 else 8) * last, 12 * min(entries, work.piece))


def layer_parameters(config: ModelConfig, tp: int = 1) -> int:
    """Return the parameters of one layer on a rank.

    Matrices and the biases of sharded outputs are divided by `tp`; norms and the other biases are
    replicated.
    """
    return -(-(12 * config.d_model**2 + 7 * config.d_model) // tp) + 6 * config.d_model
