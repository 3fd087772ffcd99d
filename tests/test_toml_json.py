"""Tests of reading and writing TOML and JSON: texts that read back, and errors with a correction."""

from __future__ import annotations

import ast
import contextlib
import json
import math
import tomllib
from pathlib import Path
from typing import Any, NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gptcli
from gptcli import toml_json
from gptcli.errors import InputError
from gptcli.toml_json import dumps, finite, parse_json, shown

# All characters, lone surrogates among them, but those that stand for them in TOML.
TEXT = st.text(st.characters().filter(lambda char: not 0x10D800 <= ord(char) <= 0x10DFFF))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(VALUES)
def test_any_value_comes_back_from_one_line(value: Any) -> None:
    line = f"key = {toml_json.toml_value(value)}"
    assert len(line.splitlines()) == 1
    assert toml_json.parse_toml(line.encode(), "a.toml") == {"key": value}


@given(st.binary())
def test_a_file_name_of_any_bytes_comes_back(name: bytes) -> None:
    path = name.decode("utf-8", "surrogateescape")
    assert toml_json.parse_toml(f"data = {toml_json.toml_value(path)}".encode(), "a.toml") == {
        "data": path
    }


@given(TEXT)
def test_a_comment_may_hold_any_text(text: str) -> None:
    document = (
        f"# command: {toml_json.toml_comment(text)}\na = 1  # {toml_json.toml_comment(text)}\n"
    )
    assert tomllib.loads(document.encode().decode()) == {"a": 1}


def test_a_byte_order_mark_is_no_part_of_the_file() -> None:
    assert toml_json.parse_toml(b"\xef\xbb\xbftokens = 512\n", "a.toml") == {"tokens": 512}


@pytest.mark.parametrize(
    ("line", "better"),
    [
        ("data = shards", 'data = "shards"'),
        ("data = runs/my shards", 'data = "runs/my shards"'),
        ("tokens 512", "tokens = 512"),
        ("tokens: 512", "tokens = 512"),
        ("document_mask = yes", "document_mask = true"),
        ("document_mask = True", "document_mask = true"),
        ("document_mask = off", "document_mask = false"),
        ('data = "C:\\Users\\me"', "data = 'C:\\Users\\me'"),
        ("data = C:\\Users\\me", "data = 'C:\\Users\\me'"),
        ("size = \u201cgpt2\u201d", 'size = "gpt2"'),
        ("size = 'gpt2", 'size = "gpt2"'),
        ('size = gpt2"', 'size = "gpt2"'),
        ("tokens = 1,000,000", "tokens = 1_000_000"),
        ("tokens = 10M", 'tokens = "10M"'),
        ("lr = .1", "lr = 0.1"),
        ("lr = 5.", "lr = 5.0"),
        ("lr = 6e-4  // peak", "lr = 6e-4  # peak"),
        ("n_layer = 12;", "n_layer = 12"),
        ("n_layer = 12,", "n_layer = 12"),
        ("n_layer == 12", "n_layer = 12"),
        ("size = gpt2  # small", 'size = "gpt2"  # small'),
        ("[train", "[train]"),
    ],
)
def test_the_line_as_it_should_be(line: str, better: str) -> None:
    with pytest.raises(InputError) as caught:
        toml_json.parse_toml(f"seed = 1\n\n{line}\n".encode(), "a.toml")
    assert caught.value.where == "a.toml:3"
    assert line in caught.value.what
    assert caught.value.hint == f"write: {better}"
    tomllib.loads(better)


