"""Learning rate, weight decay, beta2 and batch size as pure functions of tokens (GPT-3, appendix
B).

    cosine     the papers': falls along a cosine to `min_lr_ratio` at `decay_tokens`, then stays
    linear     falls along a line, to the same place
    wsd        stays, and falls in the last `cooldown_tokens` by 1 - sqrt (Hägele et al. 2024, arXiv
               2405.18392, section 4); runs of different lengths share all steps before that
    constant   stays

Weight decay and beta2 are constant in the papers. They may go from their first value to another one
at the end of the run, along a line or half a cosine.

The batch ramp does not change the learning rate, and the configuration alone determines every step
of a run. Only a batch size that follows the noise scale depends on measurements.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gptcli.errors import UsageError
from gptcli.numbers import counted
from gptcli.trainer.config import TrainConfig, import_object

GROW_EVERY_STEPS = 64  # about the window of the noise scale's mean


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a run between two steps."""

    step: int = 0
    sequences: int = 0
    """Sequences read so far, by all ranks together."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Constants of one update."""

    lr: float
    """Learning rate."""
    weight_decay: float | None = None
    """Weight decay of matrices and embeddings; None if it never changes."""
    beta2: float | None = None
    """Decay rate of Adam's second moment; None if it never changes."""


Own = Callable[[float, TrainConfig], Any]


class Schedule:
    """Steps of a run. Batches are whole sequences of `n_ctx` tokens."""

    def __init__(self, config: TrainConfig, n_ctx: int) -> None:
        """Raises UsageError if the run is shorter than one sequence."""
        self.config, self.n_ctx = config, n_ctx
        self.own: dict[str, Own] = {
            name: import_object(path, name)
            for name in ("lr_schedule", "weight_decay_schedule", "beta2_schedule")
            if ":" in (path := getattr(config, name))
        }
        """The user's own schedules, by parameter."""
        self.total_sequences = config.tokens // n_ctx
        """Number of sequences in the run."""
        self.full_batch = max(1, round(config.batch_tokens / n_ctx))
        """Sequences per batch after the ramp."""
        self.first_batch = min(self.full_batch, max(1, round(config.ramp_from / n_ctx)))
        if self.total_sequences < 1:
            raise UsageError(
                f"a run of {counted(config.tokens, 'token')} is less than one sequence of {n_ctx}",
                hint="raise {option:tokens} or lower {option:n_ctx}",
            )

    def rates(self, tokens: float) -> Rates:
        """Return the constants of the step that ends at `tokens`."""
        return Rates(self.lr(tokens), self.weight_decay(tokens), self.beta2(tokens))

    def weight_decay(self, tokens: float) -> float | None:
        """Return the weight decay of the step that ends at `tokens`; None if it never changes."""
        own = self._own("weight_decay_schedule", tokens)
        return self._course("weight_decay", tokens) if own is None else own

    def beta2(self, tokens: float) -> float | None:
        """Return Adam's beta2 in the step that ends at `tokens`; None if it never changes."""
        own = self._own("beta2_schedule", tokens, below=1.0)
        return self._course("beta2", tokens) if own is None else own

    def _course(self, name: str, tokens: float) -> float | None:
        """Return a value on its way from the first to the last of the run; None if it stays."""
        begin, end = getattr(self.config, name), getattr(self.config, f"end_{name}")
        if end is None:
            return None
        done = min(1.0, tokens / self.config.tokens)
        if getattr(self.config, f"{name}_schedule") == "cosine":
            done = (1 - math.cos(math.pi * done)) / 2
        return begin + (end - begin) * done

    def lr(self, tokens: float) -> float:
        """Return the learning rate of the step that ends at `tokens`.

        It grows linearly from 0 in the warm-up, whatever the schedule. A user's own schedule is the
        function that `lr_schedule` names, called with `tokens` and the configuration. Raises
        UsageError if that returns no rate.
        """
        c = self.config
        if (own := self._own("lr_schedule", tokens)) is not None:
            return own
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

    def _own(self, name: str, tokens: float, below: float = math.inf) -> float | None:
        """Return the value of the user's own schedule `name`; None if there is none.

        Raises UsageError if it is no number from 0 to `below`.
        """
        if name not in self.own:
            return None
        value = self.own[name](tokens, self.config)
        if not isinstance(value, int | float) or not 0 <= value < below:
            limit = "" if below == math.inf else f" and below {below:g}"
            raise UsageError(
                f"{getattr(self.config, name)} returned {value!r} at {tokens:,.0f} tokens",
                field=name,
                code="not_a_rate",
                hint=f"a function (tokens, config) that returns a number, 0 or more{limit}",
            )
        return float(value)

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
