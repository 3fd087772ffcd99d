"""The machine that a run is forecast for: its name, memory, disk and speed.

The speed of a GPU is predicted by the cost model, that of a CPU from a small matrix product, of
which training reaches a share (`UTILISATION`). It is a rough range for an idle machine, until the
first steps are measured (`gptcli.trainer.monitors.TimeLeft`).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gptcli import optional_kernels
from gptcli.cost.cpu import STEP_SECONDS, UTILISATION, cpu_device
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import Gpu, Precision, identify_gpu
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.planner import make_plan
from gptcli.cost.step_time import uncertainty
from gptcli.devices import device_type, gpu_name
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.numbers import counted
from gptcli.runtime import available_cores, processor
from gptcli.trainer.auto import check_processes
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.memory import TENSOR_MEMORY_SHARE, device, host_memory, work_of
from gptcli.trainer.optimizer import AUTOCAST_DTYPES, product_dtype
from gptcli.trainer.schedule import Schedule

PROBE = (512, 1024)  # rows and maximum width of the matrix product that is timed
COPIED = 1 << 26  # bytes of the copy that is timed
PROBE_SECONDS = 0.01  # minimum CPU time of each of five measurements


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Machine that a run is forecast for."""

    name: str
    """Name, such as "2 CPU cores" or "8 x NVIDIA H100"."""
    memory_bytes: int | None
    """Memory for the tensors of each process; None if the layout needs more processes than this
    machine runs.
    """
    disk_free_bytes: int
    """Free space on the disk of the run folder, its own checkpoints included."""
    tokens_per_second: tuple[float, float] | None
    """Speed of the whole run, low and high; None if unknown."""
    step_seconds: tuple[float, float] = (0.0, 0.0)
    """Constant part of each step, low and high."""


def this_machine(model: ModelConfig, train: TrainConfig, out: Path) -> Machine:
    """Measure this machine for a run of `model` in `out`; on a CPU in some tens of milliseconds."""
    layout = parse_layout(train.layout)
    free = disk_free(out)
    try:
        check_processes(layout)
    except UsageError:
        name = f"{counted(layout.processes, 'process')}, more than this machine runs"
        return Machine(name=name, memory_bytes=None, disk_free_bytes=free, tokens_per_second=None)
    memory = device(layout.processes).memory_bytes
    if device_type() == "mps":  # its speed is unknown until the first steps are measured
        return Machine(
            name=gpu_name() or "", memory_bytes=memory, disk_free_bytes=free, tokens_per_second=None
        )
    if device_type() == "cuda":
        count = f"{layout.processes:,} x " if layout.processes > 1 else ""
        name, speed = f"{count}{torch.cuda.get_device_name()}", gpu_speed(model, train, layout)
        return Machine(
            name=name, memory_bytes=memory, disk_free_bytes=free, tokens_per_second=speed
        )
    threads = torch.get_num_threads()
    # one process has the threads that OMP_NUM_THREADS says, several share all cores
    used = available_cores() if layout.processes > 1 else min(threads, available_cores())
    rate = product_rate(model.d_model, train.precision) / flops_per_token(model, "causal")
    slow, fast = (share * rate * used / threads for share in UTILISATION)
    name = counted(used, "CPU core")
    if used < available_cores():
        name = f"{used:,} of {counted(available_cores(), 'CPU core')}"
    return Machine(
        name=name,
        memory_bytes=memory,
        disk_free_bytes=free,
        tokens_per_second=(slow, fast),
        step_seconds=STEP_SECONDS,
    )


def this_cpu(precision: Precision) -> Gpu:
    """Measure this machine's processor as a device of `gpt cost`, in some tens of milliseconds."""
    memory = int(TENSOR_MEMORY_SHARE * host_memory())
    rate = product_rate(PROBE[1], precision)
    cores = min(torch.get_num_threads(), available_cores())
    return cpu_device(cores, rate, copy_rate(), memory, processor()[0])


def copy_rate() -> float:
    """Return the bytes per second that a copy of a large tensor reads and writes here."""
    source = torch.zeros(COPIED, dtype=torch.uint8)
    target, least = torch.empty_like(source), float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        target.copy_(source)
        least = min(least, time.perf_counter() - begin)
    return 2 * COPIED / least


def gpu_speed(model: ModelConfig, train: TrainConfig, layout: Layout) -> tuple[float, float] | None:
    """Return the low and high tokens per second that the cost model predicts.

    None if it does not know the GPU at this precision.
    """
    if identify_gpu(torch.cuda.get_device_name()) is None:
        return None
    gpu, schedule = device(layout.processes), Schedule(train, model.n_ctx)
    work = work_of(layout, train, min(schedule.full_batch, schedule.total_sequences))
    try:
        speed = make_plan(model, layout, work, gpu).tokens_per_second
    except UsageError:  # the vendor prints no peak at this precision
        return None
    factor = uncertainty(gpu)
    return speed / factor, speed * factor


def product_rate(d_model: int, precision: str) -> float:
    """Return the FLOP/s of this CPU in a feed-forward layer's matrix product of this width.

    The width is at most PROBE's. CPU time is measured, so that other work does not count.
    """
    rows, width = PROBE[0], min(d_model, PROBE[1])
    dtype = AUTOCAST_DTYPES[precision] or torch.float32
    kernels_dtype = product_dtype(precision)
    # asked last: the answer may take a compilation
    if dtype != kernels_dtype and optional_kernels.instruction_set() is not None:
        dtype = kernels_dtype
    a, b = torch.ones(rows, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    torch.matmul(a, b)  # warms up
    best = 0.0
    for _ in range(5):
        count, begin, spent = 0, time.process_time(), 0.0
        while spent < PROBE_SECONDS:
            torch.matmul(a, b)
            count, spent = count + 1, time.process_time() - begin
        best = max(best, count / spent)
    return 2 * rows * width * 4 * width * best * torch.get_num_threads()


def disk_free(out: Path) -> int:
    """Return the bytes that a run in `out` may use: free space and its own checkpoints.

    `disk_bytes` counts those checkpoints too.
    """
    where = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    there = sum(
        path.stat().st_size for path in (out / "checkpoints").glob("step-*/*") if path.is_file()
    )
    return shutil.disk_usage(where).free + there
