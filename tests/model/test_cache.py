"""Reading a sequence in pieces through the cache gives what reading it at once gives."""

from __future__ import annotations

import pytest
import torch

from gptcli.model.cache import KVCache
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT


@pytest.mark.parametrize("attention", ["dense", "banded"])
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 1, 1, 4, 1], [12], [3, 9]])
def test_pieces_equal_the_whole(attention: str, pieces: list[int]) -> None:
    config = ModelConfig(n_layer=3, n_head=2, d_model=16, n_ctx=12, vocab_size=23, attention=attention, band=4)
    model = GPT(config).eval()
    model.init_weights(0)
    idx = torch.randint(0, 23, (2, 12), generator=torch.Generator().manual_seed(1))
    cache = KVCache(config, 2, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        whole = model.hidden(idx)
        parts = torch.cat([model.hidden(piece, cache) for piece in idx.split(pieces, dim=1)], dim=1)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)
    assert cache.length == 12
