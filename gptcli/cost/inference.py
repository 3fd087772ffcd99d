"""Running a model: reading a prompt (prefill) multiplies, writing after it (decoding) moves bytes.

    prefill     2·N·T + 4·C·T·keys    FLOPs of a prompt of T tokens, keys summed over layers: as many as a query sees on average
    decoding    2·N + 4·C·keys        FLOPs of the token at the end of the context; for it every weight, key and value is read:
                2·N + 2·2·L·C·T       bytes in 16 bits, which over the memory's bandwidth bound the speed of one sequence

The bounds are the hardware's: no program is faster, and a good one reaches 60 to 80 % of the
bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.cost.flops import mean_keys
from gptcli.cost.hardware import Gpu
from gptcli.cost.memory import WEIGHT_BYTES, kv_cache_per_token, least_gpus
from gptcli.model.config import ModelConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Inference:
    """One sequence of a whole context, in 16 bits. The GPU's part is None where no GPU is named."""

    prefill_flops: float
    decode_flops: float
    """Of the context's last token."""
    decode_bytes: int
    """Read for it."""
    gpus: int | None
    """The fewest that hold weights and cache between them."""
    prefill_seconds: float | None
    """At the least: at their peak."""
    tokens_per_second: float | None
    """At the most: at their bandwidth."""


def inference(config: ModelConfig, gpu: Gpu | None) -> Inference:
    N, C, T, layers = config.parameters, config.d_model, config.n_ctx, range(config.n_layer)
    prefill = 2.0 * N * T + 4.0 * C * T * sum(
        mean_keys(T, config.band_of(layer)) for layer in layers
    )
    decode = 2.0 * N + 4.0 * C * sum(min(T, config.band_of(layer) or T) for layer in layers)
    n_bytes = WEIGHT_BYTES["16bit"] * N + kv_cache_per_token(config) * T
    gpus = None if gpu is None else least_gpus(n_bytes, gpu.memory_bytes)
    return Inference(
        prefill_flops=prefill, decode_flops=decode, decode_bytes=n_bytes, gpus=gpus,
        prefill_seconds=None if gpu is None or gpus is None else prefill / (gpus * gpu.peak_flops),
        tokens_per_second=None if gpu is None or gpus is None else gpus * gpu.bandwidth / n_bytes,
    )  # fmt: skip
