"""Output of `gpt train`: plan and forecast of a run, and its progress, which is a live panel with
the loss curve on a terminal and plain lines elsewhere.
"""

from __future__ import annotations

import atexit
import math
import sys
import time
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli.console import (
    ConsoleEvents,
    as_options,
    print_json,
    screen,
    time_left,
    toml_columns,
)
from gptcli.cli.options import resolved_toml
from gptcli.errors import UsageError
from gptcli.events import Events
from gptcli.numbers import amount, counted, duration, in_bytes
from gptcli.runs.metrics import window

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.panel import Panel

    from gptcli.shards.manifest import Manifest
    from gptcli.trainer.config import Run
    from gptcli.trainer.forecast import Forecast
    from gptcli.trainer.resolve import ResolvedRun

TASK = "train"
PLAIN_FACTS = {  # shown in a plain line: its name there, and the name of the fact
    "step": "step",
    "loss": "smoothed_loss",
    "lr": "lr",
    "tokens_per_second": "tokens_per_second",
    "val_loss": "val_loss",
}
REDRAW_S = 0.25
MAX_POINTS = 512  # of the loss curve; more are averaged in pairs
CURVE_ROWS = 4
BARS = " ▁▂▃▄▅▆▇█"


class Dashboard(ConsoleEvents):
    """Shows a training run; other work is shown as by ConsoleEvents."""

    def __init__(self, title: str) -> None:
        super().__init__()
        self.title = title
        self.curve = Curve()
        self._board: Live | None = None
        self._start: tuple[float, float] | None = None  # time and tokens at the first report
        self._drawn_at = 0.0

    def _print(self, text: str) -> None:
        if self._board is not None:
            self._board.console.print(text)
        else:
            super()._print(text)

    def progress(
        self, task: str, done: float, total: float | None = None, unit: str = "", **facts: Any
    ) -> None:
        """Update the panel with the facts of the newest step."""
        if task != TASK:
            super().progress(task, done, total, unit, **facts)
        elif not sys.stderr.isatty() or self.messages.quiet:
            super().progress(task, done, total, unit, **self._plain_facts(facts))
        else:
            line = self._progress_line(task, done, total, unit, self._plain_facts(facts))
            if line and self.messages.log is not None:
                self.messages.log.write(line)
            now = time.monotonic()
            self._start = self._start or (now, done)
            if facts["smoothed_loss"] is not None:
                self.curve.add(facts["smoothed_loss"])
            if now - self._drawn_at >= REDRAW_S or done == total:
                self._drawn_at = now
                left = time_left(done, total, done - self._start[1], now - self._start[0])
                self._show(self.panel(done, total or done, left, facts))

    def _plain_facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Return the facts of a plain line: all of them with -v."""
        if self.messages.verbose:
            return facts
        return {name: facts[key] for name, key in PLAIN_FACTS.items() if key in facts}

    def finish(self, task: str) -> None:
        """End the panel, or the bar of other work."""
        if task == TASK and self._board is not None:
            self._board.stop()
            self._board = None
            self._line.__exit__()
        super().finish(task)

    def _show(self, panel: RenderableType) -> None:
        from rich.live import Live

        if self._board is None:
            self._board = Live(console=screen(stderr=True), auto_refresh=False)
            self._line.__enter__()
            self._board.start()
            atexit.register(self._board.stop)
        self._board.update(panel, refresh=True)

    def panel(self, done: float, total: float, left: str, facts: dict[str, Any]) -> RenderableType:
        """Return the panel, as wide as the terminal but for the ^C that it shows behind it."""
        from rich.console import Group
        from rich.panel import Panel
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 1), expand=True)
        head.add_column(no_wrap=True)
        head.add_column(ratio=1)
        head.add_column(no_wrap=True, justify="right")
        steps = f"/{facts['total_steps']:,}" if facts.get("total_steps") else ""
        head.add_row(
            f"step {facts['step']:,}{steps}  {amount(done)}/{counted(total, 'token', amount)}",
            ProgressBar(total, done),
            f"{done / total:.1%}  {left and f'{left} left'}",
        )
        body = _Body(self.curve.means(), format_facts(facts, done / total))
        where = ", ".join(str(facts[name]) for name in ("device", "precision") if facts.get(name))
        return _Narrower(
            Panel(
                Group(head, body),
                title=Text(self.title),
                title_align="left",
                subtitle=Text(where) if where else None,
                subtitle_align="right",
            ),
            len("^C"),
        )


class _Narrower:
    """Panel that leaves columns at the right free."""

    def __init__(self, panel: Panel, free: int) -> None:
        self.panel, self.free = panel, free

    def __rich_console__(self, console: Any, options: Any) -> Any:
        yield from console.render(
            self.panel, options.update_width(max(1, options.max_width - self.free))
        )


class _Body:
    """Loss curve above the facts, as wide as the panel."""

    def __init__(self, values: list[float], words: list[str]) -> None:
        self.values, self.words = values, words

    def __rich_console__(self, console: Any, options: Any) -> Any:
        from rich.text import Text

        yield Text(
            "\n".join(
                [*plot(self.values, options.max_width), *flowed(self.words, options.max_width)]
            )
        )


class Curve:
    """Loss curve of any length in bounded memory: means of groups of consecutive values.

    The group size doubles whenever there are MAX_POINTS means.
    """

    def __init__(self) -> None:
        self.size = 1
        self.full: list[float] = []
        self.open: list[float] = []

    def add(self, value: float) -> None:
        """Append a value."""
        self.open.append(value)
        if len(self.open) == self.size:
            self.full.append(sum(self.open) / self.size)
            self.open = []
        if len(self.full) == MAX_POINTS:
            self.full = [(a + b) / 2 for a, b in zip(self.full[::2], self.full[1::2], strict=True)]
            self.size *= 2

    def means(self) -> list[float]:
        """Return the means, the last one of an incomplete group."""
        return [*self.full, *([sum(self.open) / len(self.open)] if self.open else [])]


def plot(values: list[float], width: int) -> list[str]:
    """Return CURVE_ROWS lines of block characters, labelled with the highest and lowest value.

    The newest value is on the right. First values far above the rest are cut off at the top, so
    that the rest is not flat; the label is then the highest value after them.
    """
    if not values:
        return [""] * CURVE_ROWS
    high, low = max(values), min(values)
    later = max(values[len(values) // 20 + 1 :]) if len(values) >= 40 else high
    if high - low > 1.5 * (later - low) > 0:
        high = later
    labels = [f"{high:.3f}", *[""] * (CURVE_ROWS - 2), f"{low:.3f}"]
    margin = max(map(len, labels))
    columns = resampled(values, width - margin - 1)
    # in eighths of a line
    levels = [
        1 + round((min(value, high) - low) / (high - low or 1) * (8 * CURVE_ROWS - 1))
        for value in columns
    ]
    rows = []
    for row, label in enumerate(labels):
        below = 8 * (CURVE_ROWS - 1 - row)
        rows.append(
            f"{label:>{margin}} " + "".join(BARS[min(8, max(0, level - below))] for level in levels)
        )
    return rows


def resampled(values: list[float], count: int) -> list[float]:
    """Return at most `count` values, each the mean of consecutive values."""
    count = max(1, min(count, len(values)))
    borders = [round(number * len(values) / count) for number in range(count + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(borders)]


def flowed(words: list[str], width: int) -> list[str]:
    """Return lines of at most `width` columns, broken between words."""
    lines = [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + 3 + len(word) > width:
            lines.append("")
        lines[-1] += f"   {word}" if lines[-1] else word
    return lines


def format_facts(facts: dict[str, Any], share: float) -> list[str]:
    """Return the facts of the newest step as text; `share` of the run is done."""

    def known(name: str, form: str) -> str:
        return "n/a" if facts.get(name) is None else f"{facts[name]:{form}}"

    words = [
        f"loss {known('smoothed_loss', '.4f')}, mean of {window(facts['step'])} steps",
        f"validation {known('val_loss', '.4f')}",
        f"lr {facts['lr']:.3g}",
        f"gradient {known('grad_norm', '.3g')}",
        f"batch {amount(facts['batch_tokens'])}",
        "noise scale "
        + ("n/a" if facts.get("noise_scale") is None else amount(facts["noise_scale"])),
        f"{amount(facts['tokens_per_second'])} tokens/s",
        f"{facts['tflops']:.3g} TFLOP/s",
        f"MFU {known('mfu', '.1%')}"
        + ("" if facts.get("mfu_causal") is None else f" ({facts['mfu_causal']:.1%} causal)"),
        f"memory {in_bytes(facts['peak_memory'])}",
    ]
    if passes := facts.get("total_passes"):
        digits = max(2, 2 - math.floor(math.log10(passes)))  # three of a run of less than a pass
        words.append(f"pass {passes * share:,.{digits}f} of {passes:,.{digits}f} over the data")
    if "checkpoint_step" in facts:
        age = duration(round(facts["checkpoint_age"]))
        words.append(f"checkpoint of step {facts['checkpoint_step']:,}, {age} ago")
    if "skipped" in facts:
        words.append("update skipped")
    return words


def _forecast_plan(plan: ResolvedRun, manifest: Manifest | None, *, done: int = 0) -> Forecast:
    """Forecast a resolved run on this machine that has already read `done` tokens."""
    from gptcli.trainer.forecast import forecast
    from gptcli.trainer.machine import this_machine

    machine = this_machine(plan.model, plan.train, Path(plan.resolved.values["out"]))
    return forecast(plan.model, plan.train, manifest, machine, done=done)


def print_forecast(
    plan: ResolvedRun, manifest: Manifest, events: Events, run: Run, *, strict: bool
) -> None:
    """Report the forecast of the run or its rest. Raises UsageError for warnings if `strict`."""
    from gptcli.trainer.forecast import forecast_facts
    from gptcli.trainer.preflight import resumed_state
    from gptcli.trainer.start import continued_state

    state = resumed_state(run.out, run.identity()) if run.resume else None
    if state is None and run.continues:
        state = continued_state(run)
    forecast = _forecast_plan(
        plan, manifest, done=0 if state is None else state.position.sequences * plan.model.n_ctx
    )
    for name, fact in forecast_facts(forecast, at_least=plan.train.follow_noise).items():
        events.info(f"{name:<7}{fact}")
    for caution in forecast.warnings:
        events.warn(caution.text)
    if strict:
        _refuse_warnings(forecast)


def print_plan(
    plan: ResolvedRun, manifest: Manifest | None, *, as_json: bool, strict: bool
) -> None:
    """Print configuration, work and forecast. Raises UsageError if `strict` and it has warnings."""
    from gptcli.cost.flops import flops_per_token
    from gptcli.trainer.forecast import forecast_facts
    from gptcli.trainer.preflight import role_facts, stage_roles
    from gptcli.trainer.trackers import find_tracker

    for name in plan.resolved.values.get("track", []):
        find_tracker(name)
    events = ConsoleEvents()
    flops = flops_per_token(plan.model, "6N") * plan.train.tokens
    roles = stage_roles(plan, events)
    forecast = _forecast_plan(plan, manifest)
    for caution in forecast.warnings:
        events.warn(caution.text)
    if as_json:
        print_json(
            "train",
            {
                "config": plan.resolved.values,
                "origin": plan.resolved.origin,
                "parameters": plan.model.parameters,
                "vocab_size": plan.model.vocab_size,
                "flops": flops,
                **_forecast_json(forecast),
                "roles": [asdict(role) for role in roles],
            },
        )
    else:
        facts = {
            "parameters": f"{plan.model.parameters:,}",
            "vocabulary": f"{plan.model.vocab_size:,} entries, {_source_of_vocabulary(plan, manifest)}",
            "work": f"{flops:.3g} FLOP (6N)",
            **forecast_facts(forecast, at_least=plan.train.follow_noise),
            **role_facts(roles),
        }
        print(resolved_toml(plan.resolved, toml_columns(), **facts), end="")
    if strict:
        _refuse_warnings(forecast)


def _source_of_vocabulary(plan: ResolvedRun, manifest: Manifest | None) -> str:
    """Return where the size of the vocabulary comes from, in words."""
    if "init_from" in plan.resolved.values:
        return "those of the model to start from"
    if manifest is not None:
        return "by the data"
    return f"assumed: there is no data in {plan.resolved.values['data']}"


def _forecast_json(forecast: Forecast) -> dict[str, Any]:
    """Return the forecast's part of `gpt train --dry-run --json`."""
    keys = asdict(forecast)
    keys["warnings"] = [
        {name: as_options(text) for name, text in caution.items()} for caution in keys["warnings"]
    ]
    return keys


def _refuse_warnings(forecast: Forecast) -> None:
    """Raise UsageError if the forecast has warnings."""
    if forecast.warnings:
        codes = ", ".join(caution.code for caution in forecast.warnings)
        raise UsageError(
            f"the run has warnings: {codes}",
            where="--strict",
            hint="change what they name, or leave out --strict",
        )
