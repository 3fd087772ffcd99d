"""Settings: values with the origin of each, and the readers of values and their allowed ranges."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from gptcli import __version__, toml_json
from gptcli.errors import UsageError, close_to, nearest
from gptcli.units import PER_CENT, read_quantity, spelling

T = TypeVar("T")
MIN_COMMENT = 16  # columns of a comment behind a long value


@dataclass(slots=True)
class Resolved:
    """Values of a run or command, and the origin of each."""

    values: dict[str, Any] = field(default_factory=dict)
    """Value by name."""
    origin: dict[str, str] = field(default_factory=dict)
    """Origin by name, in words: "option", a file, "GPT-3, 350M"."""

    def put(self, values: Mapping[str, Any], origin: str) -> None:
        """Set `values`, replacing earlier ones; None means not given and changes nothing."""
        for name, value in values.items():
            if value is not None:
                self.values[name] = value
                self.origin[name] = origin

    def update(self, other: Resolved) -> None:
        """Set the values of `other` with their origins, replacing earlier ones."""
        self.values.update(other.values)
        self.origin.update(other.origin)


def quantity(text: str | int | float, unit: str = "") -> float:
    """Return the number that 12k, 0.5M, 300B or 3.14e23 spells; suffixes are powers of 1,000.

    A unit of the same kind as `unit` may stand behind it (`gptcli.units`). Raises UsageError if
    `text` is no number or too large for a float.
    """
    _check_number(text)
    value = _read_number(str(text), unit)
    if math.isinf(value):
        raise UsageError(
            f"{text} is out of range", code="out_of_range", hint="the largest number is 1.79e308"
        )
    return value


def _check_number(value: Any) -> None:
    """Raise UsageError for true, a list or a table, which TOML and JSON may have for a number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(
            f"{toml_json.shown(value)} is not a number",
            code="not_a_quantity",
            hint="write a number",
        )


def _read_number(text: str, unit: str = "", *, whole: bool = False) -> float:
    """Return the number that `text` spells; infinity if it is too large for a float."""
    value = read_quantity(text, unit)
    if value is None:
        raise UsageError(
            f"{text!r} is not a number",
            code="not_a_quantity",
            hint=spelling(text, unit, whole=whole)
            or "write it like 250, 0.1, 3e-4, 12k, 0.5M or 300B",
        )
    return value


def count(text: str | int | float) -> int:
    """Return a quantity that is a whole number. Raises UsageError if it is not."""
    value = quantity(text)
    if abs(value - round(value)) > 1e-6:
        raise UsageError(f"{text!r} is not a whole number", code="not_a_whole_number")
    return round(value)


@dataclass(frozen=True, slots=True)
class Number:
    """Reader of a quantity within a range."""

    low: float
    """Lower bound."""
    high: float
    """Upper bound."""
    whole: bool = False
    """Require a whole number."""
    above: bool = False
    """Exclude `low`."""
    below: bool = False
    """Exclude `high`."""
    advice: str = ""
    """Alternative to suggest for a number out of range."""
    unit: str = ""
    """Unit that the number counts, a key of `gptcli.units.UNITS`, which may stand behind it."""

    def __call__(self, text: str | int | float) -> Any:
        """Return the number that `text` spells. Raises UsageError, with the range, otherwise."""
        _check_number(text)
        written = str(text).strip()
        if self.whole and written.endswith("%"):
            raise UsageError(f"{text!r} is not a number", code="not_a_quantity", hint=str(self))
        unit = self.counts_in
        size = _read_number(written.removeprefix("-"), unit, whole=self.whole)
        value = -size if written.startswith("-") else size
        if self.whole and not math.isinf(size) and abs(size - round(size)) > 1e-6:
            raise UsageError(
                f"{text!r} is not a whole number", code="not_a_whole_number", hint=str(self)
            )
        if (
            not self.low <= value <= self.high
            or (self.above and value == self.low)
            or (self.below and value == self.high)
        ):
            advice = self.advice
            if unit == PER_CENT and 1 < value <= 100 and read_quantity(written) is not None:
                advice = f"{value:g} % is {value / 100:g}, or {value:g}%"
            raise UsageError(
                f"{text} is out of range",
                code="out_of_range",
                hint=f"{self}; {advice}" if advice else str(self),
            )
        return round(value) if self.whole else value

    @property
    def counts_in(self) -> str:
        """Unit that may stand behind the number: `unit`, or per cent for a share; "" for none."""
        is_share = not self.whole and self.low >= 0 and self.high <= 1
        return self.unit or (PER_CENT if is_share else "")

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        low = f"{'above' if self.above else 'at least'} {_short(self.low)}"
        return f"{kind} {low} and {'below' if self.below else 'at most'} {_short(self.high)}"


def _short(value: float) -> str:
    return (
        f"{value:,}"
        if isinstance(value, int) and value < 10**10
        else re.sub(r"e\+0*", "e", f"{value:.3g}")
    )


