"""Sequences processed in pieces through the cache equal one pass, whatever shares the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gptcli.model.config import ModelConfig
from gptcli.model.kv_cache import KVCache, cache_bytes
from gptcli.model.transformer import GPT

CPU = torch.device("cpu")


KINDS: dict[str, dict[str, Any]] = {
    "dense": {},
    "banded": {"attention": "banded", "band": 4},
    "gpt1": {"norm": "post"},
}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> GPT:
    config = ModelConfig(
        n_layer=3, n_head=2, d_model=16, n_ctx=12, vocab_size=23, **KINDS[request.param]
    )
    model = GPT(config).eval()
    model.init_weights(0)
    return model


@pytest.fixture
def idx_BT() -> torch.Tensor:
    return torch.randint(0, 23, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("visible_len", [None, 12])
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 1, 4, 1], [12], [3, 9]])
@torch.inference_mode()
def test_cached_pieces_equal_one_pass(
    model: GPT, idx_BT: torch.Tensor, pieces: list[int], visible_len: int | None
) -> None:
    cache = KVCache(model.config, 3, CPU, torch.float32)
    parts, length = [], 0
    for piece in idx_BT.split(pieces, dim=1):
        cache.set_positions([length] * 3, piece.shape[1], visible_len)
        parts.append(model.hidden(piece, cache))
        length += piece.shape[1]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.hidden(idx_BT), atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_rows_of_other_lengths_have_no_effect(model: GPT, idx_BT: torch.Tensor) -> None:
    """Rows 0 and 2 are prefilled together, with padding; row 1 later, alone; then all three continue
    with two tokens and with one.
    """
    cache, whole = KVCache(model.config, 3, CPU, torch.float32), model.hidden(idx_BT)
    model.hidden(idx_BT[[0, 2], :7], cache.prefill_view([0, 2]))  # of row 2, only 4 count
    model.hidden(idx_BT[[1], :2], cache.prefill_view([1]))
    for lengths, T in (([7, 2, 4], 2), ([9, 4, 6], 1)):
        cache.set_positions(lengths, T)
        tokens = torch.stack(
            [row[length : length + T] for row, length in zip(idx_BT, lengths, strict=True)]
        )
        expected = torch.stack(
            [row[length : length + T] for row, length in zip(whole, lengths, strict=True)]
        )
        torch.testing.assert_close(model.hidden(tokens, cache), expected, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_reordered_rows_continue_unchanged(model: GPT, idx_BT: torch.Tensor) -> None:
    cache = KVCache(model.config, 3, CPU, torch.float32)
    model.hidden(idx_BT[:, :5], cache.prefill_view([0, 1, 2]))
    cache.reorder([2, 0, 0, 1])
    cache.set_positions([5] * 4, 1)
    torch.testing.assert_close(
        model.hidden(idx_BT[[2, 0, 0, 1], 5:6], cache),
        model.hidden(idx_BT[[2, 0, 0, 1], :6])[:, 5:],
        atol=1e-5,
        rtol=1e-5,
    )


def test_cache_bytes_equals_the_allocated_size(model: GPT) -> None:
    cache = KVCache(model.config, 5, CPU, torch.bfloat16, max_len=7)
    assert sum(store.nbytes for store in cache.keys + cache.values) == cache_bytes(
        model.config, 5, 7, torch.bfloat16
    )
