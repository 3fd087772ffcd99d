"""The attention kernel compared with a higher precision, and with torch's kernel in the same one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F

from gptcli import kernels
from gptcli.kernels import attention_kernel, before_compilation
from gptcli.kernels.attention_kernel import attention_packed, packed_attend
from gptcli.model.attention import causal_mask
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.trainer.auto import has_compiler

pytestmark = pytest.mark.skipif(not attention_kernel.available(), reason="no kernels here")

LENGTHS = [1, 15, 16, 17, 64, 100, 256, 1000, 1024]
EXACT = {torch.bfloat16: torch.float32, torch.float32: torch.float64}
"""Precisions of the kernel, and those that they are compared with."""
ERRORS = {torch.bfloat16: (1.15, 1e-4, 2, 1e-3), torch.float32: (2, 1e-6, 5, 1e-5)}
"""Most multiple of torch's error, and more, on average; the same of the largest error."""
precisions = pytest.mark.parametrize("dtype", EXACT, ids=("bf16", "fp32"))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def random(
    B: int, T: int, H: int, D: int, spread: float = 2.0, dtype: torch.dtype = torch.bfloat16
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return packed q, k and v, and a gradient; `spread` concentrates the weights on a few keys."""
    generator = torch.Generator().manual_seed(T + D)
    qkv, dy = (
        torch.randn(B, T, H, 3, D, generator=generator),
        torch.randn(B, T, H, D, generator=generator),
    )
    return (spread * qkv).to(dtype), dy.to(dtype)


def written_out(qkv: torch.Tensor, band: int) -> torch.Tensor:
    q, k, v = qkv.transpose(1, 2).unbind(3)
    T = q.shape[2]
    scores = (q @ k.mT / math.sqrt(q.shape[3])).masked_fill(
        ~causal_mask(T, T, band, q.device), -math.inf
    )
    return (scores.softmax(-1) @ v).transpose(1, 2)


def by_torch(qkv: torch.Tensor, band: int) -> torch.Tensor:
    q, k, v = qkv.transpose(1, 2).unbind(3)
    T = q.shape[2]
    mask = None if band >= T else causal_mask(T, T, band, q.device)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None
    ).transpose(1, 2)


def with_gradients(
    form: Callable[..., torch.Tensor], qkv: torch.Tensor, dy: torch.Tensor, *rest: int
) -> list[torch.Tensor]:
    """Return y, dq, dk and dv."""
    leaf = qkv.detach().clone().requires_grad_()
    y = form(leaf, *rest)
    [dqkv] = torch.autograd.grad(y, leaf, dy)
    return [x.double() for x in (y.detach(), *dqkv.unbind(3))]


def kernel(qkv: torch.Tensor, band: int) -> torch.Tensor:
    return packed_attend(qkv, band)[0]


def assert_no_worse_than_torch(qkv: torch.Tensor, dy: torch.Tensor, band: int) -> None:
    higher = EXACT[qkv.dtype]
    exact = with_gradients(written_out, qkv.to(higher), dy.to(higher), band)
    times, more, times_largest, more_largest = ERRORS[qkv.dtype]
    ours, theirs = (with_gradients(form, qkv, dy, band) for form in (kernel, by_torch))
    for name, right, our, their in zip(("y", "dq", "dk", "dv"), exact, ours, theirs, strict=True):
        our_error, their_error = (
            (found - right).norm() / math.sqrt(right.numel()) for found in (our, their)
        )
        assert our_error <= times * their_error + more, (
            f"{name}: {our_error:.2e}, torch {their_error:.2e}"
        )
        largest, their_largest = (float((found - right).abs().max()) for found in (our, their))
        assert largest <= times_largest * their_largest + more_largest, (
            f"{name}: {largest:.2e}, torch {their_largest:.2e}"
        )


@precisions
@pytest.mark.parametrize("T", LENGTHS)
def test_error_is_no_larger_than_that_of_torch(T: int, dtype: torch.dtype) -> None:
    assert_no_worse_than_torch(*random(2, T, 3, 64, dtype=dtype), band=T)


@precisions
@pytest.mark.parametrize("D", [8, 32, 40, 80, 96, 128])
@pytest.mark.parametrize("T", [1, 33, 200])
def test_error_is_no_larger_than_that_of_torch_for_other_head_sizes(
    T: int, D: int, dtype: torch.dtype
) -> None:
    assert_no_worse_than_torch(*random(1, T, 2, D, dtype=dtype), band=T)


@precisions
@pytest.mark.parametrize("band", [1, 2, 31, 32, 33, 34, 100])
@pytest.mark.parametrize("T", [17, 100, 333])
def test_error_is_no_larger_than_that_of_torch_within_a_band(
    T: int, band: int, dtype: torch.dtype
) -> None:
    assert_no_worse_than_torch(*random(1, T, 2, 64, dtype=dtype), band=min(band, T))


@precisions
@pytest.mark.parametrize("rising", [1, -1])
def test_rising_and_falling_scores_are_rescaled(rising: int, dtype: torch.dtype) -> None:
    """Later scores make earlier exponentials negligible, or the reverse; some overflow fp32."""
    qkv, dy = random(1, 300, 2, 64, spread=1.0, dtype=dtype)
    qkv[:, :, :, 0, 0] = 40
    qkv[:, :, :, 1, 0] = rising * torch.linspace(-50, 50, 300)[None, :, None].to(dtype)
    assert_no_worse_than_torch(qkv, dy, band=300)
    assert_no_worse_than_torch(qkv, dy, band=70)


@precisions
def test_memory_layout_has_no_effect(dtype: torch.dtype) -> None:
    qkv, dy = random(2, 50, 3, 64, dtype=dtype)
    expected = with_gradients(kernel, qkv, dy, 50)
    leaf = (
        torch.empty(2, 50, 4, 3, 96, dtype=qkv.dtype)[:, :, 1:, :, :64].copy_(qkv).requires_grad_()
    )
    y = kernel(leaf, 50)
    [dqkv] = torch.autograd.grad(y, leaf, dy.transpose(1, 2).contiguous().transpose(1, 2))
    for one, other in zip(expected, (y, *dqkv.unbind(3)), strict=True):
        assert torch.equal(one, other.double())


@precisions
def test_bits_do_not_depend_on_the_number_of_threads(threads: int, dtype: torch.dtype) -> None:
    qkv, dy = random(1, 257, 5, 64, dtype=dtype)
    torch.set_num_threads(1)
    expected = with_gradients(kernel, qkv, dy, 257)
    torch.set_num_threads(threads)
    for _ in range(3):
        assert all(map(torch.equal, expected, with_gradients(kernel, qkv, dy, 257)))


@pytest.mark.skipif(not has_compiler(), reason="no compiler here")
@precisions
def test_compiled_attention_is_one_operator(dtype: torch.dtype) -> None:
    torch._dynamo.reset()
    before_compilation()
    qkv, dy = random(2, 70, 2, 64, dtype=dtype)
    compiled = torch.compile(
        lambda qkv: attention_packed(qkv, band=40) * 1, dynamic=False, fullgraph=True
    )
    assert all(
        map(torch.equal, with_gradients(kernel, qkv, dy, 40), with_gradients(compiled, qkv, dy))
    )


@pytest.mark.parametrize("band", [None, 20])
def test_torch_implementation_is_the_same_function(
    band: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    qkv, dy = random(2, 70, 2, 64, spread=1.0)
    ours = with_gradients(lambda qkv: attention_packed(qkv, band=band), qkv, dy)
    monkeypatch.setattr(attention_kernel, "available", lambda dtype: False)
    for our, their in zip(
        ours, with_gradients(lambda qkv: attention_packed(qkv, band=band), qkv, dy), strict=True
    ):
        torch.testing.assert_close(our, their, atol=0.03, rtol=0.03)


def test_model_calls_the_kernel_in_the_precision_of_its_products(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []
    monkeypatch.setattr(
        "gptcli.kernels.attention_kernel.packed_attend",
        lambda qkv, band: calls.append((band, qkv.dtype)) or packed_attend(qkv, band),  # type: ignore[func-returns-value]
    )
    model = GPT(
        ModelConfig(
            n_layer=2, n_head=2, d_model=128, n_ctx=48, vocab_size=50, attention="banded", band=16
        )
    )
    model.init_weights(0)
    idx_BT = torch.arange(48)[None]
    exact = model(idx_BT)
    kernels.install(model)
    torch.testing.assert_close(model(idx_BT), exact, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model(idx_BT).float(), exact, atol=0.02, rtol=0.02)
    assert calls == [
        (band, dtype) for dtype in (torch.float32, torch.bfloat16) for band in (48, 16)
    ]
    with torch.device("meta"):
        assert not attention_kernel.supports(torch.empty(1, 2, 2, 3, 4))
    assert not attention_kernel.supports(torch.empty(1, 2, 2, 3, 4, dtype=torch.float64))
