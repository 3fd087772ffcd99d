"""What is written as JSON reads as JSON everywhere, and back to the same."""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any, NoReturn

from hypothesis import given
from hypothesis import strategies as st

import gptcli
from gptcli.strict_json import dumps, finite

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=12,
)


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


@given(VALUES, st.booleans())
def test_any_value_is_strict_json_in_utf8(value: Any, ascii_only: bool) -> None:
    text = dumps(value, ascii_only=ascii_only)
    assert json.loads(text.encode().decode(), parse_constant=refuse) == finite(value)
    assert "\n" not in text
    assert text.isascii() or not ascii_only


@given(st.binary())
def test_a_file_name_of_any_bytes_comes_back(name: bytes) -> None:
    text = name.decode("utf-8", "surrogateescape")
    assert json.loads(dumps({text: [text]}).encode()) == {text: [text]}


def test_numbers_that_are_not_finite_are_null() -> None:
    assert (
        dumps({"a": math.nan, "b": [math.inf, (-math.inf, 1.5)]})
        == '{"a": null, "b": [null, [null, 1.5]]}'
    )


def test_nothing_else_writes_json_for_others() -> None:
    """json.dump and json.dumps, but for what never leaves the program: fingerprints, C's and
    tokenizers' own input, a worker's notes.
    """
    inside = {
        "strict_json.py", "toml_text.py", "trainer/preflight.py", "finetune/task.py", "tokenizer/tokenizer.py", "tokenizer/gpt1.py",
        "tokenizer/encoders.py", "model/tensor_file.py", "evals/task_data.py", "corpus/chunks.py",
    }  # fmt: skip
    package = Path(gptcli.__file__).parent
    found = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and node.attr in ("dump", "dumps")
        and getattr(node.value, "id", "") == "json"
    }
    assert found <= inside, sorted(found - inside)
