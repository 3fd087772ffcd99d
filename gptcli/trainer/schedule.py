"""Learning rate and batch size as pure functions of tokens (GPT-3, appendix B).

    cosine     the papers': falls along a cosine to `min_lr_ratio` at `decay_tokens`, then stays
    linear     falls along a line, to the same place
    wsd        stays, and falls in the last `cooldown_tokens` by 1 - sqrt (Hägele et al. 2024, arXiv
               2405.18392, section 4); runs of different lengths share all steps before that
    constant   stays

The batch ramp does not change the learning rate, and the configuration alone determines every step
of a run. Only a batch size that follows the noise scale depends on measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptcli.errors import UsageError
from gptcli.trainer.config import TrainConfig, import_object

GROW_EVERY_STEPS = 64  # about the window of the noise scale's mean


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a run between two steps."""

    step: int = 0
    sequences: int = 0
    """Sequences read so far, by all ranks together."""


class Schedule:
    """Steps of a run. Batches are whole sequences of `n_ctx` tokens."""

    def __init__(self, config: TrainConfig, n_ctx: int) -> None:
        """Raises UsageError if the run is shorter than one sequence."""
        self.config, self.n_ctx = config, n_ctx
        self.own_schedule: Callable[[float, TrainConfig], Any] | None = (
            import_object(config.lr_schedule, "lr_schedule") if ":" in config.lr_schedule else None
        )
        self.total_sequences = config.tokens // n_ctx
        """Number of sequences in the run."""
        self.full_batch = max(1, round(config.batch_tokens / n_ctx))
        """Sequences per batch after the ramp."""
        self.first_batch = min(self.full_batch, max(1, round(config.ramp_from / n_ctx)))
        if self.total_sequences < 1:
            raise UsageError(
                f"{config.tokens} tokens are less than one sequence of {n_ctx}",
                hint="raise {option:tokens} or lower {option:n_ctx}",
            )

    def lr(self, tokens: float) -> float:
        """Return the learning rate of the step that ends at `tokens`.

        It grows linearly from 0 in the warm-up, whatever the schedule. A user's own schedule is the
        function that `lr_schedule` names, called with `tokens` and the configuration. Raises
        UsageError if that returns no rate.
        """
        c = self.config
        if self.own_schedule is not None:
            return self._own_lr(tokens)
        if tokens < c.warmup_tokens:
            return c.lr * tokens / c.warmup_tokens
        if c.lr_schedule == "constant":
            return c.lr
        if c.lr_schedule == "wsd":
            cooled = tokens - (c.tokens - c.cooldown_tokens)
            falls = math.sqrt(min(1.0, max(0.0, cooled / c.cooldown_tokens)))
            return c.lr * (c.min_lr_ratio + (1 - c.min_lr_ratio) * (1 - falls))
        progress = (
            (tokens - c.warmup_tokens) / (c.decay_tokens - c.warmup_tokens)
            if tokens < c.decay_tokens
            else 1.0
        )
        if c.lr_schedule == "linear":
            return c.lr * (c.min_lr_ratio + (1 - c.min_lr_ratio) * (1 - progress))
        return c.lr * (
            c.min_lr_ratio + (1 - c.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
        )

    def _own_lr(self, tokens: float) -> float:
        assert self.own_schedule is not None
        lr = self.own_schedule(tokens, self.config)
        if not isinstance(lr, int | float) or not 0 <= lr < math.inf:
            raise UsageError(
                f"{self.config.lr_schedule} returned {lr!r} at {tokens:,.0f} tokens",
                field="lr_schedule",
                code="not_a_learning_rate",
                hint="a function (tokens, config) that returns a learning rate, 0 or more",
            )
        return float(lr)

    def batch(self, sequences: int) -> int:
        """Return the sequences of the step that begins after `sequences`.

        They grow linearly from `ramp_from` to `batch_tokens`; the last step takes the rest.
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
        """Return the sequences of the batch that follows `step`, whose batch had `batch`.

        Every GROW_EVERY_STEPS steps the batch doubles, up to `batch_tokens`, if the noise scale in
        tokens is at least as large as the doubled batch. It never shrinks.
        """
        if (
            step % GROW_EVERY_STEPS == 0
            and noise_scale is not None
            and noise_scale >= 2 * batch * self.n_ctx
        ):
            return min(2 * batch, self.full_batch)
        return batch

    def after(self, position: Position) -> Position:
        """Return the position after the step that begins at `position`."""
        return Position(position.step + 1, position.sequences + self.batch(position.sequences))

    def steps(self, tokens: int | None = None) -> int:
        """Return the number of steps of the run, or until `tokens` have been read.

        Steps of one batch size are counted at once.
        """
        end = (
            self.total_sequences
            if tokens is None
            else min(self.total_sequences, -(-tokens // self.n_ctx))
        )
        steps = sequences = 0
        while sequences < end and (size := self.batch(sequences)) < self.full_batch:
            same_size = max(1, -(-(min(end, self._growth_position(size)) - sequences) // size))
            steps, sequences = steps + same_size, sequences + same_size * size
        return steps + max(0, -(-(end - sequences) // self.full_batch))

    def _growth_position(self, size: int) -> int:
        """Return the position, in sequences, at which the ramp's batches exceed `size`."""
        done = -(
            -(size + 1 - self.first_batch)
            * self.config.ramp_tokens
            // max(1, self.full_batch - self.first_batch)
        )
        return -(-done // self.n_ctx)
