"""Skip updates whose loss or gradient is not finite, or whose loss is a spike.

Chowdhery et al. 2022 (PaLM), section 5.1, skipped the data around loss spikes; here single updates
are skipped.
"""

from __future__ import annotations

import math
from typing import Any

WINDOW_STEPS = 64  # time constant of the running statistics, and their minimum before any spike
MIN_SPIKE_NATS = 0.1  # a smaller rise of the loss is no spike, however low its variance was


class SpikeGuard:
    """Rule that skips updates, from running statistics of the training loss.

    Every rank must pass the same numbers, so that all decide alike.
    """

    def __init__(self, spike_sigmas: float, state: dict[str, Any] | None = None) -> None:
        """Call a loss `spike_sigmas` standard deviations above the running mean a spike.

        0 turns the rule off for finite losses. `state` is that of a resumed run.
        """
        self.spike_sigmas = spike_sigmas
        self.state = state or {
            "mean": 0.0,
            "variance": 0.0,
            "steps": 0,
            "skipped": 0,
            "in_a_row": 0,
        }
        """Everything that a checkpoint needs: running statistics and counts of skipped updates."""

    def skip_reason(self, loss: float, grad_norm: float) -> str | None:
        """Return the reason to skip this step's update, or None; count the step either way."""
        reason = self._skip_reason(loss, grad_norm)
        state = self.state
        if reason is not None:
            state["skipped"] += 1
            state["in_a_row"] += 1
            return reason
        state["in_a_row"] = 0
        state["steps"] += 1
        weight = max(1 / WINDOW_STEPS, 1 / state["steps"])  # a plain mean until the window is full
        deviation = loss - state["mean"]
        state["mean"] += weight * deviation
        state["variance"] = (1 - weight) * (state["variance"] + weight * deviation**2)
        return None

    def _skip_reason(self, loss: float, grad_norm: float) -> str | None:
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if not self.spike_sigmas or self.state["steps"] < WINDOW_STEPS:
            return None
        mean, sigma = self.state["mean"], math.sqrt(self.state["variance"])
        if loss - mean <= max(self.spike_sigmas * sigma, MIN_SPIKE_NATS):
            return None
        return (
            f"the loss {loss:.4f} is a spike: recent mean {mean:.4f}, "
            f"standard deviation {sigma:.4f}"
        )
