from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.parameters import parameters_by_part
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT

configs = st.builds(
    lambda layers, heads, head_width, n_ctx, vocab, tied, norm: ModelConfig(
        n_layer=layers, n_head=heads, d_model=heads * head_width, n_ctx=n_ctx, vocab_size=vocab, tied=tied, norm=norm
    ),
    st.integers(1, 4), st.integers(1, 4), st.integers(1, 16), st.integers(1, 64), st.integers(1, 100), st.booleans(),
    st.sampled_from(["pre", "post"]),
)  # fmt: skip


def small_batch_sequences(name: str) -> str:
    """The part that a tensor of the real model belongs to."""
    for piece, part in (
        ("wte", "embeddings"),
        ("wpe", "positions"),
        ("attn", "attention"),
        ("mlp", "mlp"),
        ("lm_head", "head"),
    ):
        if piece in name.split("."):
            return part
    return "norms"


@given(configs)
def test_parts_are_those_of_the_real_model(config: ModelConfig) -> None:
    with torch.device("meta"):
        model = GPT(config)
    counted = dict.fromkeys(parameters_by_part(config), 0)
    for name, parameter in model.named_parameters():
        counted[small_batch_sequences(name)] += parameter.numel()
    assert parameters_by_part(config) == counted
    assert sum(counted.values()) == config.parameters
