"""GPT-1's tokenizer: small ones learnt here, and OpenAI's vocabulary against transformers on real
text.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from gptcli.errors import InputError, UsageError
from gptcli.tokenizer import gpt1
from gptcli.tokenizer.gpt1 import Gpt1Tokenizer, standardise, train_gpt1_tokenizer
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import END_OF_TEXT

TEXT = "The cat sat on the mat. The dog sat on the log, and the cat didn't care — not at all! " * 30


@pytest.fixture(scope="module")
def small() -> Gpt1Tokenizer:
    return train_gpt1_tokenizer([TEXT], 60)


def test_words_are_lower_cased_and_split_at_punctuation(small: Gpt1Tokenizer) -> None:
    assert small.decode(small.encode("The  CAT\n sat.")) == "the cat sat ."
    assert small.decode(small.encode("didn't — care…")) == "didn ' t - care . . ."
    assert small.encode("the cat") == small.encode(" THE\tcat\n")
    assert len(small.encode("the")) == 1


def test_ids_come_in_gpt1s_order(small: Gpt1Tokenizer) -> None:
    assert small.vocab_size == 60
    characters = sorted({*TEXT.lower().replace("—", "-")} - {" "})
    n = len(characters)
    assert [
        small.decode_bytes([number]).decode() for number in range(1, 2 * n + 1)
    ] == characters + [f"{c} " for c in characters]
    assert small.decode([0]) == "<unk>"
    assert small.encode("☃") == [0]
    assert small.eot_id == 59


def test_text_that_spells_a_special_token_is_text(small: Gpt1Tokenizer) -> None:
    assert len(small.encode("<unk>")) > 1
    assert small.eot_id not in small.encode(END_OF_TEXT)


def test_streaming_pieces_add_up(small: Gpt1Tokenizer) -> None:
    ids = small.encode(TEXT)
    assert (
        b"".join(small.decode_bytes([number]) for number in ids).decode() == small.decode(ids) + " "
    )
    assert small.encode(small.decode(ids)) == ids


def test_a_long_text_is_its_pieces(small: Gpt1Tokenizer) -> None:
    assert small.encode(TEXT * 40) == small.encode(TEXT) * 40


def test_ftfy_mends_first(small: Gpt1Tokenizer) -> None:
    assert standardise("schÃ¶n") == "schön"
    assert small.encode("“the”") == small.encode('"the"')


def test_saved_and_loaded(small: Gpt1Tokenizer, tmp_path: Path) -> None:
    small.save(tmp_path / "tokenizer.json")
    for again in (load_tokenizer(tmp_path), pickle.loads(pickle.dumps(small))):
        assert isinstance(again, Gpt1Tokenizer)
        assert (again.sha256, again.eot_id, again.vocab_size) == (
            small.sha256,
            small.eot_id,
            small.vocab_size,
        )
        assert again.encode(TEXT) == small.encode(TEXT)


def test_a_run_folder_encodes_alike_in_transformers(small: Gpt1Tokenizer, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from gptcli.model.config import ModelConfig
    from gptcli.model.safetensors_io import save_model
    from gptcli.model.transformer import GPT

    config = ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=8, vocab_size=60, norm="post")
    save_model(tmp_path, GPT(config), config, eot_id=small.eot_id)
    small.save_for_model(tmp_path, config.n_ctx)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.unk_token, theirs.eos_token_id) == ("<unk>", small.eot_id)
    text = standardise(TEXT)
    assert theirs(text).input_ids == small.encode(text)
    decoded = theirs.decode(theirs("the cat sat").input_ids)
    assert isinstance(decoded, str)
    assert decoded.strip() == "the cat sat"


def test_same_text_same_tokenizer_in_any_order_and_process() -> None:
    halves = [TEXT, "Another text, of other words; it's about dogs. " * 5]
    one = train_gpt1_tokenizer(halves, 80)
    assert one.sha256 == train_gpt1_tokenizer(halves[::-1], 80).sha256
    code = (
        "import sys; from gptcli.tokenizer.gpt1 import train_gpt1_tokenizer\n"
        f"sys.exit(train_gpt1_tokenizer({halves!r}, 80).sha256 != {one.sha256!r})"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_rare_characters_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpt1, "CHARACTERS", 3)
    tokenizer = train_gpt1_tokenizer(["aab abb aab ba bc ac"], 9)
    assert 0 in tokenizer.encode("ad")
    assert tokenizer.vocab_size <= 9


def test_impossible_vocabularies_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="too small"):
        train_gpt1_tokenizer([TEXT], 20)
    with pytest.raises(InputError, match="no text"):
        train_gpt1_tokenizer([], 100)
    with pytest.raises(InputError, match="does not belong"):
        Gpt1Tokenizer(["<unk>", "a", "b</w>"], [("a", "b</w>")])
    (tmp_path / "vocab_40000.bpe").write_text("#version: 0.2\na b</w>\n")
    (tmp_path / "encoder_bpe_40000.json").write_text('{"<unk>": 0, "a": 1, "b": 2}')
    with pytest.raises(InputError, match="not GPT-1's kind"):
        load_tokenizer(tmp_path)


@pytest.fixture(scope="module")
def released(real_data: Path) -> Gpt1Tokenizer:
    tokenizer = load_tokenizer(real_data / "gpt1-vocab")
    assert isinstance(tokenizer, Gpt1Tokenizer)
    return tokenizer


def lines_of(real_data: Path) -> list[str]:
    files = [
        *sorted((real_data / "wikitext-2").glob("*.txt")),
        *sorted((real_data / "sst2").glob("stsa*")),
    ]
    return [
        line
        for file in files
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.strip()
    ]


@pytest.mark.real_data
def test_released_vocabulary(released: Gpt1Tokenizer) -> None:
    assert (released.vocab_size, released.merges, released.eot_id) == (40478, 40000, 0)
    assert released.decode(released.encode("Hello, World!")) == "hello , world !"


@pytest.mark.real_data
def test_ids_are_transformers_over_wikitext_and_sst2(
    released: Gpt1Tokenizer, real_data: Path
) -> None:
    """Every line that differs does so for one of the reasons that the module names, as often as it
    says there.
    """
    import json

    from ftfy import fix_text
    from transformers import OpenAIGPTTokenizer

    folder = real_data / "gpt1-vocab"
    merges = [
        tuple(line.split(" "))
        for line in (folder / "vocab_40000.bpe").read_text(encoding="utf-8").split("\n")[1:]
        if line
    ]
    theirs = OpenAIGPTTokenizer(
        vocab=json.loads((folder / "encoder_bpe_40000.json").read_text(encoding="utf-8")),
        merges=cast(Any, merges),
    )
    lines = lines_of(real_data)
    assert len(lines) > 12_000
    ours, bare = released.encode_batch(lines), theirs(lines).input_ids
    mended = [standardise(line) for line in lines]
    as_text = theirs(mended, split_special_tokens=True).input_ids
    assert ours == as_text
    reasons: Counter[str] = Counter()
    for line, whole, a, b in zip(lines, mended, ours, bare, strict=True):
        if a == b:
            reasons["same"] += 1
        elif whole != line:
            reasons["ftfy" if fix_text(line) != line else "replaced"] += 1
        else:
            assert "<unk>" in line
            reasons["<unk>"] += 1
    assert reasons == {"same": 1218 + 9613, "<unk>": 3401, "replaced": 682, "ftfy": 51}


def test_a_long_word_reaches_the_library_in_parts() -> None:
    """Its time is quadratic in the length of a word; shorter words are learned from whole."""
    long = "ab" * 50_000 + "c"
    batches = list(gpt1._repeated(Counter({long: 2, "cat": 3}), {}))
    parts = [part for batch in batches for part in batch.split()]
    assert max(map(len, parts)) == gpt1.WORD
    assert parts.count("cat") == 3
    assert sum(map(len, parts)) == 2 * len(long) + 9
    assert train_gpt1_tokenizer([long + " the cat sat on the mat " * 9], 60).merges > 5


def test_without_ftfy_nothing_begins_that_needs_it(
    small: Gpt1Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ftfy", None)

    def texts() -> Iterator[str]:
        raise AssertionError("no text is read")
        yield ""

    for needs_it in (
        small.check_packages,
        lambda: small.encode("words"),
        lambda: train_gpt1_tokenizer(texts(), 300),
    ):
        with pytest.raises(UsageError, match="repairs text with ftfy") as caught:
            needs_it()
        assert str(caught.value.hint).endswith("install ftfy")
    assert small.decode([1, 2]), "decoding needs no ftfy"
