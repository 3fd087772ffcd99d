"""`gpt train --report RUN...`: the report of one run drawn again, or of several beside each other.
Trains nothing and needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli.console import print_file, print_json
from gptcli.errors import UsageError
from gptcli.files import atomic_write, claim_file

if TYPE_CHECKING:
    from gptcli.trainer.report_record import Record


def draw(runs: list[Path], out: str | None, *, force: bool, as_json: bool) -> None:
    """Write the page, or for FILE.svg the losses alone, and print where it is. One run's own
    report.html is drawn over, as training does; any other file needs --force.

    Raises UsageError, and InputError where one of `runs` is no run folder.
    """
    from gptcli.trainer.report import REPORT, comparison, page
    from gptcli.trainer.report_record import read_record

    if not runs:
        raise UsageError(
            "RUN is missing", hint="name one or several run folders: gpt train --report runs/350M"
        )
    if out is None and len(runs) > 1:
        raise UsageError(
            "where several runs are compared, the page needs a name",
            where="--out",
            hint="for example -o compare.html",
        )
    path = runs[0] / REPORT if out is None else Path(out)
    records = [read_record(run) for run in dict.fromkeys(runs)]
    if path.suffix == ".svg":
        text = picture(records)
    else:
        text = page(records[0]) if len(records) == 1 else comparison(records, path.parent)
    if out == "-":
        print_file(text)
        return
    if out is not None:
        claim_file(path, force=force)
    with atomic_write(path, "w") as file:
        file.write(text)
    print_json(
        "train", {"report": str(path), "runs": [str(run) for run in runs]}
    ) if as_json else print(path)


def picture(records: list[Record]) -> str:
    """The losses of one run, or the validation losses of several (where none was measured, the
    training losses), as SVG for a document.
    """
    from gptcli.cli.cost_svg import Scale, Series, curves
    from gptcli.trainer.report import series, told_apart
    from gptcli.trainer.report_chart import framed, short, smoothed, thinned

    losses = [
        {name: thinned(series(record.lines, name)) for name in ("loss", "val_loss")}
        for record in records
    ]
    if len(records) == 1:
        one = records[0]
        drawn = {
            "training, running mean": smoothed(losses[0]["loss"]),
            "validation": losses[0]["val_loss"],
        }
        title, about = (
            one.title,
            f"{one.parameters} parameters, {short(one.lines[-1]['tokens'])} tokens",
        )
    else:
        name = "val_loss" if all(loss["val_loss"] for loss in losses) else "loss"
        names = told_apart([record.folder for record in records])
        drawn = {key: smoothed(loss[name]) for key, loss in zip(names, losses, strict=True)}
        title, about = (
            f"{len(records)} runs",
            "validation loss" if name == "val_loss" else "training loss, running mean",
        )
    drawn = {name: curve for name, curve in drawn.items() if curve}
    frame, _, cut = framed(list(drawn.values()), log_x=False, from_zero=False)
    shown = [
        Series(
            name=name,
            points=[point for point in curve if point[1] <= frame.y_high],
            line=True,
            dots=len(curve) < 60,
        )
        for name, curve in drawn.items()
    ]
    x = Scale(title="tokens", low=0, high=frame.x_high, log=False, write=short)
    y = Scale(title="nats a token", low=frame.y_low, high=frame.y_high, log=False)
    return curves(title, about, shown, x, y, [] if cut is None else [f"begins at {cut:.3g}"])
