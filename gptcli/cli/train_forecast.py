"""Forecast of a training run in words: before it starts, in --dry-run, and for --strict."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from gptcli.cli.console import as_options
from gptcli.errors import UsageError
from gptcli.numbers import amount, in_bytes, rough_duration

if TYPE_CHECKING:
    from gptcli.events import Events
    from gptcli.shards.manifest import Manifest
    from gptcli.trainer.forecast import Forecast
    from gptcli.trainer.resolve import ResolvedRun


def forecast_plan(plan: ResolvedRun, manifest: Manifest | None, *, done: int = 0) -> Forecast:
    """Forecast a resolved run on this machine that has already read `done` tokens."""
    from pathlib import Path

    from gptcli.trainer.forecast import forecast, this_machine

    machine = this_machine(plan.model, plan.train, Path(plan.resolved.values["out"]))
    return forecast(plan.model, plan.train, manifest, machine, done=done)


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


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """Return the forecast's part of `gpt train --dry-run --json`."""
    keys = asdict(forecast)
    keys["warnings"] = [
        {name: as_options(text) for name, text in caution.items()} for caution in keys["warnings"]
    ]
    return keys


def tell(forecast: Forecast, events: Events, *, at_least: bool = False) -> None:
    """Report a forecast with its warnings."""
    for name, fact in forecast_facts(forecast, at_least=at_least).items():
        events.info(f"{name:<7}{fact}")
    warn(forecast, events)


def warn(forecast: Forecast, events: Events) -> None:
    """Report the warnings of a forecast."""
    for caution in forecast.warnings:
        events.warn(caution.text)


def refuse(forecast: Forecast) -> None:
    """Raise UsageError if the forecast has warnings."""
    if forecast.warnings:
        codes = ", ".join(caution.code for caution in forecast.warnings)
        raise UsageError(
            f"the run has warnings: {codes}",
            where="--strict",
            hint="change what they name, or leave out --strict",
        )
