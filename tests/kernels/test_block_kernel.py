"""Blocks by the linear and norm kernels compared with PyTorch, eager and compiled."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gptcli import kernels
from gptcli.kernels import linear_kernel, norm_kernel
from gptcli.model.config import ModelConfig, Norm
from gptcli.model.transformer import GPT, Block
from gptcli.trainer.auto import has_compiler
from gptcli.trainer.parallelize import apply_ac_and_compile, install_kernels

pytestmark = pytest.mark.skipif(not norm_kernel.available(), reason="no AMX here")


def near(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    assert got.shape == wanted.shape
    assert (got.double() - wanted).norm() <= tolerance * wanted.norm() + 1e-6


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
    monkeypatch: pytest.MonkeyPatch, norm: Norm, recompute: str, forwards: int
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
    settings = SimpleNamespace(compile=True, recompute=recompute)
    apply_ac_and_compile(model, settings, None)  # type: ignore[arg-type]
    install_kernels(model, settings, None)  # type: ignore[arg-type]
    for got, wanted in zip(losses_and_gradients(model), plain, strict=True):
        near(got, wanted, 2e-2)
    fused = recompute != "selective"
    assert {name: recording.calls.count(name) for name in ("forward", "backward")} == {
        "forward": 6 * forwards * (norm == "pre"),
        "backward": 6 * fused * (norm == "pre"),
    }
    assert {name: calls.count(name) for name in ("forward", "backward_x", "backward_w")} == {
        "forward": 12 * forwards,
        "backward_x": 12 * fused,
        "backward_w": 12 * fused,
    }
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert list(model.state_dict()) == names
    apply_ac_and_compile(model, SimpleNamespace(compile=False, recompute="none"), None)  # type: ignore[arg-type]
    kernels.uninstall(model)
    assert all(map(torch.equal, losses_and_gradients(model), plain)), "PyTorch is restored"


@pytest.mark.parametrize("norm_is_available", [True, False])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_eager_block_equals_torch_and_fp32_runs_in_torch(
    norm: Norm, norm_is_available: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(norm_kernel, "available", lambda: norm_is_available)
    torch.manual_seed(0)
    config = ModelConfig(n_layer=1, n_head=2, d_model=48, n_ctx=16, vocab_size=57, norm=norm)
    block, x = Block(config, 0), torch.randn(2, 16, 48)
    wanted = block(x)
    kernels.install(block, fuse_blocks=True)
    assert torch.equal(block(x), wanted), "in fp32"
    with torch.autocast("cpu", torch.bfloat16):
        by_kernel = block(x)
        kernels.uninstall(block)
        assert not torch.equal(by_kernel, block(x))
        near(by_kernel, block(x), 1e-2)
