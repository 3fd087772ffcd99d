from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from gptcli.distributed.context import Place
from gptcli.errors import UsageError
from gptcli.events import SILENT
from gptcli.trainer import precision
from gptcli.trainer.parallelize import build
from gptcli.trainer.precision import LossScale, check_precision

PLACE = Place(torch.device("cpu"))
BATCH = (torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16))


def test_fp8_is_refused_where_it_cannot_be_had(monkeypatch):
    check_precision("bf16", 2)
    with pytest.raises(UsageError, match="no GPU with fp8"):
        check_precision("fp8", 1)
    check_precision("fp8", 1, here=False)  # for a dry run
    with pytest.raises(UsageError, match="not divided over tp"):
        check_precision("fp8", 2, here=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    with pytest.raises(UsageError, match="no GPU with fp8"):
        check_precision("fp8", 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="torchao's, which is not installed"):
        check_precision("fp8", 1)
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: name)
    check_precision("fp8", 1)
    with pytest.raises(UsageError, match="not divided over tp"):
        check_precision("fp8", 2)


def test_the_scale_halves_on_overflow_and_doubles_after_long():
    scale = LossScale()
    scale.learn(float("inf"))
    assert scale.value == LossScale.FIRST / 2
    for _ in range(LossScale.DOUBLED_AFTER - 1):
        scale.learn(1.0)
    assert scale.value == LossScale.FIRST / 2
    scale.learn(1.0)
    assert scale.value == LossScale.FIRST
    assert LossScale(scale.state).value == scale.value


def test_gradients_are_the_same_however_far_they_were_lifted(make_run):
    clipped, parts = [], []
    for kind in ("fp32", "fp16"):
        stepper = build(make_run(precision=kind), PLACE, SILENT)
        stepper.gradients([BATCH, BATCH], 64, 1)
        parts.append(stepper.part.norm2.item())
        norm = stepper.clip_gradients().item()
        clipped.append((norm, {name: p.grad for name, p in stepper.model.named_parameters()}))
    (exact, theirs), (norm, ours) = clipped
    assert norm == pytest.approx(exact, rel=1e-2)
    assert parts[1] == pytest.approx(parts[0], rel=2e-2)
    for name, gradient in theirs.items():
        assert torch.allclose(ours[name], gradient, atol=2e-2 * gradient.abs().max().item()), name


def test_an_overflow_is_skipped_and_learnt_from(make_run):
    stepper = build(make_run(precision="fp16"), PLACE, SILENT)
    stepper.loss_scale.state["scale"] = 2.0**60
    before = [parameter.clone() for parameter in stepper.model.parameters()]
    stepper.gradients([BATCH], 32, 1)
    assert not stepper.clip_gradients().isfinite()
    stepper.skip()
    assert stepper.loss_scale.value == 2.0**59
    assert all(
        torch.equal(old, new) for old, new in zip(before, stepper.model.parameters(), strict=True)
    )


def test_a_resume_warns_if_the_last_bits_will_differ(monkeypatch):
    told = []
    events = SimpleNamespace(warn=told.append)
    config = SimpleNamespace(compile=True, precision="bf16")
    monkeypatch.setattr(precision.linear_kernel, "runs_here", lambda: True)
    made = precision.check_numeric_environment(None, config, events)
    assert precision.check_numeric_environment(made, config, events) == made
    assert not told
    # no compiler here, or no AMX
    monkeypatch.setattr(precision.linear_kernel, "runs_here", lambda: False)
    other = precision.check_numeric_environment(
        made, SimpleNamespace(compile=False, precision="bf16"), events
    )
    assert other != made
    assert f"made by {made}; here it is {other}:" in told[0]
    assert made.endswith(", compiled, kernels in C")
