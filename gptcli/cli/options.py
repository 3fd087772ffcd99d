"""Options that several commands share, and the values of options in configuration files.

The precedence is option > --config file > preset > default.

A command declares its own options with `value` and `flag`, and shared ones by name with `shared`.
Options that are also keys of a configuration file are rows of a table of `Option`: `declaring` adds
them to the command, `readers` reads their values.
Every help text must stand alone: shell completion and the JSON schema of `gpt train --config` show
one text at a time.
"""

from __future__ import annotations

import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo

from gptcli import settings, toml_json
from gptcli.errors import UsageError
from gptcli.files import atomic_write
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
R = TypeVar("R")
Reader = Callable[[Any], Any]
"""Reader of an option's value, as typed or from TOML; raises UsageError."""

SYNONYMS = {"out": "output", "output": "out"}  # two spellings of one key: a command has one of them
NUMBER = r"([0-9][0-9_]*\.?[0-9]*([eE][+-]?[0-9]+)?|\.[0-9]+)"
QUANTITY = rf"^\s*{NUMBER}\s*[kKmMbBgGtT]?\s*$"
WITH_UNIT = rf"^\s*\$?\s*{NUMBER}\s*([A-Za-z$%][A-Za-z/$ -]*)?\s*$"
TEXT_SCHEMAS: dict[Reader, dict[str, Any]] = {
    nonempty_text: {"type": "string"},
    boolean: {"type": "boolean"},
    name_list: {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
}
# panels of `--help`
INPUT, OUTPUT, MODEL, RUN, MACHINE = "Input", "Output", "Model", "Run", "Machine"

NAMES: dict[str, tuple[str, ...]] = {  # spellings, if not only --NAME
    **dict.fromkeys(("out", "output"), ("--out", "--output", "-o")),
    "tokenizer": ("--tokenizer", "-t"),
    "json": ("--json",),
    "continues": ("--continue",),  # a word that Python keeps for itself
}
SHARED: dict[str, tuple[str, str]] = {  # option: its metavar, empty for a flag, and its help
    "size": ("NAME", "Model size from the GPT papers, such as 350M or gpt2."),
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
        "Tokenizer: a tokenizer.json; a folder that contains one, such as a run or shards, or "
        "the two files of GPT-2 or GPT-1; or the name gpt2.",
    ),
    "documents": (
        "KIND",
        "Division of text files into documents: one per file, line or paragraph.",
    ),
    "field": (
        "NAME",
        "JSON field or table column that contains the text; a.b is the field b inside a.",
    ),
    "input_format": (
        "F",
        "Format of every input: text, jsonl, json, csv, tsv, parquet, warc, html, tar or zip; "
        "auto decides by file name and first bytes.",
    ),
    "eot_in_text": (
        "",
        "Begin a new document at each <|endoftext|> in text and JSON; without this option it is "
        "ordinary text.",
    ),
    "config": ("FILE", "TOML file that sets any of these options."),
    "device": ("NAME", "Device to run on: auto, cpu, cuda, cuda:1 or mps."),
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
    callback: Callable[[Any], None] | None = None,
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
        callback=callback,
    )


def quantity(
    name: str, help: str, panel: str | None = None, shown: bool | str = True, *, metavar: str = "N"
) -> Any:
    """Return an option with a number, such as 12k or 0.5M, in the range of the parameter `name`."""
    return value(help, metavar, panel, shown, parser=number(name))


def flag(
    name: str,
    help: str,
    panel: str | None = None,
    *others: str,
    callback: Callable[[Any], None] | None = None,
) -> Any:
    """Return an option without a value; `name` is its spelling, such as --plan, as are `others`."""
    return typer.Option(name, *others, rich_help_panel=panel, help=help, callback=callback)


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


def model_path(text: str) -> Path:
    """Return the path of a model as typed. One that begins with ./ is never a name on the Hub."""
    path = Path(text)
    is_local = text.startswith(("./", ".\\"))  # which Path leaves out
    return path.absolute() if is_local and not path.exists() else path


def model_text(value: Any) -> str:
    """Return the path of a model, as `model_path` does, as text. Raises UsageError if it is empty."""
    text = nonempty_text(value)
    path = model_path(text)
    return str(path) if path.is_absolute() else text


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


class Option(NamedTuple):
    """Option of a command that is also a key of its configuration file."""

    panel: str | None
    """Panel of `--help`; None for the first."""
    shown: str = ""
    """Default that `--help` shows; empty for none."""
    help: str = ""
    """Help text; empty for that of the shared option of this name."""
    metavar: str = "N"
    """Name of the value."""
    reader: Reader | None = None
    """Reader of the value; None for a number of `NUMBERS`, else text that is not empty."""
    repeats: bool = False
    """The option may be given several times; the reader gets the list."""
    complete: Callable[[str], list[str]] | None = None
    """Completion of an incomplete value in a shell."""

    def reader_of(self, name: str) -> Reader:
        """Return the reader of the option's value, given the option's name."""
        known: Reader = NUMBERS.get(name, nonempty_text)
        return self.reader or known

    def parameter(self, name: str) -> inspect.Parameter:
        """Return the parameter of a command's function that declares the option `name`."""
        kind: Any = (list[str] if self.repeats else str) | None
        if self.reader is boolean:
            kind, declared = bool, flag(option(name), self.help or SHARED[name][1], self.panel)
        else:
            declared = shared(
                name,
                self.panel,
                self.shown or False,
                help=self.help or None,
                metavar=None if name in SHARED and not self.help else self.metavar,
                complete=self.complete,
            )
        return inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=False if kind is bool else None,
            annotation=Annotated[kind, declared],
        )


