"""FLOPs per token by the conventions of published figures, and parameters by part.

A multiplication and an addition are two FLOPs.

    6N        GPT-3, Table D.1: 2 FLOPs per parameter forward and 4 backward, attention left out
    palm      PaLM (Chowdhery et al. 2022), Appendix B: 6N + 12·L·C·T, every query attends to all T keys
    causal    the FLOPs computed: a query attends to the keys up to its own, or to its band; dense: 6N + 6·L·C·T

    megatron  Narayanan et al. 2021, equation 3: 72·L·C²·(1 + T/6C + V/12LC), full attention, no biases
    megatron-recompute    the same with every forward pass recomputed: 96·L·C²·(1 + T/6C + V/16LC)

N counts embeddings, as Table D.1 does. Time and money follow 6N, as the papers do.

`Shape` is an architecture of today, for comparison only: published runs of Llama or Qwen are priced
by their own FLOPs. `gpt train` has no such model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gptcli.model.config import ModelConfig

FlopsConvention = Literal["6N", "palm", "causal", "megatron", "megatron-recompute"]
CONVENTIONS: tuple[FlopsConvention, ...] = get_args(FlopsConvention)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Decoder with grouped heads and a feed-forward layer of its own width, without biases."""

    n_layer: int
    d_model: int
    n_head: int
    n_kv_head: int
    """Heads of keys and values."""
    d_ff: int
    gated: bool
    """The feed-forward layer has a gate (SwiGLU): three matrices instead of two."""
    tied: bool
    """Output head and token embedding are one matrix."""
    vocab_size: int
    n_ctx: int
    d_head: int = 0
    """Width of a head; 0 means d_model / n_head."""

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.d_head or self.d_model // self.n_head

    @property
    def parameters(self) -> int:
        """Parameters, norms counted as two gains per layer and a final one."""
        tables = (1 if self.tied else 2) * self.vocab_size * self.d_model
        return self.n_layer * layer_matrices(self) + tables + (2 * self.n_layer + 1) * self.d_model

    def band_of(self, layer: int) -> int | None:
        """Return None: every layer attends to the whole context."""
        return None


def layer_matrices(config: ModelConfig | Shape) -> int:
    """Return the weights in the matrices of one layer."""
    if isinstance(config, Shape):
        q, kv = (n * config.head_width for n in (config.n_head, config.n_kv_head))
        return config.d_model * (2 * q + 2 * kv + (3 if config.gated else 2) * config.d_ff)
    return config.d_model * (4 * config.d_model + 2 * config.d_ff)


def attention_width(config: ModelConfig | Shape) -> int:
    """Return the width of all heads together."""
    return config.n_head * config.head_width if isinstance(config, Shape) else config.d_model


def flops_per_token(config: ModelConfig | Shape, convention: FlopsConvention) -> float:
    """Return training FLOPs per token, forward and backward.

    Raises ValueError for a convention that is not in CONVENTIONS.
    """
    # totals exceed 64-bit integers
    N, L, C, T = float(config.parameters), config.n_layer, attention_width(config), config.n_ctx
    if convention == "6N":
        return 6 * N
    if convention == "palm":
        return 6 * N + 12 * L * C * T
    if convention == "causal":
        return 6 * N + 12 * C * sum(mean_keys(T, config.band_of(layer)) for layer in range(L))
    V = config.vocab_size
    if convention == "megatron":
        return 72 * L * C**2 * (1 + T / (6 * C) + V / (12 * L * C))
    if convention == "megatron-recompute":
        return 96 * L * C**2 * (1 + T / (6 * C) + V / (16 * L * C))
    raise ValueError(f"unknown convention {convention!r}")


def mean_keys(n_ctx: int, band: int | None) -> float:
    """Return the number of keys per query, averaged over a full window, with its own key counted as
    half.

    T/2 for dense attention, b·(1 - b/2T) for a band of b.
    """
    b = n_ctx if band is None else min(band, n_ctx)
    return b * (1 - b / (2 * n_ctx))


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Return exact parameter counts by part, weights and biases together; they sum to
    `config.parameters`.

    A tied head counts zero.
    """
    L, C, F, V, T = config.n_layer, config.d_model, config.d_ff, config.vocab_size, config.n_ctx
    return {
        "embeddings": V * C,
        "positions": T * C,
        "attention": L * (C * 3 * C + 3 * C + C * C + C),  # fused q, k, v; output projection
        "mlp": L * (C * F + F + F * C + C),
        # two per layer and the final one of pre-norm, gain and bias
        "norms": (2 * L + (config.norm == "pre")) * 2 * C,
        "head": 0 if config.tied else V * C,
    }
