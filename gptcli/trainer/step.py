"""One update of the weights: gradients of the whole batch, clip, and AdamW or, where the gradients
are no good, nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
from functools import partial

import torch
from torch import nn

from gptcli.distributed.context import RankContext
from gptcli.distributed.fsdp import set_gradient_sync
from gptcli.distributed.pipeline_parallel import Pipeline
from gptcli.distributed.tensor_parallel import reduce_partial_grads
from gptcli.trainer.batches import MicroBatch
from gptcli.trainer.noise_scale import AGAIN_EVERY, PartNorm
from gptcli.trainer.optimizer import clip_gradients, gradient_norm
from gptcli.trainer.precision import LossScale


class Stepper:
    """Turns micro-batches into updates of one laid-out model."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        context: RankContext,
        *,
        clip: float,
        products: torch.dtype | None,
        dropout_seed: int | None,
        engine: nn.Module | None = None,
        pipeline: Pipeline | None = None,
    ) -> None:
        """`model` holds the parameters under the plain names; `engine` is called in its place where
        it wraps it; `pipeline` runs it where it is in stages. Products run in `products`, or None
        for fp32. `dropout_seed` is None where nothing is dropped."""
        self.model, self.optimizer, self.context, self.clip = model, optimizer, context, clip
        self.engine, self.pipeline = engine or model, pipeline
        self.products, self.dropout_seed = products, dropout_seed
        self.part = PartNorm(self.engine, context)
        self.loss_scale = LossScale() if products is torch.float16 else None
        self.norm = torch.zeros(())
        """Of the gradients, before the clip."""

    def gradients(self, batches: list[MicroBatch], tokens: int, step: int) -> torch.Tensor:
        """Leave the gradient of the mean loss over the `tokens` of the whole batch, all processes',
        in the parameters.

        Returns this process's summed loss, a scalar on the device. The divisor is the batch's own
        count, so that neither micro-batches nor processes change the result.
        """
        lifted = self.loss_scale.value if self.loss_scale else 1.0
        scale = lifted * self.context.replicas / tokens  # the engines average over replicas
        self.part.restart()
        part = batches[: self.context.layout.pp]
        if self.context.is_model_parallel and step % AGAIN_EVERY == 0 and len(part) < len(batches):
            self._run(part, scale, step)
            self.part.norm2 += gradient_norm(self.model, self.context).square()
            self.optimizer.zero_grad()
        total = self._run(batches, scale, step)
        exchanges = (
            len(batches)
            if self.context.layout.shard > 1 and not self.context.is_model_parallel
            else 1
        )
        self.part.norm2 /= lifted**2 * exchanges
        return total if self.context.owns_loss else torch.zeros_like(total)

    def _run(self, batches: list[MicroBatch], scale: float, step: int) -> torch.Tensor:
        """Add the gradient of `scale` times the summed loss to the parameters'; returns the
        loss.
        """
        if self.pipeline is not None:
            total = self.pipeline.gradients(batches, scale, partial(self._pass, step))
        else:
            total = torch.zeros((), device=self.context.device)
            for number, (x_BT, y_BT) in enumerate(batches):
                set_gradient_sync(self.engine, self.context.layout, number == len(batches) - 1)
                with self._pass(step, number):
                    loss = self.engine(x_BT, y_BT)
                (loss * scale).backward()
                total += loss.detach()
                if number == 0 and len(batches) > 1:
                    self.part.after_first()
        if self.context.layout.tp > 1:
            reduce_partial_grads(self.model)
        return total

    @torch.no_grad()
    def loss(self, batches: list[MicroBatch]) -> torch.Tensor:
        """This process's summed loss, nothing dropped, nothing learnt."""
        self.model.eval()
        if self.pipeline is not None:
            total = self.pipeline.loss(batches, self.precision)
        else:
            total = torch.zeros((), device=self.context.device)
            for x_BT, y_BT in batches:
                with self.precision():
                    total += self.engine(x_BT, y_BT)
        self.model.train()
        return total if self.context.owns_loss else torch.zeros_like(total)

    def clip_gradients(self) -> torch.Tensor:
        """Cut the gradient's global norm; returns the norm it had, a scalar on the device."""
        lifted = self.loss_scale.value if self.loss_scale else 1.0
        self.norm = clip_gradients(self.model, self.clip, self.context, lifted)
        return self.norm

    def update(self, lr: float) -> None:
        """Move the weights by the gradients there are."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self.optimizer.step()
        self._end()

    def skip(self) -> None:
        """Leave weights and optimizer as they are."""
        self._end()

    def _end(self) -> None:
        self.optimizer.zero_grad()
        if self.loss_scale:
            self.loss_scale.update(self.norm.item())

    def precision(self) -> contextlib.AbstractContextManager[object]:
        """What products run in."""
        return torch.autocast(
            self.context.device.type, self.products, enabled=self.products is not None
        )

    def _pass(self, step: int, number: int) -> contextlib.AbstractContextManager[object]:
        """What forward pass `number` of this process's in a step runs in; its dropout is drawn from
        here on.
        """
        if self.dropout_seed is not None:
            torch.manual_seed(dropout_seed(self.dropout_seed, step, self.context.rank, number))
        return self.precision()


def dropout_seed(seed: int, step: int, rank: int, micro: int) -> int:
    """The seed of one micro-batch's dropout: a function of its place in the run, so that no
    generator's state need be saved.
    """
    return (
        int.from_bytes(
            hashlib.blake2b(f"{seed} {step} {rank} {micro}".encode(), digest_size=8).digest(),
            "little",
        )
        >> 1
    )
