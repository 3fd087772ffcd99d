"""Where each value comes from: option > --config file > preset > default. And quantities such as 12k, 0.5M, 300B, 3.14e23."""

from __future__ import annotations

import contextlib
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gptcli import __version__, toml_text
from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import atomic_write, read_text, read_toml, similar

T = TypeVar("T")
SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def quantity(text: str | int | float) -> float:
    """12k, 0.5M, 300B, 3.14e23 as a number; suffixes are powers of 1,000. Raises UsageError."""
    match = re.fullmatch(r"\s*([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*([kmbgt]?)\s*", str(text).lower())
    if match is None:
        raise UsageError(f"{text!r} is not a quantity", hint="write a number, with a suffix if you like: 12k, 0.5M, 300B, 3.14e23")
    return float(match[1]) * SUFFIXES[match[2]]


def count(text: str | int | float) -> int:
    """A quantity that is a whole number of things. Raises UsageError."""
    value = quantity(text)
    if abs(value - round(value)) > 1e-6:
        raise UsageError(f"{text!r} is not a whole number")
    return round(value)


def option(name: str) -> str:
    """How the option of a parameter is typed: n_layer as --n-layer."""
    return "--" + name.replace("_", "-")


def read_option(name: str, text: str, convert: Callable[[str], T]) -> T:
    """What the user typed for an option, through `convert`; where that refuses it, the error names the option. Raises UsageError."""
    try:
        return convert(text)
    except UsageError as error:
        raise UsageError(error.what, where=option(name), hint=error.hint) from None


@dataclass(slots=True)
class Resolved:
    """The values a command runs with, and where each came from."""

    values: dict[str, Any] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)

    def put(self, values: Mapping[str, Any], origin: str) -> None:
        """Lay `values` over what is there; None means "not given"."""
        for name, value in values.items():
            if value is not None:
                self.values[name] = value
                self.origin[name] = origin


def read_config(path: Path, names: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a TOML file whose keys must be among `names`, each passed through its converter (`names[key]`, or None).

    Keys are the options' names, with - or _. Raises InputError with file, line and nearest match.
    """
    if not path.exists():
        close = similar(path)
        raise InputError("no such configuration file", where=path, hint=None if close is None else f"did you mean {close}?")
    table, text = read_toml(path), read_text(path)
    values: dict[str, Any] = {}
    for key, value in table.items():
        name = key.replace("-", "_")
        where = f"{path}:{_line_of(key, text)}"
        if name not in names:
            raise InputError(f"unknown key {key!r}", where=where, hint=nearest(name, names))
        convert = names[name]
        try:
            values[name] = convert(value) if convert else value
        except (UsageError, ValueError, TypeError) as error:
            raise InputError(f"{key}: {error}", where=where) from None
    return values


def _line_of(key: str, text: str) -> int:
    pattern = re.compile(rf"""^\s*\[?\s*["']?{re.escape(key)}["']?\s*[=\].]""")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), 1)


def write_resolved(path: Path, resolved: Resolved, **extra: Any) -> None:
    """Write the resolved configuration as TOML, each value's origin in a comment, with command line and versions on top."""
    with atomic_write(path, "w") as file:
        file.write(resolved_toml(resolved, **extra))


def resolved_toml(resolved: Resolved, **extra: Any) -> str:
    lines = [f"# gpt {__version__}, python {sys.version.split()[0]}", f"# command: {command_line()}"]
    lines += [f"# {name}: {toml_text.comment(str(value))}" for name, value in extra.items()]
    rows = [
        (f"{name} = {toml_text.value(value)}", toml_text.comment(resolved.origin.get(name, "default")))
        for name, value in resolved.values.items()
    ]
    width = max((len(row) for row, _ in rows), default=0)
    return "\n".join([*lines, "", *(f"{row:<{width}}  # {origin}" for row, origin in rows), ""])


def updated_toml(before: str, resolved: Resolved, **extra: Any) -> str:
    """What `resolved_toml` wrote `before`, brought up to date: `before` itself if it has these values.

    Else the values that differ are replaced in their lines, and a remark on top names this command.
    """
    after = resolved_toml(resolved, **extra)
    old, new = tomllib.loads(before), tomllib.loads(after)
    if old == new:
        return before
    rows = {line.partition(" = ")[0]: line for line in after.splitlines() if " = " in line and line[0] != "#"}
    lines = [
        rows[name] if (name := line.partition(" = ")[0]) in new and old.get(name) != new[name] else line for line in before.splitlines()
    ]
    lines += [rows[name] for name in new if name not in old]
    remarks = next((number for number, line in enumerate(lines) if not line.startswith("#")), 0)
    text = "\n".join([*lines[:remarks], f"# resumed by: {command_line()}", *lines[remarks:], ""])
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(text) == new:
            return text
    return after  # `before` was written by hand, in lines of another form


def same_values(one: str, other: str | None) -> bool:
    """Whether two TOML texts hold the same values; None holds none."""
    return other is not None and tomllib.loads(one) == tomllib.loads(other)


def command_line() -> str:
    """This command as it was typed, quoted for a shell, on one line."""
    return toml_text.comment(shlex.join(["gpt", *sys.argv[1:]]))
