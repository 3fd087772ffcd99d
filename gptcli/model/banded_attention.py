"""Attention within a band, at a cost that grows with T·w and not with T² (GPT-3, section 2.1, after
Child et al. 2019).

Each query sees the last `band` keys, its own counted. Four forms compute this one function, and
`form_for` says which is used where:

    mask      `attention.attend` under `causal_mask`: the reference, T² work
    blocks    some queries at a time against the keys that any of them sees: every device and precision, and dropout
    varlen    torch's FlashAttention kernel for CUDA, which skips what lies outside its window: bf16 and fp16, no dropout
    flex      torch's FlexAttention, a kernel for CUDA that the compiler makes from the band: every precision, no dropout

In bf16 on a CPU with AMX the kernel of `attention_kernel` comes before all of them. The two for
CUDA have not been run on a GPU yet: `python -m tests.benchmarks cuda` holds them against the mask
there, and times them. On a CPU `flex` is tested forward and backward as torch reads it step by
step, and forward as compiled.

To the compiler `blocks` is a single operator, so that it neither unrolls the loop nor keeps what
autograd would: the backward pass computes the probabilities again (Dao et al. 2022), and besides
inputs and outputs one block's scores and the gradients of its keys are alive at a time. Decoding
needs none of this: the band of a single query is a slice of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# in a block: each reads band + 63 keys, so fewer waste less work, but products become small
QUERIES = 64
TILE = 128  # queries, and keys, that FlexAttention takes or leaves together
FLEX_HEAD = 16  # the narrowest head that it takes


def banded_attend(
    q_BHTD: torch.Tensor,
    k_BHTD: torch.Tensor,
    v_BHTD: torch.Tensor,
    band: int,
    dropout: float = 0.0,
) -> torch.Tensor:
    """softmax(q·k / sqrt(D))·v where position t sees t - band + 1 to t; returns (B, H, T, D), by
    the fastest form that there is.
    """
    form = form_for(
        q_BHTD.device.type,
        q_BHTD.dtype,
        q_BHTD.shape[3],
        drops=dropout > 0,
        compiled=torch.compiler.is_compiling(),
    )
    if form == "flex":
        return flex(q_BHTD, k_BHTD, v_BHTD, band)
    if form == "varlen":
        return varlen(q_BHTD, k_BHTD, v_BHTD, band)
    # drawn outside of the operator, so that dropout follows torch.manual_seed, compiled or not
    seed = torch.randint(2**62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    return blocks(q_BHTD, k_BHTD, v_BHTD, seed, band, dropout)


def form_for(device: str, dtype: torch.dtype, d_head: int, *, drops: bool, compiled: bool) -> str:
    """The form that is used: "flex", "varlen" or "blocks"."""
    if device != "cuda" or drops:
        return "blocks"
    if compiled and d_head >= FLEX_HEAD:  # not compiled, it would write all scores down
        return "flex"
    return "varlen" if dtype in (torch.bfloat16, torch.float16) else "blocks"


def varlen(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, band: int
) -> torch.Tensor:
    """B sequences of one length, as the kernel takes them: end to end, with their ends."""
    from torch.nn.attention.varlen import varlen_attn

    B, _, T, _ = q_BHTD.shape
    end_B = torch.arange(0, (B + 1) * T, T, device=q_BHTD.device, dtype=torch.int32)
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTD, k_BHTD, v_BHTD))  # (B·T, H, D)
    y: torch.Tensor = varlen_attn(q, k, v, end_B, end_B, T, T, window_size=(band - 1, 0))  # type: ignore[assignment]
    return y.unflatten(0, (B, T)).transpose(1, 2)


def flex(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, band: int
) -> torch.Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    y: torch.Tensor = flex_attention(
        q_BHTD, k_BHTD, v_BHTD, block_mask=tiles(q_BHTD.shape[2], band, q_BHTD.device)
    )
    return y


def tiles(T: int, band: int, device: torch.device) -> BlockMask:
    """Which tiles of T queries and T keys hold anything of the band, and which of them nothing
    else, and so need no mask.
    """
    from torch.nn.attention.flex_attention import BlockMask

    tile = torch.arange(-(-T // TILE), device=device)
    behind = (tile[:, None] - tile) * TILE  # of a tile of keys, how far it is behind one of queries
    touched = (behind >= 0) & (behind - TILE + 1 < band)
    whole = (behind > 0) & (behind + TILE - 1 < band) & ((tile[:, None] + 1) * TILE <= T)

    def listed(tiles_QK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """How many tiles of keys each tile of queries has, and their numbers first."""
        order = tiles_QK.to(torch.int32).argsort(descending=True, stable=True)
        return tiles_QK.sum(-1, dtype=torch.int32)[None, None], order.to(torch.int32)[None, None]

    def seen(
        b: torch.Tensor, h: torch.Tensor, query: torch.Tensor, key: torch.Tensor
    ) -> torch.Tensor:
        return (key <= query) & (query - key < band)

    return BlockMask.from_kv_blocks(
        *listed(touched & ~whole),
        *listed(whole),
        BLOCK_SIZE=TILE,
        mask_mod=seen,
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
    """The attention by blocks of queries; `seed` is a whole number on the CPU, from which each
    block's dropout follows.
    """
    with torch.autocast(q_BHTD.device.type, enabled=False):
        y_BHTD = _output(v_BHTD)
        for rows, keys in _spans(q_BHTD.shape[2], band):
            p = _probabilities(q_BHTD[:, :, rows], k_BHTD[:, :, keys], band)
            if dropout:
                p *= _kept(p, dropout, seed, rows)
            y_BHTD[:, :, rows] = p.to(v_BHTD.dtype) @ v_BHTD[:, :, keys]
        return y_BHTD


@blocks.register_fake
def _(
    q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor, *rest: object
) -> torch.Tensor:
    return _output(v_BHTD)


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
    """Gradients of q, k and v."""
    with torch.autocast(q_BHTD.device.type, enabled=False):
        B, H, T, D = q_BHTD.shape
        scale = 1 / math.sqrt(D)
        dq, dk, dv = grads = _gradients_of(q_BHTD, k_BHTD, v_BHTD)
        # dk and dv of the keys that queries still come for
        sums = q_BHTD.new_zeros(2, B, H, 0, D, dtype=torch.float32)
        begin = 0  # the first of them
        for rows, keys in _spans(T, band):
            q, dy, k, v = (
                q_BHTD[:, :, rows],
                dy_BHTD[:, :, rows],
                k_BHTD[:, :, keys],
                v_BHTD[:, :, keys],
            )
            gone = keys.start - begin
            dk[:, :, begin : keys.start], dv[:, :, begin : keys.start] = sums[:, :, :, :gone]
            sums = F.pad(sums[:, :, :, gone:], (0, 0, 0, keys.stop - begin - sums.shape[3]))
            begin = keys.start
            p = _probabilities(q, k, band)
            delta = (y_BHTD[:, :, rows].float() * dy.float()).sum(-1, keepdim=True)
            ds = (dy @ v.mT).float()
            kept = _kept(p, dropout, seed, rows) if dropout else None
            sums[1] += (p if kept is None else p * kept).to(v.dtype).mT @ dy
            if kept is not None:
                ds *= kept
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
    return _gradients_of(q_BHTD, k_BHTD, v_BHTD)


def _output(v_BHTD: torch.Tensor) -> torch.Tensor:
    """Room for the result, with the heads of a position side by side, as the projection after it
    reads them.
    """
    return torch.empty_like(
        v_BHTD.transpose(1, 2), memory_format=torch.contiguous_format
    ).transpose(1, 2)


def _gradients_of(*inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Room for the gradients of q, k and v."""
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    return dq, dk, dv


