"""AdamW, the norm of the gradient and its clip by `adamw.c`: all tensors of a model in one call.

PyTorch calls an operator, with threads of its own, for each tensor. Of the many small ones of a
model, that takes several times as long as the arithmetic.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from gptcli.kernels.build import library
from gptcli.kernels.linear_kernel import LONG, POINTER


class AdamWRates(NamedTuple):
    """Constants of the update of one tensor."""

    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float


def supports(tensors: Iterable[torch.Tensor]) -> bool:
    """Return whether the kernel can run on these tensors: fp32 without gaps, on a CPU."""
    return (
        all(
            type(t) in (torch.Tensor, torch.nn.Parameter)
            and t.dtype is torch.float32
            and t.is_cpu
            and t.is_contiguous()
            for t in tensors
        )
        and available()
    )


def available() -> bool:
    """Return whether the kernel can be built and run here."""
    return _kernel() is not None


@functools.cache
def _kernel() -> ctypes.CDLL | None:
    kernel = library("adamw")
    if kernel is not None:
        kernel.sum_of_squares.restype = ctypes.c_double
    return kernel


def total_norm(tensors: Sequence[torch.Tensor]) -> float:
    """Return the norm of all elements together, of tensors that are supported."""
    found: float = _call("sum_of_squares", tensors)
    if found < 0:
        raise MemoryError("out of memory for the norm of the gradient")
    return found**0.5


def scale_(tensors: Sequence[torch.Tensor], factor: float) -> None:
    """Multiply all tensors by a factor in place; they are supported."""
    if not _call("scale", tensors, last=ctypes.c_double(factor)):
        raise MemoryError("out of memory for the clip of the gradient")


def adamw_(
    params: Sequence[torch.Tensor],
    grads: Sequence[torch.Tensor],
    moments: Sequence[torch.Tensor],
    squares: Sequence[torch.Tensor],
    steps: Sequence[torch.Tensor],
    rates: Sequence[AdamWRates],
) -> None:
    """Update parameters, their first and second moments and their numbers of steps in place.

    All are supported; `steps` are scalars.
    """
    values = (ctypes.c_double * (5 * len(rates)))(*(value for row in rates for value in row))
    if not _call("adamw", params, grads, moments, squares, steps, last=values):
        raise MemoryError("out of memory for the update of the weights")


def _call(name: str, *lists: Sequence[torch.Tensor], last: Any = None) -> float:
    """Call a function of the kernel with the sizes of the first tensors and all addresses."""
    count = len(lists[0])
    sizes = (LONG * count)(*(tensor.numel() for tensor in lists[0]))
    addresses = [(POINTER * count)(*(t.data_ptr() for t in tensors)) for tensors in lists]
    rest = () if last is None else (last,)
    result: float = getattr(_kernel(), name)(LONG(count), sizes, *addresses, *rest)
    return result
