"""Units behind numbers, and numbers that are written in another way.

An option counts in one unit, which may be written: --hours 24h, --memory 80GB, --budget $5000.
Another unit of the same kind is converted: --hours 2d. Every other spelling is answered with the
number to write.
"""

from __future__ import annotations

import math
import re
import unicodedata

PER_CENT = "%"  # unit of a number from 0 to 1
SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_MULTIPLES = {
    **dict.fromkeys(("thousand", "thousands"), "k"),
    **dict.fromkeys(("million", "millions", "mio", "mn", "mln"), "M"),
    **dict.fromkeys(("billion", "billions", "bn", "bln"), "B"),
    **dict.fromkeys(("trillion", "trillions", "tn"), "T"),
}
_TIME = {
    "ms": 0.001,
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 7 * 86400.0),
}
_BYTES = {
    "kb": 1e3,
    "kib": 2.0**10,
    "mb": 1e6,
    "mib": 2.0**20,
    "gb": 1e9,
    "gib": 2.0**30,
    "tb": 1e12,
    "tib": 2.0**40,
}
_FLOPS = ("f", "flop", "flops", "flop/s", "flops/s")


def _scaled(table: dict[str, float], size: float) -> dict[str, float]:
    return {name: value / size for name, value in table.items()}


UNITS: dict[str, dict[str, float]] = {
    "": {},
    PER_CENT: {"%": 0.01, "percent": 0.01},
    "seconds": _TIME,
    "minutes": _scaled(_TIME, 60),
    "hours": _scaled(_TIME, 3600),
    # a letter alone is a unit here, and not a multiple: 80G of memory are 80 GB
    "GB": {**_scaled(_BYTES, 1e9), "m": 1e-3, "g": 1.0, "t": 1e3},
    "TFLOP/s": {
        **{f"{letter}{name}": size for name in _FLOPS for letter, size in (("g", 1e-3), ("t", 1.0), ("p", 1e3))},
        "g": 1e-3, "t": 1.0, "p": 1e3,
    },
    "dollars": dict.fromkeys(("$", "usd", "us$", "dollar", "dollars"), 1.0),
    "sigmas": dict.fromkeys(("sigma", "sigmas", "std", "stds", "sd"), 1.0),
    "tokens": dict.fromkeys(("tok", "token", "tokens"), 1.0),
    "steps": dict.fromkeys(("step", "steps"), 1.0),
    "GPUs": dict.fromkeys(("gpu", "gpus"), 1.0),
    "FLOPs": {
        **dict.fromkeys(("flop", "flops"), 1.0),
        **dict.fromkeys(("pf-day", "pf-days", "pfd", "petaflop/s-day", "petaflop/s-days"), 8.64e19),
    },
    "kg": {"kg": 1.0, "g": 1e-3},
    "times": {"x": 1.0},
}  # fmt: skip
"""Units that may stand behind a number, by the unit in which an option counts: its size in it."""

_NUMBER = r"[0-9][0-9_]*\.?[0-9]*(?:e[+-]?[0-9]+)?|\.[0-9]+"
_QUANTITY = re.compile(rf"(\$?)\s*({_NUMBER})\s*(\S.*)?")
_DECIMAL_COMMA = re.compile("[0-9]+,[0-9]+[kmbgt]?", re.IGNORECASE)
_BETWEEN = re.compile(r",|;|:|\.{2,3}|(?<!e)-|[–—]|\bto\b", re.IGNORECASE)
"""Signs between the numbers of a list or a range."""
_TERM = rf"-?(?:{_NUMBER})"
_PRODUCT = re.compile(rf"(?!0x)({_TERM})\s*(\*\*|\^|\*|x|×|/)\s*({_TERM})")
_WORDS = {word for table in UNITS.values() for word in table} - {"m", "g", "t", "p", "x", "w", "d"}


def read_quantity(text: str, unit: str = "") -> float | None:
    """Return the number that `text` spells, in `unit`; None if it spells none.

    12k, 0.5M, 300B and 3.14e23 are numbers; the letters are powers of 1,000. Infinity is a number
    that is too large for a float.
    """
    match = _QUANTITY.fullmatch(text.strip().lower())
    if match is None:
        return None
    sign, digits, rest = match[1], match[2], (match[3] or "").strip()
    units = UNITS[unit]
    if sign and "$" not in units:
        return None
    if rest in units:
        return float(digits) * units[rest]
    if unit in ("seconds", "minutes", "hours") and rest == "m":
        return None  # minutes, or a million
    if rest in SUFFIXES:
        return float(digits) * SUFFIXES[rest]
    if rest[0] in SUFFIXES and (behind := rest[1:].strip()) in units and len(behind) > 1:
        return float(digits) * SUFFIXES[rest[0]] * units[behind]
    return None


