"""Configuration files and values of options: option > --config file > preset > default."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from gptcli import settings, toml_text
from gptcli.errors import InputError, UsageError, message_of
from gptcli.files import atomic_write, read_text, read_toml, similar
from gptcli.settings import NUMBERS, Resolved

T = TypeVar("T")
SYNONYMS = {"out": "output", "output": "out"}  # two spellings of one key: a command has one of them


def number(name: str) -> Callable[[str | int | float], Any]:
    """Return the reader of a numeric option; its UsageError names the option."""
    return lambda text: read_option(name, text, NUMBERS[name])


def split_list(text: str) -> list[str]:
    """Return the names of a comma-separated list; the name of an existing file is not split."""
    if "," not in text or Path(text).exists():
        return [text]
    return [name for part in text.split(",") if (name := part.strip())]


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
