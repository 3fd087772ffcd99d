"""The kernels in Triton's interpreter equal PyTorch's fp32, and PyTorch computes everything else.

Triton reads TRITON_INTERPRET when it is imported, so the comparisons run in a process of its own:
this file as a program.
"""

from __future__ import annotations

import itertools
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gptcli.kernels import decode_triton
from gptcli.kernels.decode_triton import (
    Linear,
    decode_block,
    few_rows_linear,
    outputs_per_program,
    product,
)
from gptcli.model.config import ModelConfig
from gptcli.model.kv_cache import KVCache
from gptcli.model.transformer import GPT, Block, block_forward
from gptcli.sampling.load import prepare_for_inference
from tests.triton_interpreter import check_errors, check_in_interpreter

SHAPES = [(1, 64, 10), (3, 33, 7), (2, 1100, 5)]
ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
"""Of a result; the interpreter rounds bf16 towards zero."""


def close(got: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype) -> None:
    assert got.dtype == dtype
    assert (got - exact).abs().max() <= ROUNDING[dtype] * exact.abs().max()


def compare_products() -> None:
    """Compare products with fp64, in combinations of their parts, at odd shapes."""
    for (R, K, N), dtype in itertools.product(SHAPES, ROUNDING):
        parts = list(itertools.product((False, True), repeat=4))
        # every combination at one shape; the others, and bf16, take nothing and everything
        is_first = (R, dtype) == (3, torch.float32)
        for int8, gelu, has_bias, has_norm in parts if is_first else (parts[0], parts[-1]):
            x, bias, residual = torch.randn(R, 1, K).to(dtype), torch.randn(N), torch.randn(R, 1, N)
            weight, scale = torch.randn(N, K).to(dtype), None
            if int8:
                weight = torch.randint(-127, 128, (N, K), dtype=torch.int8)
                scale = torch.rand(N) / 99
            norm = nn.LayerNorm(K).requires_grad_(False)
            norm.weight.normal_()
            norm.bias.normal_()
            linear = Linear(weight, scale, bias if has_bias else None)
            got = product(
                x, linear, gelu=gelu, norm=norm if has_norm else None,
                residual=residual.to(dtype) if has_norm else None,
            )  # fmt: skip
            exact = norm.double()(x.double()) if has_norm else x.double()
            exact = exact @ weight.double().T * (1.0 if scale is None else scale.double())
            exact = exact + bias if has_bias else exact
            exact = F.gelu(exact, approximate="tanh") if gelu else exact
            close(got, exact + residual.to(dtype) if has_norm else exact, dtype)


def compare_layers() -> None:
    """Layers of models, dense and banded, at unequal lengths and odd head sizes, against PyTorch's,
    with the cache that both leave.
    """
    decode_triton._supports = lambda *_: True
    for d_head, quantize in ((16, "none"), (20, "int8")):
        config = ModelConfig(
            n_layer=2, n_head=2, d_model=2 * d_head, n_ctx=150, vocab_size=11, attention="banded",
            band=40,
        )  # fmt: skip
        model = GPT(config).eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter, 0.0, 0.2)
        model = prepare_for_inference(model, quantize)  # type: ignore[arg-type]
        for lengths in ([0, 149], [63, 64]) if quantize == "none" else ([41, 7],):
            caches = [KVCache(config, 2, torch.device("cpu"), torch.float32) for _ in range(2)]
            for layer in range(2):
                for of in ("keys", "values"):
                    stored = torch.randn_like(getattr(caches[0], of)[layer])
                    for cache in caches:
                        getattr(cache, of)[layer].copy_(stored)
            x = torch.randn(2, 1, config.d_model)
            for cache in caches:
                cache.set_positions(lengths, 1, 150)
            for layer, block in enumerate(cast(list[Block], model.h)):
                exact = block_forward(block, x, caches[0])
                close(decode_block(block, x, caches[1]), exact, torch.float32)
                for of in ("keys", "values"):
                    torch.testing.assert_close(*(getattr(cache, of)[layer] for cache in caches))
                x = exact


def compare_with_pytorch() -> None:
    """Errors of a product with all its parts, and of a layer, in fp16, next to PyTorch's own."""
    dtype = torch.float16
    for R, K, N in SHAPES:
        x, weight, bias = torch.randn(R, 1, K), torch.randn(N, K) / K**0.5, torch.randn(N)
        x, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
        got = product(x, Linear(weight, None, bias), gelu=True)
        plain, exact = (
            F.gelu(F.linear(x.to(kind), weight.to(kind), bias.to(kind)), approximate="tanh")
            for kind in (dtype, torch.float64)
        )
        check_errors("decoding's product", [got], [plain], [exact])
    config = ModelConfig(n_layer=1, n_head=3, d_model=60, n_ctx=90, vocab_size=11)
    block, x = Block(config, 0).eval(), torch.randn(2, 1, 60)
    stored = torch.randn(2, 2, 3, 90, 20)
    results = []
    for kind, function in (
        (dtype, decode_block), (dtype, block_forward), (torch.float64, block_forward)
    ):  # fmt: skip
        cache = KVCache(config, 2, torch.device("cpu"), kind)
        for of, values in zip(("keys", "values"), stored, strict=True):
            getattr(cache, of)[0].copy_(values.to(dtype)[:, :, : getattr(cache, of)[0].shape[2]])
        cache.set_positions([70, 33], 1, 90)
        block.half().to(kind)
        results.append(function(block, x.half().to(kind), cache))
    check_errors("decoding's layer", *([result] for result in results))


def test_kernels_equal_pytorch() -> None:
    check_in_interpreter("tests.kernels.test_decode_triton")


def test_other_operands_go_to_pytorch() -> None:
    """Off the GPU there is no kernel, whatever the operands."""
    assert few_rows_linear(torch.ones(1, 8), torch.ones(4, 8), None, None, False) is None


@pytest.mark.parametrize("N", [1, 7, 768, 2304, 3072, 50_257])
def test_small_layers_have_enough_programs(N: int) -> None:
    size = outputs_per_program(N)
    assert size & (size - 1) == 0
    assert size == 2 or N // size >= decode_triton.MIN_PROGRAMS


if __name__ == "__main__":
    torch.manual_seed(0)
    with torch.inference_mode():
        compare_products()  # of two outputs a program; a layer's are of 8 and 16, far fewer programs
        decode_triton.MIN_PROGRAMS = 4
        compare_layers()
        compare_with_pytorch()
    print("equal")
