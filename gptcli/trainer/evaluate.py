"""The validation loss: the same windows at every evaluation, each read once."""

from __future__ import annotations

import torch

from gptcli.trainer.batches import InOrder, micro_batches
from gptcli.trainer.step import Stepper


@torch.no_grad()
def validation_loss(stepper: Stepper, order: InOrder, windows: int, micro_batch: int) -> float:
    """Mean loss in nats a token over the first `windows` windows, shared among the processes."""
    model, place = stepper.model, stepper.place
    model.eval()
    total = torch.zeros((), dtype=torch.float64, device=place.device)
    group = micro_batch * place.world
    for first in range(0, windows, group):
        for x_BT, y_BT in micro_batches(order, first, min(group, windows - first), micro_batch, place):
            with stepper.precision():
                total += model(x_BT, y_BT)
    model.train()
    return place.total(total).item() / (windows * order.n_ctx)
