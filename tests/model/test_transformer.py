"""The transformer: initialization, muP, and the logits of a stored trained model."""

from __future__ import annotations

import base64
import importlib.util
import itertools
import json
import math
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from gptcli.model import transformer
from gptcli.model.config import ModelConfig
from gptcli.model.hf import qkv_rows_from_hf
from gptcli.model.transformer import GPT, Block, draw_normal_, gelu, mup_groups, mup_rescale


def test_initialization_is_that_of_gpt2() -> None:
    config = ModelConfig(n_layer=8, n_head=4, d_model=256, n_ctx=512, vocab_size=2000)
    model = GPT(config)
    model.init_weights(3)
    residual = 0.02 / math.sqrt(2 * config.n_layer)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif parameter.dim() == 1:
            assert (parameter == 1).all(), name
        else:
            std = (
                0.01
                if name == "wpe.weight"
                else residual
                if name.endswith("c_proj.weight")
                else 0.02
            )
            assert parameter.std().item() == pytest.approx(std, rel=0.02), name
            assert abs(parameter.mean().item()) < 6 * std / math.sqrt(parameter.numel()), name


def test_a_part_of_a_tensor_is_drawn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the values that it has in the whole, and at most two more groups of rows are drawn."""
    monkeypatch.setattr(transformer, "DRAWN_TOGETHER", 24)
    monkeypatch.setattr(transformer, "DRAWN_WHOLE", 0)
    whole = torch.zeros(50, 7)
    draw_normal_(whole, (0, 0), whole.shape, 1.0, "key")
    assert whole.std() == pytest.approx(1.0, rel=0.1)
    assert len(whole.unique()) == whole.numel(), "every group has a generator of its own"
    drawn, empty = [], torch.empty

    def counted(rows: int, columns: int) -> torch.Tensor:
        drawn.append(rows)
        return empty(rows, columns)

    monkeypatch.setattr(torch, "empty", counted)
    for row, rows, column, columns in ((0, 50, 2, 3), (5, 1, 0, 7), (47, 3, 0, 7), (13, 0, 0, 7)):
        drawn.clear()
        part = torch.zeros(rows, columns)
        draw_normal_(part, (row, column), whole.shape, 1.0, "key")
        assert part.equal(whole[row : row + rows, column : column + columns])
        assert sum(drawn) <= (rows + 4 if rows else 0)


def test_initialization_depends_on_the_seed_only() -> None:
    config = ModelConfig(n_layer=2, n_head=2, d_model=16, n_ctx=8, vocab_size=11)
    one, same, other = GPT(config), GPT(config), GPT(config)
    torch.manual_seed(1)
    one.init_weights(5)
    torch.manual_seed(2)
    same.init_weights(5)
    other.init_weights(6)
    first, second = "h.0.mlp.c_fc.weight", "h.1.mlp.c_fc.weight"
    assert torch.equal(one.get_parameter(second), same.get_parameter(second))
    assert not torch.equal(one.get_parameter(second), other.get_parameter(second))
    assert not torch.equal(one.get_parameter(first), one.get_parameter(second))


def test_gelu_is_the_same_function_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.linspace(-12, 12, 4001, dtype=torch.float32, requires_grad=True)
    by_hand = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    (wanted,) = torch.autograd.grad(by_hand.sum(), x)
    for compiling in (False, True):
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda compiling=compiling: compiling)
        torch.testing.assert_close(gelu(x), by_hand, atol=2e-6, rtol=1e-5)
        torch.testing.assert_close(
            torch.autograd.grad(gelu(x).sum(), x)[0], wanted, atol=2e-6, rtol=1e-5
        )


def test_tied_head_is_one_tensor() -> None:
    model = GPT(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=4, vocab_size=5))
    assert model.lm_head.weight is model.wte.weight


def tensor(entry: dict[str, Any]) -> torch.Tensor:
    raw = bytearray(base64.b64decode(str(entry["data"])))
    return torch.frombuffer(
        raw, dtype=torch.float32 if "float" in str(entry["dtype"]) else torch.int64
    ).reshape(entry["shape"])


@pytest.fixture(scope="module")
def nano_sort(real_data: Path) -> tuple[GPT, dict[str, dict[str, object]]]:
    """Return the trained sorter (minGPT's names, [out, in], untied head) and its results."""
    folder = real_data / "checkpoints" / "gpt-nano-sort"
    stored = json.loads((folder / "gpt-nano-sort-model.json").read_text())
    partials = json.loads((folder / "gpt-nano-sort-t0-partials.json").read_text())
    config = ModelConfig(n_layer=3, n_head=3, d_model=48, n_ctx=11, vocab_size=3, tied=False)
    model = GPT(config).eval()
    weights = {
        name.removeprefix("transformer."): tensor(entry)
        for name, entry in stored.items()
        if name.endswith(("weight", "bias"))
    }
    model.load_state_dict(
        {
            name: qkv_rows_from_hf(name, weight, config)
            for name, weight in weights.items()
            if not name.endswith(".attn.bias")
        }
    )
    return model, partials


@pytest.mark.real_data
def test_logits_equal_the_stored_ones(nano_sort: tuple[GPT, dict[str, dict[str, object]]]) -> None:
    model, partials = nano_sort
    with torch.no_grad():
        logits = model(tensor(partials["idx"]).long())
    assert (logits - tensor(partials["lm_head"])).abs().max().item() < 1e-5


@pytest.mark.real_data
def test_trained_sorter_sorts_all_729_inputs(
    nano_sort: tuple[GPT, dict[str, dict[str, object]]],
) -> None:
    model, _ = nano_sort
    digits = torch.tensor(list(itertools.product(range(3), repeat=6)))
    idx = digits
    with torch.no_grad():
        for _ in range(6):
            idx = torch.cat([idx, model(idx)[:, -1].argmax(-1, keepdim=True)], dim=1)
    assert (idx[:, 6:] == digits.sort(dim=1).values).all(1).sum().item() == 729


def test_attention_does_not_cross_documents() -> None:
    """End-of-text (0) starts a document. The text before it affects nothing after it, but does
    determine the loss on end-of-text itself.
    """
    model = GPT(
        ModelConfig(
            n_layer=2, n_head=2, d_model=8, n_ctx=12, vocab_size=20, attention="banded", band=3
        )
    )
    model.init_weights(0)
    first, other = (
        torch.tensor([[5, 6, 7, 0, 8, 9, 3, 0, 4, 4, 2, 1]]),
        torch.tensor([[9, 2, 1, 0, 8, 9, 3, 0, 4, 4, 2, 1]]),
    )
    assert not torch.allclose(model(first)[:, 3:], model(other)[:, 3:])
    model.eot_id = 0
    torch.testing.assert_close(model(first)[:, 3:], model(other)[:, 3:], atol=0, rtol=0)
    assert not torch.allclose(model(first)[:, :3], model(other)[:, :3])
    target = torch.full_like(first, -100)
    target[0, 2] = 0  # kept: the end of a document is learnt from the document
    gradient = torch.autograd.grad(model(first, target), model.wte.weight)[0]
    assert gradient.abs().sum() > 0


def test_initialization_is_that_of_gpt1() -> None:
    model = GPT(
        ModelConfig(n_layer=2, n_head=2, d_model=256, n_ctx=256, vocab_size=500, norm="post")
    )
    model.init_weights(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            assert parameter.std().item() == pytest.approx(0.02, rel=0.02), name


def test_gpt1_block_equals_the_written_out_computation() -> None:
    """Post-norm: n = LN(x + attn(x)), h = LN(n + mlp(n)), and no norm after the last layer."""
    model = GPT(
        ModelConfig(n_layer=1, n_head=2, d_model=128, n_ctx=40, vocab_size=301, norm="post")
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, 0.1, 0.1, generator=generator)
    block = model.h[0]
    assert isinstance(block, Block)
    x = torch.randn(1, 5, 128, generator=generator)
    n = torch.nn.functional.layer_norm(
        x + block.attn(x), (128,), block.ln_1.weight, block.ln_1.bias, 1e-5
    )
    h = torch.nn.functional.layer_norm(
        n + block.mlp(n), (128,), block.ln_2.weight, block.ln_2.bias, 1e-5
    )
    torch.testing.assert_close(block(x), h)
    assert not list(model.ln_f.parameters())


MUP_CONFIG = ModelConfig(n_layer=2, n_head=2, d_model=64, n_ctx=16, vocab_size=50)


@pytest.fixture(scope="module")
def coordinate_check() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "mup" / "coordinate_check.py"
    spec = importlib.util.spec_from_file_location("coordinate_check", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mup_at_the_base_width_nothing_changes() -> None:
    model, plain = GPT(MUP_CONFIG), GPT(MUP_CONFIG)
    model.init_weights(0)
    plain.init_weights(0)
    mup_rescale(model, 1.0)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name
    assert {group["lr_scale"] for group in mup_groups(model, 1.0, 0.1)} == {1.0}


def test_mup_of_a_wider_model_has_smaller_initialization_and_learning_rate() -> None:
    model, plain = GPT(MUP_CONFIG), GPT(MUP_CONFIG)
    model.init_weights(0)
    plain.init_weights(0)
    mup_rescale(model, 4.0)
    c_fc = "h.0.mlp.c_fc.weight"
    torch.testing.assert_close(model.get_parameter(c_fc), plain.get_parameter(c_fc) / 2)
    assert torch.equal(model.wte.weight, plain.wte.weight)
    assert (model.get_parameter("ln_f.weight") == 0.25).all()
    by_name = {id(p): name for name, p in model.named_parameters()}
    terms = {
        by_name[id(p)]: (g["lr_scale"], g["weight_decay"])
        for g in mup_groups(model, 4.0, 0.1)
        for p in g["params"]
    }
    assert terms.keys() == dict(model.named_parameters()).keys()
    assert terms["h.1.attn.c_proj.weight"] == (0.25, pytest.approx(0.4))
    assert terms["h.1.attn.c_proj.bias"] == terms["h.0.ln_1.weight"] == (1.0, 0.0)
    assert terms["wte.weight"] == terms["wpe.weight"] == (1.0, 0.1)
    assert terms["ln_f.weight"] == terms["ln_f.bias"] == (0.25, 0.0)


def test_coordinate_check_passes(coordinate_check: ModuleType) -> None:
    """Activations do not grow from width 64 to 512 with muP; without it they do."""
    scales = {
        on: [coordinate_check.activation_scales(width, use_mup=on, base=64) for width in (64, 512)]
        for on in (False, True)
    }
    growth = {
        on: {part: wide[part] / narrow[part] for part in wide}
        for on, (narrow, wide) in scales.items()
    }
    print(growth)
    assert all(0.5 < ratio < 1.5 for ratio in growth[True].values())
    assert growth[False]["logits"] > 3
