"""Kernels for a layer in training on a CUDA GPU, in Triton, beside its products and attention.

What is neither a product nor attention costs the memory that it moves. PyTorch's compiler fuses
element by element, and not with sums over positions: the gradients of biases are read again, and
LayerNorm's backward pass takes two. Here each of these is one pass, whose programs keep the sums of
their rows; the few rows of sums are added up afterwards, in the same order every time.

    norm             x (+ branch + bias)      -> the sum and its LayerNorm
    norm_backward    gradients of both        -> those of x, branch, bias, gain and shift
    gelu_backward    gradient, GELU's input   -> gradients of that and of the bias before it
    pack             gradients of q, k and v  -> gradients of their projection and of its bias
    round_and_sum    fp32 gradient            -> the same for the next product, and its bias's

Sums are in fp32. Triton's interpreter runs the kernels in the tests, and tests/gpu compiles them to
machine code; they have not been run on a GPU by us.

Shapes: N positions, C d_model, F columns, B batch, H heads, T positions of a sequence, D d_head, P
programs that keep sums.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

ROW_PROGRAMS, TILE_PROGRAMS = 528, 1056
"""Programs that keep sums of rows, and of columns: four and eight for each multiprocessor of an
H100, which has room for them. Constants, so that sums are added up in the same order on every GPU.
"""
TILE_ROWS, TILE_COLUMNS = 32, 64
"""Positions and columns that a program reads at a time."""


def sum_programs(N: int, columns: int) -> int:
    """Return the programs that keep sums of N rows, of which each has `columns` programs beside."""
    return max(1, min(-(-N // TILE_ROWS), TILE_PROGRAMS // columns))


@torch.library.custom_op("gptcli::triton_norm", mutates_args=())
def norm(
    x_NC: torch.Tensor,
    branch_NC: torch.Tensor | None,
    bias_C: torch.Tensor | None,
    gain_C: torch.Tensor,
    shift_C: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return x + branch + bias in the type of x, its LayerNorm in `dtype`, and (mean, 1/deviation).

    The last are (2, N) in fp32. Without a branch the LayerNorm is that of x, and the sum is empty.
    """
    x_NC = x_NC.contiguous()
    (N, C), block = x_NC.shape, _row_block(x_NC)
    sum_NC, y_NC, stats_2N = _norm_results(x_NC, branch_NC, dtype)
    start(
        "norm", (N,), x_NC, _contiguous(branch_NC), bias_C, gain_C, shift_C, sum_NC, y_NC,
        stats_2N, N, C, eps, HAS_BRANCH=branch_NC is not None, BLOCK_C=block,
        num_warps=row_warps(block),
    )  # fmt: skip
    return sum_NC, y_NC, stats_2N


