"""Forecast of a run before it starts: steps, passes over the data, time, memory, disk, warnings.

`forecast` is a pure function of configuration, data and machine. `this_machine` measures the
machine: the speed of a GPU is predicted by the cost model, that of a CPU from a small matrix
product, of which training reaches a share (`UTILISATION`). It is a rough range for an idle
machine, until the first steps are measured (`gptcli.trainer.monitors.Pace`).
"""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import identify_gpu
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.planner import make_plan
from gptcli.cost.step_time import uncertainty
from gptcli.distributed.environment import device_type
from gptcli.errors import UsageError, name_parameters
from gptcli.model.config import ModelConfig
from gptcli.numbers import WEEK, amount, in_bytes, rough_duration
from gptcli.runtime import available_cores
from gptcli.shards.manifest import Manifest
from gptcli.trainer.auto import (
    check_processes,
    device,
    memory_advice,
    process_memory,
    shortage,
    work_of,
)
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.precision import AUTOCAST_DTYPES
from gptcli.trainer.recipe import SMALL_MODEL
from gptcli.trainer.schedule import Schedule

# up to this many passes, repeated data is worth nearly as much as new data: Muennighoff et al. 2023
# (arXiv 2305.16264)
MAX_PASSES = 4
MIN_STEPS = 100  # fewer updates teach a model little, however long they are
CHECKPOINT_BYTES = 12  # per parameter: the weight and Adam's two moments in fp32
MODEL_BYTES = 4  # per parameter
# share of the rate of a single matrix product that a training step on a CPU reaches: low, high
UTILISATION = (0.15, 0.75)
STEP_SECONDS = (0.003, 0.03)  # constant part of a step on a CPU: low, high
PROBE = (512, 1024)  # rows and maximum width of the matrix product that is timed
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Warning about a run that has not started."""

    code: str
    """Stable name: does-not-fit, disk-space, data-too-short, no-validation, few-steps, long-warmup,
    many-passes, over-a-week.
    """
    message: str
    """Description of the problem."""
    hint: str
    """Suggestion."""

    @property
    def text(self) -> str:
        """Message and hint, with `{option:NAME}` for the parameters that they name."""
        return f"{self.message}; {self.hint}"

    def __str__(self) -> str:
        return name_parameters(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """Forecast of a run."""

    machine: str
    """Name of the machine."""
    steps: int
    """Number of optimizer steps."""
    tokens: int
    """Number of tokens, in whole sequences."""
    batch_tokens: int
    """Tokens in a full batch."""
    warmup_steps: int
    """Steps of the learning rate's warm-up."""
    train_tokens: int | None
    """Tokens of the training data; None without shards."""
    passes: float | None
    """Passes over the training data; None without shards."""
    passes_by_source: dict[str, float]
    """Passes over each source of a mixture; empty for one source."""
    seconds_low: float | None
    """Lower bound of the remaining time; None if unknown."""
    seconds_high: float | None
    """Upper bound of the remaining time; None if unknown."""
    memory_bytes: int
    """Peak memory of the process that needs most."""
    memory_available_bytes: int | None
    """Memory of a process; None if the layout needs more processes than this machine runs."""
    fits: bool | None
    """Memory is sufficient; None if unknown."""
    disk_bytes: int
    """Peak size of checkpoints and the finished model."""
    disk_free_bytes: int
    """Free disk space for the run."""
    warnings: tuple[Caution, ...]
    """Warnings, each with a stable code."""


def forecast(
    model: ModelConfig,
    train: TrainConfig,
    manifest: Manifest | None,
    machine: Machine,
    *,
    done: int = 0,
) -> Forecast:
    """Forecast a run that has already read `done` tokens; `manifest` is None without shards."""
    schedule, layout = Schedule(train, model.n_ctx), parse_layout(train.layout)
    tokens, steps = schedule.total_sequences * model.n_ctx, schedule.steps()
    passes, by_source = passes_over(manifest, tokens)
    seconds = seconds_of(machine, tokens - done, steps - schedule.steps(done) if done else steps)
    needs = process_memory(model, layout, train, min(schedule.full_batch, schedule.total_sequences))
    fits = None if machine.memory_bytes is None else needs <= machine.memory_bytes
    disk = disk_bytes(model, train, steps)
    warnings = [
        *memory_cautions(model, layout, train, schedule, needs, machine),
        *disk_cautions(disk, machine.disk_free_bytes),
        *data_cautions(model, manifest, passes, by_source),
        *length_cautions(train, schedule, tokens, steps),
        *time_cautions(seconds),
    ]
    return Forecast(
        machine=machine.name,
        steps=steps,
        tokens=tokens,
        batch_tokens=schedule.full_batch * model.n_ctx,
        warmup_steps=schedule.steps(train.warmup_tokens),
        train_tokens=None if manifest is None else manifest.tokens("train"),
        passes=passes,
        passes_by_source=by_source,
        seconds_low=None if seconds is None else seconds[0],
        seconds_high=None if seconds is None else seconds[1],
        memory_bytes=needs,
        memory_available_bytes=machine.memory_bytes,
        fits=fits,
        disk_bytes=disk,
        disk_free_bytes=machine.disk_free_bytes,
        warnings=tuple(warnings),
    )


