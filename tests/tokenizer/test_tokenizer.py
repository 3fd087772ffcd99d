"""Encoding against tiktoken and transformers, decoding against itself, and files that others
read.
"""

from __future__ import annotations

import bz2
import gzip
import json
import pickle
import unicodedata
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import tiktoken
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from gptcli.errors import InputError, UsageError
from gptcli.tokenizer import tokenizer as module
from gptcli.tokenizer.encoders import open_encoder
from gptcli.tokenizer.load import GPT2_SHA256, load_tokenizer
from gptcli.tokenizer.tokenizer import Tokenizer, byte_alphabet, pieces
from gptcli.tokenizer.training import train_tokenizer

AWKWARD = [
    "\x00",
    "\r\n",
    "\x1c",
    "\x85",
    "\xa0",
    "\u2028",
    "\ufeff",
    "\U0010ffff",
    " ",
    "  ",
    "\n",
    "'s",
    "'",
    "é",
    "中",
    "😀",
    "1",
    "a",
    "<|endoftext|>",
]
valid_text = st.text(st.characters(exclude_categories=["Cs"]))
awkward_text = st.lists(st.sampled_from(AWKWARD)).map("".join)


@given(valid_text | awkward_text)
@settings(max_examples=500, deadline=None)
def test_any_text_comes_back_and_equals_tiktoken(
    tokenizer: Tokenizer, oracle: tiktoken.Encoding, text: str
) -> None:
    ids = tokenizer.encode(text)
    assert ids == oracle.encode_ordinary(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode_bytes(ids) == text.encode()


def test_every_code_point_equals_tiktoken(tokenizer: Tokenizer, oracle: tiktoken.Encoding) -> None:
    """Each between a letter and a digit, and between a space and a sign: both libraries put it in
    the same category.
    """
    characters = [
        chr(point)
        for point in range(0x110000)
        if not 0xD800 <= point < 0xE000 and unicodedata.category(chr(point)) != "Co"
    ]
    texts = [
        "".join(f"a{c}1 {c}!\n" for c in characters[start : start + 64])
        for start in range(0, len(characters), 64)
    ]
    assert tokenizer.encode_batch(texts) == oracle.encode_ordinary_batch(texts)


@given(st.lists(awkward_text | valid_text).map(" ".join), st.integers(1, 9))
@settings(max_examples=500, deadline=None)
def test_pieces_encode_as_the_whole(tokenizer: Tokenizer, text: str, size: int) -> None:
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    # a text below PIECE goes in whole
    assert list(chain.from_iterable(map(tokenizer.encode, cut))) == tokenizer.encode(text)


def test_long_texts_and_batches_equal_one_by_one(
    tokenizer: Tokenizer, oracle: tiktoken.Encoding, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text, "", "x", text[:777], " " * 3000, "a" * 3000]
    monkeypatch.setattr(module, "PIECE", 100)
    monkeypatch.setattr(module, "GROUP", 1000)
    monkeypatch.setattr(module, "GROUP_PIECES", 3)
    assert tokenizer.encode_batch(texts) == [oracle.encode_ordinary(each) for each in texts]
    assert tokenizer.encode_batch([]) == []


def test_a_line_of_a_million_letters_without_a_space(tokenizer: Tokenizer) -> None:
    line = "abcdefghij" * 100_000
    assert tokenizer.decode(tokenizer.encode(line)) == line


def test_end_of_text_in_text_is_ordinary(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one<|endoftext|>two")
    assert tokenizer.eot_id == tokenizer.vocab_size - 1
    assert tokenizer.eot_id not in ids
    assert tokenizer.decode(ids) == "one<|endoftext|>two"
    assert tokenizer.decode([tokenizer.eot_id]) == "<|endoftext|>"


@given(st.data())
def test_any_ids_decode_to_their_bytes(
    tokenizer: Tokenizer, oracle: tiktoken.Encoding, data: st.DataObject
) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1)))
    assert tokenizer.decode_bytes(ids) == oracle.decode_bytes(ids)
    assert tokenizer.decode(ids) == oracle.decode(ids)
    as_array = cast(Sequence[int], np.array(ids, np.uint16))
    assert tokenizer.decode_bytes(as_array) == oracle.decode_bytes(ids)