def _save(ctx: object, inputs: tuple[object, ...], output: torch.Tensor) -> None:
    q, k, v, seed, ctx.band, ctx.dropout = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(q, k, v, output, seed)  # type: ignore[attr-defined]


def _gradients(ctx: object, dy_BHTD: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    q, k, v, y, seed = ctx.saved_tensors  # type: ignore[attr-defined]
    return *blocks_backward(dy_BHTD, q, k, v, y, seed, ctx.band, ctx.dropout), None, None, None  # type: ignore[attr-defined]


blocks.register_autograd(_gradients, setup_context=_save)


def _spans(T: int, band: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of queries, and the keys that any query of the block sees."""
    for start in range(0, T, QUERIES):
        stop = min(start + QUERIES, T)
        yield slice(start, stop), slice(max(0, start - band + 1), stop)


def _probabilities(q_BHrD: torch.Tensor, k_BHsD: torch.Tensor, band: int) -> torch.Tensor:
    """softmax of the scores of r queries, the last of the s positions; (B, H, r, s) fp32, exactly 0
    outside of the band.
    """
    r, s = q_BHrD.shape[2], k_BHsD.shape[2]
    infinite_rs = torch.full((r, s), -math.inf, device=q_BHrD.device)
    # keys after the query, and before its band; 0 elsewhere
    unseen_rs = infinite_rs.triu(s - r + 1) + infinite_rs.tril(s - r - band)
    # bf16 would round a score of 20 to a multiple of an eighth
    scores_BHrs = q_BHrD.float() @ k_BHsD.float().mT
    return scores_BHrs.mul_(1 / math.sqrt(q_BHrD.shape[-1])).add_(unseen_rs).softmax(-1)


def _kept(p_BHrs: torch.Tensor, dropout: float, seed: torch.Tensor, rows: slice) -> torch.Tensor:
    """What dropout multiplies the probabilities of a block with: 0, or 1/(1 - dropout)."""
    generator = torch.Generator(p_BHrs.device).manual_seed(int(seed) + rows.start)
    return torch.empty_like(p_BHrs).bernoulli_(1 - dropout, generator=generator).div_(1 - dropout)
