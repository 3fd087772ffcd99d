"""Vocabularies of single characters, and nanoGPT's meta.pkl, read without running any of it."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from gptcli.errors import InputError
from gptcli.files import find_nanogpt_meta
from gptcli.tokenizer.characters import CharacterTokenizer, read_meta
from gptcli.tokenizer.encoders import open_encoder
from gptcli.tokenizer.load import load_tokenizer

CHARACTERS = "\n !,.abcABCöß文🙂"
texts = st.text(st.sampled_from(CHARACTERS), max_size=200)


@given(texts)
def test_text_comes_back_and_tokenizers_encodes_alike(text: str) -> None:
    tokenizer = CharacterTokenizer(list(CHARACTERS))
    ids = tokenizer.encode(text)
    assert ids == [CHARACTERS.index(character) for character in text]
    assert tokenizer.decode(ids) == text
    backend = Backend.from_str(tokenizer.to_json())
    assert backend.encode(text).ids == ids
    assert backend.decode(ids) == text


def test_a_file_is_read_back(tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer(list(CHARACTERS))
    tokenizer.save(tmp_path / "tokenizer.json")
    again = load_tokenizer(tmp_path)
    assert isinstance(again, CharacterTokenizer)
    assert (again.sha256, again.vocab_size, again.eot_id) == (
        tokenizer.sha256,
        len(CHARACTERS),
        None,
    )
    assert pickle.loads(pickle.dumps(again)).encode("ab") == tokenizer.encode("ab")
    assert open_encoder(again).name == "tokenizers"
    value = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    value["model"]["vocab"]["z"] = 99
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(InputError, match="without a gap"):
        load_tokenizer(tmp_path)


def test_a_character_that_is_not_there_is_named() -> None:
    with pytest.raises(InputError, match="'ä' is not one of them") as caught:
        CharacterTokenizer(["a", "b"]).encode("abä")
    assert caught.value.hint == "it has ab"
    with pytest.raises(InputError, match="single characters"):
        CharacterTokenizer(["ab"])
    with pytest.raises(InputError, match="lone surrogate"):
        CharacterTokenizer(["\ud800"])


class Runs:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def meta(itos: object) -> dict[str, object]:
    return {"vocab_size": 2, "itos": itos, "stoi": {}}


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (meta({0: "a", 2: "b"}), "has no vocabulary"),
        (meta({0: "a", 1: "ab"}), "single characters"),
        (meta({0: "a", 1: "a"}), "single characters"),
        (meta({}), "has no vocabulary"),
        (meta({0: "a", True: "b"}), "has no vocabulary"),
        (meta({0: "a", "1": "b"}), "has no vocabulary"),
        (meta([]), "has no vocabulary"),
        ("text", "has no vocabulary"),
        (meta({0: "\ud800"}), "lone surrogate"),
    ],
)
def test_a_pickle_that_is_no_vocabulary_is_refused(
    tmp_path: Path, value: object, said: str
) -> None:
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(InputError, match=said):
        read_meta(tmp_path / "meta.pkl")


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_pickle_is_not_run(tmp_path: Path, protocol: int) -> None:
    made = tmp_path / "made"
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta({0: Runs(made)}), protocol))
    with pytest.raises(InputError, match="cannot be read as nanoGPT's vocabulary: it names"):
        load_tokenizer(tmp_path)
    assert not made.exists()
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta({0: "a", 1: "b"}), protocol))
    assert load_tokenizer(tmp_path).decode([1, 0]) == "ba"


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused_in_words(tmp_path_factory: Any, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any-meta.pkl"
    whole = pickle.dumps(meta({0: "a", 1: "b"}))
    for text in (data, whole[: len(data)], whole[:20] + data + whole[20:]):
        path.write_bytes(text)
        with contextlib.suppress(InputError):
            assert read_meta(path).vocab_size > 0


def test_the_vocabulary_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    out = tmp_path / "out-tiny-char"
    far = tmp_path / "data" / "tiny_char" / "meta.pkl"
    out.mkdir()
    far.parent.mkdir(parents=True)
    assert find_nanogpt_meta(out / "ckpt.pt") is None
    far.touch()
    assert find_nanogpt_meta(out / "ckpt.pt") == far
    (out / "meta.pkl").touch()
    assert find_nanogpt_meta(out / "ckpt.pt") == out / "meta.pkl"
