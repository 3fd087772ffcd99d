"""TOML and JSON: errors that show the line and its correction, and text that every reader accepts.

JSON is written without NaN and Infinity, which it lacks, and without unescaped lone surrogates.

A file name that is not UTF-8 reaches Python with a lone surrogate for each such byte, which TOML
cannot contain. It is written as the private-use character `PRIVATE` above it, escaped, and restored
when it is read.
"""

from __future__ import annotations

import json
import math
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gptcli.encodings import decode
from gptcli.errors import InputError

PRIVATE = 0x100000  # from a lone surrogate to its character of plane 16
_SURROGATE, _PRIVATE = re.compile("[\ud800-\udfff]"), re.compile("[\U0010d800-\U0010dfff]")
# that json leaves as they are, and TOML or a terminal does not
_CONTROL = re.compile(r"[\x7f\x80-\x9f\u2028\u2029]")
QUOTES = str.maketrans("\u201c\u201d\u201e\u2018\u2019\u00ab\u00bb", '"""\'\'""')
WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}


def parse_toml(data: bytes, where: str | Path) -> dict[str, Any]:
    """Return the table in `data`.

    Raises InputError with the line and, if there is a likely one, its correction.
    """
    text = decode(data, where)
    try:
        return restored(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise _explained(text, str(error), where) from None
    except ValueError as error:  # a number of over 4,300 digits
        raise InputError(f"not valid TOML: {error}", where=where) from None
    except RecursionError:
        raise InputError("not valid TOML: nested too deeply", where=where) from None


def toml_value(item: Any) -> str:
    """Return a value in TOML syntax, which `parse_toml` reads back.

    Text stays on one line, whatever its characters.
    """
    if isinstance(item, bool):
        return str(item).lower()
    if isinstance(item, list | tuple):
        return "[" + ", ".join(map(toml_value, item)) + "]"
    if isinstance(item, int | float):
        return repr(item)
    if isinstance(item, Mapping):
        return (
            "{"
            + ", ".join(
                f"{toml_value(str(key))} = {toml_value(part)}" for key, part in item.items()
            )
            + "}"
        )
    text = _CONTROL.sub(
        lambda found: f"\\u{ord(found[0]):04x}", json.dumps(str(item), ensure_ascii=False)
    )
    return _SURROGATE.sub(lambda found: f"\\U{ord(found[0]) + PRIVATE:08x}", text)


def shown(item: Any) -> str:
    """Return a value of a file for a message, spelled as TOML and JSON do, text in single quotes:
    true, null, ["a", 1], 'text'.
    """
    if item is None:
        return "null"
    if isinstance(item, str) or (isinstance(item, int | float) and not isinstance(item, bool)):
        return repr(item)
    if not isinstance(item, bool | list | tuple | Mapping):
        return str(item)  # a date of TOML
    try:
        return dumps(item)
    except TypeError:  # with a date in it
        return toml_value(item)


def toml_comment(text: str) -> str:
    """Return `text` for a comment, on one line, with control characters and lone surrogates
    escaped.
    """
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def restored(item: Any) -> Any:
    """Return a parsed value with the lone surrogates that `toml_value` had to replace."""
    if isinstance(item, str):
        return _PRIVATE.sub(lambda found: chr(ord(found[0]) - PRIVATE), item)
    if isinstance(item, dict):
        return {restored(key): restored(part) for key, part in item.items()}
    return [restored(part) for part in item] if isinstance(item, list) else item


def _explained(text: str, message: str, where: str | Path) -> InputError:
    """Return the error for a text that tomllib refuses with `message`: its line, and the corrected
    line.
    """
    lines = text.split("\n")
    found = re.search(r"line (\d+)", message)
    number = min(int(found[1]) if found else len(lines), len(lines))
    # the end of the document: its last line that holds anything
    while number > 1 and not lines[number - 1].strip():
        number -= 1
    line, reason = lines[number - 1].strip(), re.sub(r" \(at .*\)$", "", message)
    place = f"{where}:{number}"
    if text.lstrip().startswith("{"):
        return InputError(
            "not valid TOML: it looks like JSON",
            where=place,
            hint='a line of TOML is: name = "value"',
        )
    if reason.startswith(("Cannot overwrite", "Cannot declare")):
        return InputError(
            f"not valid TOML: given twice: {line}", where=place, hint="leave one of the two out"
        )
    better = corrected_toml(line)
    hint = (
        'a line of TOML is: name = value, with text in quotes: data = "shards"'
        if better is None
        else f"write: {better}"
    )
    if better == "":
        hint = "leave the line out: a value that is not given is the default"
    return InputError(f"not valid TOML: {reason}: {line}", where=place, hint=hint)


def corrected_toml(line: str) -> str | None:
    """Return the line of TOML that was probably meant; "" if it should be removed, None if there is
    no likely one.
    """
    if re.fullmatch(r"\[+[\w.\s-]+\]*", line):
        return f"[{line.strip('[] ')}]"
    straight = line.translate(QUOTES)
    head = re.match(r"""\s*([\w.-]+|"[^"]*"|'[^']*')\s*(?:=+|:|\s)\s*(.*)$""", straight)
    if head is None:
        return None
    key, rest = head[1], head[2].strip()
    if line[head.end(1) :].lstrip()[:1] not in ("=", ":") and len(rest.split()) > 1:
        return None  # a sentence, not a name and its value
    if rest in ("None", "none", "null", "nil", "~"):
        return ""
    if not re.search(r"\w", rest):
        return None
    return next((f"{key} = {one}" for one in _meant(rest) if _is_toml(f"{key} = {one}")), None)


def _meant(rest: str) -> Iterator[str]:
    """Yield what the text after a key may have been meant to say, most likely first."""
    bare, mark, remark = re.sub(r"\s+//", " #", rest).partition(" #")
    bare, remark = bare.strip().rstrip(";,").strip(), f"  #{remark}" if mark else ""
    yield rest
    yield bare + remark
    if bare.lower() in ("true", "false"):
        yield bare.lower() + remark
    if bare.lower() in WORDS:
        yield WORDS[bare.lower()] + remark
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+", bare):
        yield bare.replace(",", "_") + remark
    if re.fullmatch(r"[+-]?\.\d+(e[+-]?\d+)?", bare, re.IGNORECASE):
        yield bare.replace(".", "0.") + remark
    if re.fullmatch(r"[+-]?\d+\.(e[+-]?\d+)?", bare, re.IGNORECASE):
        yield bare.replace(".", ".0") + remark
    inside = bare.strip("\"'")
    if "\\" in inside and "'" not in inside:  # a path of Windows: between ' a backslash is itself
        yield f"'{inside}'" + remark
    yield toml_value(inside) + remark


def _is_toml(line: str) -> bool:
    try:
        tomllib.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def parse_json(
    data: bytes,
    where: str | Path,
    *,
    lines: bool = False,
    hint: str = "correct it, or copy the file again if it was cut short",
) -> Any:
    """Return the JSON value in `data`.

    Raises InputError if it is broken, with `hint`; with `lines`, its line is added to `where`.
    """
    text = decode(data, where)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(
            f"not valid JSON: {error.msg}",
            where=f"{where}:{error.lineno}" if lines else where,
            hint=json_fault(text, error.pos) or hint,
        ) from None
    except ValueError:
        raise InputError(f"not readable JSON: {long_number()}", where=where) from None
    except RecursionError:
        raise InputError("not readable JSON: nested too deeply", where=where) from None


def long_number() -> str:
    """Say why json raises ValueError itself: Python reads no integer with more digits."""
    return f"a whole number of more than {sys.get_int_max_str_digits():,} digits"


def json_fault(text: str, at: int, *, is_named_so: bool = False) -> str:
    """Return what to change in a text that is not JSON at `at`, if that is a common slip; "" if
    not.

    A text that begins with a comment is JSON if JSON follows, or if it `is_named_so`.
    """
    rest, before = text[at:].lstrip(), text[:at].rstrip()
    if not text.strip():
        return "it is empty: write it again"
    if rest.startswith(("//", "/*", "#")):
        behind = re.sub(
            r"(\s*(//[^\n]*|#[^\n]*|/\*.*?\*/))*\s*", "", rest, count=1, flags=re.DOTALL
        )
        if before or is_named_so or behind.startswith(("{", "[")):
            return "JSON has no comments: remove it"
        return ""
    if rest.startswith("'"):
        return "a text of JSON stands between double quotes"
    if before.endswith(",") and rest.startswith(("}", "]")):
        return "remove the comma before it"
    if rest.startswith(("}", "]")) and "," in before[-2:]:
        return "remove the comma before it"
    if rest.startswith(","):  # 3.13 and newer name the comma itself
        return "remove the comma" if rest[1:].lstrip().startswith(("}", "]")) else ""
    if word := re.match(r"(None|True|False|nan|undefined)\b", rest):
        right = {"None": "null", "True": "true", "False": "false"}.get(word[1], "null")
        return f"write {right} for {word[1]}"
    return ""


def dumps(
    value: object, *, ascii_only: bool = False, indent: int | None = None, sort_keys: bool = False
) -> str:
    """Return `value` as JSON; a number that is not finite becomes null.

    Characters are written as they are, unless `ascii_only`. A lone surrogate, which Python uses for
    each byte of a file name that is not UTF-8, is escaped, so that the text can be encoded and
    reads back the same.
    """
    try:
        text = json.dumps(
            value, ensure_ascii=ascii_only, indent=indent, sort_keys=sort_keys, allow_nan=False
        )
    except ValueError:  # a number that is not finite
        text = json.dumps(
            finite(value),
            ensure_ascii=ascii_only,
            indent=indent,
            sort_keys=sort_keys,
            allow_nan=False,
        )
    return _SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def finite(value: Any) -> Any:
    """Return `value` with None in place of each number that is not finite, lists and objects
    included.
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {finite(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value
