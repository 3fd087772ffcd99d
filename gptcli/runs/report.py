"""`report.html`: curves, samples, evaluations and configuration of a run, as a page that needs no
network; `gptcli.runs.comparison` compares several runs.

The charts are still pictures, which the page's script (`report.js`) draws anew for its controls:
axes, smoothing, zoom. Without the script the page has all of its contents.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gptcli.files import atomic_write
from gptcli.model.source import REPORT, SAMPLES
from gptcli.numbers import amount, counted, duration, in_bytes
from gptcli.runs.curves import (
    MAX_DATA_POINTS,
    Curve,
    chart_data,
    frame,
    inline_chart,
)
from gptcli.runs.metrics import Line, read_lines, read_metrics, smoothed_loss, window
from gptcli.runs.page import (
    COMPARE,
    CONTROLS,
    configuration,
    definitions,
    document,
    folded,
    gallery,
    headed,
    printable,
    quote,
    script,
    table,
)
from gptcli.runs.record import (
    NON_PERCENT_METRICS,
    Figure,
    Record,
    figures,
    read_evaluations,
    read_provenance,
    shareable,
    short_paths,
)

SPEED_STEPS = 100  # newest steps whose median is a speed: the last one may be short
SHOWN_SAMPLE_STEPS = 4  # steps whose samples are shown next to each other
# metrics of every run; any other one is the score of a task at checkpoints
RUN_METRICS = {
    "step", "epoch", "tokens", "loss", "lr", "grad_norm", "batch_tokens", "tokens_per_second", "tflops",
    "mfu", "mfu_causal", "noise_scale", "peak_memory", "data_seconds", "weight_decay", "beta2", "time",
    "skipped", "task_loss", "lm_loss", "val_accuracy",
}  # fmt: skip
SOURCE_METRICS = ("loss_", "tokens_", "passes_", "rank_", "val_loss")
NATS = "nats per token"
TITLES = {
    "TFLOP/s per process": "Model FLOPs of forward and backward per second: 6N + 12·L·C·T per token "
    "(PaLM, appendix B); recomputed activations do not count",
    "MFU": "Model FLOPs utilization: TFLOP/s as a share of the GPU's peak in this precision",
    "MFU, causal": "The same, counting only the attention that is computed: keys up to the query",
    "tokens/s": f"Median of the newest {SPEED_STEPS} steps, all processes together",
    "time in steps": "Without start, evaluation and checkpoints",
}
"""What names of figures at the top of a run's page mean."""
Chart = tuple[str, dict[str, Curve], dict[str, Any]]
"""Title, curves by name and options of `inline_chart`."""


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


def run_page(record: Record) -> str:
    """Return the page of one run."""
    resolved = shareable(record.resolved)
    known = _provenance(record, resolved)
    provenance = definitions(known, small=True) if known else ""
    extent = record.validation_extent
    pictures, data = draw_charts(_charts(record), [record])
    return document(
        record.title,
        definitions(_facts(record), titles=TITLES),
        CONTROLS,
        gallery(pictures),
        headed("Sources", _source_table(record)),
        headed(
            "Evaluations",
            _evaluation_table(record),
            f"the validation loss at the top is on {extent}" if extent else "",
        ),
        headed(
            "Samples",
            _sample_cards(record.samples),
            "newest first; the prompt, from the validation text, is grey",
        ),
        headed("How it was made", provenance),
        configuration(resolved),
        script(data),
        subtitle=short_paths(str(record.folder)),
    )


def draw_charts(
    charts: Iterable[Chart], records: Sequence[Record]
) -> tuple[list[str], dict[str, Any]]:
    """Return the charts that have points as pictures, and as data for the page's script.

    With one record all curves are of its run; otherwise curve i is of the run i.
    """
    kept = [chart for chart in charts if any(chart[1].values())]
    xs: list[list[float]] = []
    data = []
    for title, curves, options in kept:
        runs = range(len(curves)) if len(records) > 1 else [0] * len(curves)
        data.append(chart_data(title, curves, xs, runs, **options))
    pictures = [
        inline_chart(title, curves, number=number, **options)
        for number, (title, curves, options) in enumerate(kept)
    ]
    axes = [record.axes(MAX_DATA_POINTS) for record in records]
    return pictures, {"frame": frame(), "runs": axes, "xs": xs, "charts": data}


