"""Figures of runs: losses for `gpt train --report -o FILE.svg`, accuracies for `gpt eval --plot`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.errors import InputError, UsageError
from gptcli.files import atomic_write, claim_file, read_json
from gptcli.numbers import amount, counted
from gptcli.runs.charts import Series, line_chart
from gptcli.runs.curves import MAX_DOTTED_POINTS, choose_axes, running_mean, thin
from gptcli.runs.record import EVAL_SCHEMA, NON_PERCENT_METRICS, Record, distinct_names
from gptcli.runs.svg import Scale

if TYPE_CHECKING:
    pass


def check_plot(path: Path) -> None:
    """Raise UsageError unless the file's name ends with .svg."""
    if path.suffix.lower() != ".svg":
        raise UsageError(
            f"{path} does not end in .svg",
            field="plot",
            code="not_svg",
            hint="plots are SVG files: give a name such as plot.svg",
        )


def write_plot(path: Path, svg: str) -> None:
    """Write a figure; the file appears whole or not at all."""
    with atomic_write(path, "w") as file:
        file.write(svg)


# training runs


def loss_plot(records: Sequence[Record]) -> str:
    """Plot the training and validation loss of one run, or compare one loss of several runs.

    Several runs are compared by validation loss if each of them measured it, else by training loss.
    """
    losses = [
        {name: thin(record.series(name)) for name in ("loss", "val_loss")} for record in records
    ]
    if len(records) == 1:
        one = records[0]
        drawn = {
            "training, running mean": running_mean(losses[0]["loss"]),
            "validation": losses[0]["val_loss"],
        }
        title = one.title
        subtitle = (
            f"{one.parameters} parameters, {counted(one.lines[-1]['tokens'], 'token', amount)}"
        )
    else:
        name = "val_loss" if all(loss["val_loss"] for loss in losses) else "loss"
        names = distinct_names([record.folder for record in records])
        drawn = {key: running_mean(loss[name]) for key, loss in zip(names, losses, strict=True)}
        title = counted(len(records), "run")
        subtitle = "validation loss" if name == "val_loss" else "training loss, running mean"
    drawn = {name: curve for name, curve in drawn.items() if curve}
    axes = choose_axes(list(drawn.values()))
    series = [
        Series(
            name,
            [point for point in curve if point[1] <= axes.y.high],
            line=True,
            dots=len(curve) < MAX_DOTTED_POINTS,
        )
        for name, curve in drawn.items()
    ]
    x, y = replace(axes.x, title="tokens"), replace(axes.y, title="nats per token")
    notes = [] if axes.peak is None else [f"begins at {axes.peak:.3g}"]
    return line_chart(title, subtitle, series, x, y, notes)


# evaluations


def plot_reports(reports: Sequence[Path], out: Path, *, force: bool) -> None:
    """Write the accuracy plot of evaluation reports to `out`.

    Raises UsageError if there is no report or `out` exists and `force` is not set, InputError if a
    file is not a report or none has an accuracy.
    """
    check_plot(out)
    claim_file(out, force=force)
    if not reports:
        raise UsageError(
            "{option:plot} draws reports", hint="gpt eval --plot few-shot.svg runs/*/eval.json"
        )
    scores = [score for path in reports for score in read_scores(path)]
    if not scores:
        raise InputError("the reports hold no task with an accuracy", where=reports[0])
    write_plot(out, accuracy_plot(scores))


def read_scores(path: Path) -> list[dict[str, Any]]:
    """Read {task, shots, percent, parameters, model} of each task of an evaluation report.

    A task's score is its first percentage, by the first of its scoring rules. Raises InputError if
    the file is not a report of `gpt eval`.
    """
    report = read_json(path)
    if not isinstance(report, dict) or report.get("schema") != EVAL_SCHEMA:
        raise InputError(
            "not a report of gpt eval", where=path, hint="gpt eval ... -o report.json writes one"
        )
    found: dict[str, dict[str, Any]] = {}
    for result in report["tasks"]:
        percents = [name for name in result["metrics"] if name not in NON_PERCENT_METRICS]
        if percents and result["task"] not in found:
            found[result["task"]] = {
                "task": result["task"],
                "shots": result["shots"],
                "percent": result[percents[0]],
                "parameters": report["parameters"],
                "model": str(report.get("model", "")),
            }
    return list(found.values())


def accuracy_plot(scores: Sequence[dict[str, Any]]) -> str:
    """Plot scores {task, shots, percent, parameters, model}, at least one.

    The x axis is the number of solved examples if the scores have several, else the model's size.
    A line joins the scores of one model, or of one model per size: never two of one size.
    """
    tasks = list(dict.fromkeys(score["task"] for score in scores))
    sizes = sorted({score["parameters"] for score in scores})
    shots = sorted({score["shots"] for score in scores})
    highest = max(score["percent"] for score in scores)
    y = Scale("accuracy, percent", 0, 100 if highest > 50 else max(1.0, 1.2 * highest), log=False)
    points: dict[str, list[tuple[float, float]]] = {}
    if len(shots) > 1:
        x = Scale("solved examples in the context (K)", 0, max(shots), log=False)
        for task in tasks:
            for size in sizes:
                some = [
                    score
                    for score in scores
                    if (score["task"], score["parameters"]) == (task, size)
                ]
                models = list(dict.fromkeys(score.get("model", "") for score in some))
                for model in models:
                    words = [task] * (len(tasks) > 1) + [amount(size)] + [model] * (len(models) > 1)
                    points[", ".join(words)] = sorted(
                        (score["shots"], score["percent"])
                        for score in some
                        if score.get("model", "") == model
                    )
    else:
        x = Scale("parameters, logarithmic", sizes[0] / 2, sizes[-1] * 2, format=amount)
        for task in tasks:
            points[task] = sorted(
                (score["parameters"], score["percent"]) for score in scores if score["task"] == task
            )
    series = [
        Series(name, curve, line=len({x for x, _ in curve}) == len(curve) > 1)
        for name, curve in points.items()
        if curve
    ]
    title = f"{tasks[0]}: accuracy" if len(tasks) == 1 else "Accuracy"
    subtitle = "by solved examples and size" if len(shots) > 1 else "by size"
    return line_chart(title, subtitle, series, x, y)


# costs
