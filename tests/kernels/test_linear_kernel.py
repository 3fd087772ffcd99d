"""The linear kernel compared with fp32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gptcli.kernels import linear_kernel
from gptcli.kernels.linear_kernel import linear, mlp

pytestmark = pytest.mark.skipif(not linear_kernel.available(), reason="no kernels here")


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Return x rounded to bf16, in fp32 and with gradients."""
    return x.detach().bfloat16().float().requires_grad_()


def near(got: torch.Tensor, wanted: torch.Tensor, most: float) -> None:
    assert got.shape == wanted.shape
    assert (got.float() - wanted).norm() <= most * wanted.norm()


@pytest.mark.parametrize(
    ("N", "K", "O"),
    [
        (1, 7, 5), (33, 48, 57), (64, 64, 64), (100, 96, 768), (300, 768, 96),
        (33, 20_000, 5), (33, 5, 20_000),  # 32 rows of a layer of 13B fill no cache
    ],
)  # fmt: skip
def test_linear_layer_of_any_size_equals_torch(N: int, K: int, O: int) -> None:  # noqa: E741
    torch.manual_seed(0)
    x, weight, bias = torch.randn(N, K).bfloat16(), torch.randn(O, K), torch.randn(O)
    dy = torch.randn(N, O).bfloat16()
    operands = [tensor.requires_grad_() for tensor in (x, weight, bias)]
    y = linear(*operands)
    gradients = torch.autograd.grad(y, operands, dy)
    assert torch.equal(y, linear(*operands))
    assert all(map(torch.equal, gradients, torch.autograd.grad(linear(*operands), operands, dy))), (
        "the same bits each time"
    )
    exact = rounded(x), rounded(weight), bias.detach().clone().requires_grad_()
    wanted = F.linear(*exact)
    near(y, wanted, 3e-3)
    for got, right, most in zip(
        gradients, torch.autograd.grad(wanted, exact, dy.float()), (3e-3, 1e-6, 1e-6), strict=True
    ):
        near(got, right, most)
    assert [gradient.dtype for gradient in gradients] == [
        torch.bfloat16,
        torch.float32,
        torch.float32,
    ]


def test_the_number_of_threads_changes_no_bit() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(300, 96).bfloat16().requires_grad_(), torch.randn(640, 96)
    operands = x, weight.requires_grad_(), torch.randn(640).requires_grad_()
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            y = linear(*operands)
            found.append([y, *torch.autograd.grad(y, operands, torch.ones_like(y))])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize(("N", "C", "hidden"), [(1, 5, 7), (70, 48, 192), (33, 96, 57)])
def test_mlp_of_any_size_equals_torch(N: int, C: int, hidden: int) -> None:
    torch.manual_seed(0)
    shapes = (hidden, C), (hidden,), (C, hidden), (C,)
    operands = [
        tensor.requires_grad_()
        for tensor in (torch.randn(N, C).bfloat16(), *map(torch.randn, shapes))
    ]
    dy = torch.randn(N, C).bfloat16()
    y = mlp(*operands)[0]
    exact = [
        rounded(tensor) if tensor.dim() == 2 else tensor.detach().clone().requires_grad_()
        for tensor in operands
    ]
    wanted = F.linear(F.gelu(F.linear(*exact[:3]), approximate="tanh"), *exact[3:])
    near(y, wanted, 5e-3)
    for got, right in zip(
        torch.autograd.grad(y, operands, dy),
        torch.autograd.grad(wanted, exact, dy.float()),
        strict=True,
    ):
        near(got, right, 1e-2)


def test_gelu_of_extreme_and_tiny_values() -> None:
    x = (
        torch.tensor([[-1e4, -30.0, -8.0, -1e-20, 0.0, 1e-20, 8.0, 30.0, 1e4]])
        .T.bfloat16()
        .requires_grad_()
    )
    one, none = torch.ones(1, 1), torch.zeros(1)
    y = mlp(x, one, none, one, none)[0]
    [dx] = torch.autograd.grad(y.sum(), x)
    exact = x.detach().float().requires_grad_()
    wanted = F.gelu(exact, approximate="tanh")
    torch.testing.assert_close(y.float(), wanted, atol=1e-6, rtol=8e-3)
    torch.testing.assert_close(
        dx.float(), torch.autograd.grad(wanted.sum(), exact)[0], atol=1e-6, rtol=8e-3
    )


def test_operators_pass_opcheck() -> None:
    x, weight, back = (
        torch.randn(6, 8).bfloat16().requires_grad_(),
        torch.randn(10, 8),
        torch.randn(8, 10),
    )
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(linear, (x, weight, torch.randn(10)), test_utils=checks)
    torch.library.opcheck(
        mlp, (x, weight, torch.randn(10), back, torch.randn(8)), test_utils=checks
    )
