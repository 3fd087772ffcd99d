"""`report.html`: curves, samples, evaluations and configuration of one run, or a comparison of
several runs, as a page without scripts or network access.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptcli.files import atomic_write
from gptcli.model.source import REPORT, SAMPLES
from gptcli.numbers import amount, duration, in_bytes
from gptcli.runs.curves import Curve, inline_chart, swatch
from gptcli.runs.groups import grouped, verdict
from gptcli.runs.metrics import Line, read_lines, read_metrics, smoothed_loss, window
from gptcli.runs.page import (
    configuration,
    definitions,
    document,
    folded,
    gallery,
    headed,
    printable,
    quote,
    table,
)
from gptcli.runs.plots import loss_plot
from gptcli.runs.record import (
    Figure,
    Record,
    distinct_names,
    figures,
    read_evaluations,
    read_record,
)

SPEED_STEPS = 100  # newest steps whose median is a speed: the last one may be short
SHOWN_SAMPLE_STEPS = 4  # steps whose samples are shown next to each other
NATS = "nats per token"
SEEDS_NOTE = "mean of runs that differ in their seed alone, with 95 % intervals (Student, Welch)"


def write_report(folder: Path, resolved: str) -> None:
    """Write the report of the run so far; `resolved` is the text of its run.toml."""
    record = Record(
        folder=folder,
        resolved=resolved,
        lines=read_metrics(folder),
        samples=read_lines(folder / SAMPLES),
        evaluations=read_evaluations(folder),
    )
    with atomic_write(folder / REPORT, "w") as file:
        file.write(run_page(record))


def draw(runs: Sequence[Path], path: Path) -> str:
    """Return the page of one run or a comparison of several, for a file at `path`.

    For FILE.svg it is a plot of the losses. Raises InputError if one of `runs` is no run folder.
    """
    records = [read_record(run) for run in runs]
    if path.suffix == ".svg":
        return loss_plot(records)
    return run_page(records[0]) if len(records) == 1 else comparison_page(records, path.parent)


def run_page(record: Record) -> str:
    """Return the page of one run."""
    provenance = definitions(record.provenance, small=True) if record.provenance else ""
    return document(
        record.title,
        definitions(_facts(record)),
        gallery(_charts(record)),
        headed("Sources", _source_table(record)),
        headed("Evaluations", _evaluation_table(record)),
        headed(
            "Samples",
            _sample_cards(record.samples),
            "newest first; the prompt, from the validation text, is grey",
        ),
        headed("How it was made", provenance),
        configuration(record.resolved),
        subtitle=str(record.folder),
    )


def _facts(record: Record) -> dict[str, str]:
    """Return the figures at the top of a run's page."""
    lines, last = record.lines, record.lines[-1]
    val, steps = record.series("val_loss"), window(last["step"])
    total, n_ctx = record.settings.get("tokens"), record.settings.get("n_ctx", 1)
    tokens = amount(last["tokens"])
    if total is not None and last["tokens"] + n_ctx <= total:
        tokens += f" of {amount(total)}"
    facts = {
        "validation loss": f"{val[-1][1]:.4f}" if val else "not measured",
        f"training loss, {steps} steps" if steps > 1 else "training loss": _format(
            smoothed_loss(lines), ".4f"
        ),
        "tokens": tokens,
        "step": f"{last['step']:,}",
        "parameters": record.parameters,
        "time in steps": duration(record.seconds),
        "tokens/s": _format(_recent_median(lines, "tokens_per_second"), ",.0f"),
        "TFLOP/s per process": _format(_recent_median(lines, "tflops"), ".4g"),
        "MFU": _format(_recent_median(lines, "mfu"), ".1%"),
    }
    if last.get("mfu_causal") is not None:
        facts["MFU, causal"] = _format(_recent_median(lines, "mfu_causal"), ".1%")
    memory = last.get("peak_memory")
    facts["peak memory"] = "n/a" if memory is None else in_bytes(memory)
    names = ("rank_own_seconds", "rank_probe_seconds")
    if own := next(
        (line[name] for line in reversed(lines) for name in names if name in line), None
    ):
        times = max(own) / statistics.median_low(own)
        facts["slowest process"] = f"{own.index(max(own))}, {times:.2f} times the median"
    facts["updates skipped"] = f"{sum('skipped' in line for line in lines):,}"
    return facts


