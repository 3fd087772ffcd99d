"""The validation loss: the same windows at every evaluation, each read once."""

from __future__ import annotations

import torch

from gptcli.trainer.batches import Order, micro_batches
from gptcli.trainer.step import Stepper


def validation_loss(stepper: Stepper, order: Order, windows: int, micro_batch: int) -> float:
    """Mean loss in nats a token over the first `windows` windows, shared among the processes."""
    context = stepper.context
    total = torch.zeros((), dtype=torch.float64, device=context.device)
    # a micro-batch for every stage to be at work on
    group = micro_batch * context.replicas * context.layout.pp
    for first in range(0, windows, group):
        total += stepper.loss(
            micro_batches(order, first, min(group, windows - first), micro_batch, context)
        )
    return context.all_reduce_sum(total).item() / (windows * order.n_ctx)
