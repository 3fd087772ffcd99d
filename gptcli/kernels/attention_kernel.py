"""Causal attention over packed q, k and v by `attention.c`: bf16 and fp32, CPUs.

The kernel reads q, k and v in the layout that one projection writes, writes the outputs of the
heads in the layout that the next projection reads, and the gradients of q, k and v into one tensor.
To the compiler, each pass is a single operator.

Shapes: B batch, T positions, H heads, D d_head.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

from gptcli.kernels.build import library
from gptcli.model import attention

POINTER, LONG, INT = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
SOURCES = {torch.bfloat16: "attention", torch.float32: "attention_fp32"}
ALIGNMENT_BYTES = 64
"""Alignment of the scratch memory: one cache line per row of a tile."""


def attention_packed(
    qkv_BTH3D: torch.Tensor, *, band: int | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """Return causal self-attention as `gptcli.model.attention.attention_packed` does."""
    if dropout or not supports(qkv_BTH3D):
        return attention.attention_packed(qkv_BTH3D, band=band, dropout=dropout)
    has_gradient = torch.is_grad_enabled() and qkv_BTH3D.requires_grad
    # PyTorch imports its compiler at the first call of an operator of ours: seconds for a sample
    forward = packed_attend if has_gradient or torch.compiler.is_compiling() else run_forward
    return forward(qkv_BTH3D, band or qkv_BTH3D.shape[1])[0]


def supports(qkv_BTH3D: torch.Tensor) -> bool:
    """Return whether the kernel can run on this tensor, on this machine."""
    return (
        qkv_BTH3D.device.type == "cpu" and qkv_BTH3D.dtype in SOURCES and available(qkv_BTH3D.dtype)
    )


def available(dtype: torch.dtype = torch.bfloat16) -> bool:
    """Return whether the kernel for a dtype can be built and run here."""
    return _kernel(dtype) is not None


@functools.cache
def _kernel(dtype: torch.dtype) -> ctypes.CDLL | None:
    kernel = library(SOURCES[dtype])
    if kernel is None or not kernel.ready():
        return None
    shape = (LONG, LONG, LONG, LONG, LONG, INT, POINTER)  # B, T, H, D, band, threads, scratch
    kernel.attention_forward.argtypes = (POINTER,) * 3 + shape
    kernel.attention_backward.argtypes = (POINTER,) * 5 + shape
    kernel.attention_scratch.argtypes, kernel.attention_scratch.restype = (LONG, LONG), LONG
    return kernel


@torch.library.custom_op("gptcli::packed_attend", mutates_args=(), device_types="cpu")
def packed_attend(qkv_BTH3D: torch.Tensor, band: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return softmax(q·kᵀ / sqrt(D))·v as (B, T, H, D); position t sees t - band + 1 to t.

    The second result, for the backward pass, is (B, H, T) fp32: log2 of each query's sum of
    exponentials.
    """
    return run_forward(qkv_BTH3D, band)


def run_forward(qkv_BTH3D: torch.Tensor, band: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the results of `packed_attend` without a graph for gradients."""
    qkv_BTH3D = qkv_BTH3D.contiguous()
    y_BTHD, log_sum_BHT = _outputs(qkv_BTH3D)
    _run("attention_forward", qkv_BTH3D, band, qkv_BTH3D, y_BTHD, log_sum_BHT)
    return y_BTHD, log_sum_BHT


@packed_attend.register_fake
def _(qkv_BTH3D: torch.Tensor, band: int) -> tuple[torch.Tensor, torch.Tensor]:
    return _outputs(qkv_BTH3D)


@torch.library.custom_op("gptcli::packed_attend_backward", mutates_args=(), device_types="cpu")
def packed_attend_backward(
    dy_BTHD: torch.Tensor,
    qkv_BTH3D: torch.Tensor,
    y_BTHD: torch.Tensor,
    log_sum_BHT: torch.Tensor,
    band: int,
) -> torch.Tensor:
    """Return the gradients of q, k and v, packed as (B, T, H, 3, D)."""
    return run_backward(dy_BTHD, qkv_BTH3D, y_BTHD, log_sum_BHT, band)


def run_backward(
    dy_BTHD: torch.Tensor,
    qkv_BTH3D: torch.Tensor,
    y_BTHD: torch.Tensor,
    log_sum_BHT: torch.Tensor,
    band: int,
) -> torch.Tensor:
    """Return the result of `packed_attend_backward` without PyTorch's dispatch."""
    qkv_BTH3D, dy_BTHD = qkv_BTH3D.contiguous(), dy_BTHD.contiguous()
    dqkv_BTH3D = torch.empty_like(qkv_BTH3D)
    _run("attention_backward", qkv_BTH3D, band, dy_BTHD, qkv_BTH3D, y_BTHD, log_sum_BHT, dqkv_BTH3D)
    return dqkv_BTH3D


@packed_attend_backward.register_fake
def _(dy_BTHD: torch.Tensor, qkv_BTH3D: torch.Tensor, *rest: object) -> torch.Tensor:
    return torch.empty_like(qkv_BTH3D, memory_format=torch.contiguous_format)


def _outputs(qkv_BTH3D: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate the results of the forward pass."""
    B, T, H, _, D = qkv_BTH3D.shape
    return qkv_BTH3D.new_empty(B, T, H, D), qkv_BTH3D.new_empty(B, H, T, dtype=torch.float32)


def _run(function: str, qkv_BTH3D: torch.Tensor, band: int, *tensors: torch.Tensor) -> None:
    """Call a function of the kernel on contiguous tensors, with scratch memory for each thread."""
    kernel = _kernel(qkv_BTH3D.dtype)
    assert kernel is not None
    B, T, H, _, D = qkv_BTH3D.shape
    threads = torch.get_num_threads()
    scratch = torch.empty(
        threads * kernel.attention_scratch(T, D) + ALIGNMENT_BYTES, dtype=torch.uint8
    )
    aligned = -(-scratch.data_ptr() // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    getattr(kernel, function)(
        *(tensor.data_ptr() for tensor in tensors), B, T, H, D, band, threads, aligned
    )


def _save(ctx: Any, inputs: tuple[object, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    qkv, ctx.band = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.set_materialize_grads(False)  # the sums have no gradient


def _gradients(ctx: Any, dy_BTHD: torch.Tensor, _: None) -> tuple[torch.Tensor, None]:
    return packed_attend_backward(dy_BTHD, *ctx.saved_tensors, ctx.band), None


packed_attend.register_autograd(_gradients, setup_context=_save)