@norm.register_fake
def _(
    x_NC: torch.Tensor,
    branch_NC: torch.Tensor | None,
    bias_C: torch.Tensor | None,
    gain_C: torch.Tensor,
    shift_C: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _norm_results(x_NC, branch_NC, dtype)


def _norm_results(
    x_NC: torch.Tensor, branch_NC: torch.Tensor | None, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    N, C = x_NC.shape
    sum_NC = x_NC.new_empty(0) if branch_NC is None else x_NC.new_empty(N, C)
    return sum_NC, x_NC.new_empty(N, C, dtype=dtype), x_NC.new_empty(2, N, dtype=torch.float32)


@torch.library.custom_op("gptcli::triton_norm_backward", mutates_args=())
def norm_backward(
    dy_NC: torch.Tensor,
    dsum_NC: torch.Tensor | None,
    sum_NC: torch.Tensor,
    stats_2N: torch.Tensor,
    gain_C: torch.Tensor,
    branch_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of x in its type, of the branch in its own, and three sums, (3, P, C).

    `sum_NC` is the input of the LayerNorm, and `dsum_NC` the gradient that reaches it through the
    residual connection. The sums are those of gain, shift and bias. Without a branch its gradient
    is empty.
    """
    sum_NC = sum_NC.contiguous()
    (N, C), block = sum_NC.shape, _row_block(sum_NC)
    dx_NC, dbranch_NC, sums_3PC = _norm_gradients(sum_NC, branch_dtype)
    start(
        "norm_backward", (sums_3PC.shape[1],), dy_NC.contiguous(), _contiguous(dsum_NC), sum_NC,
        stats_2N, gain_C, dx_NC, dbranch_NC, sums_3PC, N, C, HAS_SUM=dsum_NC is not None,
        HAS_BRANCH=branch_dtype is not None, BLOCK_C=block, num_warps=row_warps(block),
    )  # fmt: skip
    return dx_NC, dbranch_NC, sums_3PC


@norm_backward.register_fake
def _(
    dy_NC: torch.Tensor,
    dsum_NC: torch.Tensor | None,
    sum_NC: torch.Tensor,
    stats_2N: torch.Tensor,
    gain_C: torch.Tensor,
    branch_dtype: torch.dtype | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return _norm_gradients(sum_NC, branch_dtype)


def _norm_gradients(
    sum_NC: torch.Tensor, branch_dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    N, C = sum_NC.shape
    size = (0,) if branch_dtype is None else (N, C)
    sums_3PC = sum_NC.new_empty(3, max(1, min(N, ROW_PROGRAMS)), C, dtype=torch.float32)
    return sum_NC.new_empty(N, C), sum_NC.new_empty(size, dtype=branch_dtype), sums_3PC


@torch.library.custom_op("gptcli::triton_gelu_backward", mutates_args=())
def gelu_backward(
    dy_NF: torch.Tensor, before_NF: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of GELU's input in its type, and sums of its rows, (P, F) in fp32."""
    dbefore_NF, sums_PF = _rows_and_sums(before_NF, before_NF.dtype)
    return _columns(dy_NF, before_NF, dbefore_NF, sums_PF)


@gelu_backward.register_fake
def _(dy_NF: torch.Tensor, before_NF: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return _rows_and_sums(before_NF, before_NF.dtype)


@torch.library.custom_op("gptcli::triton_round_and_sum", mutates_args=())
def round_and_sum(dy_NC: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a gradient in `dtype`, and sums of its rows, (P, C) in fp32."""
    return _columns(dy_NC, None, *_rows_and_sums(dy_NC, dtype))


@round_and_sum.register_fake
def _(dy_NC: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return _rows_and_sums(dy_NC, dtype)


def _rows_and_sums(x_NF: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    N, F = x_NF.shape
    programs = sum_programs(N, -(-F // TILE_COLUMNS))
    return x_NF.new_empty(N, F, dtype=dtype), x_NF.new_empty(programs, F, dtype=torch.float32)


def _columns(
    dy_NF: torch.Tensor,
    before_NF: torch.Tensor | None,
    out_NF: torch.Tensor,
    sums_PF: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    N, F = dy_NF.shape
    start(
        "columns", (-(-F // TILE_COLUMNS), len(sums_PF)), dy_NF.contiguous(),
        _contiguous(before_NF), out_NF, sums_PF, N, F,
        GELU=before_NF is not None, ROWS=TILE_ROWS, COLUMNS=TILE_COLUMNS,
    )  # fmt: skip
    return out_NF, sums_PF


@torch.library.custom_op("gptcli::triton_pack", mutates_args=())
def pack(
    dq_BHTD: torch.Tensor, dk_BHTD: torch.Tensor, dv_BHTD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of the projection, (N, 3C), and sums of its rows, (P, 3C) in fp32."""
    parts = [x if x.stride(3) == 1 else x.contiguous() for x in (dq_BHTD, dk_BHTD, dv_BHTD)]
    B, H, T, D = dq_BHTD.shape
    dqkv_N3C, sums_PxC = _packed(dq_BHTD)
    start(
        "pack", (3 * H, len(sums_PxC)), *parts, dqkv_N3C, sums_PxC, B * T, T, H, D,
        *(part.stride(axis) for part in parts for axis in range(3)),
        ROWS=TILE_ROWS, BLOCK_D=1 << (D - 1).bit_length(),
    )  # fmt: skip
    return dqkv_N3C, sums_PxC


@pack.register_fake
def _(
    dq_BHTD: torch.Tensor, dk_BHTD: torch.Tensor, dv_BHTD: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _packed(dq_BHTD)


def _packed(dq_BHTD: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    B, H, T, D = dq_BHTD.shape
    sums = dq_BHTD.new_empty(sum_programs(B * T, 3 * H), 3 * H * D, dtype=torch.float32)
    return dq_BHTD.new_empty(B * T, 3 * H * D), sums


def _contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _row_block(x_NC: torch.Tensor) -> int:
    """Return the power of two that a row fits in."""
    return 1 << (x_NC.shape[1] - 1).bit_length()


def row_warps(block: int) -> int:
    """Return the warps of a program that holds a row: eight elements a thread, or sixteen."""
    return max(1, min(16, block // 256))


def start(name: str, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> Any:
    """Start a kernel, which Triton compiles on first use for each set of types."""
    return kernels()[name][grid](*arguments, **constants)


@functools.cache
def kernels() -> dict[str, Any]:
    """Return Triton's functions by name; Triton is imported here, when a GPU trains."""
    import triton
    import triton.language as tl

    @triton.jit
    def norm_kernel(  # type: ignore[no-untyped-def]
        x_ptr, branch_ptr, bias_ptr, gain_ptr, shift_ptr, sum_ptr, y_ptr, stats_ptr, N, C, eps,
        HAS_BRANCH: tl.constexpr, BLOCK_C: tl.constexpr,
    ):  # fmt: skip
        """Add the branch to one row, and normalize it."""
        row = tl.program_id(0)
        c = tl.arange(0, BLOCK_C)
        inside = c < C
        at = row.to(tl.int64) * C + c
        x = tl.load(x_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if HAS_BRANCH:
            x += tl.load(branch_ptr + at, mask=inside, other=0.0).to(tl.float32)
            x += tl.load(bias_ptr + c, mask=inside, other=0.0).to(tl.float32)
            tl.store(sum_ptr + at, x.to(sum_ptr.dtype.element_ty), mask=inside)
        mean = tl.sum(x, axis=0) / C
        away = tl.where(inside, x - mean, 0.0)
        inverse = 1.0 / tl.sqrt(tl.sum(away * away, axis=0) / C + eps)
        gain = tl.load(gain_ptr + c, mask=inside, other=0.0).to(tl.float32)
        shift = tl.load(shift_ptr + c, mask=inside, other=0.0).to(tl.float32)
        y = away * inverse * gain + shift
        tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=inside)
        tl.store(stats_ptr + row, mean)
        tl.store(stats_ptr + N + row, inverse)

    @triton.jit
    def norm_backward_kernel(  # type: ignore[no-untyped-def]
        dy_ptr, dsum_ptr, sum_ptr, stats_ptr, gain_ptr, dx_ptr, dbranch_ptr, sums_ptr, N, C,
        HAS_SUM: tl.constexpr, HAS_BRANCH: tl.constexpr, BLOCK_C: tl.constexpr,
    ):  # fmt: skip
        """Return the gradients of every P-th row, and keep the sums over them."""
        first = tl.program_id(0)
        P = tl.num_programs(0)
        c = tl.arange(0, BLOCK_C)
        inside = c < C
        dgain = tl.zeros((BLOCK_C,), tl.float32)
        dshift = tl.zeros((BLOCK_C,), tl.float32)
        dbias = tl.zeros((BLOCK_C,), tl.float32)
        for row in range(first, N, P):
            at = (c * 0 + row).to(tl.int64) * C + c
            x = tl.load(sum_ptr + at, mask=inside, other=0.0).to(tl.float32)
            inverse = tl.load(stats_ptr + N + row)
            normal = tl.where(inside, (x - tl.load(stats_ptr + row)) * inverse, 0.0)
            dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
            dgain += dy * normal
            dshift += dy
            # in the loop, so that wide rows leave registers for the sums
            gain = tl.load(gain_ptr + c, mask=inside, other=0.0).to(tl.float32)
            dnormal = dy * gain
            along = tl.sum(dnormal * normal, axis=0) / C
            dx = (dnormal - tl.sum(dnormal, axis=0) / C - normal * along) * inverse
            if HAS_SUM:
                dx += tl.load(dsum_ptr + at, mask=inside, other=0.0).to(tl.float32)
            tl.store(dx_ptr + at, dx.to(dx_ptr.dtype.element_ty), mask=inside)
            if HAS_BRANCH:
                tl.store(dbranch_ptr + at, dx.to(dbranch_ptr.dtype.element_ty), mask=inside)
                dbias += tl.where(inside, dx, 0.0)
        tl.store(sums_ptr + first * C + c, dgain, mask=inside)
        tl.store(sums_ptr + (P + first) * C + c, dshift, mask=inside)
        tl.store(sums_ptr + (2 * P + first) * C + c, dbias, mask=inside)

    @triton.jit
    def columns_kernel(  # type: ignore[no-untyped-def]
        dy_ptr, before_ptr, out_ptr, sums_ptr, N, F,
        GELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    ):  # fmt: skip
        """Convert COLUMNS columns of every P-th group of rows, and keep the sums over them."""
        f = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        first = tl.program_id(1)
        P = tl.num_programs(1)
        sums = tl.zeros((ROWS, COLUMNS), tl.float32)
        for begin in range(first * ROWS, N, P * ROWS):
            row = begin + tl.arange(0, ROWS)
            at = row[:, None].to(tl.int64) * F + f[None, :]
            inside = (row[:, None] < N) & (f[None, :] < F)
            dy = tl.load(dy_ptr + at, mask=inside, other=0.0).to(tl.float32)
            if GELU:  # x·s(x) with s the sigmoid of 2u(x)
                x = tl.load(before_ptr + at, mask=inside, other=0.0).to(tl.float32)
                s = tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
                slope = 1.5957691216057308 * (1.0 + 0.134145 * x * x)
                dy *= s + x * s * (1.0 - s) * slope
            tl.store(out_ptr + at, dy.to(out_ptr.dtype.element_ty), mask=inside)
            sums += dy
        tl.store(sums_ptr + first * F + f, tl.sum(sums, axis=0), mask=f < F)

    @triton.jit
    def pack_kernel(  # type: ignore[no-untyped-def]
        q_ptr, k_ptr, v_ptr, out_ptr, sums_ptr, N, T, H, D,
        q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
        ROWS: tl.constexpr, BLOCK_D: tl.constexpr,
    ):  # fmt: skip
        """Copy the gradients of one head's q, k or v to their columns, and keep their sums."""
        part = tl.program_id(0)  # the columns are (H, 3, D)
        head = part // 3
        first = tl.program_id(1)
        P = tl.num_programs(1)
        d = tl.arange(0, BLOCK_D)
        sums = tl.zeros((ROWS, BLOCK_D), tl.float32)
        for begin in range(first * ROWS, N, P * ROWS):
            row = begin + tl.arange(0, ROWS)
            b = (row // T).to(tl.int64)
            t = (row % T).to(tl.int64)
            inside = (row[:, None] < N) & (d[None, :] < D)
            if part % 3 == 0:
                at = (b * q_b + head * q_h + t * q_t)[:, None] + d[None, :]
                x = tl.load(q_ptr + at, mask=inside, other=0.0)
            elif part % 3 == 1:
                at = (b * k_b + head * k_h + t * k_t)[:, None] + d[None, :]
                x = tl.load(k_ptr + at, mask=inside, other=0.0)
            else:
                at = (b * v_b + head * v_h + t * v_t)[:, None] + d[None, :]
                x = tl.load(v_ptr + at, mask=inside, other=0.0)
            to = row[:, None].to(tl.int64) * (3 * H * D) + part * D + d[None, :]
            tl.store(out_ptr + to, x, mask=inside)
            sums += x.to(tl.float32)
        at_sums = sums_ptr + first * (3 * H * D) + part * D + d
        tl.store(at_sums, tl.sum(sums, axis=0), mask=d < D)

    made = {
        "norm": norm_kernel, "norm_backward": norm_backward_kernel,
        "columns": columns_kernel, "pack": pack_kernel,
    }  # fmt: skip
    for function in made.values():  # Triton looks names up in the module
        function.fn.__globals__["tl"] = tl
    return made
