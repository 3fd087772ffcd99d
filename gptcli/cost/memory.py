"""Bytes that a model's state fills. Activations come on top. GB = 1e9 bytes."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.model.config import ModelConfig

TRAINING_BYTES = {  # per parameter
    # `gpt train`: Adam's two moments; bf16 only in passing
    "fp32": {"parameters": 4, "gradients": 4, "optimizer": 8},
    # ZeRO (Rajbhandari et al. 2020): fp32 master copy with the optimizer
    "mixed": {"parameters": 2, "gradients": 2, "optimizer": 12},
    # Korthikanti et al. 2022: gradients in fp32
    "megatron": {"parameters": 2, "gradients": 4, "optimizer": 12},
}
WEIGHT_BYTES = {"fp32": 4, "16bit": 2}


def training_memory(parameters: int, recipe: str = "fp32") -> dict[str, int]:
    """Bytes of the training state by part, over all GPUs together."""
    return {part: each * parameters for part, each in TRAINING_BYTES[recipe].items()}


def zero_memory(parameters: int, ranks: int, stage: int) -> float:
    """Bytes of the training state on each of `ranks` under ZeRO's stage 0 to 3, which divides that
    many of its parts (figure 1).
    """
    state = training_memory(parameters, "mixed")
    divided = ("optimizer", "gradients", "parameters")[:stage]
    return sum(n_bytes / (ranks if part in divided else 1) for part, n_bytes in state.items())


def kv_cache_per_token(config: ModelConfig, element_bytes: int = 2) -> int:
    """Bytes of the keys and values of one position, 2·L·C elements; banded layers keep all of
    theirs, as our cache does.
    """
    return 2 * config.n_layer * config.d_model * element_bytes


def memory_by_part(parameters: int, config: ModelConfig | None = None) -> dict[str, int]:
    """Bytes by what fills them: training state by part and in sum, weights to run it, and, of a
    known shape, key-value cache in 16 bits.
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


def least_gpus(n_bytes: int, each: int) -> int:
    """How many GPUs of `each` bytes hold `n_bytes` between them, with nothing to spare."""
    return -(-n_bytes // each)


RECOMPUTE = ("none", "selective", "full")
# of pipeline stages, and how many a process has in each
SCHEDULES = {"1f1b": 1, "gpipe": 1, "interleaved1f1b": 2, "loopedbfs": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationPolicy:
    """How much a layer keeps for the backward pass."""

    element: int = 2
    """Bytes of what products read and write."""
    residual: int = 2
    """Bytes an element of the stream between the layers: 4 where autocast leaves it in fp32."""
    score: int = 2
    """Bytes of a score, where attention writes them."""
    mask: int = 1
    """Bytes an element of a dropout's mask: PyTorch's are as wide as a float on a CPU."""
    fused: bool = True
    """Attention never writes its scores, only their normaliser in fp32, one a head."""
    recompute: str = "none"
    """selective: what is cheap is computed again, scores where they are written; where attention is
    fused a layer keeps its input, the outputs of its products, those that end a branch whole under
    tp, and of attention. full: a layer keeps its input alone."""
    tp: int = 1
    sequence_parallel: bool = True


def layer_bytes(config: ModelConfig, micro_batch: int, kept: ActivationPolicy) -> float:
    """Bytes that one layer of a rank keeps for one micro-batch. Raises ValueError for a
    recomputation that is not in RECOMPUTE.
    """
    if kept.recompute not in RECOMPUTE:
        raise ValueError(f"unknown recomputation {kept.recompute!r}")
    e, r, drops = kept.element, kept.residual, config.dropout > 0
    again = kept.recompute == "selective"
    whole, divided = 2.0 * r + 2 * e + 2 * kept.mask * drops, 12.0 * e
    undivided = 0.0
    if kept.fused:
        divided += 4 * config.n_head / config.d_model
        if again:
            whole, divided, undivided = r, divided - 4 * e, 2.0 * e
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


def layers_in_flight(
    layers: int,
    pp: int,
    stage: int,
    micro_batches: int,
    *,
    interleave: int = 1,
    schedule: str = "1f1b",
) -> float:
    """How many layers' activations a stage of `layers` holds at once, times micro-batches.

    Under one-forward-one-backward stage i has begun pp - i micro-batches before the first comes
    back; `interleave` chunks of layers a rank add (pp-1)/(pp·interleave). The others have begun all
    of them.
    """
    if schedule in ("gpipe", "loopedbfs"):
        return layers * micro_batches
    interleave = max(interleave, SCHEDULES[schedule])
    more = 1 + (pp - 1) / (pp * interleave) if interleave > 1 else 1.0
    return layers * min(pp - stage, micro_batches) * more
