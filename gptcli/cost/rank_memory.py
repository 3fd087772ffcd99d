"""The memory of one rank at its fullest moment, for any layout: what a layout is chosen by, or
refused for.

The recipe is that of `gpt train`: weights, gradients, Adam's moments and the residual stream in
fp32; products in `precision`, by autocast; layers gathered in it where weights are sharded;
attention fused; the loss a chunk of positions at a time. A step is fullest at one of three moments:

    head      the loss of the last positions: every activation is there, and few gradients
    backward  its first layer: every activation still, the gradient of the head, and the widest gradients around GELU
    end       the last gradients of the backward pass, then AdamW: every gradient, and no activation

Bytes are of tensors alone. A GPU's context and its allocator's gaps find their place in what a
vendor does not count: 80 GB are sold, and 85.5e9 bytes are there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptcli.cost.layout import Layout, check_layout, layers_of_stage
from gptcli.cost.memory import (
    RECOMPUTE,
    SCHEDULES,
    ActivationPolicy,
    layer_bytes,
    layers_in_flight,
)
from gptcli.cost.sharding import rank_parameters
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig

CHUNK_BYTES = 512 << 20  # logits alive at once, in their own precision: gptcli.model.loss
PIECE = 16_384  # entries of the vocabulary in one product, on a GPU
# of what products read and write; fp8's casts last as long as a product
ELEMENT_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 2}
WHOLE_LOGIT_BYTES = 12  # an element: logits, probabilities, their gradient, in either precision


@dataclass(frozen=True, slots=True, kw_only=True)
class StepConfig:
    """How a replica runs its share of a batch. Raises UsageError where the values cannot be."""

    micro_batch: int = 1
    """Sequences at a time."""
    micro_batches: int = 1
    """Of a step, their gradients added up."""
    precision: str = "bf16"
    recompute: str = "none"
    fused: bool = True
    """Attention never writes its scores. PyTorch writes them on a CPU where dropout is on."""
    piece: int = PIECE
    """Entries of the vocabulary in one product of the head: 3,200 on a CPU."""
    schedule: str = "1f1b"
    """In which order pipeline stages run micro-batches."""
    whole_logits: bool = False
    """The logits of a micro-batch exist at once, as most trainers have it; `gpt train` runs them in
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
    """Bytes of one rank at its fullest moment, by what fills them."""

    parameters: int
    optimizer: int
    gradients: int = 0
    activations: int = 0
    """Kept for the backward pass, of all micro-batches in flight."""
    logits: int = 0
    """The loss: a chunk of logits and what becomes of it, and the gradients of what the head reads
    and is.
    """
    copies: int = 0
    """Weights in the products' precision: autocast's, or the layers that FSDP has gathered."""
    workspace: int = 0
    """What a layer needs for a moment."""

    @property
    def total(self) -> int:
        held = self.parameters + self.optimizer + self.gradients + self.activations
        return held + self.logits + self.copies + self.workspace


def rank_memory(config: ModelConfig, layout: Layout, work: StepConfig) -> RankMemory:
    """The fullest rank of the layout. Raises UsageError where the layout does not divide the model.

    Under one-forward-one-backward that is one of the first stage, which has the most micro-batches
    in flight, or of the last.
    """
    check_layout(layout, config)
    stages = {0, layout.pp - 1}
    return max(
        (stage_memory(config, layout, work, stage) for stage in stages),
        key=lambda memory: memory.total,
    )


def stage_memory(config: ModelConfig, layout: Layout, work: StepConfig, stage: int) -> RankMemory:
    """Each rank of pipeline stage `stage`, counted from 0."""
    tp, pp, first, last = layout.tp, layout.pp, stage == 0, stage == layout.pp - 1
    # FSDP, which gathers copies; else DDP, or nothing
    engine = layout.shard > 1 or layout.dp not in (1, layout.processes)
    layers, layer = layers_of_stage(config.n_layer, pp, stage), layer_parameters(config, tp)
    table = -(-config.vocab_size // tp) * config.d_model  # the embedding, or the head
    tables = 1 if config.tied and pp == 1 else first + last
    # of any layer: FSDP's root unit
    outside = table * tables + config.d_model * (config.n_ctx * first + 2 * last)
    parameters = rank_parameters(config, layout, stage, 0, 0)

    e = ELEMENT_BYTES[work.precision]
    r = 4
    kept = ActivationPolicy(
        element=e,
        residual=r,
        score=4,
        mask=1 if work.fused else 4,
        fused=work.fused,
        recompute=work.recompute,
        tp=tp,
    )
    each = layer_bytes(config, work.micro_batch, kept)
    # of the layer at work
    again = max(0.0, layer_bytes(config, work.micro_batch, replace(kept, recompute="none")) - each)
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
    # what is outside of the layers as it is, and the head's in `precision`; the layer at work, the
    # next one, and a gradient
    if engine:
        at_once = layers if pp > 1 else 2  # torch's schedules keep what they gathered
        copies, gathered = (
            e * at_once * layer + 4 * outside + (e * table * last if e < 4 else 0),
            4 * layer,
        )
    # gradients between micro-batches; of stages they are whole
    grown = 4 * (layers * layer + outside) if pp > 1 else 4 * parameters
    before = grown if work.micro_batches > 1 else 0
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


def loss_memory(entries: int, tokens: int, work: StepConfig, *, sliced: bool) -> int:
    """Bytes of the head's logits and what becomes of them, for `tokens` positions and a rank's
    `entries` of the vocabulary.
    """
    e = ELEMENT_BYTES[work.precision]
    if work.whole_logits:
        return WHOLE_LOGIT_BYTES * tokens * entries
    if sliced:  # gptcli.distributed.vocab_parallel_loss
        return (
            WHOLE_LOGIT_BYTES
            * min(tokens, max(1, CHUNK_BYTES // (WHOLE_LOGIT_BYTES * entries)))
            * entries
        )
    rows, last = (
        min(tokens, max(1, CHUNK_BYTES // (e * entries))),
        entries % work.piece or work.piece,
    )
    # the exponentials of all pieces stay; of the piece at work, logits and differences are there
    # for a moment
    return rows * max(e * entries + (10 if e == 2 else 8) * last, 12 * min(entries, work.piece))


def layer_parameters(config: ModelConfig, tp: int = 1) -> int:
    """Of one layer on a rank: matrices and the biases of outputs that are divided, over `tp`; norms
    and the other biases whole.
    """
    return -(-(12 * config.d_model**2 + 7 * config.d_model) // tp) + 6 * config.d_model
