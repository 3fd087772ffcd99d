"""Causal attention, dense or in a band, with or without keys from a cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gptcli.model.attention_kernel import packed_attend, serves
from gptcli.model.banded_attention import banded_attend


def self_attend(
    qkv_BTH3D: torch.Tensor, *, band: int | None = None, dropout: float = 0.0
) -> torch.Tensor:
    """`attend` of T positions among themselves, q, k and v of each head side by side; returns (B,
    T, H, D).
    """
    if serves(qkv_BTH3D) and not dropout:
        return packed_attend(qkv_BTH3D, band or qkv_BTH3D.shape[1])[0]
    q, k, v = qkv_BTH3D.transpose(1, 2).unbind(3)
    return attend(q, k, v, band=band, dropout=dropout).transpose(1, 2)


def attend(
    q_BHTD: torch.Tensor,
    k_BHSD: torch.Tensor,
    v_BHSD: torch.Tensor,
    *,
    band: int | None = None,
    dropout: float = 0.0,
    seen: torch.Tensor | None = None,
) -> torch.Tensor:
    """softmax(q·k / sqrt(D))·v where the T queries are the last T of the S positions; returns (B,
    H, T, D).

    Each query sees the keys up to its own position; with `band`, only the last `band` of them, its
    own counted (GPT-3, section 2.1, after Child et al. 2019). Where rows of a cache differ in
    length, or documents share a window, `seen` (B, 1, T, S) says instead which keys each query
    sees.
    """
    if seen is not None:
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, attn_mask=seen, dropout_p=dropout
        )
    T, S = q_BHTD.shape[2], k_BHSD.shape[2]
    if band is not None and T == 1 and band < S:  # decoding: the band is a slice
        k_BHSD, v_BHSD, S, band = k_BHSD[:, :, -band:], v_BHSD[:, :, -band:], band, None
    if band is not None and band >= S:
        band = None
    if band is None and (T == S or T == 1):
        return F.scaled_dot_product_attention(
            q_BHTD, k_BHSD, v_BHSD, is_causal=T > 1, dropout_p=dropout
        )
    if band is not None and T == S:
        return banded_attend(q_BHTD, k_BHSD, v_BHSD, band, dropout)
    mask_TS = causal_mask(T, S, band, q_BHTD.device)
    return F.scaled_dot_product_attention(
        q_BHTD, k_BHSD, v_BHSD, attn_mask=mask_TS, dropout_p=dropout
    )


def causal_mask(T: int, S: int, band: int | None, device: torch.device) -> torch.Tensor:
    """(T, S) booleans, True where a query may look: the reference every faster form is held
    against.
    """
    query = torch.arange(S - T, S, device=device)[:, None]
    key = torch.arange(S, device=device)[None, :]
    seen = key <= query
    return seen if band is None else seen & (query - key < band)
