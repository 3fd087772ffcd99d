"""`report.html`: one run's curves, samples, evaluations and configuration on a page; or several
runs beside each other.
"""

from __future__ import annotations

import os
import statistics
from pathlib import Path
from typing import Any

from gptcli.files import atomic_write
from gptcli.numbers import duration, in_bytes
from gptcli.runs.metrics import SAMPLES, Line, read_lines, read_metrics, smoothed_loss, window
from gptcli.trainer.config import Run
from gptcli.trainer.report_chart import Curve, chart, short, swatch
from gptcli.trainer.report_page import (
    configured,
    document,
    folded,
    gallery,
    headed,
    quote,
    table,
    terms,
    visible,
)
from gptcli.trainer.report_record import Figure, Record, figures, read_evaluations

REPORT = "report.html"
RECENT = 100  # steps whose median is a speed: the last one alone may be a short one
SHOWN = 4  # steps whose samples stand side by side


def write_report(run: Run) -> None:
    """Draw the run folder's metrics, samples and evaluations so far."""
    out = Path(run.out)
    record = Record(
        folder=out,
        resolved=run.resolved,
        lines=read_metrics(out),
        samples=read_lines(out / SAMPLES),
        evaluations=read_evaluations(out),
    )
    with atomic_write(out / REPORT, "w") as file:
        file.write(page(record))


def page(record: Record) -> str:
    lines, last = record.lines, record.lines[-1]
    val, steps = series(lines, "val_loss"), window(last["step"])
    total, n_ctx = record.settings.get("tokens"), record.settings.get("n_ctx", 1)
    noise = series(lines, "noise_scale")
    facts = {
        "validation loss": f"{val[-1][1]:.4f}" if val else "not measured",
        f"training loss, {steps} steps" if steps > 1 else "training loss": known(
            smoothed_loss(lines), ".4f"
        ),
        "tokens": short(last["tokens"])
        + (f" of {short(total)}" if total and last["tokens"] + n_ctx <= total else ""),
        "step": f"{last['step']:,}",
        "parameters": record.parameters,
        "time in steps": duration(record.seconds),
        "tokens/s": known(recent(lines, "tokens_per_second"), ",.0f"),
        "TFLOP/s a process": known(recent(lines, "tflops"), ".4g"),
        "MFU": known(recent(lines, "mfu"), ".1%"),
        **(
            {}
            if last.get("mfu_causal") is None
            else {"MFU, causal": known(recent(lines, "mfu_causal"), ".1%")}
        ),
        "peak memory": "n/a" if last.get("peak_memory") is None else in_bytes(last["peak_memory"]),
        "updates skipped": f"{sum('skipped' in line for line in lines):,}",
    }
    charts = [
        *drawn("Loss", {"training": series(lines, "loss"), "validation": val}, unit="nats a token", mean=True, raw=True, tall=True),
        *drawn("Learning rate", {"": series(lines, "lr")}, from_zero=True),
        *drawn("Gradient norm", {"": series(lines, "grad_norm")}, unit="before the clip", mean=True, raw=True),
        *drawn(
            "Batch and gradient noise scale" if noise else "Batch",
            {"batch" if noise else "": series(lines, "batch_tokens"), "noise scale": noise},
            unit="tokens", from_zero=True,
        ),
        *drawn("Throughput", {"": series(lines, "tokens_per_second")}, unit="tokens a second", from_zero=True, mean=True, raw=True),
        *drawn(
            "Model FLOPs utilisation",
            {"6N + 12·L·C·T": series(lines, "mfu"), "causal": series(lines, "mfu_causal")},
            unit="share of the peak", from_zero=True, mean=True, raw=True,
        ),
    ]  # fmt: skip
    note = "newest first; the prompt, from the validation text, is grey"
    return document(
        record.title,
        terms(facts),
        gallery(charts),
        headed("Evaluations", evaluated(record)),
        headed("Samples", spoken(record.samples), note),
        headed(
            "How it was made", terms(record.provenance, small=True) if record.provenance else ""
        ),
        configured(record.resolved),
        under=str(record.folder),
    )


def drawn(title: str, curves: dict[str, Curve], **how: Any) -> list[str]:
    """The chart, if there is anything to draw."""
    return [chart(title, curves, **how)] if any(curves.values()) else []


def evaluated(record: Record) -> str:
    found = figures(record.evaluations)
    rows = [
        [visible(one.of), visible(one.measure), figure(one), one.count, visible(one.paper) or "–"]
        for one in found
    ]
    return table(["", "measure", "value ± standard error", "on", "paper"], rows) if rows else ""


def spoken(samples: list[Line]) -> str:
    """What the model wrote over time, newest first: four of the steps side by side, the others
    folded away.
    """
    steps = sorted({sample["step"] for sample in samples})
    if not steps:
        return ""
    last = len(steps) - 1
    shown = {steps[round(number * last / (SHOWN - 1))] for number in range(SHOWN)}
    cards: list[str] = []
    rest: list[str] = []
    for step in reversed(steps):
        here = [sample for sample in samples if sample["step"] == step]
        title = f"step {step:,}, {short(here[0]['tokens'])} tokens"
        card = f"<div><h3>{title}</h3>{''.join(quote(sample['prompt'], sample['text']) for sample in here)}</div>"
        (cards if step in shown else rest).append(card)
    more = folded(f"{len(rest)} more", f'<div class="texts">{"".join(rest)}</div>') if rest else ""
    return f'<div class="texts">{"".join(cards)}</div>{more}'


