"""Loading a model with its tokenizer, device and precision, or refusing it.

Linear layers for inference equal F.linear; int8 adds only rounding.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

from gptcli import optional_kernels
from gptcli.errors import GptError, InputError, UsageError
from gptcli.kernels import decode_kernel
from gptcli.kernels.build import library
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT, gelu
from gptcli.sampling import load as load_module
from gptcli.sampling.load import FusedMLP, Int8Linear, SmallBatchLinear, load, prepare_for_inference
from gptcli.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def run(tmp_path: Path, tokenizer: Tokenizer) -> Path:
    model = GPT(
        ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=8, vocab_size=tokenizer.vocab_size)
    )
    model.init_weights(0)
    save_model(tmp_path / "run", model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    return tmp_path / "run"


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "none")


def test_auto_precision_is_fp32_on_the_cpu(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    loaded = load(run)
    assert (loaded.device.type, loaded.precision, loaded.model.wte.weight.dtype) == (
        "cpu",
        "fp32",
        torch.float32,
    )
    assert not loaded.model.training


def test_bf16_is_loaded_on_request(run: Path) -> None:
    assert {
        parameter.dtype
        for parameter in load(run, device="cpu", precision="bf16").model.parameters()
    } == {torch.bfloat16}


def test_a_tokenizer_of_another_size_is_refused(run: Path) -> None:
    from gptcli.tokenizer.training import train_tokenizer

    train_tokenizer(["la la la"], 258).save(run / "tokenizer.json")
    with pytest.raises(InputError, match="258 tokens, but the model's vocabulary has 400"):
        load(run)


@pytest.mark.parametrize("device", ["tpu", "cuda:x", "cpu:", "cuda:99", ""])
def test_an_unavailable_device_is_refused(run: Path, device: str) -> None:
    with pytest.raises(UsageError):
        load(run, device=device)


def test_an_unknown_precision_is_refused(run: Path) -> None:
    with pytest.raises(UsageError, match="fp8"):
        load(run, precision="fp8")  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["", "config.json", "model.safetensors", "tokenizer.json"])
def test_an_incomplete_folder_is_refused(run: Path, missing: str) -> None:
    if missing:
        (run / missing).unlink()
    else:
        shutil.rmtree(run)
    with pytest.raises(GptError) as caught:
        load(run)
    assert caught.value.exit_code == 2


def test_padding_of_the_vocabulary_is_never_sampled(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Pad the vocabulary to a multiple of 64, with padding that would win every draw."""
    model = GPT(ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=8, vocab_size=448))
    model.init_weights(0)
    with torch.no_grad():
        model.wte.weight[400:] = 100.0
    save_model(tmp_path, model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = load(tmp_path, device="cpu", precision="fp32")
    idx = torch.arange(8)[None]
    assert loaded.model.config.vocab_size == tokenizer.vocab_size == 400
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(idx), model(idx)[..., :400])


