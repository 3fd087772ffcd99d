"""What a run will take, before it starts: steps, passes over the data, time, memory and disk, and
what to think about first.

`forecast` is a pure function of configuration, data and machine. `this_machine` looks at the
machine: a GPU's speed is the cost model's, a CPU's is that of a small matrix product, of which
training reaches a share (`UTILISATION`): a rough range for a machine that does nothing else, until
the first steps are measured (`gptcli.trainer.monitors.Pace`).
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
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.numbers import WEEK, amount, in_bytes, rough_duration
from gptcli.runtime import available_cores
from gptcli.shards.manifest import Manifest
from gptcli.trainer.config import TrainConfig
from gptcli.trainer.fit import device, memory_advice, process_memory, shortage, work_of
from gptcli.trainer.machine import check_layout
from gptcli.trainer.precision import AUTOCAST_DTYPES
from gptcli.trainer.recipe import SMALL_MODEL
from gptcli.trainer.schedule import Schedule

# up to here repeated data is worth nearly what new data is: Muennighoff et al. 2023 (arXiv
# 2305.16264)
MAX_PASSES = 4
MIN_STEPS = 100  # fewer updates than this teach a model little, whatever they read
CHECKPOINT_BYTES = 12  # a parameter: the weight and Adam's two moments in fp32
MODEL_BYTES = 4
UTILISATION = (0.15, 0.75)  # of a lone product's rate, that a training step on a CPU reaches
STEP_SECONDS = (0.003, 0.03)  # of a step on a CPU that do not depend on its size
PROBE = (512, 1024)  # rows, and the width at most, of the product that is timed
PROBE_SECONDS = 0.01  # of CPU time at least; five times


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a run finds here."""

    name: str
    """For example "2 CPU cores", "8 x NVIDIA H100"."""
    memory_bytes: int | None
    """For the tensors of each process; None if the layout needs more processes than this machine
    runs.
    """
    disk_free_bytes: int
    tokens_per_second: tuple[float, float] | None
    """Of the whole run, at least and at most; None if unknown."""
    step_seconds: tuple[float, float] = (0.0, 0.0)
    """Seconds that each step takes on top, at least and at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Something to think about before the run starts."""

    code: str
    """Stable: does-not-fit, disk-space, data-too-short, no-validation, few-steps, long-warmup,
    many-passes, over-a-week.
    """
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """What a run will take."""

    machine: str
    steps: int
    tokens: int
    batch_tokens: int
    warmup_steps: int
    train_tokens: int | None
    """Of the data; None without shards."""
    passes: float | None
    """How often the run reads the training data; None without shards."""
    passes_by_source: dict[str, float]
    """The same of each source of a mixture; empty for one source."""
    seconds_low: float | None
    """What is left of the run takes between this and `seconds_high`; None if unknown."""
    seconds_high: float | None
    memory_bytes: int
    """Of the process that needs most."""
    memory_available_bytes: int | None
    """Of a process; None if the layout needs more processes than this machine runs."""
    fits: bool | None
    disk_bytes: int
    """Of checkpoints and the finished model, at the fullest moment."""
    disk_free_bytes: int
    warnings: tuple[Caution, ...]


def forecast(
    model: ModelConfig,
    train: TrainConfig,
    manifest: Manifest | None,
    machine: Machine,
    *,
    done: int = 0,
) -> Forecast:
    """Forecast a run of which `done` tokens have been read already. `manifest` is None if there is
    no data yet.
    """
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


def passes_over(manifest: Manifest | None, tokens: int) -> tuple[float | None, dict[str, float]]:
    """How often `tokens` read the training data: the whole of it, and each source of a mixture."""
    if manifest is None or not manifest.tokens("train"):
        return None, {}
    shares = manifest.shares()
    by_source = {
        name: share * tokens / manifest.tokens("train", name) for name, share in shares.items()
    }
    return tokens / manifest.tokens("train"), by_source if len(shares) > 1 else {}


def seconds_of(machine: Machine, tokens: int, steps: int) -> tuple[float, float] | None:
    """Seconds of so many tokens and steps, at least and at most; None if the machine's speed is
    unknown.
    """
    if machine.tokens_per_second is None:
        return None
    (slow, fast), (least, most) = machine.tokens_per_second, machine.step_seconds
    return tokens / fast + steps * least, tokens / slow + steps * most


def disk_bytes(model: ModelConfig, train: TrainConfig, steps: int) -> int:
    """Return the bytes on disk at the fullest moment: the checkpoints kept, the one being written,
    the copy of the newest for transformers if the model is small, and the finished model."""
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
    if machine.memory_bytes is None or needs <= machine.memory_bytes:
        return []
    hint = memory_advice(model, layout, train, min(schedule.full_batch, schedule.total_sequences))
    return [
        Caution(
            code="does-not-fit", message=shortage(layout, needs, machine.memory_bytes), hint=hint
        )
    ]


