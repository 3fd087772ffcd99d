"""TOML that is written reads back the same; TOML that is broken is answered with the line as it
should be.
"""

from __future__ import annotations

import contextlib
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli import toml_text
from gptcli.errors import InputError

# All characters, lone surrogates among them, but those that stand for them in TOML.
TEXT = st.text(st.characters().filter(lambda char: not 0x10D800 <= ord(char) <= 0x10DFFF))
VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=10,
)


@given(VALUES)
def test_any_value_comes_back_from_one_line(value: Any) -> None:
    line = f"key = {toml_text.value(value)}"
    assert len(line.splitlines()) == 1
    assert toml_text.parse(line.encode(), "a.toml") == {"key": value}


@given(st.binary())
def test_a_file_name_of_any_bytes_comes_back(name: bytes) -> None:
    path = name.decode("utf-8", "surrogateescape")
    assert toml_text.parse(f"data = {toml_text.value(path)}".encode(), "a.toml") == {"data": path}


@given(TEXT)
def test_a_comment_may_hold_any_text(text: str) -> None:
    document = f"# command: {toml_text.comment(text)}\na = 1  # {toml_text.comment(text)}\n"
    assert tomllib.loads(document.encode().decode()) == {"a": 1}


def test_a_byte_order_mark_is_no_part_of_the_file() -> None:
    assert toml_text.parse(b"\xef\xbb\xbftokens = 512\n", "a.toml") == {"tokens": 512}


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
        toml_text.parse(f"seed = 1\n\n{line}\n".encode(), "a.toml")
    assert caught.value.where == "a.toml:3"
    assert line in caught.value.what
    assert caught.value.hint == f"write: {better}"
    tomllib.loads(better)


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
        toml_text.parse(text.encode(), "a.toml")
    assert caught.value.where == where
    assert hint in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_table_or_one_message(text: str) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(toml_text.parse(text.encode("utf-8", "replace"), "a.toml"), dict)
