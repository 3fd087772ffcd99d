from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import InputError
from gptcli.model.config import ModelConfig, find_size
from gptcli.model.hf import (
    from_hf,
    is_padded,
    qkv_rows_from_hf,
    qkv_rows_to_hf,
    read_model_config,
    read_release,
    to_hf,
    to_transformers,
)
from gptcli.model.safetensors_io import load_model
from gptcli.model.source import CONFIG
from gptcli.model.transformer import GPT
from tests.model.gpt1_release import release_shapes, write_release

SHAPE: dict[str, Any] = {"n_layer": 3, "n_head": 2, "d_model": 16, "n_ctx": 32, "vocab_size": 100}


def write(folder: Path, **changes: Any) -> Path:
    table = to_transformers(ModelConfig(**SHAPE), 99) | changes
    (folder / CONFIG).write_text(json.dumps(table))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tied": False},
        {"dropout": 0.25},
        {"attention": "banded", "band": 7},
        {"attention": "banded,dense"},
        {"attention": "dense,banded,banded"},
        {"attention": "banded,banded"},
        {"norm": "post"},
    ],
    ids=str,
)
def test_config_survives_a_round_trip(tmp_path: Path, changes: dict[str, Any]) -> None:
    config = ModelConfig(**{**SHAPE, **changes})
    (tmp_path / CONFIG).write_text(json.dumps(to_transformers(config, 99)))
    assert read_model_config(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "llama"}, "models of type 'llama' are not supported"),
        ({"n_embd": "16"}, "'n_embd' is missing or not an integer"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon is 1e-06"),
        ({"n_inner": 32}, "n_inner is 32"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_other_models_are_rejected(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_model_config(write(tmp_path, **changes))


def test_folder_without_a_configuration_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is an empty folder"):
        read_model_config(tmp_path)
    (tmp_path / CONFIG).write_text("[]")
    with pytest.raises(InputError, match="a JSON object is expected"):
        read_model_config(tmp_path)
    (tmp_path / CONFIG).write_text('{"n_layer": 3,\n')
    with pytest.raises(InputError, match=r"config\.json:2: not valid JSON"):
        read_model_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attention_types": [[["global", "local"], 2]]},
            "does not describe 3 layers, the value of num_layers",
        ),
        ({"attention_types": [[["sparse"], 3]]}, "attention_types must be a list"),
        ({"intermediate_size": 32}, "intermediate_size is 32"),
        ({"window_size": None}, "'window_size' is missing or not an integer"),
        ({"hidden_size": 2**62}, "'hidden_size' is missing or not an integer"),
        ({"attention_types": [[["global"], 10**15]]}, "does not describe 3 layers"),
        ({"model_type": {}}, "are not supported"),
        ({"tie_word_embeddings": [1]}, "must be true or false"),
        ({"embed_dropout": 0.1, "resid_dropout": "a"}, "and a number"),
    ],
)
def test_unsupported_gpt_neo_is_rejected(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    table = to_transformers(ModelConfig(**SHAPE, attention="banded"), 99) | changes
    (tmp_path / CONFIG).write_text(json.dumps(table))
    with pytest.raises(InputError, match=message):
        read_model_config(tmp_path)


def test_module_does_not_import_torch() -> None:
    code = "import sys, gptcli.model.hf; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("rows", "entries", "padded"),
    [
        (50304, 50257, True), (51200, 50257, True), (50264, 50257, True), (50258, 50257, True), (512, 400, True), (448, 400, True),
        (50257, 50257, False), (50257, 50304, False), (400, 258, False), (100_000, 50_257, False), (40478, 32000, False),
    ],
)  # fmt: skip
def test_padded_vocabulary_is_recognized(rows: int, entries: int, padded: bool) -> None:
    assert is_padded(rows, entries) == padded


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


SMALL_GPT1 = ModelConfig(
    n_layer=3, n_head=2, d_model=128, n_ctx=40, vocab_size=301, norm="post", dropout=0.1
)


