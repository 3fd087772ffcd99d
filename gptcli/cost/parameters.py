"""Where the parameters are."""

from __future__ import annotations

from gptcli.model.config import ModelConfig


def parameters_by_part(config: ModelConfig) -> dict[str, int]:
    """Exact counts, weights and biases together; they add up to `config.parameters`. A tied head
    counts nothing of its own.
    """
    L, C, F, V, T = config.n_layer, config.d_model, config.d_ff, config.vocab_size, config.n_ctx
    return {
        "embeddings": V * C,
        "positions": T * C,
        "attention": L * (C * 3 * C + 3 * C + C * C + C),  # q, k and v in one; the projection back
        "mlp": L * (C * F + F + F * C + C),
        # two a layer and pre-norm's last one, gain and bias
        "norms": (2 * L + (config.norm == "pre")) * 2 * C,
        "head": 0 if config.tied else V * C,
    }
