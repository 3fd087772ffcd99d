"""Causal self-attention, dense or within a band, with or without a key-value cache.

Within a band, each query attends to the last `band` keys, including its own (GPT-3, section 2.1,
after Child et al. 2019), at a cost that grows with T·band instead of T². Three backends compute
this function; `select_backend` chooses one. The reference is `attention` under `causal_mask`, which
takes T² work.

    blocks    a block of queries at a time, against the keys that any of them attends to: every
              device and precision, with or without dropout
    varlen    torch's FlashAttention kernel for CUDA, which skips what is outside its window: bf16
              and fp16, no dropout
    flex      torch's FlexAttention, a kernel for CUDA that the compiler generates from the band:
              bf16 and fp16 (its fp32 form spills registers), no dropout

The two CUDA backends have not been run on a GPU by us: `python -m tests.benchmarks cuda` compares
them with the mask there, and measures them. On a CPU, tests run `flex` forward and backward in
eager mode, and forward as compiled.

To the compiler, `blocks` is a single operator, so that its loop is not unrolled and its
intermediate results are not saved: the backward pass recomputes the probabilities (Dao et al.
2022). Apart from inputs and outputs, memory contains the scores of one block and the gradients of
its keys. Decoding needs none of this, because the band of a single query is a slice of the cache.

Shapes: B batch, H heads, T queries, S keys, D d_head, r queries of a block, s keys of a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Backend = Literal["flex", "varlen", "blocks"]
HALF = (torch.bfloat16, torch.float16)
BLOCK_QUERIES = 64
"""Queries per block of `blocks`.

A block reads band + 63 keys: smaller blocks waste less work, but their products are too small."""
MASK_BLOCK = 128
"""Queries and keys in a block of FlexAttention's mask."""
MIN_FLEX_D_HEAD = 16
"""Smallest d_head that FlexAttention supports."""


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


def banded_attention(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    band: int,
    dropout: float = 0.0,
) -> torch.Tensor:
    """Return softmax(q·kᵀ / sqrt(D))·v as (B, H, T, D); position t sees t - band + 1 to t.

    The T queries are those of all T positions. The fastest backend available is used.
    """
    backend = select_backend(
        q_BHTD.device.type,
        q_BHTD.dtype,
        q_BHTD.shape[3],
        has_dropout=dropout > 0,
        compiled=torch.compiler.is_compiling(),
    )
    if backend == "flex":
        return flex(q_BHTD, k_BHTD, v_BHTD, band)
    if backend == "varlen":
        return varlen(q_BHTD, k_BHTD, v_BHTD, band)
    # drawn outside the operator: dropout then follows torch.manual_seed, compiled or not
    seed = torch.randint(2**62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    return blocks(q_BHTD, k_BHTD, v_BHTD, seed, band, dropout)


def select_backend(
    device: str, dtype: torch.dtype, d_head: int, *, has_dropout: bool, compiled: bool
) -> Backend:
    """Return the fastest backend for a device type and a precision."""
    # eager, flex would materialize all scores
    if compiled and takes_flex(device, dtype, d_head, has_dropout=has_dropout):
        return "flex"
    return "varlen" if device == "cuda" and dtype in HALF and not has_dropout else "blocks"


def varlen(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, band: int
) -> torch.Tensor:
    """Compute banded attention by torch's variable-length FlashAttention; return (B, H, T, D)."""
    from torch.nn.attention.varlen import varlen_attn

    B, _, T, _ = q_BHTD.shape
    # the kernel takes sequences end to end, with their boundaries
    end_B = torch.arange(0, (B + 1) * T, T, device=q_BHTD.device, dtype=torch.int32)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTD, k_BHTD, v_BHTD))  # (B·T, H, D)
    window = (band - 1, 0)
    y: Any = varlen_attn(q, k, v, end_B, end_B, T, T, window_size=window)
    return y.unflatten(0, (B, T)).transpose(1, 2)


def flex(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, band: int
) -> torch.Tensor:
    """Compute banded attention by torch's FlexAttention; return (B, H, T, D)."""
    return flex_masked(q_BHTD, k_BHTD, v_BHTD, block_mask(q_BHTD.shape[2], band, q_BHTD.device))


def flex_masked(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, mask: BlockMask
) -> torch.Tensor:
    """Compute attention under a block mask by torch's FlexAttention; return (B, H, T, D)."""
    from torch.nn.attention.flex_attention import flex_attention

    y: torch.Tensor = flex_attention(q_BHTD, k_BHTD, v_BHTD, block_mask=mask)
    return y