def readers(options: Mapping[str, Option]) -> dict[str, Reader]:
    """Return the reader of each option's value, by its name."""
    return {name: row.reader_of(name) for name, row in options.items()}


def read_options(options: Mapping[str, Option], typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the `options` that are given, from what was `typed`.

    Raises UsageError, which names the option.
    """
    return {
        name: read_option(name, typed[name], row.reader_of(name))
        for name, row in options.items()
        if typed.get(name) not in (None, False, [])
    }


def declaring(options: Mapping[str, Option]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Return a decorator that gives a command `options` in place of its parameter `**options`.

    They stand before its own options in `--help`, and the function receives each by name: None, or
    False for a flag, if it is not given.
    """

    def declare(command: Callable[..., R]) -> Callable[..., R]:
        signature = inspect.signature(command, eval_str=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for parameter in signature.parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        rows = [row.parameter(name) for name, row in options.items()]
        parameters = sorted([*rows, *own], key=lambda one: not _is_argument(one))
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        return command

    return declare


def _is_argument(parameter: inspect.Parameter) -> bool:
    return isinstance(get_args(parameter.annotation)[1], ArgumentInfo)


def number(name: str) -> Callable[[str | int | float], Any]:
    """Return the reader of a numeric option; its UsageError names the option."""
    return lambda text: read_option(name, text, NUMBERS[name])


def option(name: str) -> str:
    """Return the option of a parameter: n_layer as --n-layer."""
    return NAMES["continues"][0] if name == "continues" else "--" + name.replace("_", "-")


def read_option(name: str, text: Any, convert: Callable[[Any], T]) -> T:
    """Return `convert(text)` of an option's value. Raises UsageError that names the option."""
    try:
        return convert(text)
    except UsageError as error:
        raise UsageError(error.what, field=name, code=error.code, hint=error.hint) from None


def refuse_repeated(noun: str, names: Iterable[str | Path], where: str) -> None:
    """Raise UsageError if a file, folder or stdin stands twice in `names`, in any spelling."""
    seen: set[str] = set()
    for name in names:
        path = str(name) if str(name) == "-" else os.path.realpath(name)
        if path in seen:
            raise UsageError(
                f"the {noun} {name} is named twice", where=where, hint=f"name each {noun} once"
            )
        seen.add(path)


def write_resolved(path: Path, resolved: Resolved, **extra: Any) -> None:
    """Write the resolved configuration to `path` as TOML (`resolved_toml`)."""
    with atomic_write(path, "w") as file:
        file.write(resolved_toml(resolved, **extra))


def resolved_toml(resolved: Resolved, columns: int | None = None, /, **extra: Any) -> str:
    """Return `resolved` as TOML (`gptcli.settings.resolved_toml`), made by this command line."""
    return settings.resolved_toml(resolved, command_line(), columns, **extra)


def command_line() -> str:
    """Return this command line, quoted for a shell, on one line."""
    return toml_json.toml_comment(shlex.join(["gpt", *sys.argv[1:]]))


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
        pattern = WITH_UNIT if reader.counts_in else QUANTITY
        return {"type": types, low: reader.low, high: reader.high, "pattern": pattern}
    return dict(TEXT_SCHEMAS.get(reader, {"type": "string"}))


def help_texts(command: Callable[..., None]) -> dict[str, str]:
    """Return the help text of each option of a command, by its parameter's name."""
    hints = get_type_hints(command, include_extras=True)
    return {
        name: get_args(hint)[1].help
        for name, hint in hints.items()
        if get_origin(hint) is Annotated
    }


@dataclass(frozen=True, slots=True)
class Word:
    """Option with its value, or argument, as typed."""

    name: str
    """Option such as --lr or -o; empty for an argument."""
    value: str | None
    """Value; None for a flag, and for an option at the end of the line without its value."""
    takes_value: bool | None = None
    """True if the option takes a value; None if the command does not have it."""
    is_joined: bool = field(default=False, compare=False)
    """The value is joined to the option, as in --lr=3e-4."""

    def __str__(self) -> str:
        return self.name or str(self.value)

    @property
    def lacks_value(self) -> bool:
        """True if what follows the option is another option or --, and no file."""
        text = None if self.is_joined or not self.name else self.value
        return text is not None and is_option(text) and not Path(text).exists()


def read_words(args: list[str], takes_value: Callable[[str], bool | None]) -> Iterator[Word]:
    """Yield the options and arguments of a command line.

    `takes_value` tells whether an option, --name or -n, takes a value; None for an unknown option.
    """
    rest = iter(args)
    for word in rest:
        if word == "--":
            yield from (Word("", argument) for argument in rest)
            return
        if not is_option(word):
            yield Word("", word)
            continue
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")
        takes = takes_value(name)
        if takes is None and takes_value(word[:2]) and takes_value("-" + name) is None:  # -oFILE
            yield Word(word[:2], word[2:], True, True)
        elif equals:
            yield Word(name, value, takes, True)
        else:
            yield Word(name, next(rest, None) if takes else None, takes)


def is_option(word: str) -> bool:
    """Tell whether a word looks like an option; "-" is stdin, and -1 is a number."""
    return word[:1] == "-" and len(word) > 1 and not (word[1].isdigit() or word[1] == ".")
