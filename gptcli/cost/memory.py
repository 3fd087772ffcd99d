"""Bytes of a training state, and of the activations that a layer saves for its backward pass.

GB = 1e9 bytes.

Activations follow Korthikanti et al. 2022, "Reducing activation recomputation". Bytes per token, in
units of the width C, with e bytes per element and r bytes per element of the residual stream:

    inputs of the two norms       2r              both dropout masks        2, if dropout is on
    inputs of qkv and of fc       2e              q, k, v                   3e
    output of attention           e               before and after GELU     4e + 4e
    scores, T per head            (2e+1)·H·T/C    softmax, mask and their product: only if attention is not fused

With e = r = 2 and dropout this is the paper's 34 + 5·H·T/C. Tensor parallelism divides q, k, v,
attention, GELU and the scores; sequence parallelism divides the rest too. A `Shape` has its own
widths of q, k, v and of the feed-forward layer; with a gate, that saves both factors and their
product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gptcli.cost.flops import Shape, attention_width
from gptcli.model.config import ModelConfig

StateRecipe = Literal["fp32", "mixed", "megatron"]
TRAINING_BYTES: dict[StateRecipe, dict[str, int]] = {  # per parameter
    # `gpt train`: Adam's two moments; bf16 copies are temporary
    "fp32": {"parameters": 4, "gradients": 4, "optimizer": 8},
    # ZeRO (Rajbhandari et al. 2020): fp32 master copy with the optimizer
    "mixed": {"parameters": 2, "gradients": 2, "optimizer": 12},
    # Korthikanti et al. 2022: gradients in fp32
    "megatron": {"parameters": 2, "gradients": 4, "optimizer": 12},
}
WEIGHT_BYTES = {"fp32": 4, "16bit": 2}


def training_memory(parameters: int, recipe: StateRecipe = "fp32") -> dict[str, int]:
    """Return the bytes of the training state by part, summed over all GPUs.

    `recipe` is a key of TRAINING_BYTES.
    """
    return {part: each * parameters for part, each in TRAINING_BYTES[recipe].items()}


def kv_cache_per_token(config: ModelConfig, element_bytes: int = 2) -> int:
    """Return the bytes of the keys and values of one position: 2·L·C elements.

    Banded layers count in full, because our cache keeps all of their keys.
    """
    return 2 * config.n_layer * config.d_model * element_bytes


def memory_by_part(parameters: int, config: ModelConfig | None = None) -> dict[str, int]:
    """Return bytes by what they are for: the training state by part and in total, the weights for
    inference in fp32 and in 16 bits and, if the shape is known, the key-value cache in 16 bits.
    """
    state = training_memory(parameters)
    found = {
        **state,
        "training": sum(state.values()),
        "inference_fp32": WEIGHT_BYTES["fp32"] * parameters,
        "inference_16bit": WEIGHT_BYTES["16bit"] * parameters,
    }
    if config is not None:
        cache = kv_cache_per_token(config)
        found |= {"kv_cache_per_token": cache, "kv_cache_per_context": cache * config.n_ctx}
    return found


def min_gpus(n_bytes: int, each: int) -> int:
    """Return the smallest number of GPUs of `each` bytes that hold `n_bytes` together, with nothing
    to spare.
    """
    return -(-n_bytes // each)


Recompute = Literal["none", "selective", "full"]
RECOMPUTE: tuple[Recompute, ...] = get_args(Recompute)
PipelineSchedule = Literal["1f1b", "gpipe", "interleaved1f1b", "loopedbfs"]
# stages per process in each schedule
SCHEDULES: dict[PipelineSchedule, int] = {
    "1f1b": 1,
    "gpipe": 1,
    "interleaved1f1b": 2,
    "loopedbfs": 2,
}


def padded_micro_batches(micro_batches: int, pp: int, schedule: PipelineSchedule) -> int:
    """Return how many micro-batches a pipeline runs for `micro_batches`, padded with empty ones.

    Every stage needs at least one at a time; interleaved schedules run rounds of `pp`.
    """
    if SCHEDULES[schedule] == 1:
        return max(micro_batches, pp)
    return -(-micro_batches // pp) * pp


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPolicy:
    """Precision and recomputation that decide what a layer saves for its backward pass."""

    element: int = 2
    """Bytes per element of the inputs and outputs of matrix products."""
    residual: int = 2
    """Bytes per element of the residual stream: 4 if autocast leaves it in fp32."""
    score: int = 2
    """Bytes per attention score, if attention writes its scores."""
    mask: int = 1
    """Bytes per element of a dropout mask; on a CPU PyTorch's masks are as wide as a float."""
    fused: bool = True
    """Fused attention writes no scores, only one fp32 normalizer per head and position."""
    recompute: Recompute = "none"
    """One of RECOMPUTE.

    - none: nothing is recomputed.
    - selective: cheap operations are recomputed, and the scores if attention writes them. With
      fused attention a layer saves its input, the outputs of its matrix products (in full for those
      that end a branch under tp) and the output of attention.
    - full: a layer saves only its input.
    """
    tp: int = 1
    """Tensor-parallel ranks."""
    sequence_parallel: bool = True
    """The residual stream and the norms are sharded along the sequence too."""


