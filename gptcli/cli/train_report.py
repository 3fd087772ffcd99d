"""`gpt train --report RUN...`: the report of one run drawn again, or of several beside each other. Trains nothing and needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path

from gptcli.cli.console import print_json
from gptcli.errors import UsageError
from gptcli.files import atomic_write, claim_file


def draw(runs: list[Path], out: str | None, *, force: bool, as_json: bool) -> None:
    """Write the page and print where it is. One run's own report.html is drawn over, as training does; any other file needs --force.

    Raises UsageError, and InputError where one of `runs` is no run folder.
    """
    from gptcli.trainer.report import REPORT, comparison, page
    from gptcli.trainer.report_record import read_record

    if not runs:
        raise UsageError("RUN is missing", hint="name one or several run folders: gpt train --report runs/350M")
    if out is None and len(runs) > 1:
        raise UsageError("where several runs are compared, the page needs a name", where="--out", hint="for example -o compare.html")
    path = runs[0] / REPORT if out is None else Path(out)
    records = [read_record(run) for run in runs]
    text = page(records[0]) if len(records) == 1 else comparison(records, path.parent)
    if out == "-":
        sys.stdout.write(text)
        return
    if out is not None:
        claim_file(path, force=force)
    with atomic_write(path, "w") as file:
        file.write(text)
    print_json("train", {"report": str(path), "runs": [str(run) for run in runs]}) if as_json else print(path)
