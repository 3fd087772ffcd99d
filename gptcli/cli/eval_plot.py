"""`gpt eval --plot`: accuracy against the number of solved examples, a curve a model, from the
reports of several evaluations.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gptcli.cli.cost_plot import check_plot, write_plot
from gptcli.cli.cost_svg import Scale, Series, curves
from gptcli.cli.eval_report import PLAIN
from gptcli.errors import InputError, UsageError
from gptcli.files import claim_file, read_json
from gptcli.numbers import amount

SCHEMA = "gpt.eval/1"
Point = tuple[int, float]


def plot_reports(reports: Sequence[Path], out: Path, *, force: bool) -> None:
    """Draw the first percentage of every task in the reports: against K where they have several,
    else against the model's size.

    Raises UsageError where there is nothing to draw, InputError where a file is not a report.
    """
    check_plot(out)
    claim_file(out, force=force)
    if not reports:
        raise UsageError(
            "--plot draws reports", hint="gpt eval --plot few-shot.svg runs/*/eval.json"
        )
    scores = [score for path in reports for score in _scores(path)]
    if not scores:
        raise InputError("the reports hold no task with an accuracy", where=reports[0])
    write_plot(out, draw(scores))


def draw(scores: Sequence[dict[str, Any]]) -> str:
    """The picture of scores {task, parameters, shots, percent}."""
    tasks = list(dict.fromkeys(score["task"] for score in scores))
    sizes = sorted({score["parameters"] for score in scores})
    shots = sorted({score["shots"] for score in scores})
    highest = max(score["percent"] for score in scores)
    y = Scale("accuracy, percent", 0, 100 if highest > 50 else max(1.0, 1.2 * highest), log=False)
    if len(shots) > 1:
        x = Scale("solved examples in the context (K)", 0, max(shots), log=False)
        names = {
            (task, size): f"{task}, {amount(size)}" if len(tasks) > 1 else amount(size)
            for task in tasks
            for size in sizes
        }
        points = {key: _points(scores, *key, "shots") for key in names}
    else:
        x = Scale("parameters, logarithmic", sizes[0] / 2, sizes[-1] * 2, write=amount)
        names = {(task, shots[0]): task for task in tasks}
        points = {
            key: sorted(
                (score["parameters"], score["percent"])
                for score in scores
                if score["task"] == key[0]
            )
            for key in names
        }
    series = [
        Series(name, points[key], line=len(points[key]) > 1)
        for key, name in names.items()
        if points[key]
    ]
    title = f"{tasks[0]}: accuracy" if len(tasks) == 1 else "Accuracy"
    return curves(
        title, "by solved examples and size" if len(shots) > 1 else "by size", series, x, y, []
    )


def _points(scores: Sequence[dict[str, Any]], task: str, size: int, along: str) -> list[Point]:
    return sorted(
        (score[along], score["percent"])
        for score in scores
        if (score["task"], score["parameters"]) == (task, size)
    )


def _scores(path: Path) -> list[dict[str, Any]]:
    """The first percentage of each task of a report, by the first of its scoring rules."""
    report = read_json(path)
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise InputError(
            "not a report of gpt eval", where=path, hint="gpt eval ... -o report.json writes one"
        )
    found: dict[str, dict[str, Any]] = {}
    for result in report["tasks"]:
        percents = [name for name in result["metrics"] if name not in PLAIN]
        if percents and result["task"] not in found:
            score = {
                "task": result["task"],
                "shots": result["shots"],
                "percent": result[percents[0]],
            }
            found[result["task"]] = {**score, "parameters": report["parameters"]}
    return list(found.values())
