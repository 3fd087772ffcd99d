"""Bytes that a model's state fills. Activations come on top. GB = 1e9 bytes."""

from __future__ import annotations

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
