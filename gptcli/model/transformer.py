"""The decoder of GPT-1, GPT-2 and GPT-3.

Differences from the transformer of 2017: LayerNorm before each sub-block and once after the last
layer (GPT-2, section 2.3; GPT-1 applies it after each residual sum, as in 2017), learned positions,
GELU in its tanh form unless the configuration says exact, biases everywhere, the output head tied
to the token embedding, residual projections initialized smaller by 1/sqrt(2·n_layer), and, for
GPT-3, locally banded attention in every second layer.

The model runs without anything else of this package. Five attributes are the seam at which other
code replaces a computation by a faster one with the same signature; `gptcli.kernels.install` does
so for CPUs, and the trainer for compiled and distributed losses:

    Attention.attention_fn   (qkv_BTH3D, *, band, dropout) -> (B, T, H, D)
    Block.block_fn           (block, x_BTC, cache, documents) -> (B, T, C)
    GPT.norm_fn              (ln_f, x_BTC) -> (B, T, C)
    GPT.head_loss            (x_NC, weight_VC, target_N) -> summed loss
    GPT.masks_fn             (bands, T, device, documents_BT) -> FlexAttention's masks by band

From one `block_fn` to the next and to `norm_fn`, x_BTC may be anything that they agree on.

Shapes: B batch, T positions, C d_model, H heads, D d_head, V vocabulary.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from gptcli.model.attention import attention, attention_packed, causal_mask, flex_masked
from gptcli.model.config import NORM_EPS, Gelu, ModelConfig
from gptcli.model.kv_cache import KVCache, PrefillView, SharedPrefixView
from gptcli.model.loss import next_token_loss

Cache = KVCache | PrefillView | SharedPrefixView
Documents = torch.Tensor | Mapping[int | None, Any]
"""Documents that attention stays within: their numbers (B, T), or block masks by band."""
OwnPart = Callable[[nn.Parameter], tuple[torch.Tensor, tuple[int, ...]]]
DRAWN_WHOLE, DRAWN_TOGETHER = 1 << 26, 1 << 22
"""Elements of the largest tensor that is drawn from one generator, and of a part of larger ones."""


class Attention(nn.Module):
    """Multi-head causal self-attention of one layer, dense or banded."""

    attention_fn: Callable[..., torch.Tensor] = staticmethod(attention_packed)

    def __init__(self, config: ModelConfig, layer: int) -> None:
        """Create the projections of layer `layer` (from 0)."""
        super().__init__()
        self.layer = layer
        self.d_head = config.d_head
        self.band = config.band_of(layer)
        self.dropout = config.dropout
        # rows ordered (H, 3, D): a slice of them is a set of whole heads
        self.c_attn = nn.Linear(config.d_model, 3 * config.d_model)
        self.c_proj = nn.Linear(config.d_model, config.d_model)

    def forward(
        self,
        x_BTC: torch.Tensor,
        cache: Cache | None = None,
        documents: Documents | None = None,
    ) -> torch.Tensor:
        """Return the sub-block's output, (B, T, C)."""
        B, T, _ = x_BTC.shape
        qkv_BTH3D = self.c_attn(x_BTC).view(B, T, -1, 3, self.d_head)
        return self.c_proj(self.multi_head(qkv_BTH3D, cache, documents))

    def multi_head(
        self,
        qkv_BTH3D: torch.Tensor,
        cache: Cache | None = None,
        documents: Documents | None = None,
    ) -> torch.Tensor:
        """Return the concatenated outputs of all heads, (B, T, H·D)."""
        B, T = qkv_BTH3D.shape[:2]
        dropout = self.dropout if self.training else 0.0
        q, k, v = qkv_BTH3D.transpose(1, 2).unbind(3)  # each (B, H, T, D)
        if isinstance(cache, PrefillView):
            cache.store(self.layer, k, v)
        if isinstance(cache, KVCache | SharedPrefixView):
            k, v = cache.update(self.layer, k, v)
            mask = cache.attn_mask(T, self.band)
        elif isinstance(documents, torch.Tensor):
            same_B1TT = documents[:, None, :, None] == documents[:, None, None, :]
            mask = causal_mask(T, T, self.band, qkv_BTH3D.device) & same_B1TT
        elif documents is not None and self.band in documents:
            y_BHTD = flex_masked(q, k, v, documents[self.band])
            return y_BHTD.transpose(1, 2).reshape(B, T, -1)
        else:
            y_BTHD = self.attention_fn(qkv_BTH3D, band=self.band, dropout=dropout)
            return y_BTHD.reshape(B, T, -1)
        y_BHTD = attention(q, k, v, band=self.band, dropout=dropout, attn_mask=mask)
        return y_BHTD.transpose(1, 2).reshape(B, T, -1)


