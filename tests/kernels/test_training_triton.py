"""The training kernels in Triton's interpreter equal PyTorch's derivatives, at odd shapes.

Triton reads TRITON_INTERPRET when it is imported, so the comparisons run in a process of its own:
this file as a program.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gptcli.kernels import training_triton as kernels
from tests.triton_interpreter import check_errors, check_in_interpreter

ROUNDING = {torch.float32: 3e-6, torch.bfloat16: 2**-7}
"""Of a result; the interpreter rounds bf16 towards zero."""


def close(got: torch.Tensor, exact: torch.Tensor, dtype: torch.dtype, times: float = 1.0) -> None:
    assert got.shape == exact.shape
    most = (got.double() - exact.double()).abs().max()
    assert most <= times * ROUNDING[dtype] * exact.double().abs().max(), (most, exact.abs().max())


def compare_norms() -> None:
    """LayerNorm with and without a branch, forward and backward, against fp64."""
    for N, C in ((1, 5), (7, 33), (20, 3), (9, 768)):
        for dtype in ROUNDING:
            for has_branch in (False, True):
                x, dsum = torch.randn(N, C), torch.randn(N, C)
                branch = torch.randn(N, C).to(dtype) if has_branch else None
                bias = torch.randn(C) if has_branch else None
                gain, shift, dy = torch.randn(C), torch.randn(C), torch.randn(N, C).to(dtype)
                added, y, stats = kernels.norm(x, branch, bias, gain, shift, 1e-5, dtype)
                assert y.dtype == dtype
                dx, dbranch, sums = kernels.norm_backward(
                    dy, dsum, added if has_branch else x, stats, gain, dtype if has_branch else None
                )
                alone, _, _ = kernels.norm_backward(
                    dy, None, added if has_branch else x, stats, gain, None
                )
                close(alone + dsum, dx, torch.float32)  # without a gradient of the sum

                leaves = [t.double().requires_grad_() for t in (x, gain, shift)]
                if branch is not None and bias is not None:
                    leaves += [branch.double().requires_grad_(), bias.double().requires_grad_()]
                total = leaves[0] if branch is None else leaves[0] + leaves[3] + leaves[4]
                exact = F.layer_norm(total, (C,), leaves[1], leaves[2], 1e-5)
                close(y, exact, dtype)
                if has_branch:
                    close(added, total.float(), torch.float32)
                loss = (exact * dy.double()).sum() + (total * dsum.double()).sum()
                grads = torch.autograd.grad(loss, leaves)
                close(dx, grads[0], torch.float32, 10)
                close(sums[0].sum(0), grads[1], torch.float32, 10)
                close(sums[1].sum(0), grads[2], torch.float32, 10)
                if branch is None:
                    assert added.numel() == dbranch.numel() == 0
                else:
                    assert dbranch.dtype == dtype
                    close(dbranch, grads[3], dtype)
                    close(sums[2].sum(0), grads[4], torch.float32, 10)


def compare_columns() -> None:
    """GELU's derivative, and rounding, each with the sums of its rows."""
    for N, columns in ((1, 1), (33, 65), (70, 200)):
        for dtype in ROUNDING:
            dy, before = torch.randn(N, columns).to(dtype), 3 * torch.randn(N, columns).to(dtype)
            dbefore, sums = kernels.gelu_backward(dy, before)
            x = before.double().requires_grad_()
            F.gelu(x, approximate="tanh").backward(dy.double())
            assert x.grad is not None
            assert dbefore.dtype == dtype
            close(dbefore, x.grad, dtype)
            close(sums.sum(0), x.grad.sum(0), torch.float32, 10)

            dy = torch.randn(N, columns)
            rounded, sums = kernels.round_and_sum(dy, dtype)
            assert rounded.dtype == dtype
            close(rounded, dy, dtype)
            close(sums.sum(0), dy.sum(0), torch.float32, 10)


