from __future__ import annotations

import copy
import importlib
import math

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.errors import UsageError
from gptcli.events import SILENT
from gptcli.kernels import adamw_kernel
from gptcli.model.transformer import GPT
from gptcli.trainer import optimizer as module
from gptcli.trainer.optimizer import (
    LossScale,
    Muon,
    averaged_weights,
    check_precision,
    clip_gradients,
    make_optimizer,
    set_rates,
    update_average,
)
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.schedule import Rates


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


def test_weight_decay_and_beta2_may_change_between_updates(make_run, model):
    """A tensor without weight decay stays without; Adam corrects its second moment by the newest beta2."""
    config = make_run(weight_decay=0.0).train
    optimizer = make_optimizer(model, config)
    m = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    v = copy.deepcopy(m)
    for step, rates in enumerate([Rates(1e-3), Rates(2e-3, 0.3, 0.8), Rates(1e-3, 0.2, 0.9)]):
        before = copy.deepcopy(model)
        gradients(model, step)
        set_rates(optimizer, rates)
        optimizer.step()
        beta2, decay = rates.beta2 or config.beta2, rates.weight_decay or 0.0
        for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
            m[name] = 0.9 * m[name] + 0.1 * new.grad
            v[name] = beta2 * v[name] + (1 - beta2) * new.grad**2
            second = v[name] / (1 - beta2 ** (step + 1))
            change = m[name] / (1 - 0.9 ** (step + 1)) / (second.sqrt() + 1e-8)
            kept = old * (1 - rates.lr * decay) if old.dim() >= 2 else old
            assert torch.allclose(new, kept - rates.lr * change, atol=1e-6), name


def test_the_kernel_and_torch_continue_each_others_state(make_run, model, monkeypatch):
    """After one update by each of the two, in either order, the weights are those of torch alone."""
    if adamw_kernel.available() is False:
        pytest.skip("no kernels here")
    weights = []
    for by_kernel in ((False, False), (True, False), (False, True), (True, True)):
        copied = copy.deepcopy(model)
        optimizer = make_optimizer(copied, make_run().train)
        for step, kernel in enumerate(by_kernel):
            monkeypatch.setattr(adamw_kernel, "supports", lambda _, kernel=kernel: kernel)
            gradients(copied, step)
            clip_gradients(copied, 1.0, CONTEXT)
            optimizer.step()
            fresh = make_optimizer(copied, make_run().train)
            fresh.load_state_dict(optimizer.state_dict())
            optimizer = fresh
        weights.append([p.detach() for p in copied.parameters()])
    for found in weights[1:]:
        for got, wanted in zip(found, weights[0], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-7)


def gradients(model: GPT, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize(
    ("fast", "dtypes"),
    [
        (True, [torch.float32, torch.bfloat16, torch.float16]),
        (False, [torch.float32] * 3),
    ],
)
def test_pytorch_multiplies_bf16_only_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch, fast: bool, dtypes: list[torch.dtype]
) -> None:
    monkeypatch.setattr(module, "has_fast_bf16", lambda: fast)
    assert [module.product_dtype(precision) for precision in ("fp32", "bf16", "fp16")] == dtypes