def gelu(x: torch.Tensor, form: Gelu = "tanh") -> torch.Tensor:
    """Return GELU (Hendrycks and Gimpel 2016).

    Its exact form is x·Phi(x), with the normal distribution's Phi; its tanh form is
    x/2·(1 + tanh(u)) with u = sqrt(2/pi)·(x + 0.044715·x³).
    """
    if form == "exact":
        return F.gelu(x)
    # x·sigmoid(2u) is the same function; compiled, an exponential takes half the time of a tanh
    if torch.compiler.is_compiling():
        x32 = x.float()
        return (
            x32 * torch.sigmoid(math.sqrt(8 / math.pi) * (x32 + 0.044715 * x32 * x32 * x32))
        ).to(x.dtype)
    return F.gelu(x, approximate="tanh")


class MLP(nn.Module):
    """Position-wise feed-forward sub-block with a hidden layer of d_ff = 4·d_model."""

    def __init__(self, config: ModelConfig) -> None:
        """Create both linear layers."""
        super().__init__()
        self.c_fc = nn.Linear(config.d_model, config.d_ff)
        self.c_proj = nn.Linear(config.d_ff, config.d_model)
        self.gelu = config.gelu

    def forward(self, x_BTC: torch.Tensor) -> torch.Tensor:
        """Return the sub-block's output, (B, T, C)."""
        return self.c_proj(gelu(self.c_fc(x_BTC), self.gelu))


def block_forward(
    block: Block,
    x_BTC: torch.Tensor,
    cache: Cache | None = None,
    documents: Documents | None = None,
) -> torch.Tensor:
    """Return the residual stream after one layer, pre-norm (GPT-2) or post-norm (GPT-1)."""
    if block.post_norm:
        x_BTC = block.ln_1(x_BTC + block.drop(block.attn(x_BTC, cache, documents)))
        return block.ln_2(x_BTC + block.drop(block.mlp(x_BTC)))
    x_BTC = x_BTC + block.drop(block.attn(block.ln_1(x_BTC), cache, documents))
    return x_BTC + block.drop(block.mlp(block.ln_2(x_BTC)))


class Block(nn.Module):
    """One layer: attention and MLP, each with LayerNorm, dropout and a residual connection."""

    block_fn: Callable[..., torch.Tensor] = staticmethod(block_forward)

    def __init__(self, config: ModelConfig, layer: int) -> None:
        """Create layer `layer` (from 0)."""
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
        cache: Cache | None = None,
        documents: Documents | None = None,
    ) -> torch.Tensor:
        """Return the residual stream after this layer, (B, T, C)."""
        return self.block_fn(self, x_BTC, cache, documents)


class GPT(nn.Module):
    """Decoder-only language model with learned positions, whole or pruned to a pipeline stage.

    In a stage, `h` contains only its layers, under their own numbers; `wpe` is None except in the
    first stage, and `ln_f` and `lm_head` are None except in the last.
    """

    norm_fn: Callable[..., torch.Tensor] = staticmethod(nn.Module.__call__)
    head_loss: Callable[..., torch.Tensor] = staticmethod(next_token_loss)
    masks_fn: Callable[..., Mapping[int | None, Any]] | None = None
    """If set, passes without a cache are over whole windows of n_ctx tokens."""
    eot_id: int | None = None
    """End-of-text token; if set, attention does not cross document boundaries."""

    def __init__(self, config: ModelConfig) -> None:
        """Create the model of `config` with PyTorch's own initialization (see `init_weights`)."""
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
        """Return logits (B, T, V), or with targets the summed loss in nats (`next_token_loss`).

        A pipeline stage takes the residual stream (B, T, C) in place of tokens unless it is the
        first, and returns it unless it is the last.
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
        cache: Cache | None = None,
        documents_BT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the input of the output head, (B, T, C); tokens continue the rows of `cache`.

        `documents_BT` contains the number of each token's document; by default it is that of
        `document_ids` if `eot_id` is set.
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
        documents: Documents | None = documents_BT
        if self.masks_fn is not None and cache is None:
            bands = [self.config.band_of(layer) for layer in range(self.config.n_layer)]
            documents = self.masks_fn(bands, self.config.n_ctx, x_BTC.device, documents_BT)
        for block in self.h.children():
            x_BTC = block(x_BTC, cache, documents)
        return x_BTC if self.ln_f is None else self.norm_fn(self.ln_f, x_BTC)

    @torch.no_grad()
    def init_weights(self, seed: int, own_part: OwnPart | None = None) -> None:
        """Initialize all weights as GPT-2 does, or as GPT-1 if the model is post-norm.

        GPT-2: matrices and token embedding N(0, 0.02), positions N(0, 0.01), residual projections
        N(0, 0.02/sqrt(2·n_layer)). GPT-1: all of them N(0, 0.02). Biases are 0 and gains 1.

        Every tensor is drawn from its own generators, seeded by (seed, name, row): its values
        depend neither on the order of initialization nor on the device. If `own_part` is given, it
        returns the part of a parameter that this process has, and the offsets of that part in the
        whole; little else is then drawn.
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
                part, first = (parameter, (0, 0)) if own_part is None else own_part(parameter)
                draw_normal_(part, first, parameter.shape, std, f"{seed}/{name}")


