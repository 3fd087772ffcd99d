"""Products from the left are F.linear; int8 is the weight rounded to its steps, and no more."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT, gelu
from gptcli.sampling.linear import FEW, FewRows, FusedBlock, Int8, Packed, read_in_place


@pytest.fixture(params=[(48, 80), (7, 13), (1, 5)])
def linear(request: pytest.FixtureRequest) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(*request.param)


def tiny(**kind: Any) -> GPT:
    model = GPT(ModelConfig(n_layer=2, n_head=2, d_model=32, n_ctx=24, vocab_size=50, **kind)).eval()
    model.init_weights(0)
    for parameter in model.parameters():
        parameter.data += torch.empty_like(parameter).normal_(0.0, 0.1, generator=torch.Generator().manual_seed(parameter.numel()))
    return model


BF16 = pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this machine has no bf16 products")
SHAPES = [(1,), (1, 1), (5, 1), (2, 3), (FEW + 1,)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_few_rows_are_linear(linear: nn.Linear, shape: tuple[int, ...], bias: bool) -> None:
    fast = FewRows(linear.in_features, linear.out_features, bias=bias)
    x = torch.randn(*shape, linear.in_features)
    torch.testing.assert_close(fast(x), F.linear(x, fast.weight, fast.bias))
    assert fast(x).is_contiguous()


@BF16
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_a_packed_weight_is_linear(linear: nn.Linear, shape: tuple[int, ...], bias: bool) -> None:
    plain = nn.Linear(linear.in_features, linear.out_features, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(*shape, linear.in_features, dtype=torch.bfloat16)
    torch.testing.assert_close(Packed(plain)(x), plain(x))


@pytest.mark.parametrize("onednn", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_int8_is_the_rounded_weight(linear: nn.Linear, shape: tuple[int, ...], onednn: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the product in fp64 of the rounded weight with the activations as they are: what is lost of those is below 1 / 30,000."""
    if onednn and not torch.backends.mkldnn.is_available():
        pytest.skip("this machine has no oneDNN")
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn)
    weight = linear.weight.double()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    x = torch.randn(*shape, linear.in_features) * 3
    exact = F.linear(x.double(), (weight / step).round() * step, linear.bias.double())
    error = (Int8(linear)(x).double() - exact).abs().amax(dim=-1)
    assert (error <= 1e-4 * x.abs().amax(dim=-1) * linear.in_features**0.5).all()


def test_a_row_does_not_depend_on_those_beside_it(linear: nn.Linear) -> None:
    x = torch.randn(3, linear.in_features) * torch.tensor([[1.0], [1000.0], [0.0]])
    torch.testing.assert_close(Int8(linear)(x)[0], Int8(linear)(x[:1])[0])


def test_a_tied_head_stays_tied() -> None:
    model = read_in_place(tiny(tied=True))
    assert model.lm_head.weight is model.wte.weight
    assert sum(type(module) is nn.Linear for module in model.modules()) == 0


def test_int8_hardly_moves_a_model() -> None:
    plain, quantised = tiny(), read_in_place(tiny(), "int8")
    idx = torch.randint(0, 50, (8, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        p, q = plain(idx).log_softmax(dim=-1), quantised(idx).log_softmax(dim=-1)
    assert float((p.exp() * (p - q)).sum(dim=-1).mean()) < 0.01  # nats


@pytest.mark.parametrize("form", ["fp32", pytest.param("bf16", marks=BF16), "int8"])
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_what_follows_a_product(linear: nn.Linear, shape: tuple[int, ...], form: str) -> None:
    """GELU and the sum are those of the product that is returned without them, and what is added stays as it was."""
    fast: nn.Module
    if form == "fp32":
        fast = FewRows(linear.in_features, linear.out_features)
    else:
        fast = Packed(linear.bfloat16()) if form == "bf16" else Int8(linear)
    kind = torch.bfloat16 if form == "bf16" else torch.float32
    x, onto = torch.randn(*shape, linear.in_features, dtype=kind), torch.randn(*shape, linear.out_features, dtype=kind)
    kept = onto.clone()
    torch.testing.assert_close(fast(x, gelu=True), gelu(fast(x)))
    torch.testing.assert_close(fast(x, onto=onto), onto + fast(x), atol=1e-5 if form != "bf16" else 2e-2, rtol=1e-2)
    assert torch.equal(onto, kept)


@pytest.mark.parametrize("precision", [torch.float32, pytest.param(torch.bfloat16, marks=BF16)])
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.inference_mode()
def test_a_model_read_in_place_is_the_model(norm: str, precision: torch.dtype) -> None:
    """Blocks before and after the change, both places of the normalisation, with documents apart and without."""
    plain, fast = tiny(norm=norm).to(precision), read_in_place(tiny(norm=norm).to(precision))
    assert type(fast.h[0]) is FusedBlock
    idx = torch.randint(0, 50, (8, 24), generator=torch.Generator().manual_seed(0))
    whole = plain(idx)
    limit = 1e-5 if precision == torch.float32 else 0.05
    torch.testing.assert_close(fast(idx), whole, atol=limit, rtol=limit)
    for model in (plain, fast):
        model.eot_id = 7
    assert not torch.allclose(plain(idx), whole, atol=limit, rtol=limit)
    torch.testing.assert_close(fast(idx), plain(idx), atol=limit, rtol=limit)


def test_an_unknown_form() -> None:
    with pytest.raises(UsageError, match="int4"):
        read_in_place(tiny(), "int4")