def spelling(text: str, unit: str = "", *, whole: bool = False) -> str:
    """Return a hint that spells the number which `text` means; "" if it means none.

    With `whole`, a comma separates two numbers, and is no decimal point.
    """
    if several := _several(text, unit, whole=whole):
        return f"one number at a time, such as {several[0]}"
    text = unicodedata.normalize("NFKC", text).strip().lower().removeprefix("+").strip()
    if read_quantity(text, unit) is not None:
        return f"write {text}"
    if unit in ("", PER_CENT, "times") and re.fullmatch(r"[0-9]+(\.[0-9]+)?\s*%", text):
        share = float(text.rstrip("% ")) / 100
        is_share = share <= 1 and unit != "times"
        return f"write {share:.12g}" + (": a share is a number up to 1" if is_share else "")
    if re.fullmatch(r"[$€£]?\s*[1-9][0-9]{0,2}([,.' ])[0-9]{3}((\1)[0-9]{3})*", text) and (
        "." not in text or text.count(".") > 1
    ):
        digits = re.sub(r"\D", "", text)
        return f"write {digits}, or {int(digits):_}"
    if re.fullmatch(r"[$€£]\s*[0-9.]+|[0-9.]+\s*[$€£]", text):
        return f"write {text.strip('$€£ ')}, without the sign"
    if _DECIMAL_COMMA.fullmatch(text):
        return f"write {text.replace(',', '.').upper()}, with a point"
    if unit == "steps" and text in ("last", "latest", "newest"):
        return "leave the option out for the newest"
    if text in ("auto", "none"):
        return "leave the option out, and a value is chosen"
    if of_kind := re.fullmatch(r"([0-9]+) ?[x*] ?([a-z][\w-]*)", text):  # 8xA100
        return f"write {of_kind[1]}; the kind, {of_kind[2]}, is another option"
    if (value := _product(text)) is not None:
        return f"write {value:.12g}"
    return _without_unit(text, unit)


def _several(text: str, unit: str, *, whole: bool) -> list[str]:
    """Return the numbers of a list or range: 8,16 and 8-16 and 8..16; none for another text."""
    text = text.strip().strip("[]()")
    parts = [part.strip() for part in _BETWEEN.split(text)]
    if len(parts) < 2 or any(read_quantity(part, unit) is None for part in parts):
        return []
    if re.fullmatch(r"[$€£]?\s*[1-9][0-9]{0,2}(,[0-9]{3})+", text):
        return []  # a comma between thousands
    if _DECIMAL_COMMA.fullmatch(text) and not (whole and text[-1].isdigit() and text[0] != "0"):
        return []
    is_clock = unit in ("seconds", "minutes", "hours") and ":" in text
    return [] if is_clock else parts


def _product(text: str) -> float | None:
    """Return the value of a product, power or quotient of two numbers, such as 2^19 or 1024*512."""
    match = _PRODUCT.fullmatch(text)
    if match is None:
        return None
    one, other = (float(part.replace("_", "")) for part in (match[1], match[3]))
    try:
        if match[2] in ("**", "^"):
            value = math.pow(one, other)
        else:
            value = one / other if match[2] == "/" else one * other
    except (ArithmeticError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _without_unit(text: str, unit: str) -> str:
    """Return a hint for a number with a word or a unit of another kind behind it; "" for another
    text.
    """
    match = _QUANTITY.fullmatch(text)
    rest = (match[3] or "").strip() if match else ""
    if match is None or not rest:
        return ""
    if unit in ("seconds", "minutes", "hours") and rest == "m":
        return f"m is a million elsewhere: write {match[2]}min for minutes"
    if unit in ("seconds", "minutes", "hours") and (
        clock := re.fullmatch(r"(?::|h\s*)([0-5]?[0-9])\s*(?:m|min)?", rest)
    ):
        return f"write {float(match[2]) + int(clock[1]) / 60:.4g}h"
    word, _, behind = rest.partition(" ")
    if word in _MULTIPLES and (not behind or behind in UNITS[unit]):
        return f"write {match[2]}{_MULTIPLES[word]}"
    letter = rest[0] if rest[0] in SUFFIXES and rest[1:].strip() in _WORDS else ""
    if letter or rest in _WORDS:
        counts = f": {unit} are counted here" if unit not in ("", PER_CENT) else ""
        return f"write the number alone, without {rest[len(letter) :].strip()!r}{counts}"
    return ""
