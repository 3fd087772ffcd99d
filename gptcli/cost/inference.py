"""Inference: compute-bound prefill of a prompt and memory-bound decoding.

    prefill     2·N·T + 4·C·T·keys    FLOPs of a prompt of T tokens, keys per query averaged, summed over layers
    decode      2·N + 4·C·keys        FLOPs of the last token of a full context, which reads every weight, key and value:
                2·N + 2·2·L·C·T       bytes in 16 bits; divided by the memory bandwidth, a bound on the speed of one sequence

These are hardware limits: no program is faster, and a good one reaches 60 to 80 % of the bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.cost.flops import mean_keys
from gptcli.cost.hardware import Gpu
from gptcli.cost.memory import WEIGHT_BYTES, kv_cache_per_token, min_gpus
from gptcli.model.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """One sequence of a full context in 16 bits. Figures of the GPU are None if no GPU is named."""

    prefill_flops: float
    decode_flops: float
    """FLOPs of the last token of the context."""
    decode_bytes: int
    """Bytes read for that token."""
    gpus: int | None
    """Smallest number of GPUs that hold the weights and the cache together."""
    prefill_seconds: float | None
    """Lower bound: all GPUs at their peak."""
    tokens_per_second: float | None
    """Upper bound: all GPUs at their memory bandwidth."""


def inference(config: ModelConfig, gpu: Gpu | None) -> Inference:
    """Return FLOPs, bytes and speed limits of running a model on one full context."""
    N, C, T, layers = config.parameters, config.d_model, config.n_ctx, range(config.n_layer)
    prefill = 2.0 * N * T + 4.0 * C * T * sum(
        mean_keys(T, config.band_of(layer)) for layer in layers
    )
    decode = 2.0 * N + 4.0 * C * sum(min(T, config.band_of(layer) or T) for layer in layers)
    n_bytes = WEIGHT_BYTES["16bit"] * N + kv_cache_per_token(config) * T
    gpus = None if gpu is None else min_gpus(n_bytes, gpu.memory_bytes)
    return Inference(
        prefill_flops=prefill, decode_flops=decode, decode_bytes=n_bytes, gpus=gpus,
        prefill_seconds=None if gpu is None or gpus is None else prefill / (gpus * gpu.peak_flops),
        tokens_per_second=None if gpu is None or gpus is None else gpus * gpu.bandwidth / n_bytes,
    )  # fmt: skip
