"""A whole layer as one node of autograd, beside PyTorch and beside the operators of the compiled
layer, whose numbers it has to the last bit.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptcli import kernels
from gptcli.kernels import layer_kernel, norm_kernel
from gptcli.kernels.layer_kernel import train_layer
from gptcli.kernels.norm_kernel import fused_block
from gptcli.model import config as model_config
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT, Block, document_ids
from gptcli.trainer.parallelize import apply_ac_and_compile, fuses_layers, install_kernels
from tests.kernels.test_norm_kernel import losses_and_gradients

pytestmark = pytest.mark.skipif(not norm_kernel.available(), reason="no kernels here")

SHAPES = [(2, 16, 48, 2), (3, 7, 60, 3), (1, 70, 128, 4)]


def block_of(
    T: int, C: int, H: int, dropout: float = 0.0, norm: model_config.Norm = "pre"
) -> Block:
    torch.manual_seed(0)
    return Block(
        ModelConfig(
            n_layer=2, n_head=H, d_model=C, n_ctx=T, vocab_size=57, dropout=dropout, norm=norm
        ),
        1,
    )


def results(block: Block, x: torch.Tensor, dy: torch.Tensor) -> list[torch.Tensor]:
    """Output and all gradients in bf16."""
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = block(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *block.parameters()], dy)]


@pytest.mark.parametrize(("B", "T", "C", "H"), SHAPES)
def test_layer_equals_torch_and_the_compiled_operators(B: int, T: int, C: int, H: int) -> None:
    block, x, dy = block_of(T, C, H), torch.randn(B, T, C), torch.randn(B, T, C)
    plain = results(block, x, dy)
    kernels.install(block, fuse_blocks=True)
    assert block.block_fn is train_layer
    got = results(block, x, dy)
    for one, wanted in zip(got, plain, strict=True):
        assert one.dtype == wanted.dtype == torch.float32
        assert (one - wanted).norm() <= 2e-2 * wanted.norm()
    block.__dict__["block_fn"] = fused_block
    assert all(map(torch.equal, got, results(block, x, dy)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(train_layer(block, x), got[0])


def test_memory_layout_of_input_and_gradient_has_no_effect() -> None:
    block, x, dy = block_of(16, 48, 2), torch.randn(2, 16, 48), torch.randn(2, 16, 48)
    kernels.install(block, fuse_blocks=True)
    apart = [torch.empty(48, 16, 2).permute(2, 1, 0).copy_(tensor) for tensor in (x, dy)]
    assert all(map(torch.equal, results(block, x, dy), results(block, *apart)))
    broadcast = torch.ones(1).expand(2, 16, 48)
    assert all(
        map(
            torch.equal,
            results(block, x, broadcast),
            results(block, x, broadcast.contiguous()),
        )
    )


@pytest.mark.parametrize("case", ["fp32", "dropout", "post-norm", "documents"])
def test_what_the_layer_does_not_support_is_left_to_torch(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def layer(*of: object) -> None:
        raise AssertionError("not supported")

    monkeypatch.setattr(layer_kernel, "layer", layer)
    dropout = 0.5 if case == "dropout" else 0.0
    block = block_of(16, 48, 2, dropout, "post" if case == "post-norm" else "pre")
    documents = document_ids(torch.tensor([[0, 1] * 8]), 0) if case == "documents" else None
    x = torch.randn(1, 16, 48)

    def run() -> torch.Tensor:
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=case != "fp32"):
            return block(x, None, documents)

    wanted = run()
    kernels.install(block, fuse_blocks=True)
    assert (run() - wanted).norm() <= 1e-2 * wanted.norm()


@pytest.mark.parametrize(("recompute", "layers"), [("none", 3), ("full", 6), ("selective", 0)])
def test_uncompiled_training_computes_layers_by_the_kernels(
    recompute: str, layers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Block] = []

    def counted(block: Block, x_BTC: torch.Tensor) -> torch.Tensor:
        calls.append(block)
        return layer(block, x_BTC)

    layer = layer_kernel.layer
    monkeypatch.setattr(layer_kernel, "layer", counted)
    model = GPT(ModelConfig(n_layer=3, n_head=2, d_model=48, n_ctx=16, vocab_size=57))
    model.init_weights(0)
    plain = losses_and_gradients(model)
    settings: Any = SimpleNamespace(
        compile=False, recompute=recompute, precision="bf16", document_mask=False
    )
    apply_ac_and_compile(model, settings, None)
    install_kernels(model, settings, None)
    assert fuses_layers(model, settings) == (layers > 0), "known before the first step"
    got = losses_and_gradients(model)
    assert len(calls) == layers
    for one, wanted in zip(got, plain, strict=True):
        assert (one - wanted).norm() <= 3e-2 * wanted.norm() + 1e-6
    assert all(map(torch.equal, got, losses_and_gradients(model))), "the same bits each time"


@pytest.mark.parametrize("model", [{"dropout": 0.1}, {"norm": "post"}, {"gelu": "exact"}])
def test_layers_that_pytorch_computes_are_not_said_to_be_of_kernels(model: dict[str, Any]) -> None:
    assert not _is_fused(model, {})


@pytest.mark.parametrize("run", [{"precision": "fp32"}, {"compile": True}, {"document_mask": True}])
def test_runs_in_which_pytorch_computes_the_layers(run: dict[str, Any]) -> None:
    assert _is_fused({}, {})
    assert not _is_fused({}, run)


def _is_fused(changed: dict[str, Any], run: dict[str, Any]) -> bool:
    shape: dict[str, Any] = {"n_layer": 1, "n_head": 2, "d_model": 48, "n_ctx": 16}
    model = GPT(ModelConfig(**shape, vocab_size=57, **changed))
    kernels.install(model, fuse_blocks=True)
    settings = {"precision": "bf16", "compile": False, "document_mask": False, **run}
    made: Any = SimpleNamespace(**settings)
    return fuses_layers(model, made)
