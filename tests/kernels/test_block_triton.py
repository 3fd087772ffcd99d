"""Layers with the training kernels, in Triton's interpreter, equal PyTorch's.

Triton reads TRITON_INTERPRET when it is imported, so the comparisons run in a process of its own:
this file as a program.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from gptcli.kernels import block_triton
from gptcli.kernels.block_triton import added, final_norm, hand_on, train_block
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT, Block, block_forward
from tests.triton_interpreter import check_errors, check_in_interpreter


def close(got: torch.Tensor, exact: torch.Tensor, most: float = 3e-5) -> None:
    assert got.shape == exact.shape
    assert (got - exact).abs().max() <= most * exact.abs().max()


def compare_models() -> None:
    """Two layers and the last LayerNorm: the result and every gradient as in plain PyTorch.

    With all three sums left to the next LayerNorm, with those of layers added, and with the second
    layer's added, as by a layer that the kernels do not support.
    """
    places: list[list[Callable[..., object]]] = [
        [hand_on, hand_on], [train_block, train_block], [hand_on, block_triton_or_pytorch],
    ]  # fmt: skip
    for attention, d_head, some in (("dense", 8, places), ("banded", 12, places[:1])):
        config = ModelConfig(
            n_layer=2, n_head=2, d_model=2 * d_head, n_ctx=13, vocab_size=11, band=6,
            attention=attention,
        )  # fmt: skip
        model = GPT(config)
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.0, 0.2)
        idx, dy = torch.randint(0, 11, (2, 13)), torch.randn(2, 13, config.d_model)

        def gradients(model: GPT = model, idx: torch.Tensor = idx, dy: torch.Tensor = dy) -> list:
            model.zero_grad()
            y = model.hidden(idx)
            y.backward(dy)
            found = [parameter.grad for parameter in model.parameters()]
            return [y.detach(), *(grad.clone() for grad in found if grad is not None)]

        exact = gradients()
        assert len(exact) == 1 + len(list(model.parameters()))
        for functions in some:
            for block, function in zip(cast(list[Block], model.h), functions, strict=True):
                setattr(block, "block_fn", function)  # noqa: B010  its type is that of tensors
            setattr(model, "norm_fn", final_norm)  # noqa: B010
            for got, value in zip(gradients(), exact, strict=True):
                close(got, value)


def compare_with_pytorch() -> None:
    """Errors of a layer and its gradients in fp16, next to those of PyTorch's autocast."""
    config = ModelConfig(n_layer=1, n_head=3, d_model=33, n_ctx=13, vocab_size=11)
    block = Block(config, 0)
    x, dy = torch.randn(2, 13, 33), torch.randn(2, 13, 33)

    def gradients(kind: torch.dtype, *, fused: bool) -> list[torch.Tensor]:
        block.to(kind).zero_grad()
        leaf = x.to(kind, copy=True).requires_grad_()
        if fused:
            y = added(block_triton.fused(block, leaf, None, torch.float16))
        else:
            with torch.autocast("cpu", torch.float16, enabled=kind == torch.float32):
                y = block_forward(block, leaf)
        y.backward(dy.to(kind))
        grads = [leaf.grad, *(parameter.grad for parameter in block.parameters())]
        return [y.detach(), *(grad.clone() for grad in grads if grad is not None)]

    exact = torch.cat([part.flatten() for part in gradients(torch.float64, fused=False)])
    got, plain = (
        torch.cat([part.flatten() for part in gradients(torch.float32, fused=fused)])
        for fused in (True, False)
    )
    check_errors("a layer", [got], [plain], [exact])


def block_triton_or_pytorch(block: Block, x_BTC: object, *rest: object) -> torch.Tensor:
    """Run a layer as `hand_on` does if the kernels do not support it."""
    return block_forward(block, added(x_BTC), *rest)  # type: ignore[arg-type]


def test_layers_equal_pytorch() -> None:
    check_in_interpreter("tests.kernels.test_block_triton")


def test_a_cpu_takes_pytorch() -> None:
    config = ModelConfig(n_layer=1, n_head=2, d_model=8, n_ctx=5, vocab_size=11)
    model, x = GPT(config), torch.randn(1, 5, 8)
    block = cast(list[Block], model.h)[0]
    with torch.autocast("cpu", torch.bfloat16):
        assert train_block(block, x).equal(block_forward(block, x))
        y = hand_on(block, x)
        assert isinstance(y, torch.Tensor)
        assert isinstance(model.ln_f, nn.LayerNorm)
        assert final_norm(model.ln_f, y).equal(model.ln_f(y))


if __name__ == "__main__":
    torch.manual_seed(0)
    block_triton.supports = lambda *_: True
    torch.set_autocast_dtype("cuda", torch.float32)
    compare_models()
    compare_with_pytorch()
    print("equal")
