"""Forecast of a run before it starts: steps, passes over the data, time, memory, disk, warnings.

`forecast` is a pure function of configuration, data and machine (`gptcli.trainer.machine`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptcli.cost.layout import Layout, parse_layout
from gptcli.errors import name_parameters
from gptcli.model.config import ModelConfig
from gptcli.numbers import WEEK, amount, counted, in_bytes, rough_duration
from gptcli.shards.manifest import Manifest, Split, tokens_by_source
from gptcli.trainer.config import TrainConfig, is_validation_loss
from gptcli.trainer.machine import Machine
from gptcli.trainer.memory import expected_memory, memory_advice, process_memory, shortage
from gptcli.trainer.recipe import SMALL_MODEL
from gptcli.trainer.schedule import Schedule

# up to this many passes, repeated data is worth nearly as much as new data: Muennighoff et al. 2023
# (arXiv 2305.16264)
MAX_PASSES = 4
MIN_STEPS = 100  # fewer updates teach a model little, however long they are
CHECKPOINT_BYTES = 12  # per parameter: the weight and Adam's two moments in fp32
MODEL_BYTES = 4  # per parameter
MIN_FP8_PARAMETERS = 10**9  # fp8 pays off from here, other trainers report; not measured by us


@dataclass(frozen=True, slots=True, kw_only=True)
class Caution:
    """Warning about a run that has not started."""

    code: str
    """Stable name: does-not-fit, disk-space, data-too-short, no-validation, few-steps, long-warmup,
    many-passes, over-a-week, best-not-measured.
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
    passes, by_source = passes_over(manifest, tokens, train.mixture)
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
        *best_cautions(train),
        *precision_cautions(model, train),
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
        memory_bytes=expected_memory(model, layout, needs, machine.memory_bytes),
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
        f"{'at least ' if at_least else ''}{forecast.steps:,} of "
        f"{counted(min(forecast.batch_tokens, forecast.tokens), 'token')}"
    )
    passes = "no shards yet"
    if forecast.passes is not None:
        passes = (
            f"{counted(forecast.passes, 'pass', amount)} over "
            f"{counted(forecast.train_tokens or 0, 'token', amount)}"
        )
        if forecast.passes_by_source:
            each = (f"{name} {amount(times)}" for name, times in forecast.passes_by_source.items())
            passes += f"; of each source: {', '.join(each)}"
    memory = f"{in_bytes(forecast.memory_bytes)} at the peak"
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


def passes_over(
    manifest: Manifest | None, tokens: int, mixture: str = ""
) -> tuple[float | None, dict[str, float]]:
    """Return passes of `tokens` over the training data, and over each source of a mixture."""
    if manifest is None or not manifest.tokens("train"):
        return None, {}
    read = tokens_by_source(manifest.stages(mixture), tokens)
    by_source = {name: read[name] / manifest.tokens("train", name) for name in read}
    return tokens / manifest.tokens("train"), by_source if len(read) > 1 else {}


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
    kept = steps // train.keep_every if train.keep_every else 0
    kept += train.keep + 1 + (train.keep_best is not None)
    checkpoints = min(kept, -(-steps // train.checkpoint_every))
    models = 1 + (model.parameters < SMALL_MODEL)
    each = CHECKPOINT_BYTES + (MODEL_BYTES if train.ema else 0)
    return (checkpoints * each + models * MODEL_BYTES) * model.parameters


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


def precision_cautions(model: ModelConfig, train: TrainConfig) -> list[Caution]:
    """Return a warning if fp8 makes the run slower: small products wait for the casts."""
    if train.precision != "fp8" or model.parameters >= MIN_FP8_PARAMETERS:
        return []
    return [
        Caution(
            code="fp8-is-slower",
            message=f"fp8 is slower than bf16 for {model.parameters / 1e6:,.0f}M parameters",
            hint="{option:precision} bf16; fp8 pays off from about 1B parameters",
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
    effects: dict[Split, tuple[str, str]] = {
        "train": ("data-too-short", "there is nothing to train on"),
        "val": ("no-validation", "no validation loss will be measured"),
    }
    for split, (code, effect) in effects.items():
        held, source = shortest(manifest, split)
        if held <= model.n_ctx and (held or split == "train"):
            of = "" if source is None else f" of source {source!r}"
            message = (
                f"the {split} split{of} has {counted(held, 'token')}, "
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
            f"the run reads {what} {most:,.1f} times, and more than {counted(MAX_PASSES, 'pass')} "
            "add little"
        )
        weight = "" if name is None else ", a lower weight"
        hint = f"use more data{weight} or fewer {{option:tokens}}"
        found.append(Caution(code="many-passes", message=message, hint=hint))
    return found


def shortest(manifest: Manifest, split: Split) -> tuple[int, str | None]:
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
            f"the warm-up of {counted(train.warmup_tokens, 'token', amount)} is longer than "
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


def best_cautions(train: TrainConfig) -> list[Caution]:
    """Return a warning if most checkpoints have no validation loss by which to keep the best."""
    if not is_validation_loss(train.keep_best):
        return []
    every, losses = train.checkpoint_every, train.eval_every
    if every % losses == 0:
        return []
    message = (
        f"with checkpoints every {counted(every, 'step')} and a {train.keep_best} every "
        f"{counted(losses, 'step')}, only one checkpoint in {math.lcm(every, losses) // every:,} "
        "can be the best"
    )
    hint = f"{{option:checkpoint_every}} {losses * max(1, round(every / losses))}"
    return [Caution(code="best-not-measured", message=message, hint=hint)]


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