def _planned(record: Record) -> int | None:
    """Return the tokens of the whole run, or None if it has trained on all of them."""
    total, n_ctx = record.settings.get("tokens"), record.settings.get("n_ctx", 1)
    return total if total is not None and record.lines[-1]["tokens"] + n_ctx <= total else None


def _provenance(record: Record, resolved: str) -> dict[str, str]:
    """Return date and data of the run by its run.toml, and the passes over the data so far."""
    facts = read_provenance(resolved)
    if "passes" in facts and (total := _planned(record)) is not None:
        passes = float(facts["passes"]) * record.lines[-1]["tokens"] / total
        facts["passes"] = f"{passes:.3g} of {facts['passes']}"
    return facts


def _facts(record: Record) -> dict[str, str]:
    """Return the figures at the top of a run's page; those that are unknown are left out."""
    lines, last = record.lines, record.lines[-1]
    val, steps = record.series("val_loss"), window(last["step"])
    tokens = amount(last["tokens"])
    if (total := _planned(record)) is not None:
        tokens += f" of {amount(total)}"
    facts = {
        "validation loss": f"{val[-1][1]:.4f}" if val else "not measured",
        **(
            {"validation tokens": record.validation_extent}
            if val and record.validation_extent
            else {}
        ),
        f"training loss, {counted(steps, 'step')}" if steps > 1 else "training loss": format_known(
            smoothed_loss(lines), ".4f"
        ),
        "tokens": tokens,
        "step": f"{last['step']:,}",
        "parameters": record.parameters,
        "time in steps": duration(record.seconds),
        "tokens/s": format_known(_recent_median(lines, "tokens_per_second"), ",.0f"),
        "TFLOP/s per process": format_known(_recent_median(lines, "tflops"), ".4g"),
        "MFU": format_known(_recent_median(lines, "mfu"), ".1%"),
    }
    if last.get("mfu_causal") is not None:
        facts["MFU, causal"] = format_known(_recent_median(lines, "mfu_causal"), ".1%")
    memory = last.get("peak_memory")
    facts["peak memory"] = "n/a" if memory is None else in_bytes(memory)
    names = ("rank_own_seconds", "rank_probe_seconds")
    if own := next(
        (line[name] for line in reversed(lines) for name in names if name in line), None
    ):
        times = max(own) / statistics.median_low(own)
        facts["slowest process"] = f"{own.index(max(own))}, {times:.2f} times the median"
    facts["updates skipped"] = f"{sum('skipped' in line for line in lines):,}"
    return {name: value for name, value in facts.items() if value != "n/a"}


def _charts(record: Record) -> Iterator[Chart]:
    """Yield the charts of a run's page."""
    series = record.series
    losses = {"training": series("loss"), "validation": series("val_loss")}
    yield "Loss", losses, {"unit": NATS, "mean": True, "raw": True, "tall": True}
    by_source = {name: series(f"loss_{name}") for name in _sources(record)}
    unit = f"{NATS}, running mean"
    yield "Training loss by source", by_source, {"unit": unit, "mean": True}
    others = {name.removeprefix("val_loss_"): series(name) for name in _names(record, "val_loss_")}
    yield "Validation loss by set", others, {"unit": NATS}
    yield from _evaluation_charts(record)
    yield "Learning rate", {"": series("lr")}, {"from_zero": True}
    options = {"unit": "before clipping", "mean": True, "raw": True, "log_y": True}
    yield "Gradient norm", {"": series("grad_norm")}, options
    noise, batch = series("noise_scale"), series("batch_tokens")
    title = "Batch size and gradient noise scale" if noise else "Batch size"
    curves = {"batch size": batch, "noise scale": noise} if noise else {"": batch}
    yield title, curves, {"unit": "tokens", "from_zero": True}
    dense = {"from_zero": True, "mean": True, "raw": True}
    speed = {"": series("tokens_per_second")}
    yield "Throughput", speed, {"unit": "tokens per second", **dense}
    mfu = {"6N + 12·L·C·T": series("mfu"), "causal": series("mfu_causal")}
    yield "Model FLOPs utilization", mfu, {"unit": "share of the peak", **dense}


