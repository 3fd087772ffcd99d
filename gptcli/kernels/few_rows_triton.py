"""Products of few rows for decoding on a CUDA GPU, in Triton; weights in bf16, fp16, fp32 or int8.

Decoding is as fast as memory gives the weights. Each program computes BLOCK_N outputs of one row,
and reads their weights once; further rows find them in the GPU's cache. Sums are in fp32. Triton's
interpreter runs the kernel in the tests; it has not been run on a GPU by us.

Shapes: R rows, K inputs, N outputs.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

MAX_ROWS = 8
"""Rows for which this is faster than a matrix product, by the bytes that both read."""
BLOCK_K = 1024
"""Inputs read at a time."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
WEIGHT_DTYPES = (*DTYPES, torch.int8)
MIN_PROGRAMS = 264
"""Programs that keep a GPU busy: two for each multiprocessor of an H100."""


def few_rows_linear(
    x: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor | None,
    bias_N: torch.Tensor | None,
    gelu: bool,
) -> torch.Tensor | None:
    """Return x·Wᵀ·scale + b, then GELU if `gelu`, in the type of x: (.., K) -> (.., N).

    Return None if PyTorch should compute it: for more than MAX_ROWS rows, on other devices and
    types, with gradients, in compiled code, or without Triton.
    """
    if (
        x.device.type != "cuda"
        or x.shape[:-1].numel() > MAX_ROWS
        or x.dtype not in DTYPES
        or weight_NK.dtype not in WEIGHT_DTYPES
        or not weight_NK.is_contiguous()
        or torch.compiler.is_compiling()
        or importlib.util.find_spec("triton") is None
    ):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or weight_NK.requires_grad):
        return None
    return launch(x, weight_NK, scale_N, bias_N, gelu)[0]


def launch(
    x: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor | None,
    bias_N: torch.Tensor | None,
    gelu: bool,
) -> tuple[torch.Tensor, Any]:
    """Start the kernel for operands that it supports; return its output, and what Triton built."""
    N, K = weight_NK.shape
    x_RK = x.reshape(-1, K).contiguous()
    y_RN = x.new_empty(len(x_RK), N)
    block_n = outputs_per_program(N)
    built = kernel()[(-(-N // block_n), len(x_RK))](
        x_RK, weight_NK, scale_N, bias_N, y_RN, N, K,
        HAS_SCALE=scale_N is not None, HAS_BIAS=bias_N is not None, GELU=gelu,
        BLOCK_N=block_n, BLOCK_K=min(BLOCK_K, 1 << (K - 1).bit_length()),
    )  # fmt: skip
    return y_RN.view(*x.shape[:-1], N), built


def outputs_per_program(N: int) -> int:
    """Return the outputs that a program computes: fewer for small layers, to keep the GPU busy."""
    return next((size for size in (16, 8, 4) if N // size >= MIN_PROGRAMS), 2)


_kernel: Any = None


def kernel() -> Any:
    """Return Triton's function, which Triton compiles on first use for each set of types."""
    global _kernel
    if _kernel is not None:
        return _kernel
    import triton
    import triton.language as tl

    @triton.jit
    def few_rows(
        x_ptr: Any, weight_ptr: Any, scale_ptr: Any, bias_ptr: Any, y_ptr: Any, N: Any, K: Any,
        HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, GELU: tl.constexpr,
        BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ) -> None:  # fmt: skip
        """Compute BLOCK_N outputs of one row."""
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        row = tl.program_id(1)
        sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for start in range(0, K, BLOCK_K):
            k = start + tl.arange(0, BLOCK_K)
            x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
            at = n[:, None].to(tl.int64) * K + k[None, :]
            inside = (n[:, None] < N) & (k[None, :] < K)
            weight = tl.load(weight_ptr + at, mask=inside, other=0).to(tl.float32)
            sums += weight * x[None, :]
        y = tl.sum(sums, axis=1)
        if HAS_SCALE:
            y *= tl.load(scale_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        if HAS_BIAS:
            y += tl.load(bias_ptr + n, mask=n < N, other=0.0).to(tl.float32)
        if GELU:  # its tanh form: x·sigmoid(2u)
            y = y * tl.sigmoid(1.5957691216057308 * (y + 0.044715 * y * y * y))
        tl.store(y_ptr + row * N + n, y.to(y_ptr.dtype.element_ty), mask=n < N)

    # the compiler looks the module's names up where the function is defined
    few_rows.fn.__globals__["tl"] = tl
    _kernel = few_rows
    return _kernel
