"""The decoder of GPT-2 and GPT-3.

What a reader of the 2017 transformer should look for: LayerNorm before each sub-block and once more after the last (GPT-2, section 2.3),
learned positions, GELU in its tanh form, biases everywhere, the output head tied to the token embedding, residual projections started
smaller by 1/sqrt(2·n_layer), and, for GPT-3, every second layer attending within a band.

Shapes: B batch, T positions, C d_model, H heads, D d_head, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptcli.model.attention import attend
from gptcli.model.cache import FreshRows, KVCache
from gptcli.model.config import ModelConfig
from gptcli.model.loss import next_token_loss

NORM_EPS = 1e-5


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.d_head = config.d_head
        self.band = config.band_of(layer)
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.d_model, 3 * config.d_model)  # q | k | v
        self.c_proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, x_BTC: torch.Tensor, cache: KVCache | FreshRows | None = None) -> torch.Tensor:
        B, T, _ = x_BTC.shape
        q, k, v = (y.view(B, T, -1, self.d_head).transpose(1, 2) for y in self.c_attn(x_BTC).chunk(3, dim=-1))  # (B, H, T, D)
        seen = None
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
            seen = cache.seen(T, self.band)
        y_BHTD = attend(q, k, v, band=self.band, dropout=self.dropout if self.training else 0.0, seen=seen)
        return self.c_proj(y_BHTD.transpose(1, 2).reshape(B, T, -1))


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form (Hendrycks and Gimpel 2016): x/2·(1 + tanh(u)) with u = sqrt(2/pi)·(x + 0.044715·x³)."""
    if torch.compiler.is_compiling():  # the same function as x·sigmoid(2u): compiled, an exponential takes half the time of a tanh
        x32 = x.float()
        return (x32 * torch.sigmoid(math.sqrt(8 / math.pi) * (x32 + 0.044715 * x32 * x32 * x32))).to(x.dtype)
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.d_model, config.d_ff)
        self.c_proj = nn.Linear(config.d_ff, config.d_model)

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        return self.c_proj(gelu(self.c_fc(x_BTC)))


class Block(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x_BTC: torch.Tensor, cache: KVCache | FreshRows | None = None) -> torch.Tensor:
        x_BTC = x_BTC + self.drop(self.attn(self.ln_1(x_BTC), cache))
        return x_BTC + self.drop(self.mlp(self.ln_2(x_BTC)))


class GPT(nn.Module):
    head_loss = staticmethod(next_token_loss)  # a seam: the trainer may put a compiled form here

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.n_ctx, config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, idx_BT: torch.Tensor, target_BT: torch.Tensor | None = None) -> torch.Tensor:
        """Logits (B, T, V); or, given targets, the summed next-token loss in nats (see `next_token_loss`)."""
        x_BTC = self.hidden(idx_BT)
        if target_BT is None:
            return self.lm_head(x_BTC)
        return self.head_loss(x_BTC.flatten(0, 1), self.lm_head.weight, target_BT.flatten())

    def hidden(self, idx_BT: torch.Tensor, cache: KVCache | FreshRows | None = None) -> torch.Tensor:
        """What the head reads, (B, T, C). With a cache, the tokens continue the positions it is placed at."""
        T = idx_BT.shape[1]
        position = torch.arange(T, device=idx_BT.device) if cache is None else cache.positions(T)  # (T,) or (B, T)
        x_BTC = self.drop(self.wte(idx_BT) + self.wpe(position))
        for block in self.h:
            x_BTC = block(x_BTC, cache)
        return self.ln_f(x_BTC)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """GPT-2's initialisation: N(0, 0.02), positions N(0, 0.01), residual projections N(0, 0.02/sqrt(2·n_layer)), biases 0, gains 1.

        Every tensor draws from a generator of its own, seeded by (seed, its name), so that the values depend on
        neither the order nor the device that creates them.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                std = 0.01 if name == "wpe.weight" else 0.02
                if name.endswith("c_proj.weight"):
                    std /= math.sqrt(2 * self.config.n_layer)
                key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))
