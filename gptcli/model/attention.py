"""Causal self-attention, dense or within a band, with or without a key-value cache.

Shapes: B batch, H heads, T queries, S keys, D d_head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gptcli.model.banded_attention import banded_attention


def attention_packed(
    qkv_BTH3D: torch.Tensor, *, band: int | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """Return causal self-attention over T positions as (B, T, H, D).

    `qkv_BTH3D` packs the query, key and value of each head, as one projection writes them. `band`
    and `dropout` are those of `attention`.
    """
    q, k, v = qkv_BTH3D.transpose(1, 2).unbind(3)
    return attention(q, k, v, band=band, dropout=dropout).transpose(1, 2)


def attention(
    q_BHTD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    *,
    band: int | None = None,
    dropout: float = 0.0,
    attn_mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return softmax(q·kᵀ / sqrt(D))·v as (B, H, T, D).

    The T queries are the last T of the S positions. Each query attends to the keys up to its own
    position; with `band`, only to the last `band` of them, including its own (GPT-3, section 2.1,
    after Child et al. 2019). `attn_mask` (B, 1, T, S) replaces this rule, for cached sequences of
    unequal length and for several documents in one window: True marks the keys that a query attends
    to. `dropout` applies to the weights.
    """
    if attn_mask is not None:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, attn_mask=attn_mask, dropout_p=dropout
        )
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if band is not None and T == 1 and band < S:  # in decoding, the band is a slice of the cache
        k_BHSD, v_BHSD, S, band = k_BHSD[:, :, -band:], v_BHSD[:, :, -band:], band, None
    if band is not None and band >= S:
        band = None
    if band is None and (T == S or T == 1):
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, is_causal=T > 1, dropout_p=dropout
        )
    if band is not None and T == S:
        return banded_attention(q_BHTD, k_BHSD, v_BHSD, band, dropout)
    mask_TS = causal_mask(T, S, band, q_BHTD.device)
    return F.scaled_dot_product_attention(
        q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_TS, dropout_p=dropout
    )


def causal_mask(T: int, S: int, band: int | None, device: torch.device) -> torch.Tensor:
    """Return the causal mask (T, S), within `band` if given: True where a query attends to a key.

    Tests compare every faster implementation with attention under this mask.
    """
    query = torch.arange(S - T, S, device=device)[:, None]
    key = torch.arange(S, device=device)[None, :]
    mask = key <= query
    return mask if band is None else mask & (query - key < band)