def test_muon_is_torchs_on_the_matrices_of_the_blocks_and_adamw_on_the_rest(
    make_run, model, monkeypatch
):
    monkeypatch.setattr(module, "has_fast_bf16", lambda: True)  # as torch's multiplies
    """The matrices bit for bit with bf16 products, as torch has them."""
    config = make_run(optimizer="muon", precision="bf16").train
    theirs = copy.deepcopy(model)
    named = dict(theirs.named_parameters())
    matrices = [p for name, p in named.items() if name.startswith("h.") and p.dim() == 2]
    assert len(matrices) == 4 * model.config.n_layer
    muon = torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    rest = [p for p in named.values() if not any(p is matrix for matrix in matrices)]
    adamw = torch.optim.AdamW(
        [
            {"params": [p for p in rest if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
        ],
        lr=3e-3, betas=(0.9, 0.95), fused=True,
    )  # fmt: skip
    optimizer = make_optimizer(model, config)
    for step in range(4):
        gradients(model, step)
        gradients(theirs, step)
        if step > 1:  # weight decay and beta2 may change
            set_rates(optimizer, Rates(3e-3, 0.1 * step, 0.8))
            for group in (muon.param_groups[0], adamw.param_groups[0]):
                group["weight_decay"] = 0.1 * step
            for group in adamw.param_groups:
                group["betas"] = (0.9, 0.8)
        optimizer.step()
        muon.step()
        adamw.step()
    for name, parameter in model.named_parameters():
        is_matrix = parameter.dim() == 2 and name[0] == "h"
        if is_matrix:
            assert torch.equal(parameter, named[name]), name
        else:  # on a CPU, a kernel of ours
            torch.testing.assert_close(parameter, named[name], rtol=1e-6, atol=1e-7)
        assert ("momentum_buffer" in optimizer.state[parameter]) == is_matrix


@pytest.mark.parametrize("shape", [(16, 48), (48, 16), (32, 32)])
def test_muons_update_is_nearly_orthogonal_and_as_large_as_adamws(make_run, model, shape):
    optimizer = make_optimizer(model, make_run(optimizer="muon").train)
    assert isinstance(optimizer, Muon)
    update = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    singular = torch.linalg.svdvals(optimizer._orthogonalize(update))
    assert 0.6 < singular.min() <= singular.max() < 1.3
    scaled = 0.2 * math.sqrt(max(shape)) * optimizer._orthogonalize(update)
    assert scaled.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.2)


def test_the_average_of_the_weights_is_the_papers_formula(make_run, model):
    optimizer = make_optimizer(model, make_run().train)
    expected = None
    for step in range(1, 6):
        gradients(model, step)
        optimizer.step()
        update_average(optimizer, 0.3, step)
        weight = model.wte.weight.detach().clone()
        share = min(0.3, (1 + step) / (10 + step))
        expected = weight if expected is None else share * expected + (1 - share) * weight
    assert expected is not None
    with averaged_weights(model, optimizer):
        assert torch.allclose(model.wte.weight, expected)
    assert torch.equal(model.wte.weight, weight)


def test_an_optimizer_of_the_users_own(make_run, model, tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def sgd(model, config):\n    return torch.optim.SGD(model.parameters(), lr=config.lr)\n"
        "def none(model, config):\n    return None\n"
    )
    monkeypatch.chdir(tmp_path)
    optimizer = make_optimizer(model, make_run(optimizer="mine:sgd").train)
    assert isinstance(optimizer, torch.optim.SGD)
    assert [group["lr_scale"] for group in optimizer.param_groups] == [1.0]
    with pytest.raises(UsageError, match="mine:none returned NoneType"):
        make_optimizer(model, make_run(optimizer="mine:none").train)
    for wrong in ("mine:sdg", "absent_module:sgd", "mine:"):
        with pytest.raises(UsageError, match="cannot be imported"):
            make_optimizer(model, make_run(optimizer=wrong).train)


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


CONTEXT = RankContext(torch.device("cpu"))
BATCH = (torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16))


def test_fp8_is_refused_without_its_gpu_or_library_or_with_tp(monkeypatch):
    check_precision("bf16", 2)
    with pytest.raises(UsageError, match="no GPU with fp8"):
        check_precision("fp8", 1)
    check_precision("fp8", 1, here=False)  # for a dry run
    with pytest.raises(UsageError, match="does not work with tp"):
        check_precision("fp8", 2, here=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UsageError, match="no GPU with fp8"):
        check_precision("fp8", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="needs torchao, which is not installed"):
        check_precision("fp8", 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_precision("fp8", 1)
    with pytest.raises(UsageError, match="does not work with tp"):
        check_precision("fp8", 2)


def test_loss_scale_halves_on_overflow_and_doubles_after_growth_steps():
    scale = LossScale()
    scale.update(float("inf"))
    assert scale.value == LossScale.INITIAL / 2
    for _ in range(LossScale.GROWTH_STEPS - 1):
        scale.update(1.0)
    assert scale.value == LossScale.INITIAL / 2
    scale.update(1.0)
    assert scale.value == LossScale.INITIAL
    assert LossScale(scale.state).value == scale.value


def test_gradients_do_not_depend_on_the_loss_scale(make_run):
    clipped, parts = [], []
    for kind in ("fp32", "fp16"):
        train_step = build_train_step(make_run(precision=kind), CONTEXT, SILENT)
        train_step.forward_backward([BATCH, BATCH], 64, 1)
        parts.append(train_step.small_batch_norm.norm2.item())
        norm = train_step.clip_gradients().item()
        clipped.append((norm, {name: p.grad for name, p in train_step.model.named_parameters()}))
    (exact, theirs), (norm, ours) = clipped
    assert norm == pytest.approx(exact, rel=1e-2)
    assert parts[1] == pytest.approx(parts[0], rel=2e-2)
    for name, gradient in theirs.items():
        got = ours[name]
        assert gradient is not None
        assert got is not None
        assert torch.allclose(got, gradient, atol=2e-2 * gradient.abs().max().item()), name


def test_an_overflow_skips_the_update_and_halves_the_scale(make_run):
    train_step = build_train_step(make_run(precision="fp16"), CONTEXT, SILENT)
    assert train_step.loss_scale is not None
    train_step.loss_scale.state["scale"] = 2.0**60
    before = [parameter.clone() for parameter in train_step.model.parameters()]
    result = train_step([BATCH], step=1, batch_tokens=32, rates=Rates(1e-3))
    assert not math.isfinite(result.grad_norm)
    assert result.skip_reason is not None
    assert train_step.loss_scale.value == 2.0**59
    assert all(
        torch.equal(old, new)
        for old, new in zip(before, train_step.model.parameters(), strict=True)
    )
