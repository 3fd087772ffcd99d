"""Decoding by `decode.c`: linear layers for few rows, and a whole model for one token per row.

The kernel reads each weight once, in place; PyTorch would reorder it on each call, which for one
row takes as long as the product.

Shapes: R rows, K inputs, N outputs, V vocabulary, S slots of the cache.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from gptcli.kernels.build import library
from gptcli.model.config import NORM_EPS
from gptcli.model.kv_cache import KVCache
from gptcli.model.transformer import GPT, Block

MAX_ROWS = {torch.float32: 32, torch.bfloat16: 128, torch.int8: 8192}
"""Largest number of rows for which the kernel is faster than PyTorch, by type of the weight."""
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
"""Numbers of the types in the C source."""
ACTIVATIONS = (torch.float32, torch.bfloat16)


class CLinear(ctypes.Structure):
    """`Linear` of the C source: addresses, sizes and kind."""

    _fields_ = [
        ("weight_NK", ctypes.c_void_p),
        ("scale_N", ctypes.c_void_p),
        ("bias_N", ctypes.c_void_p),
        ("N", ctypes.c_int64),
        ("K", ctypes.c_int64),
        ("kind", ctypes.c_int64),
    ]


class CNorm(ctypes.Structure):
    """`Norm` of the C source: addresses of gain and bias."""

    _fields_ = [("gain_C", ctypes.c_void_p), ("bias_C", ctypes.c_void_p)]


class CLayer(ctypes.Structure):
    """`Layer` of the C source."""

    _fields_ = [
        ("before_attention", CNorm),
        ("before_mlp", CNorm),
        ("c_attn", CLinear),
        ("attn_proj", CLinear),
        ("c_fc", CLinear),
        ("mlp_proj", CLinear),
        ("band", ctypes.c_int64),
    ]


class CModel(ctypes.Structure):
    """`Model` of the C source."""

    _fields_ = [
        ("wte_VC", ctypes.c_void_p),
        ("wpe_SC", ctypes.c_void_p),
        ("layers", ctypes.POINTER(CLayer)),
        ("last", CNorm),
        ("head", CLinear),
        ("n_layer", ctypes.c_int64),
        ("H", ctypes.c_int64),
        ("D", ctypes.c_int64),
        ("post_norm", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("eps", ctypes.c_float),
    ]


def c_linear(
    weight_NK: torch.Tensor, scale_N: torch.Tensor | None, bias_N: torch.Tensor | None
) -> CLinear:
    """Return a linear layer as the C source reads it; the tensors must outlive the result."""
    scale, bias = (None if tensor is None else tensor.data_ptr() for tensor in (scale_N, bias_N))
    return CLinear(weight_NK.data_ptr(), scale, bias, *weight_NK.shape, KINDS[weight_NK.dtype])


def small_batch_linear(
    x: torch.Tensor,
    weight_NK: torch.Tensor,
    scale_N: torch.Tensor | None,
    bias_N: torch.Tensor | None,
    gelu: bool,
) -> torch.Tensor | None:
    """Return x·Wᵀ·scale + b, then GELU if `gelu`, in the type of x: (.., K) -> (.., N).

    Return None if PyTorch should compute it: for more than MAX_ROWS rows, on other devices and
    types, with gradients, in compiled code, or if the kernel cannot be built here.
    """
    R = x.shape[:-1].numel()
    if (
        MAX_ROWS.get(weight_NK.dtype, 0) < R
        or x.device.type != "cpu"
        or x.dtype not in ACTIVATIONS
        or torch.compiler.is_compiling()
    ):
        return None
    if torch.is_grad_enabled() and (x.requires_grad or weight_NK.requires_grad):
        return None
    if (kernel := library("decode")) is None:
        return None
    x = x.contiguous()
    y = x.new_empty(*x.shape[:-1], len(weight_NK))
    bias_N = None if bias_N is None else bias_N.float()
    linear = c_linear(weight_NK, scale_N, bias_N)
    sizes = (ctypes.c_int64(number) for number in (R, gelu))
    kernel.linear(
        ctypes.byref(linear),
        ctypes.c_int64(KINDS[x.dtype]),
        ctypes.c_void_p(x.data_ptr()),
        ctypes.c_void_p(y.data_ptr()),
        *sizes,
    )
    return y


def decode_step(model: GPT) -> DecodeStep | None:
    """Return the kernel for `model`, or None if it cannot run it here.

    The linear layers of the model must be those of `gptcli.sampling.load`, with this kernel
    installed.
    """
    weight = model.wte.weight
    installed = getattr(model.lm_head, "linear_fn", None) is small_batch_linear
    if weight.device.type != "cpu" or weight.dtype not in KINDS or not installed:
        return None
    if model.config.gelu == "exact":  # the kernel has the tanh form
        return None
    kernel = library("decode")
    return None if kernel is None else DecodeStep(model, kernel)


class DecodeStep:
    """Forward pass of a model over one token per row, in one call of the kernel.

    The kernel reads the weights in place: they must be neither moved nor changed while it is used.
    """

    def __init__(self, model: GPT, kernel: ctypes.CDLL) -> None:
        """Describe `model` to the kernel."""
        config = model.config
        self.kernel, self.model = kernel, model
        # tensors whose addresses the kernel has
        self.referenced: list[torch.Tensor | None] = []
        blocks = cast(list[Block], model.h)
        norms = [norm for block in blocks for norm in (block.ln_1, block.ln_2)]
        # the norm before each sub-block, and before the head
        before = (
            [None, *norms] if config.norm == "post" else [*norms, cast(nn.LayerNorm, model.ln_f)]
        )
        layers = (CLayer * config.n_layer)()
        for i, block in enumerate(blocks):
            attn, mlp = block.attn, block.mlp
            linears = map(self._linear, (attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj))
            layers[i] = CLayer(
                self._norm(before[2 * i]),
                self._norm(before[2 * i + 1]),
                *linears,
                config.band_of(i) or config.n_ctx,
            )
        embeddings = [model.wte.weight, model.wpe.weight]
        self.referenced += embeddings
        self.c_model = CModel(
            *(tensor.data_ptr() for tensor in embeddings),
            layers,
            self._norm(before[-1]),
            self._linear(model.lm_head),
            config.n_layer,
            config.n_head,
            config.d_head,
            config.norm == "post",
            KINDS[model.wte.weight.dtype],
            NORM_EPS,
        )

    def _norm(self, norm: nn.LayerNorm | None) -> CNorm:
        return (
            CNorm() if norm is None else CNorm(self._floats(norm.weight), self._floats(norm.bias))
        )

    def _linear(self, linear: Any) -> CLinear:
        if hasattr(linear, "scale_N"):  # quantized
            return c_linear(linear.weight_NK, linear.scale_N, linear.bias)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.referenced += [linear.weight, bias]
        return c_linear(linear.weight, None, bias)

    def _floats(self, tensor: torch.Tensor) -> int:
        """Return the address of an fp32 tensor with these values."""
        floats = tensor.detach().float()
        self.referenced.append(floats)
        return floats.data_ptr()

    def __call__(
        self, tokens: Sequence[int], cache: KVCache, lengths: Sequence[int]
    ) -> torch.Tensor:
        """Append one token to each row and return the logits after it, (R, V) fp32.

        `lengths` are the positions already in each row of `cache`. Raises IndexError for a full
        row and for a token that is not in the vocabulary.
        """
        if max(lengths) >= cache.max_len:
            raise IndexError(
                f"a row has {max(lengths)} tokens, and the cache is full at {cache.max_len}"
            )
        if not 0 <= min(tokens) <= max(tokens) < len(self.model.wte.weight):
            raise IndexError(
                f"tokens {min(tokens)} to {max(tokens)} are not all in the vocabulary of "
                f"{len(self.model.wte.weight)}"
            )
        R, L = len(lengths), len(cache.keys)
        keys, values = (
            (ctypes.c_void_p * L)(*[store.data_ptr() for store in stores])
            for stores in (cache.keys, cache.values)
        )
        logits_RV = torch.empty(R, self.c_model.head.N)
        self.kernel.step(
            ctypes.byref(self.c_model),
            (ctypes.c_int64 * R)(*tokens),
            ctypes.c_void_p(logits_RV.data_ptr()),
            keys,
            values,
            ctypes.c_int64(cache.max_len),
            (ctypes.c_int64 * R)(*lengths),
            ctypes.c_int64(R),
        )
        return logits_RV
