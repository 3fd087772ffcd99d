"""Tables of TOML and JSON files as dataclasses: the keys, types and choices are those of its
fields.

Every file that we read as a table goes this way: recipes of a corpus, manifests of shards, tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from gptcli.errors import InputError, UsageError, nearest
from gptcli.settings import NUMBERS, OneOf, boolean, nonempty_text
from gptcli.toml_json import shown

T = TypeVar("T")
Readers = Mapping[str, Callable[[Any], Any]]
"""Reader of a value by its key, for what a type does not say: its range, or how it is completed."""


def read_table(
    kind: type[T],
    table: object,
    where: str | Path,
    *,
    key: str = "",
    readers: Readers = NUMBERS,
    may_be_empty: bool = False,
) -> T:
    """Return a table as the dataclass `kind`; tables in it may be dataclasses too.

    A text may be empty if its default is, or with `may_be_empty`. A value of the right type goes
    through its key's reader, which by default checks the range of a number. Raises InputError at
    `where`, with the path of the key below `key`, for an unknown or missing key and for a value
    that is not allowed.
    """
    try:
        return cast(T, _read(kind, table, _Rules(readers, may_be_empty)))
    except _WrongValueError as wrong:
        error = wrong.below(key) if key else wrong
        place = f"{error.key}: " if error.key else ""
        raise InputError(f"{place}{error.what}", where=where, hint=error.hint) from None


@dataclass(frozen=True, slots=True)
class _Rules:
    """Rules of a table that types do not express."""

    readers: Readers
    may_be_empty: bool


class _WrongValueError(UsageError):
    """Value that is not allowed, with the path of its key in the table: "sources[1].weight"."""

    def __init__(self, what: str, hint: str | None = None, key: str = "") -> None:
        super().__init__(what, hint=hint)
        self.key = key

    def below(self, key: str) -> _WrongValueError:
        """Return the error with the key of the table that the value is in."""
        joined = key if not self.key else f"{key}{'' if self.key[0] == '[' else '.'}{self.key}"
        return _WrongValueError(self.what, self.hint, joined)


def _read(kind: type[Any], table: object, rules: _Rules) -> Any:
    if not isinstance(table, Mapping):
        raise _WrongValueError("is not a table of keys and values")
    known = _fields(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise _WrongValueError(f"unknown key {key!r}", nearest(str(key), known))
        hint, part = known[key]
        try:
            if value == "" and part.default == "":
                values[key] = value
                continue
            typed = _typed(hint, value, rules)
            values[key] = rules.readers[key](typed) if key in rules.readers else typed
        except _WrongValueError as error:
            raise error.below(key) from None
        except UsageError as error:
            raise _WrongValueError(error.what, error.hint, key) from None
    if missing := [
        repr(name)
        for name, (_, part) in known.items()
        if part.default is MISSING and part.default_factory is MISSING and name not in values
    ]:
        raise _WrongValueError(f"no {', '.join(missing)}")
    try:
        return kind(**values)
    except UsageError as error:
        raise _WrongValueError(error.what, error.hint) from None


def _fields(kind: Any) -> dict[str, tuple[Any, Field[Any]]]:
    """Return type and field of each field of a dataclass, by name."""
    hints = get_type_hints(kind)
    return {part.name: (hints[part.name], part) for part in fields(kind) if part.init}


def _typed(hint: Any, value: Any, rules: _Rules) -> Any:
    """Return a value of a file if it is of the type `hint`. Raises UsageError if it is not."""
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return OneOf(parts)(value)
    if origin in (Union, UnionType):
        return _one_of_types([part for part in parts if part is not type(None)], value, rules)
    if origin in (list, tuple):
        if not isinstance(value, list):
            if isinstance(value, dict):
                raise UsageError(
                    "a table is not a list",
                    hint="in TOML, each table of a list has double brackets: [[name]]",
                )
            raise UsageError(
                f"{shown(value)} is not a list", hint='a list is in brackets: ["a", "b"]'
            )
        return origin(_item(parts[0], item, f"[{at}]", rules) for at, item in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise UsageError(f"{shown(value)} is not a table of keys and values")
        return {name: _item(parts[1], item, name, rules) for name, item in value.items()}
    if is_dataclass(hint):
        return _read(hint, value, rules)  # type: ignore[arg-type]
    if hint is bool:
        return boolean(value)
    if hint is str:
        return value if rules.may_be_empty and value == "" else nonempty_text(value)
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise UsageError(f"{shown(value)} is not a number")
        if hint is int and not isinstance(value, int):
            raise UsageError(f"{shown(value)} is not a whole number")
    return value


def _one_of_types(hints: list[Any], value: Any, rules: _Rules) -> Any:
    """Return a value that is of one of several types; the error is that of the first."""
    for hint in hints[1:]:
        try:
            return _typed(hint, value, rules)
        except UsageError:
            continue
    return _typed(hints[0], value, rules)


def _item(hint: Any, value: Any, key: str, rules: _Rules) -> Any:
    """Return an item of a list or table, whose key an error names."""
    try:
        return _typed(hint, value, rules)
    except _WrongValueError as error:
        raise error.below(key) from None
    except UsageError as error:
        raise _WrongValueError(error.what, error.hint, key) from None