@pytest.mark.parametrize("bad", [-1, 1500, 2**40])
def test_an_id_outside_the_vocabulary_is_refused(tokenizer: Tokenizer, bad: int) -> None:
    with pytest.raises(InputError, match=rf"id {bad} is outside the vocabulary \(0 to 1499\)"):
        tokenizer.decode_bytes([1, bad])


@pytest.mark.parametrize("surrogate", [0xD800, 0xDFFF])
def test_a_lone_surrogate_is_refused(tokenizer: Tokenizer, surrogate: int) -> None:
    with pytest.raises(InputError, match=f"U\\+{surrogate:04X}, at character 2"):
        tokenizer.encode_batch(["fine", f"ab{chr(surrogate)}c"])


def test_the_fingerprint_tells_vocabularies_apart(tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_json())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    merges = [tuple(merge.split(" ")) for merge in model["merges"]]
    assert Tokenizer(tokens, merges).sha256 == tokenizer.sha256
    assert Tokenizer(tokens, [merges[1], merges[0], *merges[2:]]).sha256 != tokenizer.sha256
    assert Tokenizer([tokens[1], tokens[0], *tokens[2:]], merges).sha256 != tokenizer.sha256


def test_transformers_loads_what_is_saved(tokenizer: Tokenizer, text: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    plain = text.replace("<|endoftext|>", "")
    for theirs in (
        transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")),
        transformers.AutoTokenizer.from_pretrained(tmp_path),
    ):
        assert theirs(plain)["input_ids"] == tokenizer.encode(plain)
        assert theirs.decode(tokenizer.encode(plain), clean_up_tokenization_spaces=False) == plain
        assert theirs.convert_tokens_to_ids("<|endoftext|>") == tokenizer.eot_id
        # special for them, in prompts
        assert theirs("<|endoftext|>")["input_ids"] == [tokenizer.eot_id]


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "gpt_neo"])
def test_beside_a_model_of_any_family_transformers_takes_it_as_it_is(
    tokenizer: Tokenizer, text: str, tmp_path: Path, family: str
) -> None:
    from transformers import AutoTokenizer

    tokenizer.save_for_model(tmp_path, 128)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    plain = text.replace("<|endoftext|>", "")
    given = theirs(plain)
    assert given["input_ids"] == tokenizer.encode(plain)
    assert given.keys() == {"input_ids", "attention_mask"}
    assert theirs.decode(given["input_ids"]) == plain
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (
        tokenizer.eot_id,
        tokenizer.eot_id,
        128,
    )


def test_merges_are_written_as_older_libraries_read_them(tokenizer: Tokenizer, text: str) -> None:
    """As "a b": `tokenizers` below 0.20 refuses pairs. The library as it is now reads the same
    tokenizer from both.
    """
    value = json.loads(tokenizer.to_json())
    merges = value["model"]["merges"]
    assert all(isinstance(merge, str) and len(merge.split(" ")) == 2 for merge in merges)
    value["model"]["merges"] = [merge.split(" ") for merge in merges]
    one, other = (Backend.from_str(form) for form in (tokenizer.to_json(), json.dumps(value)))
    assert one.to_str() == other.to_str()
    assert one.encode(text).ids == other.encode(text).ids


@pytest.mark.parametrize("words", [[], [{"content": "bank", "single_word": True}]])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_file_is_the_one_that_a_backend_of_all_merges_writes(
    words: list[dict[str, Any]], order: tuple[int, int]
) -> None:
    alphabet = list(byte_alphabet())
    special = [[module.END_OF_TEXT, "<|user|>"][number] for number in order]
    added = [word["content"] for word in words]
    tokens = [special[0], *alphabet, "ab", "abab", special[1], *added]
    merges = [("a", "b"), ("ab", "ab")]
    tokenizer = Tokenizer(tokens, merges, [*special, *added], words)
    whole = tokenizer._completed(Backend.from_str(tokenizer.merges_json()))
    assert tokenizer.to_json() == module.readable_text(whole)


