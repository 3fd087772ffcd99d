"""The kernel of AdamW, the gradient's norm and its clip compared with PyTorch in fp64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from gptcli.kernels import adamw_kernel
from gptcli.kernels.adamw_kernel import AdamWRates

pytestmark = pytest.mark.skipif(not adamw_kernel.available(), reason="no kernels here")

SHAPES = [(1,), (15,), (16, 1), (7, 9), (64,), (0,), (1 << 14,), ((1 << 14) + 1,), (300, 257)]
"""With a whole block, one more than a block, many blocks, and no element at all."""
RATES = [
    AdamWRates(3e-3, 0.9, 0.95, 1e-8, 0.1),
    AdamWRates(1e-4, 0.8, 0.999, 1e-5, 0.0),
]


def tensors(seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def updated(threads: int) -> list[list[torch.Tensor]]:
    """Return parameters, moments and steps after three updates."""
    torch.set_num_threads(threads)
    params, moments, squares = tensors(0), *([torch.zeros(s) for s in SHAPES] for _ in range(2))
    steps = [torch.zeros(()) for _ in SHAPES]
    rates = [RATES[i % 2] for i in range(len(SHAPES))]
    for step in range(3):
        adamw_kernel.adamw_(params, tensors(step + 1), moments, squares, steps, rates)
    return [params, moments, squares, steps]


def test_updates_equal_torchs() -> None:
    exact = [p.double().requires_grad_() for p in tensors(0)]
    theirs = torch.optim.AdamW(
        [
            {
                "params": exact[i::2],
                "lr": r.lr,
                "betas": (r.beta1, r.beta2),
                "eps": r.eps,
                "weight_decay": r.weight_decay,
            }
            for i, r in enumerate(RATES)
        ]
    )
    for step in range(3):
        for parameter, gradient in zip(exact, tensors(step + 1, torch.float64), strict=True):
            parameter.grad = gradient
        theirs.step()
    params, moments, squares, steps = updated(1)
    for i, wanted in enumerate(exact):
        state = theirs.state[wanted]
        torch.testing.assert_close(params[i].double(), wanted.detach(), rtol=2e-6, atol=2e-7)
        torch.testing.assert_close(moments[i].double(), state["exp_avg"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(squares[i].double(), state["exp_avg_sq"], rtol=1e-5, atol=1e-7)
        assert steps[i] == state["step"] == 3


def test_norm_and_clip_equal_torchs() -> None:
    gradients = tensors(5)
    wanted = torch.cat([g.double().flatten() for g in gradients]).norm().item()
    assert adamw_kernel.total_norm(gradients) == pytest.approx(wanted, rel=1e-7)
    before = [g.clone() for g in gradients]
    adamw_kernel.scale_(gradients, 1 / 3)
    assert all(map(torch.equal, gradients, [g * (1 / 3) for g in before]))


@pytest.mark.parametrize("threads", [2, 3])
def test_the_number_of_threads_changes_no_bit(threads: int) -> None:
    for one, several in zip(updated(1), updated(threads), strict=True):
        assert all(map(torch.equal, one, several))
    gradients = tensors(1)
    norms = set()
    for count in (1, threads):
        torch.set_num_threads(count)
        norms.add(adamw_kernel.total_norm(gradients))
    assert len(norms) == 1


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_norm_and_only_its_own_weight(bad: float) -> None:
    gradients = tensors(1)
    gradients[-1][-1, -1] = bad
    norm = adamw_kernel.total_norm(gradients)
    assert norm != norm or norm == float("inf")
    weights, steps = tensors(0), [torch.zeros(()) for _ in gradients]
    moments, squares = ([torch.zeros_like(g) for g in gradients] for _ in range(2))
    adamw_kernel.adamw_(weights, gradients, moments, squares, steps, RATES[:1] * len(gradients))
    assert [int((~w.isfinite()).sum()) for w in weights] == [0] * (len(weights) - 1) + [1]


def test_only_whole_tensors_in_fp32_on_a_cpu_are_supported() -> None:
    whole = torch.zeros(4, 4)
    assert adamw_kernel.supports([whole, torch.nn.Parameter(whole), torch.zeros(())])
    for other in (
        whole.T[:, :3],
        whole.double(),
        whole.bfloat16(),
        whole.to("meta"),
        whole.to_sparse(),
    ):
        assert not adamw_kernel.supports([whole, other])


def test_no_tensors_have_the_norm_0() -> None:
    assert adamw_kernel.total_norm([]) == 0
