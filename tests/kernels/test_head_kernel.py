"""The kernel of the output head compared with fp32 and with PyTorch's implementation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gptcli.kernels import head_kernel
from gptcli.model import loss as module
from gptcli.model.loss import IGNORE, next_token_loss

pytestmark = pytest.mark.skipif(
    not head_kernel.available(),
    reason="no kernels here",
)


def operands(N: int, C: int, V: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    target_N = torch.randint(0, V, (N,))
    target_N[::5] = IGNORE
    x_NC, weight_VC = torch.randn(N, C).bfloat16(), torch.randn(V, C) * 3 / C**0.5
    return x_NC.requires_grad_(), weight_VC.requires_grad_(), target_N


def taken(
    x_NC: torch.Tensor, weight_VC: torch.Tensor, target_N: torch.Tensor
) -> list[torch.Tensor]:
    """Return the loss, and the gradients of x and the weight."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(x_NC, weight_VC, target_N, kernel=head_kernel)
    return [loss.detach(), *torch.autograd.grad(loss / 7, (x_NC, weight_VC))]


def distance(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got.float() - wanted).norm() / wanted.norm())


@pytest.mark.parametrize(
    ("N", "C", "V"),
    [(1, 48, 57), (37, 96, 256), (64, 64, 1000), (300, 768, 3001), (70, 768, 50257)],
)
def test_kernel_is_closer_to_fp32_than_torch(
    monkeypatch: pytest.MonkeyPatch, N: int, C: int, V: int
) -> None:
    x_NC, weight_VC, target_N = operands(N, C, V)
    if N == 1:
        target_N[0] = V - 1
    kernel, again = taken(x_NC, weight_VC, target_N), taken(x_NC, weight_VC, target_N)
    assert all(torch.equal(one, other) for one, other in zip(kernel, again, strict=True)), (
        "the same bits each time"
    )
    monkeypatch.setattr(head_kernel, "supports", lambda *_: False)
    pytorch = taken(x_NC, weight_VC, target_N)
    x, weight = (
        x_NC.detach().float().requires_grad_(),
        weight_VC.detach().bfloat16().float().requires_grad_(),
    )
    exact = F.cross_entropy(x @ weight.T, target_N, ignore_index=IGNORE, reduction="sum")
    wanted = [exact.detach(), *torch.autograd.grad(exact / 7, (x, weight))]
    assert kernel[2].dtype == torch.float32
    for got, old, right, most in zip(kernel, pytorch, wanted, (1e-6, 3e-3, 3e-3), strict=True):
        assert distance(got, right) < max(most, 1e-3)
        assert distance(got, right) <= distance(old, right) + 1e-6


def test_loss_does_not_depend_on_the_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    x_NC, weight_VC, target_N = operands(100, 48, 300)
    whole = taken(x_NC, weight_VC, target_N)
    monkeypatch.setattr(module, "CHUNK_BYTES", 40 * head_kernel.row_bytes(300))
    for got, wanted in zip(taken(x_NC, weight_VC, target_N), whole, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


def test_ignored_targets_add_nothing() -> None:
    x_NC, weight_VC, target_N = operands(40, 48, 57)
    for result in taken(x_NC, weight_VC, torch.full_like(target_N, IGNORE)):
        assert not result.any()


def test_loss_is_the_same_without_training_and_with_bf16_weights() -> None:
    x_NC, weight_VC, target_N = operands(40, 48, 57)
    trained = taken(x_NC, weight_VC, target_N)[0]
    with torch.no_grad():
        assert next_token_loss(x_NC, weight_VC.bfloat16(), target_N, kernel=head_kernel).equal(
            trained
        )