def takes_flex(device: str, dtype: torch.dtype, d_head: int, *, has_dropout: bool) -> bool:
    """Return whether compiled FlexAttention is the fastest form under a mask."""
    return device == "cuda" and dtype in HALF and d_head >= MIN_FLEX_D_HEAD and not has_dropout


def layer_masks(
    bands: Sequence[int | None], T: int, device: torch.device, documents_BT: torch.Tensor | None
) -> dict[int | None, BlockMask]:
    """Return the block mask of each band among `bands` that needs one.

    They serve all layers of a forward pass. A dense layer (band None) needs one only for documents.
    """
    if documents_BT is None:
        return {band: _band_mask(T, band, device) for band in set(bands) if band and band < T}
    return {band: block_mask(T, band or T, device, documents_BT) for band in set(bands)}


@functools.lru_cache
def _band_mask(T: int, band: int, device: torch.device) -> BlockMask:
    """Return the mask of `block_mask`, computed once."""
    return block_mask(T, band, device)


def block_mask(
    T: int, band: int, device: torch.device, documents_BT: torch.Tensor | None = None
) -> BlockMask:
    """Return FlexAttention's mask for the band: the blocks that it intersects, and those inside it.

    Blocks inside the band need no mask on their elements. With `documents_BT`, which never falls
    along T, a query attends only to keys of its own document.
    """
    from torch.nn.attention.flex_attention import BlockMask

    block = torch.arange(-(-T // MASK_BLOCK), device=device)
    # distance from a block of keys to a block of queries
    distance = (block[:, None] - block) * MASK_BLOCK
    intersects = ((distance >= 0) & (distance - MASK_BLOCK + 1 < band))[None]
    inside = (
        (distance > 0)
        & (distance + MASK_BLOCK - 1 < band)
        & ((block[:, None] + 1) * MASK_BLOCK <= T)
    )[None]
    if documents_BT is not None:
        first_BK = documents_BT[:, block * MASK_BLOCK]
        last_BK = documents_BT[:, (block * MASK_BLOCK + MASK_BLOCK - 1).clamp(max=T - 1)]
        intersects = intersects & (last_BK[:, None, :] >= first_BK[:, :, None])
        inside = inside & (first_BK[:, None, :] == last_BK[:, :, None])

    def indices(blocks_BQK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the number of key blocks of each query block, and their indices first."""
        order = blocks_BQK.to(torch.int32).argsort(descending=True, stable=True)
        return blocks_BQK.sum(-1, dtype=torch.int32)[:, None], order.to(torch.int32)[:, None]

    def in_band(
        b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (key <= query) & (query - key < band)

    def in_band_and_document(
        b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        assert documents_BT is not None
        return in_band(b, h, query, key) & (documents_BT[b, query] == documents_BT[b, key])

    return BlockMask.from_kv_blocks(
        *indices(intersects & ~inside),
        *indices(inside),
        BLOCK_SIZE=MASK_BLOCK,
        mask_mod=in_band if documents_BT is None else in_band_and_document,
        seq_lengths=(T, T),
    )


@torch.library.custom_op("gptcli::banded_blocks", mutates_args=())
def blocks(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    seed: torch.Tensor,
    band: int,
    dropout: float,
) -> torch.Tensor:
    """Compute banded attention a block of queries at a time; return (B, H, T, D).

    `seed` is an integer scalar on the CPU that determines the dropout of each block.
    """
    with torch.autocast(q_BHTD.device.type, enabled=False):
        y_BHTD = _empty_output(v_BHTD)
        for rows, keys in _query_blocks(q_BHTD.shape[2], band):
            p = _probabilities(q_BHTD[:, :, rows], k_BHTD[:, :, keys], band)
            if dropout:
                p *= _dropout_factors(p, dropout, seed, rows)
            y_BHTD[:, :, rows] = p.to(v_BHTD.dtype) @ v_BHTD[:, :, keys]
        return y_BHTD


@blocks.register_fake
def _(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, *rest: object
) -> torch.Tensor:
    return _empty_output(v_BHTD)


@torch.library.custom_op("gptcli::banded_blocks_backward", mutates_args=())
def blocks_backward(
    dy_BHTD: torch.Tensor,
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    y_BHTD: torch.Tensor,
    seed: torch.Tensor,
    band: int,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v."""
    with torch.autocast(q_BHTD.device.type, enabled=False):
        B, H, T, D = q_BHTD.shape
        scale = 1 / math.sqrt(D)
        dq, dk, dv = grads = _empty_gradients(q_BHTD, k_BHTD, v_BHTD)
        # sums of dk and dv for the keys that later queries attend to
        sums = q_BHTD.new_zeros(2, B, H, 0, D, dtype=torch.float32)
        begin = 0  # index of the first of these keys
        for rows, keys in _query_blocks(T, band):
            q, dy, k, v = (
                q_BHTD[:, :, rows],
                dy_BHTD[:, :, rows],
                k_BHTD[:, :, keys],
                v_BHTD[:, :, keys],
            )
            done = keys.start - begin
            dk[:, :, begin : keys.start], dv[:, :, begin : keys.start] = sums[:, :, :, :done]
            sums = F.pad(sums[:, :, :, done:], (0, 0, 0, keys.stop - begin - sums.shape[3]))
            begin = keys.start
            p = _probabilities(q, k, band)
            delta = (y_BHTD[:, :, rows].float() * dy.float()).sum(-1, keepdim=True)
            ds = (dy @ v.mT).float()
            factors = _dropout_factors(p, dropout, seed, rows) if dropout else None
            sums[1] += (p if factors is None else p * factors).to(v.dtype).mT @ dy
            if factors is not None:
                ds *= factors
            ds = ds.sub_(delta).mul_(p).to(q.dtype)
            dq[:, :, rows] = (ds @ k).mul_(scale)
            sums[0].add_(ds.mT @ q, alpha=scale)
        dk[:, :, begin:], dv[:, :, begin:] = sums
        return grads


@blocks_backward.register_fake
def _(
    dy_BHTD: torch.Tensor,
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    *rest: object,
) -> tuple[torch.Tensor, ...]:
    return _empty_gradients(q_BHTD, k_BHTD, v_BHTD)


def _empty_output(v_BHTD: torch.Tensor) -> torch.Tensor:
    """Allocate the output, laid out as (B, T, H, D), which the next projection reads."""
    return torch.empty_like(
        v_BHTD.transpose(1, 2), memory_format=torch.contiguous_format
    ).transpose(1, 2)


def _empty_gradients(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Allocate the gradients of q, k and v."""
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[object, ...], output: torch.Tensor) -> None:
    q, k, v, seed, ctx.band, ctx.dropout = inputs
    ctx.save_for_backward(q, k, v, output, seed)


def _gradients(ctx: Any, dy_BHTD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    q, k, v, y, seed = ctx.saved_tensors
    gradients = blocks_backward(dy_BHTD, q, k, v, y, seed, ctx.band, ctx.dropout)
    return *gradients, None, None, None


blocks.register_autograd(_gradients, setup_context=_save)


def _query_blocks(T: int, band: int) -> Iterator[tuple[slice, slice]]:
    """Yield each block of queries, and the keys that any query of the block attends to."""
    for start in range(0, T, BLOCK_QUERIES):
        stop = min(start + BLOCK_QUERIES, T)
        yield slice(start, stop), slice(max(0, start - band + 1), stop)


def _probabilities(q_BHrD: torch.Tensor, k_BHsD: torch.Tensor, band: int) -> torch.Tensor:
    """Return the softmax (B, H, r, s) of r queries, the last of s positions, in fp32."""
    r, s = q_BHrD.shape[2], k_BHsD.shape[2]
    infinite_rs = torch.full((r, s), -math.inf, device=q_BHrD.device)
    # -inf for keys after the query and before its band, 0 elsewhere
    bias_rs = infinite_rs.triu(s - r + 1) + infinite_rs.tril(s - r - band)
    # bf16 would round a score of 20 to a multiple of an eighth
    scores_BHrs = q_BHrD.float() @ k_BHsD.float().mT
    return scores_BHrs.mul_(1 / math.sqrt(q_BHrD.shape[-1])).add_(bias_rs).softmax(-1)


def _dropout_factors(
    p_BHrs: torch.Tensor, dropout: float, seed: torch.Tensor, rows: slice
) -> torch.Tensor:
    """Return the factors of a block's probabilities: 0, or 1/(1 - dropout)."""
    generator = torch.Generator(p_BHrs.device).manual_seed(int(seed) + rows.start)
    return torch.empty_like(p_BHrs).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