def comparison(records: list[Record], where: Path) -> str:
    """Several runs: their curves over each other, and what differs. Links are seen from the folder
    `where`.
    """
    names = told_apart([record.folder for record in records])
    keys = [f"{swatch(number)} {visible(name)}" for number, name in enumerate(names)]

    def curves(name: str) -> dict[str, Curve]:
        return dict(zip(names, (series(record.lines, name) for record in records), strict=True))

    charts = [
        *drawn("Validation loss", curves("val_loss"), unit="nats a token", tall=True),
        *drawn(
            "Training loss", curves("loss"), unit="nats a token, running mean", mean=True, tall=True
        ),
        *drawn("Learning rate", curves("lr"), from_zero=True),
        *drawn("Batch", curves("batch_tokens"), unit="tokens", from_zero=True),
        *drawn(
            "Gradient norm", curves("grad_norm"), unit="before the clip, running mean", mean=True
        ),
        *drawn(
            "Throughput",
            curves("tokens_per_second"),
            unit="tokens a second",
            from_zero=True,
            mean=True,
        ),
    ]
    links = [os.path.relpath(record.folder / REPORT, where) for record in records]
    linked = [
        f'{swatch(number)}&#160;<a href="{visible(Path(link).as_posix())}">{visible(name)}</a>'
        for number, (link, name) in enumerate(zip(links, names, strict=True))
    ]
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
    results = table(
        heads, [[link, *came_to(record)] for record, link in zip(records, linked, strict=True)]
    )
    return document(
        f"{len(records)} runs",
        results,
        gallery(charts, runs=True),
        headed("Settings that differ", beside(keys, differing(records))),
        headed("Evaluations", beside(keys, measured(records))),
        headed("Samples", last_words(keys, records), "from each run's newest checkpoint"),
    )


def came_to(record: Record) -> list[str]:
    last, val = record.lines[-1], [value for _, value in series(record.lines, "val_loss")]
    losses = [f"{val[-1]:.4f}", f"{min(val):.4f}"] if val else ["n/a", "n/a"]
    train, time = known(smoothed_loss(record.lines), ".4f"), duration(record.seconds)
    return [*losses, train, short(last["tokens"]), f"{last['step']:,}", record.parameters, time]


def beside(keys: list[str], rows: list[list[str]]) -> str:
    return table(["", *keys], rows) if rows else ""


def differing(records: list[Record]) -> list[list[str]]:
    """A row for every setting that is not the same in all runs."""
    settings = [record.settings for record in records]
    names = dict.fromkeys(name for one in settings for name in one if name != "out")
    rows = [[name, *(one.get(name, "–") for one in settings)] for name in names]
    differ = [row for row in rows if any(value != row[1] for value in row[2:])]
    return [
        [visible(f"{cell:,}" if isinstance(cell, int) else str(cell)) for cell in row]
        for row in differ
    ]


def measured(records: list[Record]) -> list[list[str]]:
    """A row for every figure of any run's evaluations."""
    found = [
        {(one.of, one.measure): figure(one) for one in figures(record.evaluations)}
        for record in records
    ]
    names = dict.fromkeys(name for one in found for name in one)
    return [
        [visible(f"{of}: {measure}"), *(one.get((of, measure), "–") for one in found)]
        for of, measure in names
    ]


def last_words(keys: list[str], records: list[Record]) -> str:
    cards = []
    for key, record in zip(keys, records, strict=True):
        newest = [
            sample for sample in record.samples if sample["step"] == record.samples[-1]["step"]
        ]
        if newest:
            cards.append(
                f"<div><h3>{key}</h3>{''.join(quote(sample['prompt'], sample['text']) for sample in newest)}</div>"
            )
    return f'<div class="texts">{"".join(cards)}</div>' if cards else ""


def told_apart(folders: list[Path]) -> list[str]:
    """The folders' names, or, where two are alike, their paths from where they part."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) == len(names):
        return names
    whole = [folder.resolve() for folder in folders]
    root = Path(os.path.commonpath(whole))
    return [path.relative_to(root).as_posix() for path in whole]


def figure(one: Figure) -> str:
    form = (
        ",.4g"
        if abs(one.value) >= 1e4
        else ".2f"
        if abs(one.value) >= 10 or one.measure == "accuracy"
        else ".4f"
    )
    percent = " %" if one.measure == "accuracy" else ""
    return f"{one.value:{form}}{percent}" + (
        "" if one.stderr is None else f" ± {one.stderr:{form}}"
    )


def recent(lines: list[Line], key: str) -> float | None:
    """The median over the newest steps that measured it."""
    values = [line[key] for line in lines[-RECENT:] if line.get(key) is not None]
    return statistics.median(values) if values else None


def known(value: float | None, form: str) -> str:
    return "n/a" if value is None else f"{value:{form}}"


def series(lines: list[Line], name: str) -> Curve:
    """(tokens, value) wherever the value was measured."""
    return [(line["tokens"], line[name]) for line in lines if line.get(name) is not None]
