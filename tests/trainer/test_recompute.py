from __future__ import annotations

import pytest
import torch

from gptcli.events import SILENT
from gptcli.trainer import machine
from gptcli.trainer.engine import build
from gptcli.trainer.layout import Place

PLACE = Place(torch.device("cpu"))
BATCH = (torch.arange(32).view(2, 16), torch.arange(1, 33).view(2, 16))


def step(run):
    """Gradients of a step; that less memory is needed shows tests/cost/test_rank.py."""
    stepper = build(run, PLACE, SILENT)
    stepper.gradients([BATCH], 32, 1)
    return {name: parameter.grad for name, parameter in stepper.model.named_parameters()}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
@pytest.mark.parametrize("how", ["selective", "full"])
def test_what_is_computed_again_is_the_same(make_run, how, dropout):
    plain = step(make_run(dropout=dropout))
    again = step(make_run(dropout=dropout, recompute=how))
    for name, gradient in plain.items():
        assert torch.equal(gradient, again[name]), name


@pytest.mark.skipif(not machine.has_compiler(), reason="no compiler here")
@pytest.mark.parametrize("how", ["selective", "full"])
def test_compiled(make_run, how):
    torch._dynamo.reset()
    plain = step(make_run())
    again = step(make_run(recompute=how, compile=True, must_compile=True, micro_batch=2))
    for name, gradient in plain.items():
        assert torch.allclose(gradient, again[name], atol=1e-6), name