MAX_RUN_TOKENS = 10**18
MAX_CONTEXT_TOKENS = 1 << 24
COUNTS: dict[str, tuple[int, int]] = {
    "n_layer": (1, 10_000), "n_head": (1, 10_000), "d_model": (1, 1 << 20),
    "n_ctx": (1, MAX_CONTEXT_TOKENS), "vocab_size": (1, 2**31 - 1),
    "band": (1, MAX_CONTEXT_TOKENS), "mup": (1, 1 << 20),
    "tokens": (1, MAX_RUN_TOKENS), "batch_tokens": (1, 10**12), "warmup_tokens": (0, MAX_RUN_TOKENS),
    "decay_tokens": (1, MAX_RUN_TOKENS), "cooldown_tokens": (0, MAX_RUN_TOKENS),
    "ramp_tokens": (0, MAX_RUN_TOKENS), "ramp_from": (0, 10**12), "max_skipped": (1, 10**9),
    "seed": (0, 2**63 - 1), "shots_seed": (0, 2**63 - 1),
    "micro_batch": (1, 1 << 20), "batch": (1, 1 << 20), "epochs": (1, 10**6), "batch_size": (1, 1 << 20), "workers": (1, 10_000),
    "gpus": (1, 10**6),
    "timeout": (1, 10**6), "checkpoint": (0, 10**12), "checkpoint_every": (1, 10**12), "eval_every": (1, 10**12),
    "eval_tokens": (1, MAX_RUN_TOKENS),
    "eval_items": (1, 10**12), "keep": (1, 10**9), "keep_every": (0, 10**12), "seeds": (1, 1000),
    "stop_early": (0, 10**9), "samples": (0, 10**6),
    "shard_tokens": (1, 2**31 - 1), "mixture_tokens": (1, MAX_RUN_TOKENS),
    "num_samples": (1, 10**6), "max_tokens": (1, 10**9), "beam": (1, 10_000),
    "best_of": (1, 10**6), "port": (0, 65535),
    "shots": (0, 10**6), "limit": (1, 10**12), "stride": (1, MAX_CONTEXT_TOKENS),
}  # fmt: skip
UNIT_OF = {
    **dict.fromkeys(
        ("tokens", "batch_tokens", "warmup_tokens", "decay_tokens", "cooldown_tokens",
         "ramp_tokens", "eval_tokens", "shard_tokens", "mixture_tokens", "max_tokens", "n_ctx",
         "stride", "prompt_tokens", "output_tokens"),
        "tokens",
    ),
    **dict.fromkeys(("checkpoint_every", "eval_every", "keep_every", "checkpoint"), "steps"),
    "gpus": "GPUs", "timeout": "seconds", "tflops": "TFLOP/s", "memory": "GB", "hours": "hours",
    **dict.fromkeys(("price", "budget"), "dollars"),
}  # fmt: skip
"""Unit of the options that count in one, by name."""
NUMBERS: dict[str, Number] = {
    **{
        name: Number(low, high, whole=True, unit=UNIT_OF.get(name, ""))
        for name, (low, high) in COUNTS.items()
    },
    "lr": Number(0, 10**9, above=True),
    "min_lr_ratio": Number(0, 1),
    "weight_decay": Number(0, 1000),
    "end_weight_decay": Number(0, 1000),
    "lm_weight": Number(0, 1000),
    "dropout": Number(0, 1, below=True),
    "beta1": Number(0, 1, below=True),
    "beta2": Number(0, 1, below=True),
    "end_beta2": Number(0, 1, below=True),
    "ema": Number(0, 1, below=True),
    "eps": Number(0, 1, above=True),
    "clip": Number(0, 10**9, above=True),
    "spike": Number(0, 10**9, unit="sigmas", advice="6 is usual, and 0 skips none"),
    "checkpoint_minutes": Number(0, 10**6, unit="minutes"),
    "val_fraction": Number(0, 1, below=True),
    "temperature": Number(
        0, 10**6, advice="0, as {option:greedy}, takes the most probable token every time"
    ),
    "top_k": Number(1, 10**9, whole=True, advice="{option:top_p} 1 samples from all tokens"),
    "top_p": Number(0, 1, above=True),
    "repetition_penalty": Number(0, 10**6, above=True),
    "budget": Number(0, 10**15, above=True, unit=UNIT_OF["budget"]),
    "tflops": Number(1e-6, 10**6, unit=UNIT_OF["tflops"]),
    "memory": Number(0.001, 10**6, unit=UNIT_OF["memory"]),
    "price": Number(1e-6, 10**6, unit=UNIT_OF["price"]),
    "hours": Number(0.001, 10**7, unit=UNIT_OF["hours"]),
    **{name: Number(0, 1, above=True) for name in ("mfu", "goodput")},
    **{name: Number(1, 10, unit="times") for name in ("server", "pue")},
    "carbon": Number(0, 10, unit="kg"),
    **{
        name: Number(1, 10**9, whole=True, unit=UNIT_OF.get(name, ""))
        for name in ("serve", "prompt_tokens", "output_tokens")
    },
    **{name: Number(1, 10**6, whole=True) for name in ("n_kv_head", "d_ff")},
    "flops": Number(1, 1e36, unit="FLOPs"),
    "optimal": Number(0, 1e60, above=True, unit="FLOPs"),
}
"""Range of every numeric option and configuration key, by name."""


