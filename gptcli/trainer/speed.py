"""How fast a run is and how much memory it takes, by definitions that a reader can check."""

from __future__ import annotations

import sys
from typing import Any

import torch

from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import identify_gpu, peak_flops
from gptcli.distributed.context import RankContext
from gptcli.errors import UsageError
from gptcli.trainer.config import Run


class Speed:
    """Turns tokens a second into a metrics line's fields, each a rate per process
    (tokens_per_second: of the run).

    tflops       the model's FLOPs, 6N + 12·L·C·T a token (PaLM's count), in TFLOP/s
    mfu          the same over the GPU's peak at this precision; None on a CPU and for a GPU that has no row in hardware.toml
    mfu_causal   with the attention that is computed: each query's keys up to itself, or its band
    """

    def __init__(self, run: Run, context: RankContext) -> None:
        self.processes = context.world_size
        self.palm, self.causal = (
            flops_per_token(run.model, "palm"),
            flops_per_token(run.model, "causal"),
        )
        self.peak = _peak(context.device, run.train.precision)

    def fields(self, tokens_per_second: float) -> dict[str, Any]:
        each = tokens_per_second / self.processes
        return {
            "tokens_per_second": round(tokens_per_second, 1),
            "tflops": round(self.palm * each / 1e12, 4),
            "mfu": None if self.peak is None else round(self.palm * each / self.peak, 5),
            "mfu_causal": None if self.peak is None else round(self.causal * each / self.peak, 5),
        }


class Pace:
    """Measures the first steps of a run, or of what is left of one, and says once how long the rest
    will take.

    The very first steps are left out: they compile, and fill caches. So are those of a short ramp,
    whose small batches take longer a token. Evaluations and checkpoints among the measured steps
    count.
    """

    SKIP = 3  # steps before the clock starts
    STEPS, SECONDS = 5, 3.0  # measured at least
    LONG = 60.0  # seconds after which two steps are enough, and a ramp is not waited for

    def __init__(self, total: int) -> None:
        """`total` is the run's length in tokens."""
        self.total = total
        self._steps = 0
        self._first: float | None = None
        self._begin: tuple[float, int] | None = None
        self._said = False

    def step(self, tokens: int, now: float, *, ramping: bool = False) -> tuple[float, float] | None:
        """Take in a step that ended at time `now` (seconds), after `tokens` of the run.

        `ramping`: its batch was far from full. Return seconds left and tokens a second, once, as
        soon as they are known; None before and after.
        """
        self._first = now if self._first is None else self._first
        if ramping and now - self._first < self.LONG:
            return None
        self._steps += 1
        if self._said or self._steps < self.SKIP:
            return None
        if self._begin is None:
            self._begin = now, tokens
            return None
        seconds, measured = now - self._begin[0], self._steps - self.SKIP
        if not (measured >= self.STEPS and seconds >= self.SECONDS) and not (
            measured >= 2 and seconds >= self.LONG
        ):
            return None
        self._said = True
        speed = (tokens - self._begin[1]) / seconds
        return (self.total - tokens) / speed, speed


def _peak(device: torch.device, precision: str) -> float | None:
    """FLOP/s of the GPU at hand; None where unknown: never a guess."""
    if device.type != "cuda" or (gpu := identify_gpu(torch.cuda.get_device_name(device))) is None:
        return None
    try:
        return peak_flops(gpu, precision)
    except UsageError:  # the vendor prints none at this precision
        return None


def peak_memory(device: torch.device) -> int:
    """Bytes that this process has needed at most so far: of tensors on a GPU, of everything on a
    CPU.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows, where nobody trains without a GPU

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
