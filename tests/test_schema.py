"""Any table becomes its dataclass, with every value of the right type, or one message that names the
key.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import InputError, UsageError
from gptcli.schema import read_table
from gptcli.settings import Number


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Table in a table."""

    share: float = 1.0
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Whole:
    """Table with a field of every kind."""

    name: str
    note: str = ""
    count: int = 0
    on: bool = False
    kind: Literal["a", "b"] = "a"
    texts: list[str] = field(default_factory=list)
    fixed: tuple[str, ...] = ()
    either: str | list[str] = ""
    by_name: dict[str, int] = field(default_factory=dict)
    part: Part | None = None
    parts: list[Part] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.count == 13:
            raise UsageError("thirteen", hint="another")


def read(table: object) -> Whole:
    return read_table(Whole, table, "a.toml", readers={"share": Number(0, 1), "name": str.upper})


def test_values_arrive_as_the_fields_say() -> None:
    table = {
        "name": "x",
        "count": 3,
        "fixed": ["v", "w"],
        "either": ["y", "z"],
        "by_name": {"k": 1},
        "part": {"label": "p"},
        "parts": [{"label": "q", "share": 0}],
    }
    whole = read(table)
    assert asdict(whole) == asdict(Whole(name="X")) | table | {
        "name": "X",
        "fixed": ("v", "w"),
        "part": {"label": "p", "share": 1.0},
        "parts": [{"label": "q", "share": 0}],
    }
    assert isinstance(whole.part, Part)
    assert read({"name": "x", "either": "y"}).either == "y"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "a.toml is not a table of keys and values"),
        ({}, "a.toml: no 'name'"),
        ({"name": "x", "cuont": 1}, "a.toml: unknown key 'cuont'\n  did you mean count?"),
        ({"name": ""}, "a.toml: name: is empty"),
        ({"name": 3}, "a.toml: name: 3 is not text"),
        ({"name": "x", "note": 3}, "a.toml: note: 3 is not text"),
        ({"name": "x", "count": True}, "a.toml: count: true is not a number"),
        ({"name": "x", "count": 1.0}, "a.toml: count: 1.0 is not a whole number"),
        ({"name": "x", "count": None}, "a.toml: count: null is not a number"),
        ({"name": "x", "count": 13}, "a.toml: thirteen\n  another"),
        ({"name": "x", "on": 1}, "a.toml: on: 1 is neither true nor false"),
        ({"name": "x", "kind": "c"}, "a.toml: kind: 'c' is none of a, b"),
        ({"name": "x", "texts": ["y", 1]}, "a.toml: texts[1]: 1 is not text"),
        ({"name": "x", "fixed": ["y", 1]}, "a.toml: fixed[1]: 1 is not text"),
        ({"name": "x", "either": 1}, "a.toml: either: 1 is not text"),
        ({"name": "x", "by_name": {"k": "v"}}, "a.toml: by_name.k: 'v' is not a number"),
        ({"name": "x", "part": 1}, "a.toml: part: is not a table"),
        ({"name": "x", "part": {}}, "a.toml: part: no 'label'"),
        (
            {"name": "x", "parts": [{"label": "y"}, {"label": "z", "share": 2}]},
            "a.toml: parts[1].share: 2 is out of range",
        ),
    ],
)
def test_the_message_names_the_key(table: object, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read(table)
    assert str(caught.value).startswith(message)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
KEYS = st.sampled_from([*Whole.__dataclass_fields__, "other"])


@given(st.dictionaries(KEYS, JSON, max_size=5) | JSON)
def test_any_table_is_a_dataclass_or_one_message(table: Any) -> None:
    found: list[Whole] = []
    with contextlib.suppress(InputError):
        found.append(read(table))
    for whole in found:
        values = {name: value for name, value in asdict(whole).items() if value is not None}
        assert read(json.loads(json.dumps(values))) == whole


def test_texts_may_be_empty_where_a_file_says_so() -> None:
    assert read_table(Part, {"label": ""}, "a.json", may_be_empty=True) == Part(label="")
