"""A layer with the training kernels, in Triton's interpreter, equals PyTorch's.

Triton reads TRITON_INTERPRET when it is imported, so the comparisons run in a process of its own:
this file as a program.
"""

from __future__ import annotations

import torch
from torch import nn

from gptcli.kernels.block_triton import fused, train_block
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import Block, block_forward
from tests.triton_interpreter import check_in_interpreter


def close(got: torch.Tensor, exact: torch.Tensor) -> None:
    assert got.shape == exact.shape
    assert (got - exact).abs().max() <= 3e-5 * exact.abs().max()


def compare_layers() -> None:
    """Whole layers: the result and every gradient as by `block_forward`."""
    for attention, d_head in (("dense", 16), ("banded", 20)):
        config = ModelConfig(
            n_layer=2, n_head=2, d_model=2 * d_head, n_ctx=45, vocab_size=11, band=20,
            attention=attention,
        )  # fmt: skip
        block = Block(config, 1)
        for parameter in block.parameters():
            nn.init.normal_(parameter, 0.0, 0.2)
        x, dy = torch.randn(2, 45, config.d_model), torch.randn(2, 45, config.d_model)
        found = {}
        for name in ("fused", "plain"):
            inputs = x.clone().requires_grad_()
            block.zero_grad()
            if name == "fused":
                y = fused(block, inputs, None, torch.float32)
            else:
                y = block_forward(block, inputs)
            y.backward(dy)
            found[name] = {
                "y": y.detach(), "x": inputs.grad,
                **{key: value.grad for key, value in block.named_parameters()},
            }  # fmt: skip
        for key, exact in found["plain"].items():
            got = found["fused"][key]
            assert got is not None
            assert exact is not None
            close(got, exact)


def test_a_layer_equals_pytorch() -> None:
    check_in_interpreter("tests.kernels.test_block_triton")


def test_a_cpu_takes_pytorch() -> None:
    config = ModelConfig(n_layer=1, n_head=2, d_model=8, n_ctx=5, vocab_size=11)
    block, x = Block(config, 0), torch.randn(1, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert train_block(block, x).equal(block_forward(block, x))


if __name__ == "__main__":
    torch.manual_seed(0)
    compare_layers()
    print("equal")
