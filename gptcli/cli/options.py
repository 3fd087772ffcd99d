"""Options that several commands share, and the values of options in configuration files.

The precedence is option > --config file > preset > default.

A command declares its own options with `value` and `flag`, and shared ones by name with `shared`.
Every help text must stand alone: shell completion and the JSON schema of `gpt train --config` show
one text at a time.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

import typer

from gptcli import settings, toml_text
from gptcli.errors import InputError, UsageError, message_of
from gptcli.files import atomic_write, read_text, read_toml, similar
from gptcli.settings import (
    NUMBERS,
    AutoOr,
    Number,
    OneOf,
    Resolved,
    boolean,
    name_list,
    nonempty_text,
)

T = TypeVar("T")
Reader = Callable[[Any], Any]
"""Reader of an option's value, as typed or from TOML; raises UsageError."""

SYNONYMS = {"out": "output", "output": "out"}  # two spellings of one key: a command has one of them
QUANTITY = r"^\s*([0-9][0-9_]*\.?[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+)\s*[kKmMbBgGtT]?\s*$"
TEXT_SCHEMAS: dict[Reader, dict[str, Any]] = {
    nonempty_text: {"type": "string"},
    boolean: {"type": "boolean"},
    name_list: {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
}
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
    "field": ("NAME", "Field or column of the text; a.b is the field b inside a."),
    "input_format": (
        "F",
        "Format of every input: text, jsonl, json, csv, tsv, parquet, warc or html; auto goes by "
        "names and first bytes.",
    ),
    "eot_in_text": (
        "",
        "Divide documents where a text or JSON line spells <|endoftext|>; otherwise it is text.",
    ),
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


def number(name: str) -> Callable[[str | int | float], Any]:
    """Return the reader of a numeric option; its UsageError names the option."""
    return lambda text: read_option(name, text, NUMBERS[name])


def option(name: str) -> str:
    """Return the option of a parameter: n_layer as --n-layer."""
    return "--" + name.replace("_", "-")


def read_option(name: str, text: Any, convert: Callable[[Any], T]) -> T:
    """Return `convert(text)` of an option's value. Raises UsageError that names the option."""
    try:
        return convert(text)
    except UsageError as error:
        raise UsageError(error.what, field=name, code=error.code, hint=error.hint) from None


def read_config(path: Path, names: Mapping[str, Any], command: str = "gpt") -> dict[str, Any]:
    """Return the values of a TOML file whose keys are among `names`.

    Each value passes through its converter (`names[key]`, or None). Keys are the option names of
    `command`, with - or _. Raises InputError with file, line and the closest valid key.
    """
    if not path.exists():
        close = similar(path)
        raise InputError(
            "no such configuration file",
            where=path,
            hint=None if close is None else f"did you mean {close}?",
        )
    table, text = read_toml(path), read_text(path)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        if name not in names:
            name = SYNONYMS.get(name, name)
        where = f"{path}:{_line_of(key, text)}"
        if name not in names:
            from gptcli.cli.aliases import key_hint

            raise InputError(
                f"unknown key {key!r}", where=where, hint=key_hint(command, key, names)
            )
        convert = names[name]
        try:
            values[name] = convert(value) if convert else value
        except (UsageError, ValueError, TypeError) as error:
            raise InputError(f"{key}: {message_of(error)}", where=where) from None
    return values


def _line_of(key: str, text: str) -> int:
    pattern = re.compile(rf"""^\s*\[?\s*["']?{re.escape(key)}["']?\s*[=\].]""")
    return next(
        (number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1
    )


def write_resolved(path: Path, resolved: Resolved, **extra: Any) -> None:
    """Write the resolved configuration to `path` as TOML (`resolved_toml`)."""
    with atomic_write(path, "w") as file:
        file.write(resolved_toml(resolved, **extra))


def resolved_toml(resolved: Resolved, **extra: Any) -> str:
    """Return `resolved` as TOML (`gptcli.settings.resolved_toml`), made by this command line."""
    return settings.resolved_toml(resolved, command_line(), **extra)


def command_line() -> str:
    """Return this command line, quoted for a shell, on one line."""
    return toml_text.comment(shlex.join(["gpt", *sys.argv[1:]]))


def config_schema(
    title: str, readers: Mapping[str, Reader], help_texts: Mapping[str, str]
) -> dict[str, Any]:
    """Return the JSON schema of a configuration file: type, range and help text of every key."""
    named = {
        name: {**_value_schema(reader), "description": help_texts[name]}
        for name, reader in readers.items()
    }
    dashed = {
        name.replace("_", "-"): {"$ref": f"#/properties/{name}"} for name in named if "_" in name
    }
    dashed |= {
        other: {"$ref": f"#/properties/{name}"} for other, name in SYNONYMS.items() if name in named
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": title,
        "description": 'Quantities take suffixes in quotes: "12k", "0.5M", "300B". '
        "Missing values come from the paper or the machine.",
        "type": "object",
        "properties": named | dashed,
        "additionalProperties": False,
    }


def _value_schema(reader: Reader) -> dict[str, Any]:
    """Return the schema of the values that a reader accepts."""
    if isinstance(reader, OneOf):
        return {"enum": list(reader.names)}
    if isinstance(reader, AutoOr):
        return {"anyOf": [{"const": "auto"}, _value_schema(reader.reader)]}
    if isinstance(reader, Number):
        types = ["integer", "number", "string"] if reader.whole else ["number", "string"]
        low = "exclusiveMinimum" if reader.above else "minimum"
        high = "exclusiveMaximum" if reader.below else "maximum"
        return {"type": types, low: reader.low, high: reader.high, "pattern": QUANTITY}
    return dict(TEXT_SCHEMAS.get(reader, {"type": "string"}))


def help_texts(command: Callable[..., None]) -> dict[str, str]:
    """Return the help text of each option of a command, by its parameter's name."""
    hints = get_type_hints(command, include_extras=True)
    return {
        name: get_args(hint)[1].help
        for name, hint in hints.items()
        if get_origin(hint) is Annotated
    }
