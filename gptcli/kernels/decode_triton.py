"""Decoding on a CUDA GPU in five Triton kernels a layer, with weights in bf16, fp16, fp32 or int8.

Decoding is as fast as memory gives the weights, and as the GPU is given work. A product of few rows
reads its weights once: each program computes BLOCK_N outputs of one row, and further rows find the
weights in the GPU's cache. LayerNorm before it, and bias, GELU and residual sum after it, cost no
kernel of their own. Attention of one token stores its key and value, and reads as many slots of the
cache as are filled, whatever the length: no mask, and the same kernels for every position.

    product     LayerNorm, x·Wᵀ·scale + b, GELU, + residual
    attention   store k and v, then softmax(q·kᵀ / sqrt(D))·v over the filled slots

Sums are in fp32. Triton's interpreter runs the kernels in the tests, and tests/gpu compiles them to
machine code; they have not been run on a GPU by us.

Shapes: R rows, K inputs, N outputs, H heads, D d_head, S slots.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gptcli.kernels.build import has_triton
from gptcli.model.kv_cache import KVCache
from gptcli.model.transformer import Block, Cache, Documents, block_forward

MAX_ROWS = 8
"""Rows for which this is faster than a matrix product, by the bytes that both read."""
BLOCK_K = 1024
"""Inputs read at a time."""
BLOCK_S = 64
"""Slots of the cache read at a time."""
MIN_PROGRAMS = 264
"""Programs that keep a GPU busy: two for each multiprocessor of an H100."""
DTYPES = (torch.bfloat16, torch.float16, torch.float32)


@dataclass(frozen=True, slots=True)
class Linear:
    """Weights of a product."""

    weight: torch.Tensor
    """(N, K), contiguous."""
    scale: torch.Tensor | None
    """(N,), scales of an int8 weight."""
    bias: torch.Tensor | None
    """(N,)."""

    @classmethod
    def of(cls, module: Any) -> Linear:
        """Return the weights of a linear layer of `gptcli.sampling.load`."""
        if hasattr(module, "weight_NK"):
            return cls(module.weight_NK, module.scale_N, module.bias)
        return cls(module.weight, None, module.bias)


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
    if not _supports(x, weight_NK):
        return None
    return product(x, Linear(weight_NK, scale_N, bias_N), gelu=gelu)


def decode_block(
    block: Block,
    x_BTC: torch.Tensor,
    cache: Cache | None = None,
    documents: Documents | None = None,
) -> torch.Tensor:
    """Return the residual stream after one layer; one token a row of a cache by these kernels."""
    attn, mlp = block.attn, block.mlp
    if (
        not isinstance(cache, KVCache)
        or cache.start is not None
        or x_BTC.shape[1] != 1
        or block.post_norm
        or not _supports(x_BTC, Linear.of(attn.c_attn).weight)
    ):
        return block_forward(block, x_BTC, cache, documents)
    qkv = product(x_BTC, Linear.of(attn.c_attn), norm=block.ln_1)
    y_BTC = attention(qkv, cache, attn.layer, attn.d_head, attn.band)
    x_BTC = product(y_BTC, Linear.of(attn.c_proj), residual=x_BTC)
    hidden = product(x_BTC, Linear.of(mlp.c_fc), norm=block.ln_2, gelu=True)
    return product(hidden, Linear.of(mlp.c_proj), residual=x_BTC)


def _supports(x: torch.Tensor, weight_NK: torch.Tensor) -> bool:
    return (
        x.device.type == "cuda"
        and x.shape[:-1].numel() <= MAX_ROWS
        and x.dtype in DTYPES
        and weight_NK.dtype in (*DTYPES, torch.int8)
        and weight_NK.is_contiguous()
        and not torch.compiler.is_compiling()
        and not (torch.is_grad_enabled() and (x.requires_grad or weight_NK.requires_grad))
        and has_triton()
    )


def product(
    x: torch.Tensor,
    linear: Linear,
    *,
    norm: nn.LayerNorm | None = None,
    gelu: bool = False,
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return gelu(norm(x)·Wᵀ·scale + b) + residual in the type of x: (.., K) -> (.., N)."""
    N, K = linear.weight.shape
    x_RK = x.reshape(-1, K).contiguous()
    y_RN = x.new_empty(len(x_RK), N)
    block_n = outputs_per_program(N)
    start(
        "product", (-(-N // block_n), len(x_RK)),
        x_RK, linear.weight, linear.scale, linear.bias,
        None if norm is None else norm.weight, None if norm is None else norm.bias,
        None if residual is None else residual.reshape(-1, N), y_RN, N, K,
        0.0 if norm is None else norm.eps,
        HAS_SCALE=linear.scale is not None, HAS_BIAS=linear.bias is not None,
        HAS_NORM=norm is not None, GELU=gelu, HAS_RESIDUAL=residual is not None,
        BLOCK_N=block_n, BLOCK_K=min(BLOCK_K, 1 << (K - 1).bit_length()),
    )  # fmt: skip
    return y_RN.view(*x.shape[:-1], N)


def attention(
    qkv: torch.Tensor, cache: KVCache, layer: int, d_head: int, band: int | None
) -> torch.Tensor:
    """Store the new keys and values, and return the attention of one token a row, (R, 1, C)."""
    keys, values = cache.keys[layer], cache.values[layer]
    R, H, S, D = keys.shape
    y = qkv.new_empty(R, 1, H * D)
    start(
        "attention", (R, H), qkv.contiguous(), keys, values, cache.length_B, y, S, D,
        band or S, 1 / math.sqrt(d_head),
        BLOCK_S=BLOCK_S, BLOCK_D=1 << (D - 1).bit_length(),
    )  # fmt: skip
    return y


def outputs_per_program(N: int) -> int:
    """Return the outputs that a program computes: fewer for small layers, to keep the GPU busy."""
    return next((size for size in (16, 8, 4) if N // size >= MIN_PROGRAMS), 2)


def start(name: str, grid: tuple[int, int], *arguments: Any, **constants: Any) -> Any:
    """Start a kernel, which Triton compiles on first use for each set of types."""
    return kernels()[name][grid](*arguments, **constants)


@functools.cache
def kernels() -> dict[str, Any]:
    """Return Triton's functions by name; Triton is imported here, when a GPU decodes."""
    import triton
    import triton.language as tl

    @triton.jit
    def product_kernel(  # type: ignore[no-untyped-def]
        x_ptr, weight_ptr, scale_ptr, bias_ptr, gain_ptr, shift_ptr,
        residual_ptr, y_ptr, N, K, eps,
        HAS_SCALE: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_NORM: tl.constexpr,
        GELU: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
        BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
    ):  # fmt: skip
        """Compute BLOCK_N outputs of one row."""
        n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
        row = tl.program_id(1)
        mean = 0.0
        inverse = 1.0
        if HAS_NORM:
            total = tl.zeros((BLOCK_K,), tl.float32)
            for begin in range(0, K, BLOCK_K):
                k = begin + tl.arange(0, BLOCK_K)
                total += tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
            mean = tl.sum(total, axis=0) / K
            squares = tl.zeros((BLOCK_K,), tl.float32)
            for begin in range(0, K, BLOCK_K):
                k = begin + tl.arange(0, BLOCK_K)
                x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
                away = tl.where(k < K, x - mean, 0.0)
                squares += away * away
            inverse = 1.0 / tl.sqrt(tl.sum(squares, axis=0) / K + eps)
        sums = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
        for begin in range(0, K, BLOCK_K):
            k = begin + tl.arange(0, BLOCK_K)
            x = tl.load(x_ptr + row * K + k, mask=k < K, other=0.0).to(tl.float32)
            if HAS_NORM:
                gain = tl.load(gain_ptr + k, mask=k < K, other=0.0).to(tl.float32)
                shift = tl.load(shift_ptr + k, mask=k < K, other=0.0).to(tl.float32)
                x = (x - mean) * inverse * gain + shift
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
        if HAS_RESIDUAL:
            y += tl.load(residual_ptr + row * N + n, mask=n < N, other=0.0).to(tl.float32)
        tl.store(y_ptr + row * N + n, y.to(y_ptr.dtype.element_ty), mask=n < N)

    @triton.jit
    def attention_kernel(  # type: ignore[no-untyped-def]
        qkv_ptr, key_ptr, value_ptr, length_ptr, y_ptr,
        S, D, band, scale, BLOCK_S: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Attend with one query of one head to the filled slots and to its own key."""
        row = tl.program_id(0)
        head = tl.program_id(1)
        H = tl.num_programs(1)
        d = tl.arange(0, BLOCK_D)
        packed = qkv_ptr + (row * H + head) * 3 * D + d
        q = tl.load(packed, mask=d < D, other=0.0).to(tl.float32) * scale
        k = tl.load(packed + D, mask=d < D, other=0.0)
        v = tl.load(packed + 2 * D, mask=d < D, other=0.0)
        position = tl.load(length_ptr + row)
        base = (row * H + head).to(tl.int64) * S * D
        tl.store(key_ptr + base + position * D + d, k, mask=d < D)
        tl.store(value_ptr + base + position * D + d, v, mask=d < D)
        highest = tl.sum(q * k.to(tl.float32), axis=0)
        total = 1.0
        y = v.to(tl.float32)
        first = tl.maximum(position - band + 1, 0)
        for begin in range(first, position, BLOCK_S):
            slot = begin + tl.arange(0, BLOCK_S)
            at = base + slot[:, None] * D + d[None, :]
            inside = (slot[:, None] < position) & (d[None, :] < D)
            keys = tl.load(key_ptr + at, mask=inside, other=0.0).to(tl.float32)
            scores = tl.sum(keys * q[None, :], axis=1)
            scores = tl.where(slot < position, scores, float("-inf"))
            higher = tl.maximum(highest, tl.max(scores, axis=0))
            weights = tl.exp(scores - higher)
            kept = tl.exp(highest - higher)
            values = tl.load(value_ptr + at, mask=inside, other=0.0).to(tl.float32)
            y = y * kept + tl.sum(values * weights[:, None], axis=0)
            total = total * kept + tl.sum(weights, axis=0)
            highest = higher
        out = y_ptr + (row * H + head) * D + d
        tl.store(out, (y / total).to(y_ptr.dtype.element_ty), mask=d < D)

    made = {"product": product_kernel, "attention": attention_kernel}
    for function in made.values():  # Triton looks names up in the module
        function.fn.__globals__["tl"] = tl
    return made
