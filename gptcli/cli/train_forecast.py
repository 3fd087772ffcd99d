"""What `gpt train` says a run will take: a few lines before it starts, the same in --dry-run, and
what --strict refuses.
"""

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
    """Forecast a planned run on this machine, of which `done` tokens have been read."""
    from pathlib import Path

    from gptcli.trainer.forecast import forecast, this_machine

    machine = this_machine(plan.model, plan.train, Path(plan.resolved.values["out"]))
    return forecast(plan.model, plan.train, manifest, machine, done=done)


def forecast_facts(forecast: Forecast, *, at_least: bool = False) -> dict[str, str]:
    """Say a forecast in one line a subject. `at_least`: the batch follows the noise scale, so there
    may be more steps.
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
        memory += f", {in_bytes(forecast.memory_available_bytes)} here: {'fits' if forecast.fits else 'does not fit'}"
    return {
        "steps": f"{steps}, warm-up {forecast.warmup_steps:,}",
        "tokens": f"{amount(forecast.tokens)}, {passes}",
        "time": time_here(forecast),
        "memory": memory,
        "disk": f"{in_bytes(forecast.disk_bytes)} needed, {in_bytes(forecast.disk_free_bytes)} free",
    }


def time_here(forecast: Forecast) -> str:
    if forecast.seconds_low is None:
        return f"{time_range(forecast)}; {forecast.machine}"
    return f"{time_range(forecast)} on {forecast.machine}, if nothing else runs here"


def time_range(forecast: Forecast) -> str:
    if forecast.seconds_low is None or forecast.seconds_high is None:
        return "unknown until the first steps"
    return f"about {rough_duration(forecast.seconds_low, forecast.seconds_high)}"


def forecast_json(forecast: Forecast) -> dict[str, Any]:
    """Return the keys of `gpt train --dry-run --json` that tell what a run will take."""
    keys = asdict(forecast)
    keys["warnings"] = [
        {name: as_options(text) for name, text in caution.items()} for caution in keys["warnings"]
    ]
    return keys


def tell(forecast: Forecast, events: Events, *, at_least: bool = False) -> None:
    """Report what a run will take and what to think about first."""
    for name, fact in forecast_facts(forecast, at_least=at_least).items():
        events.info(f"{name:<7}{fact}")
    warn(forecast, events)


def warn(forecast: Forecast, events: Events) -> None:
    for caution in forecast.warnings:
        events.warn(caution.text)


def refuse(forecast: Forecast) -> None:
    """Raises UsageError if there is anything to think about first."""
    if forecast.warnings:
        codes = ", ".join(caution.code for caution in forecast.warnings)
        raise UsageError(
            f"the run has warnings: {codes}",
            where="--strict",
            hint="change what they name, or leave out --strict",
        )