@pytest.fixture(params=["kernel", "not built", "not installed"])
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run with the kernel, as on a machine that cannot build it, and without `gptcli.kernels`."""
    if request.param == "not installed":
        monkeypatch.setattr(optional_kernels, "kernels", lambda: None)
    elif request.param == "not built":
        monkeypatch.setattr(decode_kernel, "library", lambda name: None)
    elif library("decode") is None:
        pytest.skip("the kernel cannot be built here")


def installed(layer: nn.Module) -> nn.Module:
    optional_kernels.install(layer)
    return layer


@pytest.fixture(params=[(64, 80), (48, 80), (7, 13), (1, 5)])
def linear(request: pytest.FixtureRequest) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(*request.param)


def tiny(**kind: Any) -> GPT:
    model = GPT(
        ModelConfig(n_layer=2, n_head=2, d_model=32, n_ctx=24, vocab_size=50, **kind)
    ).eval()
    model.init_weights(0)
    for parameter in model.parameters():
        parameter.data += torch.empty_like(parameter).normal_(
            0.0, 0.1, generator=torch.Generator().manual_seed(parameter.numel())
        )
    return model


SHAPES = [(1,), (1, 1), (5, 1), (2, 3), (decode_kernel.MAX_ROWS[torch.float32] + 1,)]


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
@torch.inference_mode()
def test_small_batches_equal_linear(
    linear: nn.Linear, shape: tuple[int, ...], bias: bool, dtype: torch.dtype
) -> None:
    fast = installed(
        SmallBatchLinear(linear.in_features, linear.out_features, bias=bias, dtype=dtype)
    )
    x = torch.randn(*shape, linear.in_features, dtype=dtype)
    weight, bias_or_none = fast.weight, fast.bias
    assert isinstance(weight, torch.Tensor)
    assert bias_or_none is None or isinstance(bias_or_none, torch.Tensor)
    torch.testing.assert_close(fast(x), F.linear(x, weight, bias_or_none))
    torch.testing.assert_close(
        fast(x, gelu=True), gelu(fast(x)), atol=1e-5 if dtype == torch.float32 else 2e-2, rtol=1e-2
    )
    assert fast(x).is_contiguous()


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_int8_equals_the_product_of_the_rounded_weight(
    linear: nn.Linear, shape: tuple[int, ...], kernel: None
) -> None:
    """Equal to the fp64 product of the rounded weight and the exact activations, whose rounding costs
    less than 1 / 30,000.
    """
    weight = linear.weight.double()
    step = weight.abs().amax(dim=1, keepdim=True) / 127
    x = torch.randn(*shape, linear.in_features) * 3
    exact = F.linear(x.double(), (weight / step).round() * step, linear.bias.double())
    quantized = installed(Int8Linear(linear))
    error = (quantized(x).double() - exact).abs().amax(dim=-1)
    assert (error <= 1e-4 * x.abs().amax(dim=-1) * linear.in_features**0.5).all()
    torch.testing.assert_close(quantized(x, gelu=True), gelu(quantized(x)))


@pytest.mark.usefixtures("kernel")
def test_rows_are_quantized_independently(linear: nn.Linear) -> None:
    x = torch.randn(3, linear.in_features) * torch.tensor([[1.0], [1000.0], [0.0]])
    quantized = installed(Int8Linear(linear))
    torch.testing.assert_close(quantized(x)[0], quantized(x[:1])[0])


def test_tied_head_stays_tied() -> None:
    model = prepare_for_inference(tiny(tied=True))
    assert model.lm_head.weight is model.wte.weight
    assert sum(type(module) is nn.Linear for module in model.modules()) == 0


def test_int8_changes_predictions_very_little() -> None:
    plain, quantised = tiny(), prepare_for_inference(tiny(), "int8")
    idx = torch.randint(0, 50, (8, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        p, q = plain(idx).log_softmax(dim=-1), quantised(idx).log_softmax(dim=-1)
    assert float((p.exp() * (p - q)).sum(dim=-1).mean()) < 0.01  # nats


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["pre", "post"])
@torch.inference_mode()
def test_prepared_model_equals_the_model(norm: str, precision: torch.dtype) -> None:
    """Pre-norm and post-norm, with and without a document mask."""
    plain, fast = (
        tiny(norm=norm).to(precision),
        prepare_for_inference(tiny(norm=norm).to(precision)),
    )
    assert type(fast.h[0].mlp) is FusedMLP
    idx = torch.randint(0, 50, (8, 24), generator=torch.Generator().manual_seed(0))
    whole = plain(idx)
    limit = 1e-5 if precision == torch.float32 else 0.05
    torch.testing.assert_close(fast(idx), whole, atol=limit, rtol=limit)
    for model in (plain, fast):
        model.eot_id = 7
    assert not torch.allclose(plain(idx), whole, atol=limit, rtol=limit)
    torch.testing.assert_close(fast(idx), plain(idx), atol=limit, rtol=limit)


def test_unknown_quantization_is_rejected() -> None:
    with pytest.raises(UsageError, match="int4"):
        prepare_for_inference(tiny(), "int4")  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [load_module.WIDENED_ROWS, load_module.WIDENED_ROWS + 1])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("with_gelu", [True, False])
def test_many_rows_in_bf16_are_multiplied_in_fp32_where_that_is_faster(
    rows: int, has_bias: bool, with_gelu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    linear = SmallBatchLinear(96, 33, bias=has_bias, dtype=torch.bfloat16)
    x = torch.randn(rows, 96).bfloat16()
    wide = nn.Linear(96, 33, bias=has_bias)
    wide.load_state_dict({name: value.float() for name, value in linear.state_dict().items()})
    monkeypatch.setattr(load_module, "_has_slow_bf16", lambda: True)
    with torch.no_grad():
        got = linear(x, gelu=with_gelu)
        wanted = wide(x.float())
        wanted = F.gelu(wanted, approximate="tanh") if with_gelu else wanted
    assert got.dtype == torch.bfloat16
    assert torch.allclose(got.float(), wanted, rtol=1e-2, atol=1e-2)
    if rows > load_module.WIDENED_ROWS and not with_gelu:
        assert torch.equal(got, wanted.bfloat16()), "rounded once"
