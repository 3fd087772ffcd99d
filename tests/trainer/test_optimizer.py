from __future__ import annotations

import copy

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.model.transformer import GPT
from gptcli.trainer.optimizer import clip_gradients, make_optimizer


@pytest.fixture
def model(make_run):
    model = GPT(make_run().model)
    model.init_weights(0)
    return model


def test_every_parameter_is_optimized_once_and_only_matrices_decay(make_run, model):
    decayed, plain = make_optimizer(model, make_run().train).param_groups
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert sum(p.numel() for p in [*decayed["params"], *plain["params"]]) == model.config.parameters
    assert any(p is model.wte.weight for p in decayed["params"])
    assert {
        name.rpartition(".")[2]
        for name, p in model.named_parameters()
        if any(p is q for q in plain["params"])
    } == {"weight", "bias"}
    assert all(p.dim() == 1 for p in plain["params"])


def test_an_update_is_adamw_as_published(make_run, model):
    before = copy.deepcopy(model)
    optimizer = make_optimizer(model, make_run().train)
    for parameter in model.parameters():
        parameter.grad = torch.randn(
            parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
        )
    optimizer.step()
    for old, new in zip(before.parameters(), model.parameters(), strict=True):
        g = new.grad
        decayed = old * (1 - 3e-3 * 0.1) if old.dim() >= 2 else old
        # after one step, m/(1-b1) = g and v/(1-b2) = g²
        expected = decayed - 3e-3 * g / (g.abs() + 1e-8)
        assert torch.allclose(new, expected, atol=1e-6)


def test_the_clip_limits_the_global_norm_and_returns_the_one_before(model):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    norm = clip_gradients(model, 1.0, RankContext(torch.device("cpu")))
    assert norm.item() == pytest.approx(0.5 * model.config.parameters**0.5, rel=1e-5)
    after = torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm()
    assert after.item() == pytest.approx(1.0, rel=1e-4)


@pytest.mark.parametrize("lifted", [1.0, 8.0])
def test_a_gradient_below_the_clip_is_only_divided_by_the_loss_scale(model, lifted):
    for parameter in model.parameters():
        parameter.grad = (
            torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) * lifted / 64
        )
    before = [parameter.grad.clone() for parameter in model.parameters()]
    norm = clip_gradients(model, 1e4, RankContext(torch.device("cpu")), lifted)
    expected = torch.stack([gradient.norm() for gradient in before]).norm() / lifted
    assert norm.item() == pytest.approx(expected.item(), rel=1e-5)
    assert all(
        torch.equal(parameter.grad, gradient / lifted)
        for parameter, gradient in zip(model.parameters(), before, strict=True)
    )