def disk_cautions(needs: int, free: int) -> list[Caution]:
    if needs <= free:
        return []
    message = f"checkpoints and model take {in_bytes(needs)} of disk, and {in_bytes(free)} are free"
    return [
        Caution(
            code="disk-space",
            message=message,
            hint="free some space, name an --out on another disk, or --keep fewer",
        )
    ]


def data_cautions(
    model: ModelConfig, manifest: Manifest | None, passes: float | None, by_source: dict[str, float]
) -> list[Caution]:
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
            message = f"the {split} split{of} has {held:,} tokens, too few for a context of {model.n_ctx:,}: {effect}"
            found.append(
                Caution(code=code, message=message, hint="use more text or a smaller --n-ctx")
            )
    most, name = max(
        ((times, name) for name, times in by_source.items()), default=(passes or 0.0, None)
    )
    if most > MAX_PASSES:
        what = "the training data" if name is None else f"source {name!r}"
        message = (
            f"the run reads {what} {most:,.1f} times, and more than {MAX_PASSES} passes add little"
        )
        hint = f"use more data{'' if name is None else ', a lower weight'} or fewer --tokens"
        found.append(Caution(code="many-passes", message=message, hint=hint))
    return found


def shortest(manifest: Manifest, split: str) -> tuple[int, str | None]:
    """Tokens of a split's shortest source and its name; without the name if there is one source."""
    names = list(manifest.shares(split))
    if len(names) < 2:
        return manifest.tokens(split), None
    return min((manifest.tokens(split, name), name) for name in names)


def length_cautions(
    train: TrainConfig, schedule: Schedule, tokens: int, steps: int
) -> list[Caution]:
    found = []
    if train.follow_noise:  # it begins with small batches, and may stay there
        steps = schedule.total_sequences // schedule.first_batch
    if steps < MIN_STEPS:
        hint = f"raise --tokens to {amount(MIN_STEPS * schedule.full_batch * schedule.n_ctx)}"
        if schedule.total_sequences >= MIN_STEPS:
            hint += f", or lower --batch-tokens to {schedule.total_sequences // MIN_STEPS * schedule.n_ctx:,}"
        message = f"{steps:,} step{'s are' if steps != 1 else ' is'} too few to learn much"
        found.append(Caution(code="few-steps", message=message, hint=hint))
    if train.warmup_tokens > tokens:
        message = f"the warm-up of {amount(train.warmup_tokens)} tokens is longer than the run of {amount(tokens)}"
        found.append(
            Caution(
                code="long-warmup", message=message, hint="lower --warmup-tokens, or raise --tokens"
            )
        )
    return found


def time_cautions(seconds: tuple[float, float] | None) -> list[Caution]:
    """A warning if the middle of the range, as a ratio, is more than a week."""
    if seconds is None or (middle := (seconds[0] * seconds[1]) ** 0.5) <= WEEK:
        return []
    hint = "use fewer --tokens, a smaller --size, or more GPUs"
    return [
        Caution(
            code="over-a-week",
            message=f"the run would take about {rough_duration(middle)} here",
            hint=hint,
        )
    ]


def this_machine(model: ModelConfig, train: TrainConfig, out: Path) -> Machine:
    """Look at this machine, as a run of `model` in `out` finds it; on a CPU this takes some tens of
    milliseconds.
    """
    layout = parse_layout(train.layout)
    free = disk_free(out)
    try:
        check_layout(layout)
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
    """Tokens a second that the cost model predicts, at least and at most; None for a GPU that it
    does not know at this precision.
    """
    if identify_gpu(torch.cuda.get_device_name()) is None:
        return None
    gpu, schedule = device(layout.processes), Schedule(train, model.n_ctx)
    work = work_of(layout, train, min(schedule.full_batch, schedule.total_sequences))
    try:
        speed = make_plan(model, layout, work, gpu).tokens_per_second
    except UsageError:  # the vendor prints no peak at this precision
        return None
    factor = uncertainty(layout, gpu)
    return speed / factor, speed * factor


def product_rate(d_model: int, precision: str) -> float:
    """Return FLOP/s of this CPU in a product of a feed-forward layer of this width, PROBE's at
    most.

    CPU time is what is measured, so that other work on the machine does not count.
    """
    rows, width = PROBE[0], min(d_model, PROBE[1])
    dtype = AUTOCAST_DTYPES[precision] or torch.float32
    a, b = torch.ones(rows, width, dtype=dtype), torch.ones(width, 4 * width, dtype=dtype)
    torch.matmul(a, b)  # warms up
    best = 0.0
    for _ in range(5):
        products, begin, spent = 0, time.process_time(), 0.0
        while spent < PROBE_SECONDS:
            torch.matmul(a, b)
            products, spent = products + 1, time.process_time() - begin
        best = max(best, products / spent)
    return 2 * rows * width * 4 * width * best * torch.get_num_threads()


def disk_free(out: Path) -> int:
    """Bytes that a run in `out` may fill: what is free on its disk, and its own checkpoints, which
    are counted in `disk_bytes`.
    """
    where = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    there = sum(
        path.stat().st_size for path in (out / "checkpoints").glob("step-*/*") if path.is_file()
    )
    return shutil.disk_usage(where).free + there
