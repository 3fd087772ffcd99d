"""Every path of attention equals a softmax written out."""

from __future__ import annotations

import math

import pytest
import torch

from gptcli.model.attention import attention, attention_packed, causal_mask


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, band: int | None) -> torch.Tensor:
    T, S = q.shape[2], k.shape[2]
    out = torch.empty_like(q)
    for t in range(T):
        at = S - T + t
        first = 0 if band is None else max(0, at - band + 1)
        scores = (k[:, :, first : at + 1] @ q[:, :, t, :, None])[..., 0] / math.sqrt(q.shape[-1])
        out[:, :, t] = (scores.softmax(-1)[..., None] * v[:, :, first : at + 1]).sum(2)
    return out


@pytest.mark.parametrize("band", [None, 1, 3, 8, 100])
@pytest.mark.parametrize(("T", "S"), [(1, 1), (1, 9), (5, 5), (8, 8), (9, 9), (4, 9)])
def test_attention_is_softmax_over_the_visible_keys(T: int, S: int, band: int | None) -> None:
    torch.manual_seed(T * 100 + S)
    q, k, v = torch.randn(2, 3, T, 4), torch.randn(2, 3, S, 4), torch.randn(2, 3, S, 4)
    torch.testing.assert_close(
        attention(q, k, v, band=band), by_hand(q, k, v, band), atol=1e-5, rtol=1e-5
    )


def test_band_includes_the_query_position() -> None:
    mask = causal_mask(4, 4, 2, torch.device("cpu"))
    assert mask.int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


@pytest.mark.parametrize("band", [None, 1, 3, 8, 100])
@pytest.mark.parametrize("T", [1, 8, 9])
def test_packed_attention_equals_attention_of_its_parts(T: int, band: int | None) -> None:
    torch.manual_seed(T)
    qkv_BTH3D = torch.randn(2, T, 3, 3, 4)
    y_BTHD = attention_packed(qkv_BTH3D, band=band)
    q, k, v = qkv_BTH3D.transpose(1, 2).unbind(3)
    torch.testing.assert_close(
        y_BTHD.transpose(1, 2),
        by_hand(q, k, v, band),
        atol=1e-5,
        rtol=1e-5,
    )


@pytest.mark.parametrize("band", [None, 3])
def test_mask_separates_documents(band: int | None) -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 9, 4) for _ in range(3))
    documents_BT = torch.tensor([[0, 0, 0, 0, 1, 1, 2, 2, 2], [0] * 9])
    same_B1TT = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
    y = attention(q, k, v, band=band, attn_mask=causal_mask(9, 9, band, q.device) & same_B1TT)
    alone = [
        by_hand(q[:1, :, start:stop], k[:1, :, start:stop], v[:1, :, start:stop], band)
        for start, stop in ((0, 4), (4, 6), (6, 9))
    ]
    torch.testing.assert_close(y[:1], torch.cat(alone, dim=2), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[1:], by_hand(q[1:], k[1:], v[1:], band), atol=1e-5, rtol=1e-5)
