"""muP: initialization and learning rates, and the coordinate check of examples/mup at smaller
widths.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gptcli.model import mup
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT

CONFIG = ModelConfig(n_layer=2, n_head=2, d_model=64, n_ctx=16, vocab_size=50)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "mup" / "coordinate_check.py"
    spec = importlib.util.spec_from_file_location("coordinate_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_at_the_base_width_nothing_changes() -> None:
    model, plain = GPT(CONFIG), GPT(CONFIG)
    model.init_weights(0)
    plain.init_weights(0)
    mup.rescale(model, 1.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name
    assert {group["lr_scale"] for group in mup.groups(model, 1.0, 0.1)} == {1.0}


def test_wider_model_has_smaller_initialization_and_learning_rate() -> None:
    model, plain = GPT(CONFIG), GPT(CONFIG)
    model.init_weights(0)
    plain.init_weights(0)
    mup.rescale(model, 4.0)
    c_fc = "h.0.mlp.c_fc.weight"
    torch.testing.assert_close(model.get_parameter(c_fc), plain.get_parameter(c_fc) / 2)
    assert torch.equal(model.wte.weight, plain.wte.weight)
    assert (model.get_parameter("ln_f.weight") == 0.25).all()
    by_name = {id(p): name for name, p in model.named_parameters()}
    terms = {
        by_name[id(p)]: (g["lr_scale"], g["weight_decay"])
        for g in mup.groups(model, 4.0, 0.1)
        for p in g["params"]
    }
    assert terms.keys() == dict(model.named_parameters()).keys()
    assert terms["h.1.attn.c_proj.weight"] == (0.25, pytest.approx(0.4))
    assert terms["h.1.attn.c_proj.bias"] == terms["h.0.ln_1.weight"] == (1.0, 0.0)
    assert terms["wte.weight"] == terms["wpe.weight"] == (1.0, 0.1)
    assert terms["ln_f.weight"] == terms["ln_f.bias"] == (0.25, 0.0)


def test_coordinate_check_passes(example: ModuleType) -> None:
    """Activations do not grow from width 64 to 512 with muP; without it they do."""
    scales = {
        on: [example.activation_scales(width, use_mup=on, base=64) for width in (64, 512)]
        for on in (False, True)
    }
    growth = {
        on: {part: wide[part] / narrow[part] for part in wide}
        for on, (narrow, wide) in scales.items()
    }
    print(growth)
    assert all(0.5 < ratio < 1.5 for ratio in growth[True].values())
    assert growth[False]["logits"] > 3