def text(value: Any) -> str:
    """Return a text. Raises UsageError for anything else."""
    if not isinstance(value, str):
        written = toml_json.toml_value(toml_json.shown(value))
        raise UsageError(
            f"{toml_json.shown(value)} is not text", hint=f"write it in quotes: {written}"
        )
    return value


def nonempty_text(value: Any) -> str:
    """Return a text that is not empty. Raises UsageError otherwise."""
    if not text(value):
        raise UsageError("is empty")
    return value


def split_list(text: str) -> list[str]:
    """Return the names of a comma-separated list; the name of an existing file is not split."""
    if "," not in text or Path(text).exists():
        return [text]
    return [name for part in text.split(",") if (name := part.strip())]


def name_list(value: Any) -> list[str]:
    """Return a list of names, given as a list or separated by commas."""
    parts = value if isinstance(value, list) else [value]
    return [name for part in parts for name in split_list(nonempty_text(part))]


def boolean(value: Any) -> bool:
    """Return true or false. Raises UsageError for other values."""
    if not isinstance(value, bool):
        raise UsageError(f"{toml_json.shown(value)} is neither true nor false")
    return value


@dataclass(frozen=True, slots=True)
class OneOf:
    """Reader of one of a few words."""

    names: tuple[str, ...]
    """Words to choose from."""

    def __call__(self, value: Any) -> str:
        """Return `value` if it is one of the words. Raises UsageError, with the nearest, if not."""
        if value not in self.names:
            is_near = close_to(str(value), self.names)
            raise UsageError(
                f"{toml_json.shown(value)} is none of {', '.join(self.names)}",
                hint=nearest(str(value), self.names) if is_near else "leave it out for the default",
            )
        return str(value)


@dataclass(frozen=True, slots=True)
class AutoOr:
    """Reader of the word "auto" or of another reader's value."""

    reader: Callable[[Any], Any]
    """Reader of values other than "auto"."""

    def __call__(self, value: Any) -> Any:
        """Return "auto", or the value that the reader returns. Raises what the reader raises."""
        return "auto" if value == "auto" else self.reader(value)


def resolved_toml(
    resolved: Resolved, command: str, columns: int | None = None, /, **extra: Any
) -> str:
    """Return `resolved` as TOML, with the origin of each value in a comment.

    Comments at the top name the versions, the `command` and the facts in `extra`. Comments other
    than the command, which is to be copied, go on below themselves beyond `columns`.
    """
    lines = [
        f"# gpt {__version__}, python {sys.version.split()[0]}",
        f"# command: {command}",
    ]
    for name, value in extra.items():
        lines += _comment(f"{name}: {toml_json.toml_comment(str(value))}", "", columns, "  ")
    rows = [
        (
            f"{name} = {toml_json.toml_value(value)}",
            toml_json.toml_comment(resolved.origin.get(name, "default")),
        )
        for name, value in resolved.values.items()
    ]
    width = max((len(row) for row, _ in rows), default=0)
    if columns is not None:  # a long value does not move the comments of all others
        width = min(width, columns // 2)
    lines.append("")
    for row, origin in rows:
        if columns is not None and len(row) > width and len(f"{row}  # {origin}") > columns:
            lines += [row, *_comment(origin, " " * (width + 2), columns)]
        else:
            lines += _comment(origin, f"{row:<{width}}  ", columns)
    return "\n".join([*lines, ""])


def _comment(text: str, before: str, columns: int | None, indent: str = "") -> list[str]:
    """Return the lines of a comment behind `before`; those after the first are indented."""
    if columns is None:
        return [f"{before}# {text}"]
    width = max(MIN_COMMENT, columns - len(f"{before}# "))
    first, *more = textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    ) or [""]
    return [f"{before}# {first}", *(f"{' ' * len(before)}# {line}" for line in more)]


def updated_toml(before: str, resolved: Resolved, command: str, **extra: Any) -> str:
    """Return the text `before` of `resolved_toml` with the values of `resolved`.

    An unchanged text is returned as it is. Otherwise the lines of changed values are replaced, and
    a comment at the top names this command.
    """
    after = resolved_toml(resolved, command, **extra)
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
    comments = next((number for number, line in enumerate(lines) if not line.startswith("#")), 0)
    text = "\n".join([*lines[:comments], f"# resumed by: {command}", *lines[comments:], ""])
    with contextlib.suppress(tomllib.TOMLDecodeError):
        if tomllib.loads(text) == new:
            return text
    return after  # `before` was written by hand, in lines of another form


def same_values(one: str, other: str | None) -> bool:
    """Return whether two TOML texts contain the same values; None contains none."""
    return other is not None and tomllib.loads(one) == tomllib.loads(other)