def _charts(record: Record) -> Iterator[str]:
    """Yield the charts of a run's page."""
    series = record.series
    losses = {"training": series("loss"), "validation": series("val_loss")}
    yield from _chart("Loss", losses, unit=NATS, mean=True, raw=True, tall=True)
    by_source = {name: series(f"loss_{name}") for name in _sources(record)}
    yield from _chart("Training loss by source", by_source, unit=f"{NATS}, running mean", mean=True)
    yield from _chart("Learning rate", {"": series("lr")}, from_zero=True)
    norm = {"": series("grad_norm")}
    yield from _chart("Gradient norm", norm, unit="before clipping", mean=True, raw=True)
    noise, batch = series("noise_scale"), series("batch_tokens")
    title = "Batch size and gradient noise scale" if noise else "Batch size"
    curves = {"batch size": batch, "noise scale": noise} if noise else {"": batch}
    yield from _chart(title, curves, unit="tokens", from_zero=True)
    dense = {"from_zero": True, "mean": True, "raw": True}
    speed = {"": series("tokens_per_second")}
    yield from _chart("Throughput", speed, unit="tokens per second", **dense)
    mfu = {"6N + 12·L·C·T": series("mfu"), "causal": series("mfu_causal")}
    yield from _chart("Model FLOPs utilization", mfu, unit="share of the peak", **dense)


def _chart(title: str, curves: dict[str, Curve], **options: Any) -> list[str]:
    """Return the chart if one of its curves has points."""
    return [inline_chart(title, curves, **options)] if any(curves.values()) else []


def _sources(record: Record) -> list[str]:
    """Return the names of the sources of a run's mixture; none for one source."""
    return [key.removeprefix("passes_") for key in record.lines[-1] if key.startswith("passes_")]


def _source_table(record: Record) -> str:
    """Return a row for each source of a mixture: what was read of it, and its newest losses."""
    last, rows = record.lines[-1], []
    for name in _sources(record):
        loss, val = record.series(f"loss_{name}"), record.series(f"val_loss_{name}")
        near = [value for _, value in loss[-window(last["step"]) :]]
        rows.append(
            [
                printable(name),
                amount(last[f"tokens_{name}"]),
                f"{last[f'tokens_{name}'] / last['tokens']:.1%}",
                f"{last[f'passes_{name}']:.3g}",
                f"{statistics.fmean(near):.4f}" if near else "n/a",
                f"{val[-1][1]:.4f}" if val else "n/a",
            ]
        )
    heads = ["source", "tokens", "share", "passes", "training loss", "validation loss"]
    return table(heads, rows) if rows else ""


def _evaluation_table(record: Record) -> str:
    rows = [
        [
            printable(one.subject),
            printable(one.measure),
            _format_figure(one),
            one.count,
            printable(one.paper) or "–",
        ]
        for one in figures(record.evaluations)
    ]
    return table(["", "measure", "value ± standard error", "on", "paper"], rows) if rows else ""


def _sample_cards(samples: list[Line]) -> str:
    """Return the samples by step, newest first: four steps next to each other, the rest folded."""
    steps = sorted({sample["step"] for sample in samples})
    if not steps:
        return ""
    last, gaps = len(steps) - 1, SHOWN_SAMPLE_STEPS - 1
    shown = {steps[round(number * last / gaps)] for number in range(SHOWN_SAMPLE_STEPS)}
    cards: list[str] = []
    rest: list[str] = []
    for step in reversed(steps):
        of_step = [sample for sample in samples if sample["step"] == step]
        title = f"step {step:,}, {amount(of_step[0]['tokens'])} tokens"
        (cards if step in shown else rest).append(_card(title, of_step))
    more = folded(f"{len(rest)} more", _cards(rest)) if rest else ""
    return _cards(cards) + more


def _card(title: str, samples: list[Line]) -> str:
    quotes = "".join(quote(sample["prompt"], sample["text"]) for sample in samples)
    return f"<div><h3>{title}</h3>{quotes}</div>"


def _cards(cards: list[str]) -> str:
    return f'<div class="texts">{"".join(cards)}</div>' if cards else ""


def comparison_page(records: list[Record], link_base: Path) -> str:
    """Return a page that compares runs: shared charts, and the settings that differ.

    Links to the runs' own reports are relative to the folder `link_base`.
    """
    names = distinct_names([record.folder for record in records])
    keys = [f"{swatch(number)} {printable(name)}" for number, name in enumerate(names)]
    rows = []
    for number, (record, name) in enumerate(zip(records, names, strict=True)):
        path = Path(os.path.relpath(record.folder / REPORT, link_base)).as_posix()
        link = f'<a href="{printable(path)}">{printable(name)}</a>'
        rows.append([f"{swatch(number)}&#160;{link}", *_results(record)])
    heads = [
        "run",
        "validation loss",
        "lowest",
        "training loss",
        "tokens",
        "steps",
        "parameters",
        "time in steps",
    ]
    return document(
        f"{len(records)} runs",
        table(heads, rows),
        headed("Seeds", _seeds_table(records), SEEDS_NOTE),
        gallery(_comparison_charts(names, records), dashed=True),
        headed("Settings that differ", _table_by_run(keys, differing_settings(records))),
        headed("Evaluations", _table_by_run(keys, _compared_figures(records))),
        headed("Samples", _newest_samples(keys, records), "from each run's newest checkpoint"),
    )


