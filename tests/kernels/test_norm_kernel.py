"""The norm kernel compared with PyTorch's LayerNorm, and whole blocks, eager and compiled."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from gptcli import kernels
from gptcli.kernels import linear_kernel, norm_kernel
from gptcli.kernels.norm_kernel import Norm, add_norm, norm
from gptcli.model import config as model_config
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT, Block
from gptcli.trainer.auto import has_compiler
from gptcli.trainer.parallelize import apply_ac_and_compile, install_kernels

pytestmark = pytest.mark.skipif(not norm_kernel.available(), reason="no kernels here")

EPS = 1e-5
SIZES = [(1, 3), (3, 5), (7, 16), (33, 57), (64, 64), (101, 100), (300, 768)]


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def operands(N: int, C: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    x, found, gain, bias = (
        3 * torch.randn(N, C) + 1,
        torch.randn(N, C).bfloat16(),
        torch.rand(C) + 0.5,
        torch.randn(C),
    )
    return [tensor.requires_grad_() for tensor in (x, found, gain, bias)]


def near(got: torch.Tensor, wanted: torch.Tensor, most: float) -> None:
    assert got.shape == wanted.shape
    assert (got.double() - wanted).norm() <= most * wanted.norm() + 1e-6


def exactly(operands: list[torch.Tensor]) -> list[torch.Tensor]:
    return [operand.detach().double().requires_grad_() for operand in operands]


@pytest.mark.parametrize(("N", "C"), SIZES)
def test_norm_with_residual_connection_equals_torch(N: int, C: int, threads: int) -> None:
    x, _, gain, bias = operands(N, C)
    of, dx, dy = (x, gain, bias), torch.randn(N, C), torch.randn(N, C).bfloat16()
    same, y = Norm.apply(x, gain, bias, EPS)
    gradients = torch.autograd.grad((same, y), of, (dx, dy))
    again = Norm.apply(x, gain, bias, EPS)
    assert all(map(torch.equal, (same, y), (x, again[1])))
    assert y.dtype == torch.bfloat16
    assert all(map(torch.equal, gradients, torch.autograd.grad(again, of, (dx, dy)))), (
        "the same bits each time"
    )
    exact = exactly([x, gain, bias])
    wanted = F.layer_norm(exact[0], (C,), exact[1], exact[2], EPS)
    near(y, wanted, 3e-3)
    for got, right in zip(
        gradients,
        torch.autograd.grad((exact[0] * 1, wanted), exact, (dx.double(), dy.double())),
        strict=True,
    ):
        near(got, right, 3e-6)
        assert got.dtype == torch.float32


@pytest.mark.parametrize(("N", "C"), SIZES)
def test_norm_of_a_residual_sum_equals_torch(N: int, C: int, threads: int) -> None:
    of = operands(N, C)
    dsum, dy = torch.randn(N, C), torch.randn(N, C).bfloat16()
    first, again = add_norm(*of, EPS)[:2], add_norm(*of, EPS)[:2]
    gradients = torch.autograd.grad(first, of, (dsum, dy))
    assert all(map(torch.equal, first, again))
    assert all(map(torch.equal, gradients, torch.autograd.grad(again, of, (dsum, dy)))), (
        "the same bits each time"
    )
    assert torch.equal(first[0], of[0] + of[1]), "the sum as PyTorch takes it"
    exact = exactly(of)
    total = exact[0] + exact[1]
    wanted = F.layer_norm(total, (C,), exact[2], exact[3], EPS)
    near(first[1], wanted, 3e-3)
    right = torch.autograd.grad((total, wanted), exact, (dsum.double(), dy.double()))
    assert torch.equal(gradients[1], gradients[0].bfloat16())
    for got, one in zip((gradients[0], *gradients[2:]), (right[0], *right[2:]), strict=True):
        near(got, one, 3e-6)


def test_memory_layout_has_no_effect() -> None:
    x, found, gain, bias = (operand.detach() for operand in operands(40, 96))
    apart = torch.empty(96, 41).T[1:].copy_(x), torch.empty(40, 97)[:, 1:].bfloat16().copy_(found)
    assert all(
        map(torch.equal, add_norm(*apart, gain, bias, EPS), add_norm(x, found, gain, bias, EPS))
    )
    moved = torch.empty(1 + 40 * 96)[1:].view(40, 96).copy_(x)
    assert all(map(torch.equal, norm(moved, gain, bias, EPS), norm(x, gain, bias, EPS)))


def test_rows_with_large_mean_and_constant_rows() -> None:
    x = torch.randn(4, 300) + 1e3
    x[1] = 7.0
    y = norm(x, torch.ones(300), torch.zeros(300), EPS)[0]
    near(y, F.layer_norm(x.double(), (300,), eps=EPS), 4e-3)
    assert not y[1].any()


def test_operators_pass_opcheck() -> None:
    of = operands(6, 40)
    checks = "test_schema", "test_faketensor"
    torch.library.opcheck(add_norm, (*of, EPS), test_utils=(*checks, "test_autograd_registration"))
    x, found, gain, bias = (operand.detach() for operand in of)
    y, kept = norm(x, gain, bias, EPS)
    torch.library.opcheck(norm, (x, gain, bias, EPS), test_utils=checks)
    torch.library.opcheck(norm_kernel.norm_backward, (y, x, x, kept, gain), test_utils=checks)
    torch.library.opcheck(
        norm_kernel.add_norm_backward, (y, x, x, found, kept, gain), test_utils=checks
    )


def losses_and_gradients(model: GPT) -> list[torch.Tensor]:
    tokens = torch.arange(2 * 16).view(2, 16)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(tokens, tokens + 1)
    loss.backward()
    return [loss.detach(), *(parameter.grad for parameter in model.parameters())]


class RecordingKernel:
    """Norm kernel that records its calls."""

    def __init__(self) -> None:
        self.kernel = norm_kernel._kernel()
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        self.calls.append(name)
        return getattr(self.kernel, name)


@pytest.mark.skipif(not has_compiler(), reason="no compiler here")
@pytest.mark.parametrize(("recompute", "forwards"), [("none", 1), ("full", 2), ("selective", 0)])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_compiled_blocks_use_the_kernels_in_one_graph(
    monkeypatch: pytest.MonkeyPatch, norm: model_config.Norm, recompute: str, forwards: int
) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = GPT(ModelConfig(n_layer=3, n_head=2, d_model=48, n_ctx=16, vocab_size=57, norm=norm))
    model.init_weights(0)
    names = list(model.state_dict())
    plain = losses_and_gradients(model)
    recording = RecordingKernel()
    monkeypatch.setattr(norm_kernel, "_kernel", lambda: recording)
    calls = []
    call = linear_kernel._call
    monkeypatch.setattr(
        linear_kernel,
        "_call",
        lambda name, *rest, shape: (
            calls.append(name),  # type: ignore[func-returns-value]
            call(name, *rest, shape=shape),
        ),
    )
    settings = SimpleNamespace(compile=True, recompute=recompute, precision="bf16")
    apply_ac_and_compile(model, settings, None)  # type: ignore[arg-type]
    install_kernels(model, settings, None)  # type: ignore[arg-type]
    for got, wanted in zip(losses_and_gradients(model), plain, strict=True):
        near(got, wanted, 2e-2)
    fused = recompute != "selective"
    assert {name: recording.calls.count(name) for name in ("forward", "backward")} == {
        "forward": 6 * forwards * (norm == "pre"),
        "backward": 6 * fused * (norm == "pre"),
    }
    assert {name: calls.count(name) for name in ("forward", "backward")} == {
        "forward": 12 * forwards,
        "backward": 12 * fused,
    }
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert list(model.state_dict()) == names
    eager: Any = SimpleNamespace(compile=False, recompute="none", precision="bf16")
    apply_ac_and_compile(model, eager, None)
    kernels.uninstall(model)
    assert all(map(torch.equal, losses_and_gradients(model), plain)), "PyTorch is restored"


@pytest.mark.parametrize("norm_is_available", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_eager_block_equals_torch(
    norm: model_config.Norm, norm_is_available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_kernel, "available", lambda: norm_is_available)
    torch.manual_seed(0)
    config = ModelConfig(n_layer=1, n_head=2, d_model=48, n_ctx=16, vocab_size=57, norm=norm)
    block, x = Block(config, 0), torch.randn(2, 16, 48)
    wanted = block(x)
    kernels.install(block, fuse_blocks=True)
    near(block(x), wanted, 1e-5)  # in fp32 attention alone is ours
    with torch.autocast("cpu", torch.bfloat16):
        by_kernel = block(x)
        kernels.uninstall(block)
        assert not torch.equal(by_kernel, block(x))
        near(by_kernel, block(x), 1e-2)
