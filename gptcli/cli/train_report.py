"""`gpt train --report RUN...`: the report of one run drawn again, or of several beside each other.
Trains nothing and needs no torch.
"""

from __future__ import annotations

from pathlib import Path

from gptcli.cli.console import print_file, print_json
from gptcli.errors import UsageError
from gptcli.files import atomic_write, claim_file


def draw(runs: list[Path], out: str | None, *, force: bool, as_json: bool) -> None:
    """Write the page, or for FILE.svg the losses alone, and print where it is. One run's own
    report.html is drawn over, as training does; any other file needs --force.

    Raises UsageError, and InputError where one of `runs` is no run folder.
    """
    from gptcli.model.source import REPORT
    from gptcli.runs.plots import loss_plot
    from gptcli.runs.record import read_record
    from gptcli.runs.report import comparison_page, run_page

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
        text = loss_plot(records)
    else:
        text = run_page(records[0]) if len(records) == 1 else comparison_page(records, path.parent)
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
