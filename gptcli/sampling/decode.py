"""The decode loop: one pass over the prompt, then a token at a time over a key-value cache.

Positions are learned, so a cache cannot roll: the vectors of a token hold the position it was read at. Where the context is full, the last
n_ctx // 2 tokens are read again from position 0, and decoding goes on. A prompt longer than n_ctx is read from its last n_ctx tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import torch

from gptcli.model.cache import KVCache
from gptcli.model.transformer import GPT
from gptcli.sampling.filters import Rules, next_tokens


def decode(
    model: GPT, prompt: Sequence[int], rules: Rules, *, max_tokens: int, generator: torch.Generator, stop_id: int | None = None
) -> Iterator[int]:
    """Yield the tokens after `prompt` (at least one token) as they come: `max_tokens`, or up to and with `stop_id`.

    `generator` is a CPU generator, wherever the model is; each token takes one number from it.
    """
    config, device = model.config, model.wte.weight.device
    cache = KVCache(config, 1, device, model.wte.weight.dtype)
    context = list(prompt)[-config.n_ctx :]
    unread = context
    for _ in range(max_tokens):
        if cache.length + len(unread) > config.n_ctx:
            cache.length = 0
            unread = context = context[-max(1, config.n_ctx // 2) :]
        logits_BV = read(model, torch.tensor([unread], device=device), cache)
        uniform_B = torch.rand(1, generator=generator, dtype=torch.float64)
        token = int(next_tokens(logits_BV, rules, uniform_B))
        yield token
        if token == stop_id:
            return
        context.append(token)
        unread = [token]


@torch.inference_mode()
def read(model: GPT, idx_BT: torch.Tensor, cache: KVCache) -> torch.Tensor:
    """Put the tokens into the cache; returns the logits after the last of them, (B, V)."""
    return model.lm_head(model.hidden(idx_BT, cache)[:, -1])


def sample_generator(seed: int, number: int) -> torch.Generator:
    """The chance of sample `number` (from 0) under `seed`: its own, however many samples are drawn."""
    key = hashlib.sha256(f"{seed}/sample/{number}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
