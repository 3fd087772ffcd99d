"""Which updates are left out: of gradients that are not finite, and of losses far above those
before (Chowdhery et al. 2022, section 5.1, met such spikes and skipped data around them; here one
step at a time)."""

from __future__ import annotations

import math
from typing import Any

# steps that the running mean and variance of the loss look back on, and that pass before a spike
# can be told
WINDOW = 64
LEAST = 0.1  # nats: less is no spike, however calm the loss has been


class Guard:
    """Judges each step by its loss and gradient norm, which all processes must give alike. `state`
    is all there is to save.
    """

    def __init__(self, sigmas: float, state: dict[str, Any] | None = None) -> None:
        """A loss is a spike from `sigmas` standard deviations above the mean on; 0 for no such
        judgement.
        """
        self.sigmas = sigmas
        self.state = state or {
            "mean": 0.0,
            "variance": 0.0,
            "steps": 0,
            "skipped": 0,
            "in_a_row": 0,
        }

    def objection(self, loss: float, grad_norm: float) -> str | None:
        """Why this step's update must be left out, in words, or None; counted either way."""
        reason = self._judge(loss, grad_norm)
        state = self.state
        if reason is not None:
            state["skipped"] += 1
            state["in_a_row"] += 1
            return reason
        state["in_a_row"] = 0
        state["steps"] += 1
        weight = max(1 / WINDOW, 1 / state["steps"])  # the plain mean at first
        away = loss - state["mean"]
        state["mean"] += weight * away
        state["variance"] = (1 - weight) * (state["variance"] + weight * away**2)
        return None

    def _judge(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient's norm is {grad_norm}"
        away, deviation = loss - self.state["mean"], math.sqrt(self.state["variance"])
        if (
            self.sigmas
            and self.state["steps"] >= WINDOW
            and away > max(self.sigmas * deviation, LEAST)
        ):
            return f"the loss {loss:.4f} is a spike: the mean of late is {self.state['mean']:.4f}, the standard deviation {deviation:.4f}"
        return None
