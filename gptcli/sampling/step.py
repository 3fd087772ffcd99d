"""A token a row through the model in one call: `kernels/decode.c`, given a model whose layers are
those of `linear.py`, and its cache.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn as nn

from gptcli.kernels.build import library
from gptcli.model.config import NORM_EPS
from gptcli.model.kv_cache import KVCache
from gptcli.model.transformer import GPT, Block
from gptcli.sampling.quantize import KINDS, CLinear, FewRows, Int8, c_linear


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


class Step:
    """`model` as the kernel reads it, where it lies: it must not be moved or changed while this is
    used.
    """

    def __init__(self, model: GPT, kernel: ctypes.CDLL) -> None:
        config = model.config
        self.kernel, self.model = kernel, model
        self.kept: list[torch.Tensor | None] = []  # what the addresses are of
        blocks = cast(list[Block], model.h)
        norms = [norm for block in blocks for norm in (block.ln_1, block.ln_2)]
        # each sub-block, and the head
        before = (
            [None, *norms] if config.norm == "post" else [*norms, cast(nn.LayerNorm, model.ln_f)]
        )
        layers = (CLayer * config.n_layer)()
        for i, block in enumerate(blocks):
            linears = [
                self._linear(linear)
                for linear in (
                    block.attn.c_attn,
                    block.attn.c_proj,
                    block.mlp.c_fc,
                    block.mlp.c_proj,
                )
            ]
            layers[i] = CLayer(
                self._norm(before[2 * i]),
                self._norm(before[2 * i + 1]),
                *linears,
                config.band_of(i) or config.n_ctx,
            )
        embeddings = [model.wte.weight, model.wpe.weight]
        self.kept += embeddings
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

    def _linear(self, linear: nn.Module) -> CLinear:
        if isinstance(linear, Int8):
            return c_linear(linear.weight_NK, linear.scale_N, linear.bias)
        assert isinstance(linear, FewRows)
        bias = None if linear.bias is None else linear.bias.detach().float()
        self.kept += [linear.weight, bias]
        return c_linear(linear.weight, None, bias)

    def _floats(self, tensor: torch.Tensor) -> int:
        floats = tensor.detach().float()
        self.kept.append(floats)
        return floats.data_ptr()

    def __call__(
        self, tokens: Sequence[int], cache: KVCache, lengths: Sequence[int]
    ) -> torch.Tensor:
        """The logits after a token a row, (R, V) fp32; the rows of `cache` are filled up to
        `lengths`, where the tokens are put.
        """
        if max(lengths) >= cache.room:
            raise IndexError(
                f"a row of {max(lengths)} tokens has no place for another in {cache.room} slots"
            )
        if not 0 <= min(tokens) <= max(tokens) < len(self.model.wte.weight):
            raise IndexError(
                f"tokens from {min(tokens)} to {max(tokens)}, and a vocabulary of {len(self.model.wte.weight)}"
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
            ctypes.c_int64(cache.room),
            (ctypes.c_int64 * R)(*lengths),
            ctypes.c_int64(R),
        )
        return logits_RV


def step_of(model: GPT) -> Step | None:
    """None where the kernel cannot run this model here."""
    weight = model.wte.weight
    if (
        weight.device.type != "cpu"
        or weight.dtype not in KINDS
        or not isinstance(model.lm_head, (FewRows, Int8))
    ):
        return None
    kernel = library("decode")
    return None if kernel is None else Step(model, kernel)
