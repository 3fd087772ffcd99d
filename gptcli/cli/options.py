"""Options that several commands share, so that each has one name, one metavar and one help text.

A command declares its own options with `value` and `flag`, and shared ones by name with `shared`.
Every help text must stand alone: shell completion and the JSON schema of `gpt train --config` show
one text at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from gptcli.cli.config import number

# panels of `--help`
INPUT, OUTPUT, MODEL, RUN, MACHINE = "Input", "Output", "Model", "Run", "Machine"

NAMES: dict[str, tuple[str, ...]] = {  # spellings, if not only --NAME
    "out": ("--out", "--output", "-o"),
    "tokenizer": ("--tokenizer", "-t"),
    "json": ("--json",),
}
SHARED: dict[str, tuple[str, str]] = {  # option: its metavar, empty for a flag, and its help
    "size": ("NAME", "Model size of the papers."),
    "n_layer": ("N", "Number of layers."),
    "n_head": ("N", "Number of attention heads."),
    "d_model": ("N", "Model width, the dimension of an embedding."),
    "n_ctx": ("N", "Context length, in tokens."),
    "vocab_size": ("N", "Vocabulary size."),
    "layout": (
        "AXES",
        "Processes per axis: data parallel, sharded, tensor and pipeline parallel, for example "
        "dp=2,shard=4,tp=2,pp=2.",
    ),
    "micro_batch": ("N", "Sequences per process in one forward pass."),
    "recompute": (
        "WHAT",
        "Activations to recompute in the backward pass: none, selective or full.",
    ),
    "checkpoint": ("N", "Step of the run's checkpoint to read."),
    "tokenizer": (
        "T",
        "Tokenizer: a tokenizer.json, a folder that contains one (a run, shards) or the two "
        "files of GPT-2 or GPT-1, or the name gpt2.",
    ),
    "documents": ("KIND", "Unit of a text file to treat as one document: file, line or paragraph."),
    "config": ("FILE", "TOML file that sets any of these options."),
    "device": ("NAME", "Device to run on: auto, cpu, cuda or cuda:1."),
    "json": ("", "Print a report as one JSON object on stdout."),
    "markdown": ("", "Print tables as Markdown."),
}


def value(
    help: str,
    metavar: str,
    panel: str | None = None,
    shown: bool | str = True,
    *,
    names: tuple[str, ...] = (),
    parser: Callable[[str], Any] | None = None,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """Return an option with a value; `shown` is the default that `--help` prints, or False."""
    return typer.Option(
        *names,
        metavar=metavar,
        show_default=shown,
        rich_help_panel=panel,
        help=help,
        parser=parser,
        autocompletion=complete,
    )


def quantity(
    name: str, help: str, panel: str | None = None, shown: bool | str = True, *, metavar: str = "N"
) -> Any:
    """Return an option with a number, such as 12k or 0.5M, in the range of the parameter `name`."""
    return value(help, metavar, panel, shown, parser=number(name))


def flag(name: str, help: str, panel: str | None = None) -> Any:
    """Return an option without a value; `name` is its spelling, such as --plan."""
    return typer.Option(name, rich_help_panel=panel, help=help)


def shared(
    name: str,
    panel: str | None = None,
    shown: bool | str = True,
    *,
    numeric: bool = False,
    help: str | None = None,
    metavar: str | None = None,
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """Return the shared option `name`; `numeric` parses its value as a number in its range.

    A command whose option means something more specific gives its own `help` or `metavar`.
    """
    default_metavar, text = SHARED.get(name, ("", ""))
    if not (metavar or default_metavar):
        return flag(NAMES.get(name, (f"--{name.replace('_', '-')}",))[0], help or text, panel)
    return value(
        help or text,
        metavar or default_metavar,
        panel,
        shown,
        names=NAMES.get(name, ()),
        parser=number(name) if numeric else None,
        complete=complete,
    )


def out(help: str, metavar: str = "FILE", panel: str = OUTPUT, shown: bool | str = True) -> Any:
    """Return -o/--out/--output, the file or folder that a command writes."""
    return value(help, metavar, panel, shown, names=NAMES["out"])


def force(help: str = "Replace existing output.", panel: str = OUTPUT) -> Any:
    """Return --force."""
    return flag("--force", help, panel)


def resume(help: str, panel: str = OUTPUT) -> Any:
    """Return --resume."""
    return flag("--resume", help, panel)


def seed(help: str, panel: str | None = None) -> Any:
    """Return --seed, 0 unless given."""
    return quantity("seed", help, panel, "0")


def precision(kinds: str, panel: str, shown: bool | str) -> Any:
    """Return --precision with the kinds that a command supports."""
    return value(f"Precision of matrix products: {kinds}.", "KIND", panel, shown)
