"""Where each value comes from: option > --config file > preset > default. And quantities such as
12k, 0.5M, 300B, 3.14e23.
"""

from __future__ import annotations

import contextlib
import math
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gptcli import __version__, toml_text
from gptcli.errors import InputError, UsageError, message_of
from gptcli.files import atomic_write, read_text, read_toml, similar

T = TypeVar("T")
SYNONYMS = {"out": "output", "output": "out"}  # two spellings of one key: a command has one of them
SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def quantity(text: str | int | float) -> float:
    """12k, 0.5M, 300B, 3.14e23 as a number; suffixes are powers of 1,000. Raises UsageError."""
    value = _read_number(str(text))
    if math.isinf(value):
        raise UsageError(f"{text} is out of range", hint="the largest number is 1.79e308")
    return value


def _read_number(text: str) -> float:
    """The number that `text` spells, infinite if it is too large for a float."""
    match = re.fullmatch(
        r"\s*([0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+)\s*([kmbgt]?)\s*", text.lower()
    )
    if match is None:
        raise UsageError(
            f"{text!r} is not a quantity",
            hint="write a number, with a suffix if you like: 12k, 0.5M, 300B, 3.14e23",
        )
    return float(match[1]) * SUFFIXES[match[2]]


def count(text: str | int | float) -> int:
    """A quantity that is a whole number of things. Raises UsageError."""
    value = quantity(text)
    if abs(value - round(value)) > 1e-6:
        raise UsageError(f"{text!r} is not a whole number")
    return round(value)


@dataclass(frozen=True, slots=True)
class Number:
    """Reads a quantity of a range. Raises UsageError with the range."""

    low: float
    high: float
    whole: bool = False
    above: bool = False
    """The number is above `low`, which is not among the range; otherwise both bounds are."""
    below: bool = False
    """The number is below `high`."""
    advice: str = ""
    """What to do instead, for a number out of range."""

    def __call__(self, text: str | int | float) -> Any:
        written = str(text).strip()
        size = _read_number(written.removeprefix("-"))
        value = -size if written.startswith("-") else size
        if self.whole and not math.isinf(size) and abs(size - round(size)) > 1e-6:
            raise UsageError(f"{text!r} is not a whole number", hint=str(self))
        if (
            not self.low <= value <= self.high
            or (self.above and value == self.low)
            or (self.below and value == self.high)
        ):
            raise UsageError(
                f"{text} is out of range",
                hint=f"{self}; {self.advice}" if self.advice else str(self),
            )
        return round(value) if self.whole else value

    def __str__(self) -> str:
        low = f"{'above' if self.above else 'at least'} {_short(self.low)}"
        return f"{'a whole number' if self.whole else 'a number'} {low} and {'below' if self.below else 'at most'} {_short(self.high)}"


def _short(value: float) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int) and value < 10**7
        else re.sub(r"e\+0*", "e", f"{value:.3g}")
    )


LONGEST, WIDEST = 10**18, 1 << 24  # tokens of a run; tokens of a context
COUNTS: dict[str, tuple[int, int]] = {
    "n_layer": (1, 10_000), "n_head": (1, 10_000), "d_model": (1, 1 << 20), "n_ctx": (1, WIDEST), "vocab_size": (1, 2**31 - 1),
    "band": (1, WIDEST), "mup": (1, 1 << 20),
    "tokens": (1, LONGEST), "batch_tokens": (1, 10**12), "warmup_tokens": (0, LONGEST), "decay_tokens": (1, LONGEST),
    "ramp_tokens": (0, LONGEST), "ramp_from": (0, 10**12), "max_skipped": (1, 10**9),
    "seed": (0, 2**63 - 1), "shots_seed": (0, 2**63 - 1),
    "micro_batch": (1, 1 << 20), "batch_size": (1, 1 << 20), "workers": (1, 10_000), "gpus": (1, 10**9),
    "checkpoint": (0, 10**12), "checkpoint_every": (1, 10**12), "eval_every": (1, 10**12), "eval_tokens": (1, LONGEST),
    "eval_items": (1, 10**12), "keep": (1, 10**9), "samples": (0, 10**6),
    "shard_tokens": (1, 2**31 - 1), "mixture_tokens": (1, LONGEST),
    "num_samples": (1, 10**6), "max_tokens": (1, 10**9), "top_k": (1, 10**9), "beam": (1, 10_000), "best_of": (1, 10**6),
    "shots": (0, 10**6), "limit": (1, 10**12), "stride": (1, WIDEST),
}  # fmt: skip
NUMBERS: dict[str, Number] = {  # the range of every option and configuration key that is a number
    **{name: Number(low, high, whole=True) for name, (low, high) in COUNTS.items()},
    "lr": Number(0, 10**9, above=True),
    "min_lr_ratio": Number(0, 1),
    "weight_decay": Number(0, 1000),
    "dropout": Number(0, 1, below=True),
    "beta1": Number(0, 1, below=True),
    "beta2": Number(0, 1, below=True),
    "eps": Number(0, 1, above=True),
    "clip": Number(0, 10**9, above=True),
    "spike": Number(0, 10**9),
    "val_fraction": Number(0, 1, below=True),
    "temperature": Number(
        0, 10**6, above=True, advice="--greedy takes the most probable token every time"
    ),
    "top_p": Number(0, 1, above=True),
    "repetition_penalty": Number(0, 10**6, above=True),
    **{
        name: Number(0, 10**15, above=True)
        for name in ("tflops", "memory", "price", "budget", "hours")
    },
    **{name: Number(0, 1, above=True) for name in ("mfu", "goodput")},
    **{name: Number(0, 1e60, above=True) for name in ("flops", "optimal")},
}


