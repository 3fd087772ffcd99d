"""A token a row through all blocks in one call: `kernels/decode.c`, given a model whose layers are those of `linear.py`, and its cache.

Shapes: R rows, C d_model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn as nn

from gptcli.kernels.build import library
from gptcli.model.cache import KVCache
from gptcli.model.config import NORM_EPS
from gptcli.model.transformer import GPT, Block
from gptcli.sampling.linear import KINDS, CLinear, FewRows, Int8, c_linear


class CNorm(ctypes.Structure):
    _fields_ = [("gain_C", ctypes.c_void_p), ("bias_C", ctypes.c_void_p)]


class CLayer(ctypes.Structure):
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
    _fields_ = [
        ("layers", ctypes.POINTER(CLayer)),
        ("last", CNorm),
        ("n_layer", ctypes.c_int64),
        ("H", ctypes.c_int64),
        ("D", ctypes.c_int64),
        ("post_norm", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("eps", ctypes.c_float),
    ]


class Step:
    """The blocks of `model` as the kernel reads them, where they lie: the model must not be moved or changed while this is used."""

    def __init__(self, model: GPT, kernel: ctypes.CDLL) -> None:
        config = model.config
        self.kernel, self.model = kernel, model
        self.kept: list[torch.Tensor] = []  # what the addresses are of
        blocks = cast(list[Block], model.h)
        norms = [norm for block in blocks for norm in (block.ln_1, block.ln_2)]
        before = [None, *norms] if config.norm == "post" else [*norms, cast(nn.LayerNorm, model.ln_f)]  # each sub-block, and the head
        layers = (CLayer * config.n_layer)()
        for i, block in enumerate(blocks):
            linears = [self._linear(linear) for linear in (block.attn.c_attn, block.attn.c_proj, block.mlp.c_fc, block.mlp.c_proj)]
            layers[i] = CLayer(self._norm(before[2 * i]), self._norm(before[2 * i + 1]), *linears, config.band_of(i) or config.n_ctx)
        kind = KINDS[model.wte.weight.dtype]
        self.c_model = CModel(
            layers, self._norm(before[-1]), config.n_layer, config.n_head, config.d_head, config.norm == "post", kind, NORM_EPS
        )

    def _norm(self, norm: nn.LayerNorm | None) -> CNorm:
        return CNorm() if norm is None else CNorm(self._floats(norm.weight), self._floats(norm.bias))

    def _linear(self, linear: nn.Module) -> CLinear:
        if isinstance(linear, Int8):
            return c_linear(linear.weight_NK, linear.scale_N, linear.bias)
        assert isinstance(linear, FewRows)
        self.kept += [linear.weight, bias := linear.bias.detach().float()]
        return c_linear(linear.weight, None, bias)

    def _floats(self, tensor: torch.Tensor) -> int:
        self.kept.append(tensor.detach().float())
        return self.kept[-1].data_ptr()

    def __call__(self, x_RC: torch.Tensor, cache: KVCache, lengths: Sequence[int]) -> None:
        """Make of the embeddings of a token a row, fp32, what the head reads, in place; the rows of `cache` are filled up to `lengths`."""
        if max(lengths) >= cache.room:
            raise IndexError(f"a row of {max(lengths)} tokens has no place for another in {cache.room} slots")
        R, L = len(lengths), len(cache.keys)
        keys, values = ((ctypes.c_void_p * L)(*[store.data_ptr() for store in stores]) for stores in (cache.keys, cache.values))
        self.kernel.step(
            ctypes.byref(self.c_model),
            ctypes.c_void_p(x_RC.data_ptr()),
            keys,
            values,
            ctypes.c_int64(cache.room),
            (ctypes.c_int64 * R)(*lengths),
            ctypes.c_int64(R),
        )


def step_of(model: GPT) -> Step | None:
    """None where the kernel cannot run this model here."""
    weight = model.wte.weight
    if weight.device.type != "cpu" or weight.dtype not in KINDS or not isinstance(model.lm_head, (FewRows, Int8)):
        return None
    kernel = library("decode")
    return None if kernel is None else Step(model, kernel)
