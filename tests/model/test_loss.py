"""The chunked loss equals torch's cross-entropy over all logits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gptcli.model import loss as module
from gptcli.model.loss import IGNORE, next_token_loss


@pytest.mark.parametrize("rows", [1, 3, 7, 100])
def test_loss_and_gradients_equal_cross_entropy(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 31 * rows)
    monkeypatch.setattr(module, "PIECES", {"cpu": 10})
    torch.manual_seed(0)
    x, weight = torch.randn(20, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True)
    target = torch.randint(0, 31, (20,))
    target[[0, 5, 19]] = IGNORE
    expected = F.cross_entropy(x @ weight.T, target, ignore_index=IGNORE, reduction="sum")
    expected_grads = torch.autograd.grad(expected / 17, (x, weight))
    loss = next_token_loss(x, weight, target)
    grads = torch.autograd.grad(loss / 17, (x, weight))
    torch.testing.assert_close(loss, expected)
    for grad, wanted in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(grad, wanted, atol=1e-6, rtol=1e-5)


def test_no_gradients_are_computed_without_training() -> None:
    x, weight = torch.randn(6, 4), torch.randn(9, 4)
    with torch.no_grad():
        loss = next_token_loss(x, weight, torch.arange(6))
    torch.testing.assert_close(
        loss, F.cross_entropy(x @ weight.T, torch.arange(6), reduction="sum")
    )


def test_loss_of_no_positions_has_zero_gradients() -> None:
    x, weight = torch.randn(0, 4, requires_grad=True), torch.randn(9, 4, requires_grad=True)
    loss = next_token_loss(x, weight, torch.zeros(0, dtype=torch.long))
    assert loss == 0
    assert not torch.autograd.grad(loss, weight)[0].any()


def test_bf16_loss_is_summed_in_fp32() -> None:
    torch.manual_seed(0)
    x, weight, target = (
        torch.randn(512, 16, requires_grad=True),
        torch.randn(64, 16, requires_grad=True),
        torch.randint(0, 64, (512,)),
    )
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(x, weight, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    exact = F.cross_entropy(
        (x.bfloat16().float() @ weight.bfloat16().float().T), target, reduction="sum"
    )
    assert abs(loss.item() / exact.item() - 1) < 2e-3
