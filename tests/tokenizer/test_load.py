"""Tokenizers that are loaded from every kind of file, or refused."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import pytest

from gptcli.errors import InputError
from gptcli.tokenizer import load as module
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import Tokenizer


def test_every_source_gives_one_tokenizer(
    tokenizer: Tokenizer, release: Path, text: str, tmp_path: Path
) -> None:
    renamed = tmp_path / "transformers"
    renamed.mkdir()
    shutil.copy(release / "vocab.bpe", renamed / "merges.txt")
    shutil.copy(release / "encoder.json", renamed / "vocab.json")
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    tokenizer.save(tmp_path / "other.json")
    sources = [
        release,
        renamed,
        tmp_path / "run",
        tmp_path / "run" / "tokenizer.json",
        tmp_path / "other.json",
    ]
    for loaded in [*map(load_tokenizer, sources), pickle.loads(pickle.dumps(tokenizer))]:
        assert (loaded.sha256, loaded.vocab_size, loaded.eot_id, loaded.merges) == (
            tokenizer.sha256,
            1500,
            1499,
            1243,
        )
        assert loaded.encode(text) == tokenizer.encode(text)
        assert loaded.to_json() == tokenizer.to_json()


def test_tokens_added_by_others_decode_and_stay_declared(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    value = json.loads(tokenizer.to_json())
    value["added_tokens"].append(
        {**value["added_tokens"][0], "id": 1500, "content": "<|début du tour|>"}
    )
    (tmp_path / "tokenizer.json").write_text(json.dumps(value), encoding="utf-8")
    loaded = load_tokenizer(tmp_path)
    assert loaded.vocab_size == 1501
    assert loaded.sha256 != tokenizer.sha256
    assert 1500 not in loaded.encode("<|début du tour|>")
    assert loaded.decode([1500]) == "<|début du tour|>"
    assert json.loads(loaded.to_json())["added_tokens"] == value["added_tokens"]


def test_a_vocabulary_without_end_of_text(release: Path, tmp_path: Path) -> None:
    vocab = json.loads((release / "encoder.json").read_text(encoding="utf-8"))
    del vocab["<|endoftext|>"]
    (tmp_path / "encoder.json").write_text(json.dumps(vocab), encoding="utf-8")
    shutil.copy(release / "vocab.bpe", tmp_path)
    assert load_tokenizer(tmp_path).eot_id is None


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (lambda value: value.pop("model"), "not a BPE tokenizer.json"),
        (
            lambda value: value.update(
                model={"type": "Unigram", "vocab": [["a", 0.5]], "merges": []}
            ),
            "not a BPE tokenizer.json",
        ),
        (
            lambda value: value["pre_tokenizer"].update(add_prefix_space=True),
            "not a byte-level BPE that splits text by one pattern",
        ),
        (
            lambda value: value.update(pre_tokenizer={"type": "Whitespace"}),
            "not a byte-level BPE that splits text by one pattern",
        ),
        (
            lambda value: value.update(normalizer={"type": "NFC"}),
            "not a byte-level BPE that splits text by one pattern",
        ),
        (
            lambda value: value["model"].update(ignore_merges=True),
            "not a byte-level BPE that splits text by one pattern",
        ),
        (lambda value: value["model"]["vocab"].pop("!"), "without a gap"),
        (lambda value: value["model"]["vocab"].update({"!": "0"}), "without a gap"),
        (lambda value: value["model"]["vocab"].update({"▁a": 1500}), "spells tokens with '▁'"),
        (
            lambda value: value["model"]["merges"].append(["!", "☃"]),
            "does not belong to the vocabulary",
        ),
        (
            lambda value: value["model"]["merges"].append("! ! !"),
            "does not belong to the vocabulary",
        ),
        (
            lambda value: value["model"]["merges"].append([["!"], 1]),
            "does not belong to the vocabulary",
        ),
        (lambda value: value.update(pre_tokenizer="ByteLevel"), "not a BPE tokenizer.json"),
    ],
)
def test_a_tokenizer_json_that_is_not_ours_is_refused(
    tokenizer: Tokenizer, tmp_path: Path, alter, message: str
) -> None:
    path = tmp_path / "tokenizer.json"
    value = json.loads(tokenizer.to_json())
    alter(value)
    path.write_text(json.dumps(value), encoding="utf-8")
    with pytest.raises(InputError, match=message) as raised:
        load_tokenizer(path)
    assert raised.value.where == str(path)


def test_files_that_are_no_tokenizer_are_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such tokenizer"):
        load_tokenizer(tmp_path / "absent")
    with pytest.raises(InputError, match="contains no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match="half of a tokenizer"):
        load_tokenizer(release / "vocab.bpe")
    (tmp_path / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        load_tokenizer(tmp_path / "broken.json")
    shutil.copy(release / "encoder.json", tmp_path)
    merges = tmp_path / "vocab.bpe"
    for content, message in (
        (b"#version: 0.2\n! !\nabc\n", "not a merge: 'abc'"),
        (b"! \xff\n", "not valid UTF-8 at byte 2"),
    ):
        merges.write_bytes(content)
        with pytest.raises(InputError, match=message):
            load_tokenizer(tmp_path)


def test_gpt2_by_name_says_offline_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError("not in the cache")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", absent)
    # nobody listens there
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_url", lambda *_: "http://127.0.0.1:9/tokenizer.json"
    )
    with pytest.raises(InputError, match=r"cannot reach the Hub") as raised:
        load_tokenizer("gpt2")
    assert raised.value.hint is not None
    assert "http://127.0.0.1:9/tokenizer.json" in raised.value.hint


def test_gpt2_by_name_must_be_gpt2(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    tokenizer.save(tmp_path / "cache" / "tokenizer.json")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        huggingface_hub,
        "hf_hub_download",
        lambda *_, **__: str(tmp_path / "cache" / "tokenizer.json"),
    )
    with pytest.raises(InputError, match="is not GPT-2's vocabulary"):
        load_tokenizer("gpt2")
    monkeypatch.setattr(module, "GPT2_SHA256", tokenizer.sha256)
    assert load_tokenizer("gpt2").sha256 == tokenizer.sha256
    tokenizer.save(tmp_path / "gpt2" / "tokenizer.json")  # a folder of that name goes first
    monkeypatch.setattr(module, "GPT2_SHA256", "")
    assert load_tokenizer("gpt2").sha256 == tokenizer.sha256
