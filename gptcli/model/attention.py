"""Causal attention, dense or in a band, with or without keys from a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F


def attend(
    q_BHTD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    *,
    band: int | None = None,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q·k / sqrt(D))·v where the T queries are the last T of the S positions; returns (B, H, T, D).

    Each query sees the keys up to its own position; with `band`, only the last `band` of them, its own counted
    (GPT-3, section 2.1, after Child et al. 2019).
    """
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if band is not None and T == 1 and band < S:  # decoding: the band is a slice
        k_BHSD, v_BHSD, S, band = k_BHSD[:, :, -band:], v_BHSD[:, :, -band:], band, None
    if band is not None and band >= S:
        band = None
    if band is None and (T == S or T == 1):
        return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, is_causal=T > 1, dropout_p=dropout)
    mask_TS = causal_mask(T, S, band, q_BHTD.device)
    return F.scaled_dot_product_attention(q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_TS, dropout_p=dropout)


def causal_mask(T: int, S: int, band: int | None, device: torch.device) -> torch.Tensor:
    """(T, S) booleans, True where a query may look: the reference every faster form is held against."""
    query = torch.arange(S - T, S, device=device)[:, None]
    key = torch.arange(S, device=device)[None, :]
    seen = key <= query
    return seen if band is None else seen & (query - key < band)
