"""Modes of `gpt train` on finished or several runs: the seeds of `--seeds`, the Makefile of
`--sweep`, whose targets are its runs, `--report`, which draws one run or compares several, and
`--export`.
"""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gptcli.cli.console import ConsoleEvents, print_file, print_made
from gptcli.cli.dashboard import Dashboard
from gptcli.cli.options import option, read_option
from gptcli.cli.train import (
    events_of_process,
    fetch_initial_model,
    fetch_missing,
    prepare,
    train_and_tell,
)
from gptcli.cli.train_options import OPTIONS, READERS, given_values
from gptcli.errors import RunError, UsageError
from gptcli.files import atomic_write, claim_file, write_json
from gptcli.model.source import REPORT, WEIGHTS
from gptcli.numbers import counted
from gptcli.runs.comparison import draw
from gptcli.runs.groups import expanded, grouped
from gptcli.runs.record import read_record
from gptcli.runtime import is_main
from gptcli.shards.manifest import read_manifest
from gptcli.trainer.resolve import resolve_run

MAKEFILE, COMMANDS, COMPARISON = "Makefile", "commands.txt", "compare.html"
SEEDS_REPORT = "seeds.json"  # written last by a run of several seeds


def train_seeds(
    count: int,
    options: dict[str, Any],
    config: Path | None,
    *,
    resume: bool,
    force: bool,
    strict: bool,
    as_json: bool,
) -> None:
    """Train the runs of several seeds one after another, and print their folder or their mean.

    Raises RunError if the finished runs cannot be compared.
    """
    whole = given_values(options, config, resume=False)
    fetch_initial_model(whole)
    out, first = Path(whole.values["out"]), whole.values.get("seed", 0)
    events = events_of_process(Dashboard(str(out)))
    folders = [out / f"seed-{seed}" for seed in range(first, first + count)]
    for seed, folder in enumerate(folders, first):
        own = {**options, "seed": str(seed), "out": str(folder)}
        if (store := whole.values.get("checkpoint_to")) is not None:
            own["checkpoint_to"] = f"{store}/{folder.name}"
        if resume:
            fetch_missing(own, config)
        given = given_values(own, config, resume=resume)
        manifest = read_manifest(Path(given.values.get("data", "shards")))
        plan = resolve_run(given, manifest.vocab_size)
        run = prepare(plan, manifest, events, resume=resume, force=force, strict=strict)
        if run is None:
            events.info(f"{folder} is finished")
        else:
            train_and_tell(run, events)
    if not is_main():
        return
    groups = grouped([read_record(folder) for folder in folders])
    if len(groups) != 1:
        raise RunError(
            "the runs of the seeds differ in more than their seed, or have no finite loss",
            where=out,
            hint="--force starts all of them over",
        )
    mean = groups[0].interval
    low_high: list[float | None] = [None, None]
    if mean.half_width is not None:
        low_high = [mean.mean - mean.half_width, mean.mean + mean.half_width]
    summary = {
        "out": str(out),
        "runs": [str(folder) for folder in folders],
        "losses": groups[0].values,
        "mean": mean.mean,
        "low": low_high[0],
        "high": low_high[1],
    }
    write_json(out / SEEDS_REPORT, {"schema": "gpt.train.seeds/1", **summary})
    events.info(f"loss {mean} (95 %, {count} seed{'s' * (count > 1)})")
    print_made(out, summary, as_json=as_json)


def write_sweep_files(
    items: list[str],
    options: dict[str, Any],
    config: Path | None,
    seeds: int | None,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """Write the Makefile of a sweep, and print its path.

    Raises UsageError for an option that does not exist, is given as well, or has a wrong value.
    """
    sweep = parse_sweep(items)
    for key, values in sweep.items():
        if key not in READERS:
            from gptcli.cli.aliases import key_hint

            raise UsageError(
                f"there is no option {option(key)}",
                field="sweep",
                hint=key_hint("gpt train", key, READERS),
            )
        if key in options:
            raise UsageError(f"{option(key)} is given and swept", field="sweep", hint="choose one")
        for text in values:
            read_option(key, text, READERS[key])
    arguments = [] if config is None else ["--config", str(config)]
    for name, given in options.items():
        if name not in ("out", "checkpoint_to"):
            text = ",".join(given) if isinstance(given, list) else str(given)
            arguments += [option(name)] if given is True else [option(name), text]
    whole = given_values(options, config, resume=False).values
    out = Path(whole["out"])
    claim_file(out / MAKEFILE, force=force)
    runs = write_sweep(out, sweep, arguments, seeds=seeds, store=whole.get("checkpoint_to"))
    path = out / MAKEFILE
    print_made(path, {"makefile": str(path), "runs": list(map(str, runs))}, as_json=as_json)


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
        f"# {counted(len(runs), 'run')}: make -f {shlex.quote(str(out / MAKEFILE))}, with -j N "
        "for N at a time",
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


def export_model(
    models: list[Path], options: dict[str, Any], *, force: bool, as_json: bool
) -> None:
    """Write a model for other programs, and print the path. Raises UsageError, or InputError."""
    from gptcli import api

    if len(models) != 1:
        raise UsageError(
            f"--export takes one model, not {len(models)}" if models else "the model is missing",
            hint="name one: gpt train --export runs/350M -o 350M.gguf",
        )
    if (out := options.get("out")) is None:
        raise UsageError(
            "the output is missing",
            where="--out",
            hint="-o FILE.gguf is for llama.cpp, -o FOLDER for transformers",
        )
    chosen = {
        name: read_option(name, options[name], OPTIONS[name].reader_of(name))
        for name in ("checkpoint", "precision")
        if name in options
    }
    api.export_model(
        models[0],
        out,
        checkpoint=chosen.get("checkpoint"),
        precision=chosen.get("precision", "fp32"),
        force=force,
        events=ConsoleEvents(),
    )
    print_made(out, {"model": str(models[0]), "export": out}, as_json=as_json)


def draw_report(runs: list[Path], out: str | None, *, force: bool, as_json: bool) -> None:
    """Write the page of one run, or of several compared, and print its path; FILE.svg is a plot.

    The report.html of a single run is replaced, any other file only with `force`. Raises
    UsageError, or InputError if one of `runs` is no run folder.
    """
    if not runs:
        raise UsageError(
            "RUN is missing", hint="name one or several run folders: gpt train --report runs/350M"
        )
    runs = expanded(runs)
    if out is None and len(runs) > 1:
        raise UsageError(
            "the page that compares several runs needs a name",
            where="--out",
            hint="for example -o compare.html",
        )
    path = runs[0] / REPORT if out is None else Path(out)
    text = draw(runs, path)
    if out == "-":
        print_file(text)
        return
    if out is not None:
        claim_file(path, force=force)
    with atomic_write(path, "w") as file:
        file.write(text)
    print_made(path, {"report": str(path), "runs": [str(run) for run in runs]}, as_json=as_json)
