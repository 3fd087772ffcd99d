"""Windows score every token once; loss, perplexity, bits per byte and entropy against loops by
hand.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import InputError, RunError, UsageError
from gptcli.evals.loss import LossReport, evaluate_loss, windows
from gptcli.evals.texts import token_bytes
from gptcli.model.transformer import GPT
from gptcli.shards.loader import TokenStream
from gptcli.tokenizer.tokenizer import Tokenizer

TEXT = "def wrap(text): naïve café 🙂 " * 12


@pytest.fixture
def tokens(tokenizer: Tokenizer) -> np.ndarray:
    ids = tokenizer.encode(TEXT)
    return np.array([tokenizer.eot_id, *ids, tokenizer.eot_id, *ids[:30]])


def measure(
    model: GPT, tokenizer: Tokenizer, tokens: TokenStream | np.ndarray, **options: Any
) -> LossReport:
    return evaluate_loss(model, tokens, token_bytes(tokenizer), name="text", **options)


def by_hand(theirs: Any, tokens: np.ndarray, stride: int) -> list[float]:
    """-log p of each token after the first, alone, from the window that the rule gives it."""
    n_ctx = theirs.config.n_positions
    nats = []
    for target in range(1, len(tokens)):
        # the first window that reaches it
        start = max(0, math.ceil((target - n_ctx) / stride)) * stride
        with torch.no_grad():
            logits = theirs(torch.tensor(tokens[start:target])[None]).logits[0, -1]
        nats.append(-float(logits.log_softmax(dim=-1)[tokens[target]]))
    return nats


@given(st.integers(0, 300), st.integers(1, 40), st.data())
def test_every_token_is_scored_once(length: int, n_ctx: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, n_ctx))
    scored = []
    for start, stop, count in windows(length, n_ctx, stride):
        assert 0 <= start < stop - count < stop <= min(length, start + n_ctx + 1)
        for target in range(stop - count, stop):
            # the context that the rule promises
            assert target - start >= min(target, n_ctx - stride + 1)
        scored += range(stop - count, stop)
    assert scored == list(range(1, length))


@pytest.mark.parametrize("stride", [24, 7, 1])
def test_equal_to_a_loop_by_hand(
    model: GPT, theirs: Any, tokenizer: Tokenizer, tokens: np.ndarray, stride: int
) -> None:
    nats = by_hand(theirs, tokens, stride)
    report = measure(model, tokenizer, tokens, stride=stride)
    assert report.tokens == len(nats) == len(tokens) - 1
    assert report.loss == pytest.approx(np.mean(nats), abs=1e-5)
    assert report.perplexity == pytest.approx(math.exp(np.mean(nats)), rel=1e-4)
    assert report.bits_per_byte == pytest.approx(sum(nats) / math.log(2) / report.bytes, rel=1e-5)
    assert report.windows == len(list(windows(len(tokens), 24, stride)))


def test_bytes_are_the_texts_own(model: GPT, tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    spelt = tokenizer.decode_bytes([int(token) for token in tokens if token != tokenizer.eot_id])
    assert measure(model, tokenizer, tokens).bytes == len(spelt)
    assert measure(model, tokenizer, np.array([5, tokenizer.eot_id])).bits_per_byte is None


def test_entropy_of_the_same_tokens(model: GPT, tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    counts, total = Counter(tokens[1:].tolist()), len(tokens) - 1
    exact = -sum(n / total * math.log(n / total) for n in counts.values())
    assert measure(model, tokenizer, tokens).unigram_entropy == pytest.approx(exact)
    assert measure(model, tokenizer, tokens, stride=5).unigram_entropy == pytest.approx(exact)
    assert measure(model, tokenizer, np.array([3, 3, 3])).unigram_entropy == 0


def test_the_standard_error_is_that_of_the_mean_over_windows(
    model: GPT, theirs: Any, tokenizer: Tokenizer, tokens: np.ndarray
) -> None:
    tokens = tokens[: 24 * 5 + 1]  # five whole windows
    means = np.array(by_hand(theirs, tokens, 24)).reshape(5, 24).mean(axis=1)
    assert measure(model, tokenizer, tokens).loss_stderr == pytest.approx(
        means.std(ddof=1) / math.sqrt(5), rel=1e-4
    )
    assert measure(model, tokenizer, tokens, limit=1).loss_stderr is None


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_the_batch_changes_nothing(
    model: GPT, tokenizer: Tokenizer, tokens: np.ndarray, batch_size: int
) -> None:
    assert measure(model, tokenizer, tokens, batch_size=batch_size).loss == pytest.approx(
        measure(model, tokenizer, tokens).loss, abs=1e-6
    )


def test_shards_and_limits(model: GPT, tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    stream = TokenStream([tokens[:50].astype(np.uint16), tokens[50:].astype(np.uint16)])
    assert measure(model, tokenizer, stream) == measure(model, tokenizer, tokens)
    assert measure(model, tokenizer, stream, limit=2) == measure(
        model, tokenizer, tokens[: 2 * 24 + 1]
    )


def test_bad_input(model: GPT, tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    for stride in (0, 25):
        with pytest.raises(UsageError, match=r"stride: .* is out of range"):
            measure(model, tokenizer, tokens, stride=stride)
    with pytest.raises(InputError, match="too short"):
        measure(model, tokenizer, tokens[:1])


def test_broken_weights_are_said(model: GPT, tokenizer: Tokenizer, tokens: np.ndarray) -> None:
    broken = GPT(model.config).eval()
    torch.nn.init.constant_(broken.ln_f.bias, math.nan)
    with pytest.raises(RunError, match="weights are broken"):
        measure(broken, tokenizer, tokens)
