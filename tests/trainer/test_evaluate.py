from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.trainer.evaluate import validation_loss
from gptcli.trainer.loop import open_validation
from gptcli.trainer.parallelize import build_train_step


@pytest.mark.parametrize("micro_batch", [1, 3, 24])
def test_mean_loss_over_the_first_windows(make_run, micro_batch):
    run = make_run(dropout=0.5)
    stepper = build_train_step(run, RankContext(torch.device("cpu")), SILENT)
    order = open_validation(run)
    loss = validation_loss(stepper, order, 10, micro_batch)
    x, y = (torch.from_numpy(part) for part in order.batch(0, 10))
    with torch.no_grad():
        expected = F.cross_entropy(stepper.model.eval()(x).flatten(0, 1), y.flatten())
    assert loss == pytest.approx(expected.item(), rel=1e-6)
    assert all(parameter.grad is None for parameter in stepper.model.parameters())