def compare_packing() -> None:
    """Gradients of q, k and v as attention lays them out, each in its own way."""
    for B, H, T, D in ((1, 1, 1, 1), (2, 3, 21, 5), (3, 2, 50, 16)):
        for dtype in ROUNDING:
            parts = [
                torch.randn(B, H, T, D).to(dtype),
                torch.randn(B, T, H, D).to(dtype).transpose(1, 2),
                torch.randn(T, H, B, D).to(dtype).permute(2, 1, 0, 3),
            ]
            packed, sums = kernels.pack(*parts)
            exact = torch.stack(parts, 3).transpose(1, 2).reshape(B * T, 3 * H * D)
            assert packed.equal(exact)
            close(sums.sum(0), exact.float().sum(0), torch.float32, 10)


def compare_with_pytorch() -> None:
    """Errors at odd shapes, in fp16, which the interpreter rounds as a GPU does, next to those of
    PyTorch with the same inputs and autocast.
    """
    dtype = torch.float16
    for N, C in ((7, 33), (33, 65)):
        x, dsum, dy = torch.randn(N, C), torch.randn(N, C), torch.randn(N, C).to(dtype)
        branch, bias = torch.randn(N, C).to(dtype), torch.randn(C).to(dtype).float()
        gain, shift = torch.randn(C), torch.randn(C)
        added, y, stats = kernels.norm(x, branch, bias, gain, shift, 1e-5, dtype)
        dx, dbranch, sums = kernels.norm_backward(dy, dsum, added, stats, gain, dtype)
        ours = [added, y, dx, dbranch, *sums.sum(1)]
        found = []
        for wide in (torch.float32, torch.float64):
            low = dtype if wide == torch.float32 else wide
            leaves = [t.detach().to(wide).requires_grad_() for t in (x, gain, shift)]
            leaves += [t.detach().to(low).requires_grad_() for t in (branch, bias)]
            total = leaves[0] + (leaves[3] + leaves[4])
            normal = F.layer_norm(total, (C,), leaves[1], leaves[2], 1e-5).to(low)
            grads = torch.autograd.grad([normal, total], leaves, [dy.to(low), dsum.to(wide)])
            found.append(
                [total.detach(), normal.detach(), grads[0], grads[3], *grads[1:3], grads[4]]
            )
        check_errors("LayerNorm", ours, *found)

        before = 3 * torch.randn(N, C).to(dtype)
        found = []
        for low in (dtype, torch.float64):
            leaf = before.detach().to(low).requires_grad_()
            F.gelu(leaf, approximate="tanh").backward(dy.to(low))
            assert leaf.grad is not None
            found.append([leaf.grad, leaf.grad.sum(0)])
        dbefore, column_sums = kernels.gelu_backward(dy, before)
        check_errors("GELU", [dbefore, column_sums.sum(0)], *found)

        rounded, column_sums = kernels.round_and_sum(dsum, dtype)
        half = dsum.to(dtype)
        check_errors(
            "rounding", [rounded, column_sums.sum(0)], [half, half.sum(0)], [dsum, dsum.sum(0)]
        )


def test_kernels_equal_pytorch() -> None:
    check_in_interpreter("tests.kernels.test_training_triton")


@pytest.mark.parametrize("N", [1, 31, 33, 65_536])
@pytest.mark.parametrize("columns", [1, 12, 48, 2000])
def test_programs_keep_sums_of_at_least_a_tile(N: int, columns: int) -> None:
    """Enough of them, and never one without rows."""
    programs = kernels.sum_programs(N, columns)
    assert 1 <= programs <= max(1, kernels.TILE_PROGRAMS // columns)
    assert (programs - 1) * kernels.TILE_ROWS < N


if __name__ == "__main__":
    torch.manual_seed(0)
    kernels.ROW_PROGRAMS = kernels.TILE_PROGRAMS = 8  # the sums of several rows, and of none
    compare_norms()
    compare_columns()
    compare_packing()
    compare_with_pytorch()
    print("equal")