def random_model(config: ModelConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(
            parameter, 0.5 if name.endswith(("ln_1.weight", "ln_2.weight")) else 0.0, 0.1
        )
    return model


@pytest.mark.parametrize(
    "config",
    [SMALL_GPT1, ModelConfig.from_paper(find_size("gpt1"), vocab_size=999)],
    ids=["small", "the paper's shape"],
)
def test_transformers_loads_a_saved_gpt1(tmp_path: Path, leaves: Any, config: ModelConfig) -> None:
    from transformers import OpenAIGPTLMHeadModel

    model = GPT(config).eval() if config.d_model == 768 else random_model(config)
    if config.d_model == 768:
        model.init_weights(0)
    leaves(model, OpenAIGPTLMHeadModel, 1e-5)
    assert read_model_config(tmp_path) == config


def test_gpt1_of_transformers_loads_and_survives_a_round_trip(comes_back: Any) -> None:
    from transformers import OpenAIGPTConfig, OpenAIGPTLMHeadModel

    theirs = OpenAIGPTLMHeadModel(
        OpenAIGPTConfig(n_layer=3, n_head=4, n_embd=64, n_positions=40, vocab_size=301)
    )
    assert comes_back(theirs, 1e-5).config.norm == "post"


def shapes_like(stored: list[list[int]], vocab_size: int, layers: int) -> list[list[int]]:
    return [stored[0], [vocab_size, stored[1][1]], *stored[2 : 2 + 12 * layers]]


def assert_is_the_release(model: GPT, arrays: list[np.ndarray]) -> None:
    """Compare logits with those computed layer by layer from the released arrays.

    The order of rows is that of the released code.
    """
    positions, tokens, *rest = (torch.from_numpy(array) for array in arrays)
    idx = torch.tensor([[5, 3, 99, 0, 7]])
    x = tokens[idx] + positions[:5]
    heads = model.config.n_head

    def norm(x: torch.Tensor, g: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        u = x.mean(-1, keepdim=True)
        return (x - u) * torch.rsqrt((x - u).square().mean(-1, keepdim=True) + 1e-5) * g + b

    for at in range(0, len(rest), 12):
        c_w, c_b, p_w, p_b, g1, b1, f_w, f_b, o_w, o_b, g2, b2 = rest[at : at + 12]
        q, k, v = (
            y.view(1, 5, heads, -1).transpose(1, 2)
            for y in (x @ c_w[0] + c_b).split(x.shape[-1], dim=2)
        )
        w = (
            (q @ k.mT / math.sqrt(q.shape[-1]))
            .masked_fill(~torch.ones(5, 5).tril().bool(), -1e9)
            .softmax(-1)
        )
        x = norm(x + ((w @ v).transpose(1, 2).flatten(2) @ p_w[0] + p_b), g1, b1)
        m = x @ f_w[0] + f_b
        m = 0.5 * m * (1 + torch.tanh(math.sqrt(2 / math.pi) * (m + 0.044715 * m**3)))
        x = norm(x + (m @ o_w[0] + o_b), g2, b2)
    with torch.no_grad():
        torch.testing.assert_close(model(idx), x @ tokens.T, atol=2e-4, rtol=1e-5)


def test_openai_release_loads(tmp_path: Path) -> None:
    shapes = release_shapes(n_layer=2, d_model=128, n_ctx=40, vocab_size=301)
    arrays = write_release(tmp_path, shapes)
    model = load_model(tmp_path)
    assert (
        model.config.n_layer,
        model.config.n_head,
        model.config.n_ctx,
        model.config.vocab_size,
    ) == (2, 2, 40, 301)
    assert_is_the_release(model, arrays)
    (tmp_path / "params_9.npy").write_bytes(
        (tmp_path / "params_9.npy").read_bytes().replace(b"}", b"\0")
    )
    with pytest.raises(InputError, match="not a readable array"):
        load_model(tmp_path)
    (tmp_path / "params_9.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match="not a readable array"):
        load_model(tmp_path)
    np.save(tmp_path / "params_9.npy", np.zeros(3, np.float32))
    with pytest.raises(InputError, match="the shapes require"):
        load_model(tmp_path)
    (tmp_path / "params_9.npy").unlink()
    with pytest.raises(InputError, match=r"params_9\.npy is missing"):
        load_model(tmp_path)


@pytest.mark.real_data
def test_released_shapes_are_read(real_data: Path, tmp_path: Path) -> None:
    """All 146 shapes of OpenAI's release, with random numbers."""
    shapes = json.loads((real_data / "gpt1-vocab" / "params_shapes.json").read_text())
    arrays = write_release(tmp_path, shapes)
    model = load_model(tmp_path)
    assert sum(parameter.numel() for parameter in model.parameters()) == 116_534_784
    assert model.config == ModelConfig.from_paper(find_size("gpt1"))
    assert_is_the_release(model, arrays)


@pytest.mark.parametrize("shape", [(10**15,), (2**62, 2**62), (-1,)])
def test_released_array_larger_than_its_file_is_rejected(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    write_release(tmp_path, release_shapes(n_layer=1, d_model=64, n_ctx=8, vocab_size=300))
    with open(tmp_path / "params_3.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )
    with pytest.raises(InputError, match=r"params_3\.npy: not a readable array"):
        load_model(tmp_path)