def test_a_few_texts_have_the_ids_of_all_merges(tokenizer: Tokenizer, text: str) -> None:
    texts = [text[:60], "", "the thethe  the", "naïve <|endoftext|>"]
    assert tokenizer.encode_few(texts) == tokenizer.encode_batch(texts)
    # what the first merge joins is made by the second
    late = Tokenizer([*byte_alphabet(), "abc", "ab"], [("ab", "c"), ("a", "b")])
    assert late.encode_few(["abc ab"]) == late.encode_batch(["abc ab"])


def test_a_merge_named_twice_is_written_where_the_library_counts_it() -> None:
    merges = [("a", "b"), ("b", "c"), ("a", "b")]
    tokenizer = Tokenizer([*byte_alphabet(), "ab", "bc"], merges)
    assert tokenizer.encode("abc") == tokenizer.encode_few(["abc"])[0]
    assert tokenizer.merges_json() == tokenizer._backend.to_str()
    assert Backend.from_str(tokenizer.merges_json()).encode("abc").ids == tokenizer.encode("abc")


def test_an_added_token_that_is_no_unicode_is_refused() -> None:
    with pytest.raises(InputError, match="lone surrogate"):
        Tokenizer([*byte_alphabet(), "\ud800"], [], ["\ud800"])


def test_a_pickle_holds_no_backend(tokenizer: Tokenizer) -> None:
    """A worker that encodes with another library does not make one: it takes long."""
    tokenizer.encode("the")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.merges_json() == tokenizer.merges_json() == tokenizer._backend.to_str()
    open_encoder(again, "tiktoken")
    assert "_backend" not in vars(again)
    assert again.encode("the") == tokenizer.encode("the")


def test_the_byte_alphabet_is_a_bijection_in_gpt2s_order() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert list(alphabet)[:3] == ["!", '"', "#"]
    assert (alphabet["Ġ"], alphabet["Ċ"], alphabet["¡"], alphabet["Ā"]) == (0x20, 0x0A, 0xA1, 0)


@pytest.fixture(scope="session")
def gpt2(real_data: Path) -> Tokenizer:
    return load_tokenizer(real_data / "gpt2-vocab")