def _evaluation_charts(record: Record) -> Iterator[Chart]:
    """Yield the scores of tasks at checkpoints, and what `gpt eval` measured at several steps."""
    for name, metrics in by_unit(task_metrics([record])).items():
        scores = {metric: record.series(metric) for metric in metrics}
        yield "Tasks at checkpoints", scores, {"unit": name, "from_zero": name == "percent"}
    tokens_at = {line["step"]: line["tokens"] for line in record.lines}
    found: dict[str, dict[str, Curve]] = {}
    for report in record.evaluations:
        step = report.get("step") or record.lines[-1]["step"]
        if step not in tokens_at:
            continue
        for one in figures([report]):
            unit = "percent" if one.measure == "accuracy" else one.measure
            curve = found.setdefault(unit, {}).setdefault(f"{one.subject}: {one.measure}", [])
            curve.append((tokens_at[step], one.value))
    for unit, by_name in found.items():
        several = {name: _newest_each(curve) for name, curve in by_name.items()}
        several = {name: curve for name, curve in several.items() if len(curve) > 1}
        title = f"Evaluations over training, {unit}"
        yield title, several, {"unit": "gpt eval", "from_zero": unit == "percent"}


def task_metrics(records: Sequence[Record]) -> list[str]:
    """Return the names of the metrics that are scores of tasks, such as lambada_accuracy."""
    names = dict.fromkeys(name for record in records for name in _names(record, ""))
    return [n for n in names if n not in RUN_METRICS and not n.startswith(SOURCE_METRICS)]


def by_unit(metrics: Iterable[str]) -> dict[str, list[str]]:
    """Return metrics by their unit: percent, or the name of one that is none, such as bleu."""
    found: dict[str, list[str]] = {}
    for name in metrics:
        unit = next((one for one in NON_PERCENT_METRICS if name.endswith(one)), "percent")
        found.setdefault(unit.replace("_", " "), []).append(name)
    return found


def _newest_each(curve: Curve) -> Curve:
    """Return a curve in order, with the last value measured at each place."""
    return sorted(dict(curve).items())


def _names(record: Record, prefix: str) -> list[str]:
    """Return the names of the metrics of any line that begin with `prefix`, in order."""
    names = dict.fromkeys(name for line in record.lines for name in line)
    return [name for name in names if name.startswith(prefix)]


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
            printable(short_paths(one.subject)),
            printable(one.measure),
            format_figure(one),
            one.count,
            printable(one.paper) or "–",
        ]
        for one in figures(record.evaluations)
    ]
    return table(["task", "measure", "value ± standard error", "on", "paper"], rows) if rows else ""


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
        title = f"step {step:,}, {counted(of_step[0]['tokens'], 'token', amount)}"
        (cards if step in shown else rest).append(sample_card(title, of_step, step))
    more = folded(f"{len(rest)} more", _cards(rest)) if rest else ""
    return sample_gallery(cards) + more


def sample_card(title: str, samples: list[Line], place: int) -> str:
    """Return the samples of one step or run; `place` orders the choices of a comparison."""
    quotes = "".join(quote(sample["prompt"], sample["text"]) for sample in samples)
    return f'<div data-sample="{place}"><h3>{title}</h3>{quotes}</div>'


def sample_gallery(cards: list[str]) -> str:
    """Return cards of samples next to each other, with the choices of a comparison if there are several."""
    return (COMPARE if len(cards) > 1 else "") + _cards(cards)


def _cards(cards: list[str]) -> str:
    return f'<div class="texts">{"".join(cards)}</div>' if cards else ""


def format_figure(one: Figure) -> str:
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


def format_known(value: float | None, form: str) -> str:
    """Format a value, or return "n/a" for None."""
    return "n/a" if value is None else f"{value:{form}}"