def forecast_facts(forecast: Forecast, *, at_least: bool = False) -> dict[str, str]:
    """Return a forecast in words, one line per subject.

    `at_least` says that there may be more steps, because the batch follows the noise scale.
    """
    steps = (
        f"{'at least ' if at_least else ''}{forecast.steps:,} of {forecast.batch_tokens:,} tokens"
    )
    passes = "no shards yet"
    if forecast.passes is not None:
        passes = (
            f"{amount(forecast.passes)} passes over {amount(forecast.train_tokens or 0)} tokens"
        )
        if forecast.passes_by_source:
            each = (f"{name} {amount(times)}" for name, times in forecast.passes_by_source.items())
            passes += f"; of each source: {', '.join(each)}"
    memory = f"{in_bytes(forecast.memory_bytes)} of tensors"
    if forecast.memory_available_bytes is not None:
        fits = "fits" if forecast.fits else "does not fit"
        memory += f", {in_bytes(forecast.memory_available_bytes)} here: {fits}"
    return {
        "steps": f"{steps}, warm-up {forecast.warmup_steps:,}",
        "tokens": f"{amount(forecast.tokens)}, {passes}",
        "time": time_here(forecast),
        "memory": memory,
        "disk": f"{in_bytes(forecast.disk_bytes)} needed, "
        f"{in_bytes(forecast.disk_free_bytes)} free",
    }


def time_here(forecast: Forecast) -> str:
    """Return the remaining time on this machine, in words."""
    if forecast.seconds_low is None:
        return f"{time_range(forecast)}; {forecast.machine}"
    return f"{time_range(forecast)} on {forecast.machine}, if nothing else runs here"


def time_range(forecast: Forecast) -> str:
    """Return the remaining time as a range, in words."""
    if forecast.seconds_low is None or forecast.seconds_high is None:
        return "unknown until the first steps"
    return f"about {rough_duration(forecast.seconds_low, forecast.seconds_high)}"


def passes_over(manifest: Manifest | None, tokens: int) -> tuple[float | None, dict[str, float]]:
    """Return passes of `tokens` over the training data, and over each source of a mixture."""
    if manifest is None or not manifest.tokens("train"):
        return None, {}
    shares = manifest.shares()
    by_source = {
        name: share * tokens / manifest.tokens("train", name) for name, share in shares.items()
    }
    return tokens / manifest.tokens("train"), by_source if len(shares) > 1 else {}


def seconds_of(machine: Machine, tokens: int, steps: int) -> tuple[float, float] | None:
    """Return low and high seconds of `tokens` in `steps`; None if the speed is unknown."""
    if machine.tokens_per_second is None:
        return None
    (slow, fast), (least, most) = machine.tokens_per_second, machine.step_seconds
    return tokens / fast + steps * least, tokens / slow + steps * most