def layer_bytes(config: ModelConfig | Shape, micro_batch: int, kept: ActivationPolicy) -> float:
    """Return the bytes that one layer of a rank saves for one micro-batch of `micro_batch`
    sequences.

    Raises ValueError if `kept.recompute` is not in RECOMPUTE.
    """
    if kept.recompute not in RECOMPUTE:
        raise ValueError(f"unknown recomputation {kept.recompute!r}")
    e, r = kept.element, kept.residual
    drops = isinstance(config, ModelConfig) and config.dropout > 0
    again = kept.recompute == "selective"
    heads, wide = _saved_widths(config)
    whole, divided = 2.0 * r + 2 * e + 2 * kept.mask * drops, (heads + wide) * e
    undivided = 0.0
    if kept.fused:
        divided += 4 * config.n_head / config.d_model
        if again:
            whole, divided, undivided = r, divided - e * config.d_ff / config.d_model, 2.0 * e
    elif not again:
        divided += (
            (2 * kept.score + kept.mask if drops else kept.score)
            * config.n_head
            * config.n_ctx
            / config.d_model
        )
    if kept.recompute == "full":
        whole, divided, undivided = r, 0.0, 0.0
    each = undivided + whole / (kept.tp if kept.sequence_parallel else 1) + divided / kept.tp
    return each * micro_batch * config.n_ctx * config.d_model


def _saved_widths(config: ModelConfig | Shape) -> tuple[float, float]:
    """Return the elements that attention and the feed-forward layer save per token, over the width:
    q, k, v and the output of attention; and what is before and after GELU.
    """
    C = config.d_model
    if not isinstance(config, Shape):
        return 4.0, 2 * config.d_ff / C
    kv = config.n_kv_head * config.head_width
    return (2 * attention_width(config) + 2 * kv) / C, (3 if config.gated else 2) * config.d_ff / C


def layers_in_flight(
    layers: int,
    pp: int,
    stage: int,
    micro_batches: int,
    *,
    interleave: int = 1,
    schedule: PipelineSchedule = "1f1b",
) -> float:
    """Return the number of layer activations, in layers times micro-batches, that a stage keeps at
    its peak.

    Under one-forward-one-backward, stage i has started pp - i micro-batches before the first
    backward pass; `interleave` chunks of layers per rank add (pp-1)/(pp·interleave). The other
    schedules have started all micro-batches by then.
    """
    if schedule in ("gpipe", "loopedbfs"):
        return layers * micro_batches
    interleave = max(interleave, SCHEDULES[schedule])
    more = 1 + (pp - 1) / (pp * interleave) if interleave > 1 else 1.0
    return layers * min(pp - stage, micro_batches) * more