def number(name: str) -> Callable[[str | int | float], Any]:
    """A reader of the values typed for the numeric option of a parameter; its UsageError names the
    option.
    """
    return lambda text: read_option(name, text, NUMBERS[name])


def split_list(text: str) -> list[str]:
    """The names of a comma-separated list; the name of an existing file stays whole."""
    if "," not in text or Path(text).exists():
        return [text]
    return [name for part in text.split(",") if (name := part.strip())]


def option(name: str) -> str:
    """Return the option of a parameter: n_layer as --n-layer."""
    return "--" + name.replace("_", "-")


def read_option(name: str, text: Any, convert: Callable[[Any], T]) -> T:
    """What the user typed for an option, through `convert`; where that refuses it, the error names
    the option. Raises UsageError.
    """
    try:
        return convert(text)
    except UsageError as error:
        raise UsageError(error.what, field=name, code=error.code, hint=error.hint) from None


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


def read_config(path: Path, names: Mapping[str, Any], command: str = "gpt") -> dict[str, Any]:
    """The values of a TOML file whose keys must be among `names`, each passed through its converter
    (`names[key]`, or None).

    Keys are the names of the options of `command` (gpt train), with - or _. Raises InputError with
    file, line and what to write instead.
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
            from gptcli.cli.aliases import answer_key

            raise InputError(
                f"unknown key {key!r}", where=where, hint=answer_key(command, key, names)
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
    """Write the resolved configuration as TOML, each value's origin in a comment, with command line
    and versions on top.
    """
    with atomic_write(path, "w") as file:
        file.write(resolved_toml(resolved, **extra))


def resolved_toml(resolved: Resolved, **extra: Any) -> str:
    lines = [
        f"# gpt {__version__}, python {sys.version.split()[0]}",
        f"# command: {command_line()}",
    ]
    lines += [f"# {name}: {toml_text.comment(str(value))}" for name, value in extra.items()]
    rows = [
        (
            f"{name} = {toml_text.value(value)}",
            toml_text.comment(resolved.origin.get(name, "default")),
        )
        for name, value in resolved.values.items()
    ]
    width = max((len(row) for row, _ in rows), default=0)
    return "\n".join([*lines, "", *(f"{row:<{width}}  # {origin}" for row, origin in rows), ""])


def updated_toml(before: str, resolved: Resolved, **extra: Any) -> str:
    """What `resolved_toml` wrote `before`, brought up to date: `before` itself if it has these
    values.

    Else the values that differ are replaced in their lines, and a remark on top names this command.
    """
    after = resolved_toml(resolved, **extra)
    old, new = tomllib.loads(before), tomllib.loads(after)
    if old == new:
        return before
    rows = {
        line.partition(" = ")[0]: line
        for line in after.splitlines()
        if " = " in line and line[0] != "#"
    }
    lines = [
        rows[name]
        if (name := line.partition(" = ")[0]) in new and old.get(name) != new[name]
        else line
        for line in before.splitlines()
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
