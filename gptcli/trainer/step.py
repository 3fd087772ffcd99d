"""One update of the weights: gradients of the whole batch, clip, and AdamW or, where the gradients are no good, nothing."""

from __future__ import annotations

import contextlib
import hashlib

import torch
from torch import nn

from gptcli.trainer.batches import MicroBatch
from gptcli.trainer.layout import Place, reduce_gradients
from gptcli.trainer.noise_scale import PartNorm
from gptcli.trainer.optimizer import clip_gradients


class Stepper:
    """Turns micro-batches into updates of one laid-out model."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        place: Place,
        *,
        clip: float,
        autocast: bool,
        dropout_seed: int | None,
    ) -> None:
        """`autocast` runs products in bf16. `dropout_seed` is None where nothing is dropped."""
        self.model, self.optimizer, self.place, self.clip = model, optimizer, place, clip
        self.autocast, self.dropout_seed = autocast, dropout_seed
        self.part = PartNorm(model, place)

    def gradients(self, batches: list[MicroBatch], tokens: int, step: int) -> torch.Tensor:
        """Leave the gradient of the mean loss over the `tokens` of the whole batch, all processes', in the parameters.

        Returns this process's summed loss, a scalar on the device. The divisor is the batch's own count, so that neither
        micro-batches nor processes change the result.
        """
        total = torch.zeros((), device=self.place.device)
        scale = self.place.world / tokens  # the engines average over processes
        self.part.restart()
        for number, (x_BT, y_BT) in enumerate(batches):
            if self.dropout_seed is not None:
                torch.manual_seed(dropout_seed(self.dropout_seed, step, self.place.rank, number))
            reduce_gradients(self.model, number == len(batches) - 1)
            with self.precision():
                loss = self.model(x_BT, y_BT)
            (loss * scale).backward()
            total += loss.detach()
            if number == 0 and len(batches) > 1:
                self.part.after_first()
        return total

    def clip_gradients(self) -> torch.Tensor:
        """Cut the gradient's global norm; returns the norm it had, a scalar on the device."""
        return clip_gradients(self.model, self.clip)

    def update(self, lr: float) -> None:
        """Move the weights by the gradients there are."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad()

    def skip(self) -> None:
        """Leave weights and optimizer as they are."""
        self.optimizer.zero_grad()

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """What products run in."""
        return torch.autocast(self.place.device.type, torch.bfloat16, enabled=self.autocast)


def dropout_seed(seed: int, step: int, rank: int, micro: int) -> int:
    """The seed of one micro-batch's dropout: a function of its place in the run, so that no generator's state need be saved."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {step} {rank} {micro}".encode(), digest_size=8).digest(), "little") >> 1
