"""Rolling windows score every token once; losses equal simple loops; sources of text."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import InputError, RunError, UsageError
from gptcli.evals.rolling import (
    LossReport,
    evaluate_loss,
    find_run_shards,
    open_val_split,
    read_text_tokens,
    rolling_windows,
    token_byte_lengths,
)
from gptcli.files import sha256
from gptcli.model.transformer import GPT
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.order import TokenStream
from gptcli.tokenizer.tokenizer import Tokenizer

TEXT = "def wrap(text): naïve café 🙂 " * 12


@pytest.fixture
def tokens(tokenizer: Tokenizer) -> np.ndarray:
    ids = tokenizer.encode(TEXT)
    return np.array([tokenizer.eot_id, *ids, tokenizer.eot_id, *ids[:30]])


def measure(
    model: GPT, tokenizer: Tokenizer, tokens: TokenStream | np.ndarray, **options: Any
) -> LossReport:
    return evaluate_loss(model, tokens, token_byte_lengths(tokenizer), name="text", **options)


def by_hand(theirs: Any, tokens: np.ndarray, stride: int) -> list[float]:
    """Return -log p of each token after the first, from a separate pass over its window."""
    n_ctx = theirs.config.n_positions
    nats = []
    for target in range(1, len(tokens)):
        # the first window that contains it
        start = max(0, math.ceil((target - n_ctx) / stride)) * stride
        with torch.no_grad():
            logits = theirs(torch.tensor(tokens[start:target])[None]).logits[0, -1]
        nats.append(-float(logits.log_softmax(dim=-1)[tokens[target]]))
    return nats


@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_rolling_windows_score_every_token_once(
    length: int, n_ctx: int, data: st.DataObject
) -> None:
    stride = data.draw(st.integers(1, n_ctx))
    scored: list[int] = []
    for start, stop, count in rolling_windows(length, n_ctx, stride):
        assert 0 <= start < stop - count < stop <= min(length, start + n_ctx + 1)
        for target in range(stop - count, stop):
            # the documented minimum context
            assert target - start >= min(target, n_ctx - stride + 1)
        scored += range(stop - count, stop)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("stride", [24, 7, 1])
def test_loss_equals_a_loop_over_single_tokens(
    model: GPT, theirs: Any, tokenizer: Tokenizer, tokens: np.ndarray, stride: int
) -> None:
    nats = by_hand(theirs, tokens, stride)
    report = measure(model, tokenizer, tokens, stride=stride)
    assert report.tokens == len(nats) == len(tokens) - 1
    assert report.loss == pytest.approx(np.mean(nats), abs=1e-5)
    assert report.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert report.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / report.bytes, rel=1e-5)
    assert report.windows == len(list(rolling_windows(len(tokens), 24, stride)))


def test_bytes_are_those_of_the_text(model: GPT, tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    spelt = tokenizer.decode_bytes([int(token) for token in tokens if token != tokenizer.eot_id])
    assert measure(model, tokenizer, tokens).bytes == len(spelt)
    assert measure(model, tokenizer, np.array([5, tokenizer.eot_id])).bits_per_byte is None


def test_unigram_entropy_is_that_of_the_scored_tokens(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray
) -> None:
    counts, total = Counter(tokens[1:].tolist()), len(tokens) - 1
    exact = -sum(n / total * math.log(n / total) for n in counts.values())
    assert measure(model, tokenizer, tokens).unigram_entropy == pytest.approx(exact)
    assert measure(model, tokenizer, tokens, stride=5).unigram_entropy == pytest.approx(exact)
    assert measure(model, tokenizer, np.array([3, 3, 3])).unigram_entropy == 0


def test_standard_error_is_that_of_the_mean_over_windows(
    model: GPT, theirs: Any, tokenizer: Tokenizer, tokens: np.ndarray
) -> None:
    tokens = tokens[: 24 * 5 + 1]  # five whole windows
    means = np.array(by_hand(theirs, tokens, 24)).reshape(5, 24).mean(axis=1)
    assert measure(model, tokenizer, tokens).loss_stderr == pytest.approx(
        means.std(ddof=1) / math.sqrt(5), rel=1e-4
    )
    assert measure(model, tokenizer, tokens, limit=1).loss_stderr is None


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_loss_does_not_depend_on_the_batch_size(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray, batch_size: int
) -> None:
    assert measure(model, tokenizer, tokens, batch_size=batch_size).loss == pytest.approx(
        measure(model, tokenizer, tokens).loss, abs=1e-6
    )


def test_a_stream_and_an_array_give_the_same_loss(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray
) -> None:
    stream = TokenStream([tokens[:50].astype(np.uint16), tokens[50:].astype(np.uint16)])
    assert measure(model, tokenizer, stream) == measure(model, tokenizer, tokens)
    assert measure(model, tokenizer, stream, limit=2) == measure(
        model, tokenizer, tokens[: 2 * 24 + 1]
    )


def test_bad_strides_and_short_texts_are_refused(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray
) -> None:
    for stride in (0, 25):
        with pytest.raises(UsageError, match=r"is out of range"):
            measure(model, tokenizer, tokens, stride=stride)
    with pytest.raises(InputError, match="too short"):
        measure(model, tokenizer, tokens[:1])


def test_broken_weights_raise_an_error(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray
) -> None:
    broken = GPT(model.config).eval()
    torch.nn.init.constant_(broken.get_parameter("ln_f.bias"), math.nan)
    with pytest.raises(RunError, match="weights are broken"):
        measure(broken, tokenizer, tokens)


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


def test_run_shards_are_found_in_run_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").mkdir()
    (tmp_path / "run.toml").write_text('lr = 1e-3  # preset\ndata = "shards"  # default\n')
    assert find_run_shards(tmp_path) == Path("shards")


@pytest.mark.parametrize("toml", [None, "", 'data = "gone"', "data = 3", "data ="])
def test_a_run_without_known_shards_is_refused(tmp_path: Path, toml: str | None) -> None:
    if toml is not None:
        (tmp_path / "run.toml").write_text(toml)
    with pytest.raises(InputError) as caught:
        find_run_shards(tmp_path)
    assert "with data" in str(caught.value)


def test_val_split_is_verified(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_shards(tmp_path / "shards", tokenizer, [399, 1, 2, 3])
    assert open_val_split(tmp_path / "shards", tokenizer)[:].tolist() == [399, 1, 2, 3]
    with open(tmp_path / "shards" / "val-000000.bin", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    with pytest.raises(InputError, match="altered"):
        open_val_split(tmp_path / "shards", tokenizer)


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    from gptcli.tokenizer.training import train_tokenizer

    write_shards(tmp_path / "shards", train_tokenizer(["la la la"], 258), [257, 1, 2])
    with pytest.raises(InputError, match="another tokenizer"):
        open_val_split(tmp_path / "shards", tokenizer)


def test_a_text_file_is_read_byte_for_byte(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "\ufeffnaïve\r\n<|endoftext|> \t🙂\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    tokens = read_text_tokens(tmp_path / "a.txt", tokenizer)
    assert tokens[0] == tokenizer.eot_id
    assert tokenizer.decode(tokens[1:].tolist()) == text
    assert token_byte_lengths(tokenizer)[tokens].sum() == len(text.encode())


def test_a_text_file_that_is_not_utf8_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match="byte 3"):
        read_text_tokens(tmp_path / "a.txt", tokenizer)


def test_token_byte_lengths_count_utf8_bytes(tokenizer: Tokenizer) -> None:
    lengths = token_byte_lengths(tokenizer)
    assert lengths[tokenizer.eot_id] == 0
    assert (lengths[:256] == 1).all()
    assert (lengths[256 : tokenizer.eot_id] > 1).all()
