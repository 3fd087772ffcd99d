"""Causal attention, dense or in a band, with or without keys from a cache."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

QUERY_BLOCK = 256  # rows of scores alive at once in the backward pass on a CPU


def attend(
    q_BHTD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    *,
    band: int | None = None,
    dropout: float = 0.0,
    documents_BT: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q·k / sqrt(D))·v where the T queries are the last T of the S positions; returns (B, H, T, D).

    Each query sees the keys up to its own position; with `band`, only the last `band` of them, its own counted
    (GPT-3, section 2.1, after Child et al. 2019); with `documents_BT` (T = S), only those of its own document: of the same number.
    """
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if documents_BT is not None:
        mask_B1TT = causal_mask(T, T, band, q_BHTD.device) & (documents_BT[:, None, :, None] == documents_BT[:, None, None, :])
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_B1TT, dropout_p=dropout)
    if band is not None and T == 1 and band < S:  # decoding: the band is a slice
        k_BHSD, v_BHSD, S, band = k_BHSD[:, :, -band:], v_BHSD[:, :, -band:], band, None
    if band is not None and band >= S:
        band = None
    if band is None and (T == S or T == 1):
        if T > 1 and torch.compiler.is_compiling() and q_BHTD.device.type == "cpu" and q_BHTD.dtype == torch.bfloat16 and not dropout:
            return CausalOnCpu.apply(q_BHTD, k_BHSD, v_BHSD)
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=T > 1, dropout_p=dropout)
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
    queries at a time against the keys it may see.
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
        T, scale = shape[2], 1 / math.sqrt(shape[3])
        delta_NT1 = (y.float() * dy.float()).sum(-1, keepdim=True)
        dq, dk, dv = [], torch.zeros_like(k, dtype=torch.float32), torch.zeros_like(v, dtype=torch.float32)
        for start in range(0, T, QUERY_BLOCK):
            stop = min(start + QUERY_BLOCK, T)
            scores = torch.bmm(q[:, start:stop], k[:, :stop].mT)
            dp = torch.bmm(dy[:, start:stop], v[:, :stop].mT)
            seen = causal_mask(stop - start, stop, None, q.device)
            p = torch.where(seen, (scores.float() * scale - log_sum[:, start:stop, None]).exp(), 0.0)
            ds = (p * (dp.float() - delta_NT1[:, start:stop]) * scale).to(dtype)
            dv[:, :stop] += torch.bmm(p.to(dtype).mT, dy[:, start:stop])
            dk[:, :stop] += torch.bmm(ds.mT, q[:, start:stop])
            dq.append(torch.bmm(ds, k[:, :stop]))
        return torch.cat(dq, dim=1).view(shape), dk.to(dtype).view(shape), dv.to(dtype).view(shape)
