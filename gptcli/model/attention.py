"""Causal attention, dense or in a band, with or without keys from a cache."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from gptcli.model.banded import banded_attend

BLOCK = 256  # queries, and keys, whose scores are alive at once in the backward pass on a CPU
MOST_BLOCKS = 8  # of them in a window: compilation writes out every pair


def attend(
    q_BHTD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    *,
    band: int | None = None,
    dropout: float = 0.0,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q·k / sqrt(D))·v where the T queries are the last T of the S positions; returns (B, H, T, D).

    Each query sees the keys up to its own position; with `band`, only the last `band` of them, its own counted
    (GPT-3, section 2.1, after Child et al. 2019). Where rows of a cache differ in length, or documents share a window, `seen` (B, 1, T, S)
    says instead which keys each query sees.
    """
    if seen is not None:
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=seen, dropout_p=dropout)
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if band is not None and T == 1 and band < S:  # decoding: the band is a slice
        k_BHSD, v_BHSD, S, band = k_BHSD[:, :, -band:], v_BHSD[:, :, -band:], band, None
    if band is not None and band >= S:
        band = None
    if band is None and (T == S or T == 1):
        compiled_bf16 = torch.compiler.is_compiling() and q_BHTD.device.type == "cpu" and q_BHTD.dtype == torch.bfloat16
        if compiled_bf16 and 1 < T <= MOST_BLOCKS * BLOCK and not dropout:
            return CausalOnCpu.apply(q_BHTD, k_BHSD, v_BHSD)
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=T > 1, dropout_p=dropout)
    if band is not None and T == S:
        return banded_attend(q_BHTD, k_BHSD, v_BHSD, band, dropout)
    mask_TS = causal_mask(T, S, band, q_BHTD.device)
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_TS, dropout_p=dropout)


def causal_mask(T: int, S: int, band: int | None, device: torch.device) -> torch.Tensor:
    """(T, S) booleans, True where a query may look: the reference every faster form is held against."""
    query = torch.arange(S - T, S, device=device)[:, None]
    key = torch.arange(S, device=device)[None, :]
    seen = key <= query
    return seen if band is None else seen & (query - key < band)


class CausalOnCpu(torch.autograd.Function):
    """Dense causal attention for compiled bf16 training on a CPU: torch's own forward pass, and a backward pass of batched matrix
    products whose element-wise part compilation fuses into one loop. Torch's own backward pass takes about 1.4 times as long.

    The gradients are FlashAttention's (Dao et al. 2022, algorithm 4): probabilities again from the logarithm of their sum, a block of
    queries against a block of keys at a time. Every block is copied once to stand alone: a product of slices copies them each time.
    """

    @staticmethod
    def forward(ctx: Any, q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> torch.Tensor:
        y_BHTD, log_sum_BHT = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_BHTD, k_BHTD, v_BHTD, is_causal=True)
        ctx.save_for_backward(q_BHTD, k_BHTD, v_BHTD, y_BHTD, log_sum_BHT)
        return y_BHTD

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shape, dtype = grads[0].shape, grads[0].dtype
        q, k, v, y, log_sum, dy = (x.flatten(0, 1) for x in (*ctx.saved_tensors, grads[0]))  # (N, T, D) for N = B·H
        delta_NT = (y.float() * dy.float()).sum(-1)
        qs, ks, vs, dys = ([block.contiguous() for block in x.split(BLOCK, dim=1)] for x in (q, k, v, dy))
        log_sums, deltas = ([block[:, :, None] for block in x.split(BLOCK, dim=1)] for x in (log_sum, delta_NT))
        scale = 1 / math.sqrt(shape[3])
        dqs, dks, dvs = ([torch.zeros_like(block, dtype=torch.float32) for block in qs] for _ in range(3))
        for i in range(len(qs)):
            for j in range(i + 1):
                scores_NQS = torch.bmm(qs[i], ks[j].mT)
                dp_NQS = torch.bmm(dys[i], vs[j].mT)
                p_NQS = (scores_NQS.float() * scale - log_sums[i]).exp()
                if i == j:
                    p_NQS = torch.where(causal_mask(p_NQS.shape[1], p_NQS.shape[2], None, q.device), p_NQS, 0.0)
                ds_NQS = (p_NQS * (dp_NQS.float() - deltas[i]) * scale).to(dtype)
                dvs[j] += torch.bmm(p_NQS.to(dtype).mT, dys[i])
                dks[j] += torch.bmm(ds_NQS.mT, qs[i])
                dqs[i] += torch.bmm(ds_NQS, ks[j])
        dq, dk, dv = (torch.cat([block.to(dtype) for block in blocks], dim=1).view(shape) for blocks in (dqs, dks, dvs))
        return dq, dk, dv
