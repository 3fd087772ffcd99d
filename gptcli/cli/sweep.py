"""A sweep of runs as a Makefile, whose targets are the runs, and as one command a line for the tasks
of a job array.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from gptcli.errors import UsageError
from gptcli.files import atomic_write
from gptcli.model.source import WEIGHTS

MAKEFILE, COMMANDS, COMPARISON = "Makefile", "commands.txt", "compare.html"
SEEDS_REPORT = "seeds.json"  # written last by a run of several seeds


def parse_sweep(items: Sequence[str]) -> dict[str, list[str]]:
    """Return the values of each key of "lr=1e-3,2e-3", whose commas may have been split.

    Raises UsageError if it has another form.
    """
    found: dict[str, list[str]] = {}
    key = ""
    for item in (part.strip() for text in items for part in text.split(",")):
        name, equals, value = item.partition("=")
        if equals:
            key, item = name.strip().lstrip("-").replace("-", "_"), value.strip()
            if key in found:
                raise _malformed(f"{key} is given twice")
            found[key] = []
        if not key or not item:
            raise _malformed(f"{item!r} has no values" if not key else f"{key} has an empty value")
        found[key].append(item)
    return found


def write_sweep(
    out: Path,
    sweep: Mapping[str, Sequence[str]],
    arguments: Sequence[str],
    *,
    seeds: int | None = None,
    store: str | None = None,
) -> list[Path]:
    """Write Makefile and commands.txt to `out`, and return the run folders of the sweep.

    Each run is `gpt train` with `arguments` and its own values, and has a folder of its own in the
    `store` of checkpoints. Paths are as seen from the current
    folder.
    """
    runs, commands = [], []
    last = WEIGHTS if seeds is None else SEEDS_REPORT
    for values in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, values, strict=True))
        run = out / ",".join(f"{key}-{_plain(value)}" for key, value in chosen.items())
        options = [
            word for key, value in chosen.items() for word in (f"--{key.replace('_', '-')}", value)
        ]
        several = [] if seeds is None else ["--seeds", str(seeds)]
        if store is not None:
            several += ["--checkpoint-to", f"{store}/{run.name}"]
        words = ["gpt", "train", *arguments, *options, *several, "-o", str(run), "--resume"]
        runs.append(run)
        commands.append(shlex.join(words))
    if len(set(runs)) < len(runs):
        raise _malformed("two runs have the same values")
    page = out / COMPARISON
    compare = shlex.join(["gpt", "train", "--report", *map(str, runs), "-o", str(page), "--force"])
    targets = [_target(run / last) for run in runs]
    lines = [
        f"# {len(runs)} runs: make -f {shlex.quote(str(out / MAKEFILE))}, with -j N for N at a time",
        f"all: {_target(page)}",
        ".PHONY: all",
        "",
        f"{_target(page)}: {' '.join(targets)}",
        f"\t{_recipe(compare)}",
    ]
    for target, command in zip(targets, commands, strict=True):
        lines += ["", f"{target}:", f"\t{_recipe(command)}"]
    with atomic_write(out / COMMANDS, "w") as file:
        file.writelines(f"{command}\n" for command in commands)
    with atomic_write(out / MAKEFILE, "w") as file:
        file.write("\n".join([*lines, ""]))
    return runs


def _plain(value: str) -> str:
    """Return a value as a part of a folder's name, which make can have as a target."""
    return re.sub(r"[^A-Za-z0-9.+-]", "_", value)


def _target(path: Path) -> str:
    """Return a path as a target of make. Raises UsageError if make cannot have it."""
    if re.search(r"[\s:=#%$\\\"']", str(path)):
        raise UsageError(
            "make cannot have a target of this name",
            where=path,
            field="out",
            code="not_a_target",
            hint="an {option:out} of letters, digits, dots, dashes and slashes",
        )
    return str(path)


def _recipe(command: str) -> str:
    return command.replace("$", "$$")


def _malformed(what: str) -> UsageError:
    return UsageError(
        what,
        field="sweep",
        code="not_a_sweep",
        hint="one option with its values: {option:sweep} lr=1e-3,2e-3; repeat it for another option",
    )
