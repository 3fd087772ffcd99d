"""`report.html` of several runs: shared curves, the settings that differ, and results side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptcli.model.source import REPORT
from gptcli.numbers import amount, counted, duration
from gptcli.runs.curves import Curve, swatch
from gptcli.runs.groups import grouped, verdict
from gptcli.runs.metrics import smoothed_loss
from gptcli.runs.page import (
    CONTROLS,
    document,
    folded,
    gallery,
    headed,
    printable,
    script,
    table,
)
from gptcli.runs.plots import loss_plot
from gptcli.runs.record import Record, distinct_names, figures, read_record
from gptcli.runs.report import (
    NATS,
    Chart,
    by_unit,
    draw_charts,
    format_figure,
    format_known,
    run_page,
    sample_card,
    sample_gallery,
    task_metrics,
)

MAX_NAMED = 2  # runs that are named where a chart has no curve of them
MAX_COLUMNS = 5  # settings that differ which have a column of their own in the first table
SEEDS_NOTE = "mean of runs that differ in their seed alone, with 95 % intervals (Student, Welch)"


def draw(runs: Sequence[Path], path: Path) -> str:
    """Return the page of one run or a comparison of several, for a file at `path`.

    For FILE.svg it is a plot of the losses. Raises InputError if one of `runs` is no run folder.
    """
    records = [read_record(run) for run in runs]
    if path.suffix == ".svg":
        return loss_plot(records)
    return run_page(records[0]) if len(records) == 1 else comparison_page(records, path.parent)


def comparison_page(records: list[Record], link_base: Path) -> str:
    """Return a page that compares runs: shared charts, and the settings that differ.

    Links to the runs' own reports are relative to the folder `link_base`.
    """
    names = distinct_names([record.folder for record in records])
    keys = [f"{swatch(number)} {printable(name)}" for number, name in enumerate(names)]
    differing = differing_settings(records)
    chosen = {name for record in records for name in record.chosen}
    first = [row for row in differing if row[0] in chosen] or differing
    rest = [row for row in differing if row not in first]
    # what differs comes first: in the table of results, or if it is much, in a table of its own
    columns = first if len(first) <= MAX_COLUMNS else []
    rows = []
    for number, (record, name) in enumerate(zip(records, names, strict=True)):
        path = Path(os.path.relpath(record.folder / REPORT, link_base)).as_posix()
        link = f'<a href="{printable(path)}">{printable(name)}</a>'
        settings = [row[number + 1] for row in columns]
        rows.append([f"{swatch(number)}&#160;{link}", *settings, *_results(record)])
    heads = [
        "run",
        *(_setting(row[0]) for row in columns),
        "validation loss",
        "lowest",
        "training loss",
        "tokens trained",
        "steps",
        "parameters",
        "time in steps",
    ]
    pictures, data = draw_charts(_comparison_charts(names, records), records)
    derived = _table_by_run(keys, rest)
    more = f"{len(rest)} more settings that differ follow from these, the data or the machine"
    return document(
        counted(len(records), "run"),
        table(heads, rows),
        headed("Settings that differ", "" if columns else _table_by_run(keys, first)),
        folded(more, derived) if derived else "",
        headed("Seeds", _seeds_table(records), SEEDS_NOTE),
        CONTROLS,
        gallery(pictures, dashed=True),
        headed("Evaluations", _table_by_run(keys, _compared_figures(records))),
        headed("Samples", _newest_samples(keys, records), "from each run's newest checkpoint"),
        script(data),
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


def _comparison_charts(names: list[str], records: list[Record]) -> Iterator[Chart]:
    """Yield the charts of a comparison, with one curve per run."""

    def curves(metric: str) -> dict[str, Curve]:
        return dict(zip(names, (record.series(metric) for record in records), strict=True))

    mean = {"mean": True}
    val = curves("val_loss")
    yield "Validation loss", val, {"unit": NATS + _without(val), "tall": True}
    unit = f"{NATS}, running mean"
    yield "Training loss", curves("loss"), {"unit": unit, "tall": True, **mean}
    for name, metrics in by_unit(task_metrics(records)).items():
        for metric in metrics:
            scores = curves(metric)
            unit = f"{name}, at checkpoints{_without(scores)}"
            yield metric.replace("_", " "), scores, {"unit": unit, "from_zero": name == "percent"}
    yield "Learning rate", curves("lr"), {"from_zero": True}
    yield "Batch size", curves("batch_tokens"), {"unit": "tokens", "from_zero": True}
    unit = "before clipping, running mean"
    yield "Gradient norm", curves("grad_norm"), {"unit": unit, "log_y": True, **mean}
    speeds = curves("tokens_per_second")
    yield "Throughput", speeds, {"unit": "tokens per second", "from_zero": True, **mean}


def _without(curves: dict[str, Curve]) -> str:
    """Return words on the runs that have no curve."""
    names = [name for name, curve in curves.items() if not curve]
    if len(names) > MAX_NAMED:
        return f", not measured in {len(names)} of {counted(len(curves), 'run')}"
    return f", not measured in {' and '.join(names)}" if names else ""


def _results(record: Record) -> list[str]:
    """Return the cells of a run's row after its name."""
    last, val = record.lines[-1], [value for _, value in record.series("val_loss")]
    losses = [f"{val[-1]:.4f}", f"{min(val):.4f}"] if val else ["n/a", "n/a"]
    return [
        *losses,
        format_known(smoothed_loss(record.lines), ".4f"),
        amount(last["tokens"]),
        f"{last['step']:,}",
        record.parameters,
        duration(record.seconds),
    ]


def _table_by_run(keys: list[str], rows: list[list[str]]) -> str:
    return (
        table(["setting", *keys], [[_setting(name), *cells] for name, *cells in rows])
        if rows
        else ""
    )


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


def _setting(name: str) -> str:
    """Return how a setting is called beside the results of runs."""
    return "tokens planned" if name == "tokens" else name


def _compared_figures(records: list[Record]) -> list[list[str]]:
    """Return a row for each figure of any run's evaluations."""
    found = [
        {(one.subject, one.measure): format_figure(one) for one in figures(record.evaluations)}
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
    for number, (key, record) in enumerate(zip(keys, records, strict=True)):
        if record.samples:
            step = record.samples[-1]["step"]
            newest = [sample for sample in record.samples if sample["step"] == step]
            cards.append(sample_card(key, newest, number))
    return sample_gallery(cards)
