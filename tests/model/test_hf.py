"""Names and rows of stored tensors, and back, without a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import InputError
from gptcli.model.config import ModelConfig
from gptcli.model.hf import (
    from_hf,
    qkv_rows_from_hf,
    qkv_rows_to_hf,
    read_release,
    to_hf,
)
from gptcli.model.transformer import GPT


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(
        **{"n_layer": 2, "n_head": 2, "d_model": 6, "n_ctx": 5, "vocab_size": 11, **changes}
    )


def test_qkv_rows_of_a_small_example() -> None:
    """Two heads of width 3: rows q q q k k k v v v of each head become all q, all k, all v."""
    ours = torch.arange(18)
    theirs = torch.tensor([0, 1, 2, 9, 10, 11, 3, 4, 5, 12, 13, 14, 6, 7, 8, 15, 16, 17])
    assert torch.equal(qkv_rows_to_hf("h.0.attn.c_attn.bias", ours, config()), theirs)
    assert torch.equal(qkv_rows_from_hf("h.0.attn.c_attn.bias", theirs, config()), ours)
    assert torch.equal(qkv_rows_to_hf("h.0.mlp.c_fc.bias", ours, config()), ours)


@given(heads=st.integers(1, 5), width=st.integers(1, 4), columns=st.integers(1, 3))
def test_qkv_rows_survive_a_round_trip(heads: int, width: int, columns: int) -> None:
    shape = config(n_head=heads, d_model=heads * width)
    rows = torch.randperm(3 * heads * width * columns).view(-1, columns)
    name = "h.1.attn.c_attn.weight"
    assert torch.equal(qkv_rows_from_hf(name, qkv_rows_to_hf(name, rows, shape), shape), rows)


@pytest.mark.parametrize("changes", [{}, {"tied": False}, {"norm": "post"}], ids=str)
def test_names_and_shapes_match_the_files(changes: dict[str, object]) -> None:
    model = GPT(config(**changes))
    model.init_weights(0)
    state = model.state_dict()
    stored = dict(to_hf(state, state.__getitem__, model.config))
    embedding = "tokens_embed" if "norm" in changes else "wte"
    assert torch.equal(stored[f"transformer.{embedding}.weight"], model.wte.weight)
    assert stored["transformer.h.0.mlp.c_fc.weight"].shape == (6, 24)  # in, out
    c_proj = model.get_parameter("h.1.mlp.c_proj.weight")
    assert torch.equal(stored["transformer.h.1.mlp.c_proj.weight"], c_proj.T)
    assert ("lm_head.weight" in stored) == ("tied" in changes)
    assert ("transformer.ln_f.weight" in stored) == ("norm" not in changes)
    back = dict(from_hf(stored, model.config))
    state = model.state_dict()
    assert back.keys() == state.keys() - (set() if "tied" in changes else {"lm_head.weight"})
    assert all(torch.equal(back[name], state[name]) for name in back)


def test_buffers_are_skipped_and_unknown_tensors_keep_their_names() -> None:
    stored = {
        "transformer.h.0.attn.bias": torch.ones(1),
        "h.0.attn.masked_bias": torch.ones(1),
        "score.weight": torch.ones(2),
    }
    assert dict(from_hf(stored, config())).keys() == {"score.weight"}


def test_incomplete_release_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "params_shapes.json").write_text("[[5, 6], [11, 6]]")
    with pytest.raises(InputError, match=r"params_0\.npy is missing"):
        read_release(tmp_path, config(n_layer=1, norm="post"))
