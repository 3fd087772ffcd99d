"""Learning rate and batch as pure functions of tokens (GPT-3, Appendix B), so that the ramp does
not bend the learning rate and any step of a run is known from its configuration alone. Only a batch
that follows the noise scale depends on what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptcli.errors import UsageError
from gptcli.trainer.config import TrainConfig

GROW_EVERY_STEPS = 64  # steps between looks at the noise scale, which is a mean over about as many


@dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands between two steps."""

    step: int = 0
    sequences: int = 0
    """Read so far, by all processes together."""


class Schedule:
    """The steps of a run. Batches are whole sequences of `n_ctx` tokens."""

    def __init__(self, config: TrainConfig, n_ctx: int) -> None:
        """Raises UsageError where the run is shorter than a sequence."""
        self.config, self.n_ctx = config, n_ctx
        self.total_sequences = config.tokens // n_ctx
        """Sequences of the whole run."""
        self.full_batch = max(1, round(config.batch_tokens / n_ctx))
        """Sequences of a batch after the ramp."""
        self.first_batch = min(self.full_batch, max(1, round(config.ramp_from / n_ctx)))
        if self.total_sequences < 1:
            raise UsageError(
                f"{config.tokens} tokens are less than one sequence of {n_ctx}",
                hint="raise --tokens or lower --n-ctx",
            )

    def lr(self, tokens: float) -> float:
        """The learning rate of the step that ends at `tokens`: linear from 0, then a cosine to
        min_lr_ratio, then constant.
        """
        c = self.config
        if tokens < c.warmup_tokens:
            return c.lr * tokens / c.warmup_tokens
        progress = (
            (tokens - c.warmup_tokens) / (c.decay_tokens - c.warmup_tokens)
            if tokens < c.decay_tokens
            else 1.0
        )
        return c.lr * (
            c.min_lr_ratio + (1 - c.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
        )

    def batch(self, sequences: int) -> int:
        """Sequences of the step that begins after `sequences`: linear from `ramp_from`, then
        `batch_tokens`; the last takes the rest.
        """
        done = sequences * self.n_ctx
        size = self.full_batch
        if done < self.config.ramp_tokens:
            size = (
                self.first_batch
                + (self.full_batch - self.first_batch) * done // self.config.ramp_tokens
            )
        return min(size, self.total_sequences - sequences)

    def grown_batch(self, batch: int, step: int, noise_scale: float | None) -> int:
        """Sequences of the batch after `step`, whose own had `batch`: at every GROW_EVERYth step,
        twice as many where the noise scale, in tokens, is at least that, up to `batch_tokens`;
        never fewer."""
        if (
            step % GROW_EVERY_STEPS == 0
            and noise_scale is not None
            and noise_scale >= 2 * batch * self.n_ctx
        ):
            return min(2 * batch, self.full_batch)
        return batch

    def after(self, position: Position) -> Position:
        """The end of the step that begins at `position`."""
        return Position(position.step + 1, position.sequences + self.batch(position.sequences))

    def steps(self, tokens: int | None = None) -> int:
        """Steps of the whole run, or until `tokens` have been read: counted batch size by batch
        size, not one by one.
        """
        end = (
            self.total_sequences
            if tokens is None
            else min(self.total_sequences, -(-tokens // self.n_ctx))
        )
        steps = sequences = 0
        while sequences < end and (size := self.batch(sequences)) < self.full_batch:
            alike = max(1, -(-(min(end, self._grows(size)) - sequences) // size))
            steps, sequences = steps + alike, sequences + alike * size
        return steps + max(0, -(-(end - sequences) // self.full_batch))

    def _grows(self, size: int) -> int:
        """Sequences from which on the batches of the ramp are larger than `size`."""
        done = -(
            -(size + 1 - self.first_batch)
            * self.config.ramp_tokens
            // max(1, self.full_batch - self.first_batch)
        )
        return -(-done // self.n_ctx)
