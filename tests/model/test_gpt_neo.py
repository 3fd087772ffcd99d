"""A banded model and its GPT-Neo compute the same function, and GPT-Neo models load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from gptcli.model import safetensors_io
from gptcli.model.config import ModelConfig
from gptcli.model.gpt_neo import to_gpt_neo
from gptcli.model.safetensors_io import load_model, neo_report, save_model
from gptcli.model.transformer import GPT

CONFIG = ModelConfig(
    n_layer=4, n_head=4, d_model=64, n_ctx=48, vocab_size=301, attention="banded", band=7
)
IDX = torch.randint(0, 301, (2, 48), generator=torch.Generator().manual_seed(0))


def random_model(config: ModelConfig = CONFIG, gains: float = 0.2, biases: float = 0.3) -> GPT:
    """Return a model with random tensors, and LayerNorm gains around 1."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0.0, 0.1)
        elif name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
            torch.nn.init.normal_(parameter, 1.0, gains)
        else:
            torch.nn.init.normal_(parameter, 0.0, biases)
    return model


@pytest.mark.parametrize(
    "changes",
    [{}, {"attention": "banded,dense,dense,banded"}, {"tied": False}, {"n_head": 2}],
    ids=str,
)
def test_transformers_loads_a_saved_model(
    tmp_path: Path, leaves: Any, changes: dict[str, object]
) -> None:
    from transformers import GPTNeoForCausalLM

    leaves(random_model(ModelConfig(**{**CONFIG.as_dict(), **changes})), GPTNeoForCausalLM, 2e-5)
    report = json.loads((tmp_path / "config.json").read_text())["gpt_export"]
    assert report["logit_error"] < 2e-5
    assert "within 0.001" in report["note"]


def test_saved_model_loads_to_the_bit(tmp_path: Path) -> None:
    model = random_model()
    save_model(tmp_path, model, CONFIG)
    again = load_model(tmp_path)
    assert again.config == CONFIG
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_replaced_gpt_neo_file_takes_precedence(tmp_path: Path) -> None:
    """A model that was trained further in transformers and saved into the same folder is loaded."""
    from transformers import GPTNeoForCausalLM

    save_model(tmp_path, random_model(), CONFIG)
    theirs = GPTNeoForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        theirs.transformer.wte.weight.add_(0.01)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        assert (theirs.eval()(IDX).logits - load_model(tmp_path)(IDX)).abs().max().item() < 2e-5


@pytest.mark.parametrize("activation", ["gelu_new", "gelu"])
def test_gpt_neo_of_transformers_survives_a_round_trip(comes_back: Any, activation: str) -> None:
    """Exact to the bit if 1/sqrt(D) is a power of two."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        num_layers=4, num_heads=4, hidden_size=64, max_position_embeddings=48, vocab_size=301, window_size=7,
        attention_types=[[["global", "local"], 2]], activation_function=activation,
    )  # fmt: skip
    ours = comes_back(GPTNeoForCausalLM(config), 2e-5).config
    assert ours.gelu == ("exact" if activation == "gelu" else "tanh")
    assert (ours.attention, ours.band) == ("banded", 7)


def test_gpt_neo_with_global_layers_only_is_dense(tmp_path: Path) -> None:
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    theirs = GPTNeoForCausalLM(
        GPTNeoConfig(
            num_layers=2,
            num_heads=2,
            hidden_size=32,
            max_position_embeddings=48,
            vocab_size=301,
            attention_types=[[["global"], 2]],
        )
    ).eval()
    theirs.save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.config.attention == "dense"
    with torch.no_grad():
        assert (theirs(IDX).logits - model(IDX)).abs().max().item() < 1e-5


def error(model: GPT) -> float:
    return float(neo_report(model.state_dict(), model.config)["logit_error"])


def test_singular_query_matrix_loses_no_precision() -> None:
    """W_q⁻¹·b_q does not exist for a W_q of half rank, and is huge for a nearly singular one."""
    model = random_model()
    for block in model.h:
        with torch.no_grad():
            rows = block.get_parameter("attn.c_attn.weight").view(4, 3, 16, 64)
            rows[:, 0, 8:] = rows[:, 0, :8] * (1 + 1e-7)
    c_attn = model.get_parameter("h.0.attn.c_attn.weight")
    w_q = c_attn.view(4, 3, 16, 64)[:, 0].flatten(0, 1).double()
    assert torch.linalg.cond(w_q).item() > 1e6
    assert error(model) < 2e-5


def test_gains_of_zero_and_of_different_magnitude_convert() -> None:
    model = random_model()
    with torch.no_grad():
        model.get_parameter("h.0.ln_1.weight")[5] = 0.0
    assert error(model) < 2e-5
    with torch.no_grad():
        model.get_parameter("h.1.ln_1.weight")[3] = 1e-6  # u's entry is a million times the others'
    assert error(model) < 2e-5


def test_report_states_an_error_above_the_tolerance(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(safetensors_io, "NEO_TOLERANCE", 1e-12)
    save_model(tmp_path, random_model(), CONFIG)
    report = json.loads((tmp_path / "config.json").read_text())["gpt_export"]
    assert "NOT within 1e-12" in report["note"]
    assert report["logit_error"] > report["tolerance"]


def test_layer_norm_is_unchanged_without_query_bias() -> None:
    model = random_model(biases=0.0)
    state = model.state_dict()
    stored = dict(to_gpt_neo(state, state.__getitem__, CONFIG))
    assert torch.equal(stored["transformer.h.0.ln_1.bias"], model.get_parameter("h.0.ln_1.bias"))
    torch.testing.assert_close(
        stored["transformer.h.0.attn.attention.q_proj.weight"] * 4,
        model.get_parameter("h.0.attn.c_attn.weight").view(4, 3, 16, 64)[:, 0].flatten(0, 1),
    )
