"""The decoder of GPT-1, GPT-2 and GPT-3.

What a reader of the 2017 transformer should look for: LayerNorm before each sub-block and once more
after the last (GPT-2, section 2.3; GPT-1 has it after each residual sum, as in 2017), learned
positions, GELU in its tanh form, biases everywhere, the output head tied to the token embedding,
residual projections started smaller by 1/sqrt(2·n_layer), and, for GPT-3, every second layer
attending within a band.

Shapes: B batch, T positions, C d_model, H heads, D d_head, V vocabulary.
"""

from __future__ import annotations

import hashlib
import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from gptcli.model.attention import attend, causal_mask, self_attend
from gptcli.model.config import NORM_EPS, ModelConfig
from gptcli.model.kv_cache import FreshRows, KVCache
from gptcli.model.loss import next_token_loss


class Attention(nn.Module):
    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.d_head = config.d_head
        self.band = config.band_of(layer)
        self.dropout = config.dropout
        # head after head, each its q | k | v: whole heads stand together
        self.c_attn = nn.Linear(config.d_model, 3 * config.d_model)
        self.c_proj = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        x_BTC: torch.Tensor,
        cache: KVCache | FreshRows | None = None,
        documents_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self.c_proj(self.heads(x_BTC, cache, documents_BT))

    def heads(
        self,
        x_BTC: torch.Tensor,
        cache: KVCache | FreshRows | None = None,
        documents_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What the heads found, side by side: (B, T, H·D), before the projection."""
        B, T, _ = x_BTC.shape
        qkv_BTH3D = self.c_attn(x_BTC).view(B, T, -1, 3, self.d_head)
        dropout = self.dropout if self.training else 0.0
        q, k, v = qkv_BTH3D.transpose(1, 2).unbind(3)  # each (B, H, T, D)
        if isinstance(cache, FreshRows):
            cache.store(self.layer, k, v)
        if isinstance(cache, KVCache):
            k, v = cache.extend(self.layer, k, v)
            seen = cache.seen(T, self.band)
        elif documents_BT is not None:
            same_B1TT = documents_BT[:, None, :, None] == documents_BT[:, None, None, :]
            seen = causal_mask(T, T, self.band, x_BTC.device) & same_B1TT
        else:
            return self_attend(qkv_BTH3D, band=self.band, dropout=dropout).reshape(B, T, -1)
        y_BHTD = attend(q, k, v, band=self.band, dropout=dropout, seen=seen)
        return y_BHTD.transpose(1, 2).reshape(B, T, -1)


def gelu(x: torch.Tensor) -> torch.Tensor:
    """GELU in its tanh form (Hendrycks and Gimpel 2016): x/2·(1 + tanh(u)) with u = sqrt(2/pi)·(x +
    0.044715·x³).
    """
    # the same function as x·sigmoid(2u): compiled, an exponential takes half the time of a tanh
    if torch.compiler.is_compiling():
        x32 = x.float()
        return (
            x32 * torch.sigmoid(math.sqrt(8 / math.pi) * (x32 + 0.044715 * x32 * x32 * x32))
        ).to(x.dtype)
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
        self.post_norm = config.norm == "post"
        self.ln_1 = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.d_model, eps=NORM_EPS)
        self.mlp = MLP(config)
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x_BTC: torch.Tensor,
        cache: KVCache | FreshRows | None = None,
        documents_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        if self.post_norm:
            x_BTC = self.ln_1(x_BTC + self.drop(self.attn(x_BTC, cache, documents_BT)))
            return self.ln_2(x_BTC + self.drop(self.mlp(x_BTC)))
        x_BTC = x_BTC + self.drop(self.attn(self.ln_1(x_BTC), cache, documents_BT))
        return x_BTC + self.drop(self.mlp(self.ln_2(x_BTC)))


class GPT(nn.Module):
    """The decoder, whole or pruned to a pipeline stage.

    In a stage `h` contains only its layers, under their own numbers; `wpe` is None unless it is the
    first stage, and `ln_f` and `lm_head` are None unless it is the last.
    """

    head_loss = staticmethod(next_token_loss)  # a seam: the trainer may put a compiled form here
    # a seam: where the trainer puts it, attention does not cross end-of-text, which begins a
    # document
    eot_id: int | None = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.d_model)
        self.wpe = nn.Embedding(config.n_ctx, config.d_model)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.n_layer))
        self.ln_f = (
            nn.LayerNorm(config.d_model, eps=NORM_EPS) if config.norm == "pre" else nn.Identity()
        )
        self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tied:
            self.lm_head.weight = self.wte.weight

    def forward(
        self,
        idx_BT: torch.Tensor,
        target_BT: torch.Tensor | None = None,
        documents_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits (B, T, V) or, given targets, the summed next-token loss in nats (see
        `next_token_loss`). A pipeline stage takes the residual stream (B, T, C) in place of tokens
        unless it is the first, and returns it unless it is the last.
        """
        x_BTC = self.hidden(idx_BT, documents_BT=documents_BT)
        if self.lm_head is None:
            return x_BTC
        if target_BT is None:
            return self.lm_head(x_BTC)
        return self.head_loss(x_BTC.flatten(0, 1), self.lm_head.weight, target_BT.flatten())

    def hidden(
        self,
        idx_BT: torch.Tensor,
        cache: KVCache | FreshRows | None = None,
        documents_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return what the head reads, (B, T, C). With a cache, the tokens continue the positions it
        is placed at. `documents_BT` numbers each token's document, as `document_ids` does, which is
        its default if `eot_id` is set.
        """
        x_BTC = idx_BT
        if self.wpe is not None:
            T = idx_BT.shape[1]
            # (T,) or (B, T)
            position = (
                torch.arange(T, device=idx_BT.device) if cache is None else cache.positions(T)
            )
            x_BTC = self.drop(self.wte(idx_BT) + self.wpe(position))
            if documents_BT is None and self.eot_id is not None:
                documents_BT = document_ids(idx_BT, self.eot_id)
        for block in self.h.children():
            x_BTC = block(x_BTC, cache, documents_BT)
        return x_BTC if self.ln_f is None else self.ln_f(x_BTC)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """GPT-2's initialisation: N(0, 0.02), positions N(0, 0.01), residual projections N(0,
        0.02/sqrt(2·n_layer)), biases 0, gains 1; post-norm, GPT-1's: every matrix and embedding
        N(0, 0.02).

        Every tensor draws from a generator of its own, seeded by (seed, its name), so that the
        values depend on neither the order nor the device that creates them.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)
            else:
                std = 0.02
                if name == "wpe.weight" and self.config.norm == "pre":
                    std = 0.01
                if name.endswith("c_proj.weight") and self.config.norm == "pre":
                    std /= math.sqrt(2 * self.config.n_layer)
                key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                generator = torch.Generator().manual_seed(
                    int.from_bytes(key[:8], "little", signed=True)
                )
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


def document_ids(idx_BT: torch.Tensor, eot_id: int) -> torch.Tensor:
    """Number the document of each token within its window, (B, T) int64; end-of-text begins one.

    Positions run on through a window, as in GPT-3, and the last token of a document still predicts
    the end-of-text that begins the next.
    """
    return (idx_BT == eot_id).cumsum(1)
