from __future__ import annotations

import importlib
import math

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.errors import UsageError
from gptcli.events import SILENT
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.precision import LossScale, check_precision

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
    result = train_step([BATCH], step=1, batch_tokens=32, lr=1e-3)
    assert not math.isfinite(result.grad_norm)
    assert result.skip_reason is not None
    assert train_step.loss_scale.value == 2.0**59
    assert all(
        torch.equal(old, new)
        for old, new in zip(before, train_step.model.parameters(), strict=True)
    )