def disk_bytes(model: ModelConfig, train: TrainConfig, steps: int) -> int:
    """Return the bytes on disk at the fullest moment: the checkpoints kept, the one being written,
    the copy of the newest for transformers if the model is small, and the finished model.
    """
    checkpoints = min(train.keep + 1, -(-steps // train.checkpoint_every))
    models = 1 + (model.parameters < SMALL_MODEL)
    return (checkpoints * CHECKPOINT_BYTES + models * MODEL_BYTES) * model.parameters


def memory_cautions(
    model: ModelConfig,
    layout: Layout,
    train: TrainConfig,
    schedule: Schedule,
    needs: int,
    machine: Machine,
) -> list[Caution]:
    """Return a warning if a process needs more memory than it has."""
    if machine.memory_bytes is None or needs <= machine.memory_bytes:
        return []
    hint = memory_advice(model, layout, train, min(schedule.full_batch, schedule.total_sequences))
    return [
        Caution(
            code="does-not-fit", message=shortage(layout, needs, machine.memory_bytes), hint=hint
        )
    ]


def disk_cautions(needs: int, free: int) -> list[Caution]:
    """Return a warning if a run needs more disk space than is free, in bytes."""
    if needs <= free:
        return []
    message = f"checkpoints and model take {in_bytes(needs)} of disk, and {in_bytes(free)} are free"
    return [
        Caution(
            code="disk-space",
            message=message,
            hint="free some space, name an {option:out} on another disk, or {option:keep} fewer",
        )
    ]


def data_cautions(
    model: ModelConfig, manifest: Manifest | None, passes: float | None, by_source: dict[str, float]
) -> list[Caution]:
    """Return warnings about splits that are too short, and about data that is read too often."""
    if manifest is None:
        return []
    found = []
    for split, code, effect in (
        ("train", "data-too-short", "there is nothing to train on"),
        ("val", "no-validation", "no validation loss will be measured"),
    ):
        held, source = shortest(manifest, split)
        if held <= model.n_ctx and (held or split == "train"):
            of = "" if source is None else f" of source {source!r}"
            message = (
                f"the {split} split{of} has {held:,} tokens, "
                f"too few for a context of {model.n_ctx:,}: {effect}"
            )
            found.append(
                Caution(
                    code=code, message=message, hint="use more text or a smaller {option:n_ctx}"
                )
            )
    most, name = max(
        ((times, name) for name, times in by_source.items()), default=(passes or 0.0, None)
    )
    if most > MAX_PASSES:
        what = "the training data" if name is None else f"source {name!r}"
        message = (
            f"the run reads {what} {most:,.1f} times, and more than {MAX_PASSES} passes add little"
        )
        weight = "" if name is None else ", a lower weight"
        hint = f"use more data{weight} or fewer {{option:tokens}}"
        found.append(Caution(code="many-passes", message=message, hint=hint))
    return found


def shortest(manifest: Manifest, split: str) -> tuple[int, str | None]:
    """Return tokens and name of a split's shortest source; the name is None for one source."""
    names = list(manifest.shares(split))
    if len(names) < 2:
        return manifest.tokens(split), None
    return min((manifest.tokens(split, name), name) for name in names)


def length_cautions(
    train: TrainConfig, schedule: Schedule, tokens: int, steps: int
) -> list[Caution]:
    """Return warnings about too few steps and too long a warm-up."""
    found = []
    if train.follow_noise:  # it begins with small batches, and may stay there
        steps = schedule.total_sequences // schedule.first_batch
    if steps < MIN_STEPS:
        hint = (
            f"raise {{option:tokens}} to {amount(MIN_STEPS * schedule.full_batch * schedule.n_ctx)}"
        )
        if schedule.total_sequences >= MIN_STEPS:
            batch = schedule.total_sequences // MIN_STEPS * schedule.n_ctx
            hint += f", or lower {{option:batch_tokens}} to {batch:,}"
        message = f"{steps:,} step{'s are' if steps != 1 else ' is'} too few to learn much"
        found.append(Caution(code="few-steps", message=message, hint=hint))
    if train.warmup_tokens > tokens:
        message = (
            f"the warm-up of {amount(train.warmup_tokens)} tokens is longer than "
            f"the run of {amount(tokens)}"
        )
        found.append(
            Caution(
                code="long-warmup",
                message=message,
                hint="lower {option:warmup_tokens}, or raise {option:tokens}",
            )
        )
    return found


def time_cautions(seconds: tuple[float, float] | None) -> list[Caution]:
    """Return a warning if the geometric mean of the range of seconds is more than a week."""
    if seconds is None or (middle := (seconds[0] * seconds[1]) ** 0.5) <= WEEK:
        return []
    hint = "use fewer {option:tokens}, a smaller {option:size}, or more GPUs"
    return [
        Caution(
            code="over-a-week",
            message=f"the run would take about {rough_duration(middle)} here",
            hint=hint,
        )
    ]


def this_machine(model: ModelConfig, train: TrainConfig, out: Path) -> Machine:
    """Measure this machine for a run of `model` in `out`; on a CPU in some tens of milliseconds."""
    layout = parse_layout(train.layout)
    free = disk_free(out)
    try:
        check_processes(layout)
    except UsageError:
        name = f"{layout.processes:,} processes, more than this machine runs"
        return Machine(name=name, memory_bytes=None, disk_free_bytes=free, tokens_per_second=None)
    memory = device(layout.processes).memory_bytes
    if device_type() == "cuda":
        count = f"{layout.processes:,} x " if layout.processes > 1 else ""
        name, speed = f"{count}{torch.cuda.get_device_name()}", gpu_speed(model, train, layout)
        return Machine(
            name=name, memory_bytes=memory, disk_free_bytes=free, tokens_per_second=speed
        )
    rate = product_rate(model.d_model, train.precision) / flops_per_token(model, "causal")
    slow, fast = (share * rate for share in UTILISATION)
    name = f"{available_cores()} CPU core{'s' * (available_cores() != 1)}"
    return Machine(
        name=name,
        memory_bytes=memory,
        disk_free_bytes=free,
        tokens_per_second=(slow, fast),
        step_seconds=STEP_SECONDS,
    )


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