def test_a_sentence_is_not_taken_for_a_name_and_its_value() -> None:
    with pytest.raises(InputError) as caught:
        toml_json.parse_toml(b'The "assert" statement\n', "book.txt")
    assert str(caught.value.hint).startswith("a line of TOML is: name = value")


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("tokens = None", "a.toml:1", "leave the line out"),
        ("seed = 1\nseed = 2", "a.toml:2", "leave one of the two out"),
        ('{"tokens": 512}', "a.toml:1", "a line of TOML is"),
        ("a = 1\n= 3", "a.toml:2", "a line of TOML is"),
        ("a = [1,\n2", "a.toml:2", "a line of TOML is"),
    ],
)
def test_other_faults(text: str, where: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        toml_json.parse_toml(text.encode(), "a.toml")
    assert caught.value.where == where
    assert hint in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_table_or_one_message(text: str) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(toml_json.parse_toml(text.encode("utf-8", "replace"), "a.toml"), dict)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4)
    ),
    max_leaves=12,
)


def refuse(constant: str) -> NoReturn:
    raise AssertionError(f"{constant} is no JSON")


@given(JSON_VALUES, st.booleans())
def test_any_value_is_strict_json_in_utf8(value: Any, ascii_only: bool) -> None:
    text = dumps(value, ascii_only=ascii_only)
    assert json.loads(text.encode().decode(), parse_constant=refuse) == finite(value)
    assert "\n" not in text
    assert text.isascii() or not ascii_only


@given(st.binary())
def test_a_file_name_of_any_bytes_comes_back_from_json(name: bytes) -> None:
    text = name.decode("utf-8", "surrogateescape")
    assert json.loads(dumps({text: [text]}).encode()) == {text: [text]}


def test_numbers_that_are_not_finite_are_null() -> None:
    assert (
        dumps({"a": math.nan, "b": [math.inf, (-math.inf, 1.5)]})
        == '{"a": null, "b": [null, [null, 1.5]]}'
    )


def test_nothing_else_writes_json_for_others() -> None:
    """json.dump and json.dumps, but for what never leaves the program: fingerprints, the
    input of C, tokenizers, filters and a page's script, a worker's notes.
    """
    inside = {
        "toml_json.py", "trainer/preflight.py", "finetune/task.py", "tokenizer/tokenizer.py", "tokenizer/gpt1.py",
        "tokenizer/encoders.py", "tokenizer/training.py", "model/tensor_file.py", "evals/task_data.py", "corpus/chunks.py",
        "tokenizer/characters.py", "runs/page.py", "corpus/heuristics.py",
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


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('// a comment\n{"a": 1}', "JSON has no comments: remove it"),
        ('# a comment\n{"a": 1}', "JSON has no comments: remove it"),
        ('{"a": 1, /* one */ "b": 2}', "JSON has no comments: remove it"),
        ("{'a': 1}", "a text of JSON stands between double quotes"),
        ('{"a": 1,}', "remove the comma"),
        ('["a",]', "remove the comma"),
        ('{"a": True}', "write true for True"),
        ('{"a": None}', "write null for None"),
        ("", "it is empty"),
        ("{a", "correct it, or copy"),
        ("# A text\nwith a heading", "correct it, or copy"),
    ],
)
def test_common_slips_in_json_are_named(text: str, hint: str) -> None:
    with pytest.raises(InputError, match="not valid JSON") as caught:
        parse_json(text.encode(), "a.json")
    assert str(caught.value.hint).startswith(hint)
    assert parse_json(b"\xef\xbb\xbf[1]", "a.json") == [1], "a byte order mark is no slip"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a = true", "true"),
        ("a = [true, 'b', 0.5]", '[true, "b", 0.5]'),
        ("a = 'it is'", "'it is'"),
        ("a = {b = false}", '{"b": false}'),
        ("a = 1979-05-27", "1979-05-27"),
        ("a = [1979-05-27]", '["1979-05-27"]'),
        ("a = nan", "nan"),
        ("a = 3", "3"),
    ],
)
def test_a_message_spells_a_value_as_its_file_does(text: str, words: str) -> None:
    assert shown(tomllib.loads(text)["a"]) == words


def test_a_message_spells_null_as_json_does() -> None:
    assert shown(parse_json(b'[null, {"a": null}]', "x")) == '[null, {"a": null}]'
    assert shown(None) == "null"
