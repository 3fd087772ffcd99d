"""The loss of logits in Triton's interpreter equals PyTorch's, in place and in the loss.

Triton reads TRITON_INTERPRET when it is imported, so the comparison runs in a process of its own:
this file as a program.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from gptcli.kernels import head_triton
from gptcli.kernels.head_triton import both_for, loss_to_gradient_
from gptcli.model import loss as module
from gptcli.model.loss import EAGER, IGNORE, next_token_loss
from tests.triton_interpreter import check_errors, check_in_interpreter

ROUNDING = {torch.float32: 2e-6, torch.bfloat16: 2**-7}
"""Of a result; the interpreter rounds bf16 towards zero."""


class Kernel:
    """`HeadKernel` of a device that only `head_triton` supports."""

    supports = staticmethod(lambda *_: False)
    both_for = staticmethod(lambda _: loss_to_gradient_)


def compare_rows() -> None:
    """Rows of less than a block and of several, with padding and a row that does not count."""
    for V, P in ((1, 1), (7, 8), (50, 64), (129, 256)):
        for dtype, rounding in ROUNDING.items():
            logits = (20 * torch.randn(5, P)).to(dtype)
            logits[3] -= 200
            target = torch.randint(0, V, (5, 1))
            target[2] = IGNORE
            exact = logits[:, :V].double().requires_grad_()
            F.cross_entropy(exact, target[:, 0], reduction="sum").backward()
            got = logits.clone()
            log_sum, target_logit = loss_to_gradient_(got, target, V)
            close(log_sum, exact.detach().logsumexp(1, keepdim=True), 1e-4)
            close(target_logit, logits.gather(1, target.clamp(min=0)) * (target != IGNORE), 0)
            assert exact.grad is not None
            close(got[:, :V], exact.grad, 10 * rounding)
            assert not got[:, V:].any()


def close(got: torch.Tensor, exact: torch.Tensor, most: float) -> None:
    assert got.shape == exact.shape
    assert (got.double() - exact.double()).abs().max() <= most


def compare_losses() -> None:
    """The loss and both gradients with the kernel and without, as a GPU computes them."""
    module.WHOLE_VOCABULARY = {"cpu"}
    module.CHUNK_BYTES = 40 * 128 * 4  # several chunks
    x, weight = torch.randn(90, 12), torch.randn(101, 12)
    target = torch.randint(0, 101, (90,))
    target[7] = target[60] = IGNORE
    found = []
    for kernel in (None, Kernel()):
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        loss = next_token_loss(*leaves, target, elementwise=EAGER, kernel=kernel)  # type: ignore[arg-type]
        found.append((loss.detach(), *torch.autograd.grad(2 * loss, leaves)))
    for exact, got in zip(*found, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)


def compare_with_pytorch() -> None:
    """Errors of the loss and its gradient in fp16, next to those of PyTorch on the same logits."""
    logits, target = (5 * torch.randn(9, 135)).half(), torch.randint(0, 131, (9, 1))
    gradient = logits.clone()
    log_sum, target_logit = loss_to_gradient_(gradient, target, 131)
    found = []
    for wide in (torch.float32, torch.float64):
        leaf = logits[:, :131].to(wide if wide == torch.float64 else torch.float16).requires_grad_()
        loss = F.cross_entropy(leaf.to(wide), target[:, 0], reduction="none")
        loss.sum().backward()
        assert leaf.grad is not None
        found.append([loss.detach(), leaf.grad])
    ours = [(log_sum - target_logit)[:, 0], gradient[:, :131]]
    check_errors("loss", ours, *found)


def test_the_kernel_equals_pytorch() -> None:
    check_in_interpreter("tests.kernels.test_head_triton")


def test_a_cpu_takes_pytorch() -> None:
    assert both_for(torch.ones(2, 3, dtype=torch.bfloat16)) is None


if __name__ == "__main__":
    torch.manual_seed(0)
    head_triton.BLOCK = 32
    compare_rows()
    compare_losses()
    compare_with_pytorch()
    print("equal")
