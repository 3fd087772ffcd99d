"""Device and CPU threads of this process, and a description of what computes its sums."""

from __future__ import annotations

import os

import torch

from gptcli import optional_kernels
from gptcli.events import Events
from gptcli.runtime import available_cores


def device_type() -> str:
    """Return the type of device that this machine trains on: "cuda" or "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def share_cores(processes: int) -> None:
    """Divide the CPU's cores among the `processes` of this machine."""
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))


def pin_thread_count(previous: int | None, events: Events) -> int:
    """Pin the number of CPU threads for a whole run, and return it.

    The number of threads decides how sums are split, and so the last bits of the weights.
    `previous` is the number in the checkpoint of a resumed run, None for a new run. Warns if this
    machine has fewer cores.
    """
    threads = torch.get_num_threads()
    if previous is not None and previous != threads:
        if previous <= available_cores():
            threads = previous
        else:
            events.warn(
                f"the run used {previous} threads, but this machine has {available_cores()} cores: "
                "the weights will differ in their last bits from a run on one machine"
            )
    torch.set_num_threads(threads)  # an explicit number keeps the BLAS library from choosing one
    return threads


def check_numeric_environment(
    previous: str | None, events: Events, *, precision: str, compiled: bool
) -> str:
    """Return a description of what computes the run's sums: torch, device, compiler and kernels.

    `previous` is the description in the checkpoint of a resumed run, None for a new run. Warns if
    the two differ, because then the last bits do too.
    """
    cpu = f"a CPU with {torch.backends.cpu.get_cpu_capability()}"
    parts = [
        f"torch {torch.__version__}",
        torch.cuda.get_device_name() if device_type() == "cuda" else cpu,
    ]
    if compiled:
        parts.append("compiled")
    if device_type() == "cpu" and precision == "bf16" and optional_kernels.available("linear"):
        parts.append("kernels in C")
    current = ", ".join(parts)
    if previous not in (None, current):
        events.warn(
            f"the run was computed by {previous} and continues on {current}: "
            "the weights will differ in their last bits from a run on one machine"
        )
    return current