def draw_normal_(
    part: torch.Tensor, first: tuple[int, ...], shape: Sequence[int], std: float, key: str
) -> None:
    """Fill a part of a matrix of `shape`, from the element `first` on, with the matrix's N(0, std).

    The rows of a matrix of more than DRAWN_WHOLE elements are drawn in groups of about
    DRAWN_TOGETHER elements, and only those of the part.
    """
    rows, columns = shape
    group_rows = rows if rows * columns <= DRAWN_WHOLE else max(1, DRAWN_TOGETHER // columns)
    last = first[0] + len(part)
    for start in range(
        first[0] // group_rows * group_rows, last if part.numel() else 0, group_rows
    ):
        digest = hashlib.sha256(f"{key}/{start}".encode() if start else key.encode()).digest()
        seed = int.from_bytes(digest[:8], "little", signed=True)
        drawn = torch.empty(min(group_rows, rows - start), columns)
        drawn.normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
        low, high = max(start, first[0]), min(start + len(drawn), last)
        part[low - first[0] : high - first[0]] = drawn[
            low - start : high - start, first[1] : first[1] + part.shape[1]
        ]


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Make the modules that are created in this context on the meta device: shapes and no values.

    Their initialization is left out. It has nothing to fill, and PyTorch computes normal numbers of
    the meta device by code that imports its compiler, which takes seconds.
    """
    with torch.device("meta"), _Uninitialized():
        yield


class _Uninitialized(TorchFunctionMode):
    """Context in which the functions of `torch.nn.init` do nothing."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`; return the tensor as it is in place of initializing it."""
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def document_ids(idx_BT: torch.Tensor, eot_id: int) -> torch.Tensor:
    """Return the number of each token's document in its window, (B, T) int64.

    End-of-text starts a document: the last token of the one before still predicts it. Positions are
    not reset at documents, as in GPT-3.
    """
    return (idx_BT == eot_id).cumsum(1)


@torch.no_grad()
def mup_rescale(model: torch.nn.Module, m: float) -> None:
    """Rescale freshly initialized weights of a pre-norm GPT, or a part of one, to those of muP.

    muP (maximal-update parametrization) lets widths share their best learning rate: Yang et al.
    2022, "Tensor Programs V", Table 8. With m = d_model / base, relative to the same model of width
    `base` (m = 1 is the standard parametrization):

        matrices in the blocks     initialized smaller by sqrt(m); learning rate lr/m
        embeddings, biases, gains  unchanged
        logits                     divided by m, through the last LayerNorm: its gain is initialized
                                   at 1/m, and gain and bias have the learning rate lr/m

    The last row replaces a factor in the forward pass by initialization and learning rate: a model
    trained this way is a plain GPT-2 in every other respect. The number of heads grows with the
    width, not their size, so scores keep their factor 1/sqrt(D).
    """
    for name, parameter in model.named_parameters():
        if _grows_with_width(name, parameter):
            parameter.mul_(m**-0.5)
        elif name == "ln_f.weight":
            parameter.fill_(1 / m)


def mup_groups(model: torch.nn.Module, m: float, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameter groups of muP for Adam: `lr_scale`, `decays` and `weight_decay` of each.

    The learning rate of a group is that of the schedule times its `lr_scale`; the product of weight
    decay and learning rate is the same for all parameters that have weight decay (`decays`): the
    matrices, including the embeddings, and not biases and gains.
    """
    made: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        lr_scale = 1 / m if _grows_with_width(name, parameter) or name.startswith("ln_f.") else 1.0
        made.setdefault((lr_scale, parameter.dim() >= 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr_scale": lr_scale,
            "decays": decays,
            "weight_decay": weight_decay / lr_scale if decays else 0.0,
        }
        for (lr_scale, decays), parameters in made.items()
    ]


def _grows_with_width(name: str, parameter: torch.Tensor) -> bool:
    """Return whether both dimensions of a parameter grow with the width."""
    return name.startswith("h.") and parameter.dim() >= 2