@pytest.mark.real_data
def test_gpt2s_own_vocabulary(gpt2: Tokenizer, real_data: Path) -> None:
    assert (gpt2.vocab_size, gpt2.eot_id, gpt2.merges, gpt2.sha256) == (
        50257,
        50256,
        50000,
        GPT2_SHA256,
    )
    assert gpt2.encode("Hello world") == [15496, 995]
    assert (
        len(gpt2.encode((real_data / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")))
        == 338_025
    )


@pytest.mark.real_data
def test_ids_equal_tiktoken_on_every_text_file(
    gpt2: Tokenizer, real_data: Path, tiktoken_of: Callable[[Path], tiktoken.Encoding]
) -> None:
    theirs = tiktoken_of(real_data / "gpt2-vocab")
    read = 0
    for path in sorted(path for path in real_data.rglob("*") if path.is_file()):
        openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open}
        with openers.get(path.suffix, open)(path, "rb") as file:
            data = file.read()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:  # archives
            continue
        ids = gpt2.encode(text)
        assert ids == theirs.encode_ordinary(text), path
        assert gpt2.decode_bytes(ids) == data, path
        read += 1
    assert read > 100


@pytest.mark.parametrize(
    "word",
    [
        {"content": "riverbank"},
        {"content": "riverbank", "single_word": True},
        {"content": "two words", "normalized": False},
        {"content": "riverbank", "lstrip": True, "rstrip": True},
    ],
)
def test_added_words_are_recognised_as_tokenizers_does(
    tmp_path: Path, word: dict[str, Any]
) -> None:
    text = "The riverbank, riverbanks and  riverbank  two words <|endoftext|>" * 3
    plain = train_tokenizer([text], 300)
    value = json.loads(plain.to_json())
    settings = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    value["added_tokens"].append({"id": plain.vocab_size, "special": False, **settings, **word})
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    found = load_tokenizer(tmp_path)
    reference = Backend.from_str(json.dumps(value))
    reference.encode_special_tokens = True
    expected = reference.encode(text, add_special_tokens=False).ids
    assert plain.vocab_size in expected
    assert found.encode(text) == expected
    assert found.decode(expected) == text or "lstrip" in word
    assert found.sha256 != plain.sha256
    found.save(tmp_path / "again.json")
    again = load_tokenizer(tmp_path / "again.json")
    assert (again.sha256, again.encode(text)) == (found.sha256, expected)
    ids, _ = open_encoder(found).encode([text])
    assert ids.tolist() == expected


GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def test_a_pattern_and_special_tokens_of_ones_own(text: str, tmp_path: Path) -> None:
    """Beside `tokenizers`, which trains and encodes with the same pattern, and tiktoken."""
    special = ["<|user|>", "<|user|>x", "[end]"]
    made = train_tokenizer([text], 700, pattern=GPT4_PATTERN, special=special)
    assert made.vocab_size == 700
    assert made.decode([696, 697, 698, 699]) == "<|endoftext|>" + "".join(special)
    assert made.sha256 != train_tokenizer([text], 700, special=special).sha256
    made.save(tmp_path / "tokenizer.json")
    loaded = load_tokenizer(tmp_path)
    assert loaded.sha256 == made.sha256
    assert loaded.to_json() == made.to_json()
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    model = json.loads(made.to_json())["model"]
    alphabet = byte_alphabet()
    ranks = {
        bytes(alphabet[character] for character in token): number
        for token, number in model["vocab"].items()
        if number < 696
    }
    oracle = tiktoken.Encoding(
        "own", pat_str=GPT4_PATTERN, mergeable_ranks=ranks, special_tokens={}
    )
    for sample in (text[:5000], "It'S 12345 tests!\r\n\r\n x", "<|user", "", " \n  a"):
        assert loaded.encode(sample) == oracle.encode_ordinary(sample)
        assert loaded.encode(sample) == theirs.encode(sample).ids
    # Text never gives a special token, a prompt that spells one does.
    for prompt in ("<|user|>Hello[end] <|user|>xy<|endoftext|>", "a", "<|user|>"):
        assert max(loaded.encode(prompt)) < 696
        assert loaded.encode_prompt(prompt) == theirs.encode(prompt).ids
    assert open_encoder(loaded).name == "tokenizers"
    with pytest.raises(UsageError, match="cannot encode for this tokenizer"):
        open_encoder(loaded, "tiktoken")


def test_training_equals_the_librarys_with_the_same_pattern(text: str) -> None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Split(tokenizers.Regex(GPT4_PATTERN), "isolated"),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=500,
        min_frequency=2,
        initial_alphabet=list(byte_alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([text], trainer)
    merges = json.loads(backend.to_str())["model"]["merges"]
    made = json.loads(train_tokenizer([text], 501, pattern=GPT4_PATTERN).to_json())
    assert [merge.split(" ") for merge in made["model"]["merges"]] == merges


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"pattern": "("}, "not a regular expression"),
        ({"special": ["a", "a"]}, "empty or given twice"),
        ({"special": [" "]}, "empty or given twice"),
        ({"special": ["e"]}, "is an ordinary token"),
        ({"special": [f"<{n}>" for n in range(300)]}, "is too small"),
    ],
)
def test_impossible_patterns_and_special_tokens_are_refused(
    asked: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        train_tokenizer(["some text to learn from"], 300, **asked)