def _seeds_table(records: list[Record]) -> str:
    """Return a row for each group of runs that differ in their seed alone, the best one first.

    Empty if no settings were run with several seeds.
    """
    groups = grouped(records)
    if all(len(group.values) < 2 for group in groups):
        return ""
    rows = [
        [
            printable(group.name),
            f"{len(group.values)}",
            printable(str(group.interval)),
            "lowest" if group is groups[0] else printable(verdict(group, groups[0])),
        ]
        for group in groups
    ]
    return table(["runs", "seeds", "loss", "above the lowest"], rows)


def _comparison_charts(names: list[str], records: list[Record]) -> Iterator[str]:
    """Yield the charts of a comparison, with one curve per run."""

    def curves(metric: str) -> dict[str, Curve]:
        return dict(zip(names, (record.series(metric) for record in records), strict=True))

    mean = {"mean": True}
    yield from _chart("Validation loss", curves("val_loss"), unit=NATS, tall=True)
    unit = f"{NATS}, running mean"
    yield from _chart("Training loss", curves("loss"), unit=unit, tall=True, **mean)
    yield from _chart("Learning rate", curves("lr"), from_zero=True)
    yield from _chart("Batch size", curves("batch_tokens"), unit="tokens", from_zero=True)
    unit = "before clipping, running mean"
    yield from _chart("Gradient norm", curves("grad_norm"), unit=unit, **mean)
    speeds = curves("tokens_per_second")
    yield from _chart("Throughput", speeds, unit="tokens per second", from_zero=True, **mean)


def _results(record: Record) -> list[str]:
    """Return the cells of a run's row after its name."""
    last, val = record.lines[-1], [value for _, value in record.series("val_loss")]
    losses = [f"{val[-1]:.4f}", f"{min(val):.4f}"] if val else ["n/a", "n/a"]
    return [
        *losses,
        _format(smoothed_loss(record.lines), ".4f"),
        amount(last["tokens"]),
        f"{last['step']:,}",
        record.parameters,
        duration(record.seconds),
    ]


def _table_by_run(keys: list[str], rows: list[list[str]]) -> str:
    return table(["", *keys], rows) if rows else ""


def differing_settings(records: list[Record]) -> list[list[str]]:
    """Return a row for each setting that is not equal in all runs, the output folder excepted."""
    settings = [record.settings for record in records]
    names = dict.fromkeys(name for one in settings for name in one if name != "out")
    rows = [[name, *(one.get(name, "–") for one in settings)] for name in names]
    differing = [row for row in rows if any(value != row[1] for value in row[2:])]
    return [
        [printable(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row]
        for row in differing
    ]


def _compared_figures(records: list[Record]) -> list[list[str]]:
    """Return a row for each figure of any run's evaluations."""
    found = [
        {(one.subject, one.measure): _format_figure(one) for one in figures(record.evaluations)}
        for record in records
    ]
    names = dict.fromkeys(name for one in found for name in one)
    return [
        [
            printable(f"{subject}: {measure}"),
            *(one.get((subject, measure), "–") for one in found),
        ]
        for subject, measure in names
    ]


def _newest_samples(keys: list[str], records: list[Record]) -> str:
    """Return a card for each run with the samples of its newest step that has any."""
    cards = []
    for key, record in zip(keys, records, strict=True):
        if record.samples:
            step = record.samples[-1]["step"]
            newest = [sample for sample in record.samples if sample["step"] == step]
            cards.append(_card(key, newest))
    return _cards(cards)


def _format_figure(one: Figure) -> str:
    """Format a value with its standard error."""
    percent = one.measure == "accuracy"
    if abs(one.value) >= 1e4:
        form = ",.4g"
    else:
        form = ".2f" if abs(one.value) >= 10 or percent else ".4f"
    stderr = "" if one.stderr is None else f" ± {one.stderr:{form}}"
    return f"{one.value:{form}}{' %' * percent}{stderr}"


def _recent_median(lines: list[Line], key: str) -> float | None:
    """Return the median over the newest steps that measured the metric."""
    values = [line[key] for line in lines[-SPEED_STEPS:] if line.get(key) is not None]
    return statistics.median(values) if values else None


def _format(value: float | None, form: str) -> str:
    return "n/a" if value is None else f"{value:{form}}"
