"""What a loss is taken on: a run's own shards, other shards, text files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import InputError
from gptcli.evals.texts import own_shards, shard_tokens, text_tokens, token_bytes
from gptcli.files import sha256
from gptcli.shards.format import token_dtype, write_shard
from gptcli.tokenizer.tokenizer import Tokenizer


def write_shards(folder: Path, tokenizer: Tokenizer, tokens: list[int]) -> None:
    folder.mkdir()
    write_shard(
        folder / "val-000000.bin",
        np.array([len(tokens)]),
        [np.array(tokens)],
        token_dtype(tokenizer.vocab_size),
    )
    shard = {
        "file": "val-000000.bin",
        "split": "val",
        "tokens": len(tokens),
        "documents": 1,
        "sha256": sha256(folder / "val-000000.bin"),
    }
    manifest = {
        "format": 1,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eot_id": tokenizer.eot_id,
    }
    manifest |= {
        "seed": 0,
        "val_fraction": 1.0,
        "split_rule": "all",
        "shards": [shard],
        "sources": [],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_runs_own_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "run.toml").write_text('lr = 1e-3  # preset\ndata = "shards"  # default\n')
    assert own_shards(tmp_path) == Path("shards")


@pytest.mark.parametrize("toml", [None, "", 'data = "gone"', "data = 3", "data ="])
def test_a_run_whose_shards_are_not_known(tmp_path: Path, toml: str | None) -> None:
    if toml is not None:
        (tmp_path / "run.toml").write_text(toml)
    with pytest.raises(InputError) as caught:
        own_shards(tmp_path)
    assert "data, or" in str(caught.value)


def test_shards(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_shards(tmp_path / "shards", tokenizer, [399, 1, 2, 3])
    assert shard_tokens(tmp_path / "shards", tokenizer)[:].tolist() == [399, 1, 2, 3]
    with open(tmp_path / "shards" / "val-000000.bin", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(InputError, match="altered"):
        shard_tokens(tmp_path / "shards", tokenizer)


def test_shards_of_another_tokenizer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from gptcli.tokenizer.training import train_tokenizer

    write_shards(tmp_path / "shards", train_tokenizer(["la la la"], 258), [257, 1, 2])
    with pytest.raises(InputError, match="another tokenizer"):
        shard_tokens(tmp_path / "shards", tokenizer)


def test_a_text_file_byte_for_byte(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "\ufeffnaïve\r\n<|endoftext|> \t🙂\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    tokens = text_tokens(tmp_path / "a.txt", tokenizer)
    assert tokens[0] == tokenizer.eot_id
    assert tokenizer.decode(tokens[1:].tolist()) == text
    assert token_bytes(tokenizer)[tokens].sum() == len(text.encode())


def test_a_text_file_that_is_not_utf8(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="byte 3"):
        text_tokens(tmp_path / "a.txt", tokenizer)


def test_every_token_spells_its_bytes(tokenizer: Tokenizer) -> None:
    lengths = token_bytes(tokenizer)
    assert lengths[tokenizer.eot_id] == 0
    assert (lengths[:256] == 1).all()
    assert (lengths[256 : tokenizer.eot_id] > 1).all()
