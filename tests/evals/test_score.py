"""Batched scores against transformers, one sequence at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.evals.score import BATCH_TOKENS, batches, score
from gptcli.model import loss
from gptcli.model.transformer import GPT


def ragged(model: GPT) -> tuple[list[list[int]], list[int]]:
    random = np.random.default_rng(0)
    lengths = random.integers(2, model.config.n_ctx + 2, size=40).tolist()
    return [random.integers(0, model.config.vocab_size, size=n).tolist() for n in lengths], [int(random.integers(1, n)) for n in lengths]


@pytest.mark.parametrize("chunk", [1, loss.CHUNK_BYTES])
def test_equal_to_transformers_one_by_one(model: GPT, theirs: Any, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gptcli.evals.score.CHUNK_BYTES", chunk)  # one token at a time, or all at once
    sequences, counts = ragged(model)
    for sequence, count, (log_probs, likeliest) in zip(sequences, counts, score(model, sequences, counts), strict=True):
        with torch.no_grad():
            logits = theirs(torch.tensor([sequence[:-1]])).logits[0, -count:]
        exact = logits.log_softmax(dim=-1)[torch.arange(count), sequence[-count:]]
        np.testing.assert_allclose(log_probs, exact, atol=1e-4)
        assert likeliest.tolist() == (logits.argmax(dim=-1) == torch.tensor(sequence[-count:])).tolist()


def test_a_score_does_not_depend_on_its_batch(model: GPT) -> None:
    sequences, counts = ragged(model)
    together = score(model, sequences, counts)
    for sequence, count, (log_probs, likeliest) in zip(sequences, counts, together, strict=True):
        [(alone, likeliest_alone)] = score(model, [sequence], [count])
        np.testing.assert_allclose(log_probs, alone, atol=1e-5)
        assert likeliest.tolist() == likeliest_alone.tolist()


def test_logits_only_where_a_target_stands(model: GPT) -> None:
    sequences, counts = ragged(model)
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[0]))
    score(model, sequences, counts)
    hook.remove()
    assert sum(rows) == sum(counts)


@given(
    st.lists(st.integers(1, 3 * BATCH_TOKENS), max_size=50).map(lambda lengths: sorted(lengths, reverse=True)),
    st.none() | st.integers(1, 9),
)
def test_batches_hold_every_sequence_once_and_not_too_many(lengths: list[int], batch_size: int | None) -> None:
    made = list(batches(lengths, batch_size))
    assert [place for batch in made for place in batch] == list(range(len(lengths)))
    for batch in made:
        padded = len(batch) * lengths[batch.start]
        assert len(batch) <= batch_size if batch_size else len(batch) == 1 or padded <= BATCH_TOKENS
