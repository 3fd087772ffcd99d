"""Batched scores equal transformers' on single sequences; memory errors; batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.errors import RunError
from gptcli.evals.loglikelihood import LogLikelihoodScorer, batches, find_shared_prefix, score
from gptcli.evals.shared_prefix import Group
from gptcli.events import Events
from gptcli.model.transformer import GPT


def ragged(model: GPT) -> tuple[list[list[int]], list[int]]:
    random = np.random.default_rng(0)
    lengths = random.integers(2, model.config.n_ctx + 2, size=40).tolist()
    return [random.integers(0, model.config.vocab_size, size=n).tolist() for n in lengths], [
        int(random.integers(1, n)) for n in lengths
    ]


@pytest.mark.parametrize("chunk", [1, 512 << 20])
def test_scores_equal_transformers_on_single_sequences(
    model: GPT, theirs: Any, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one token at a time, or all at once
    monkeypatch.setattr("gptcli.evals.loglikelihood.MAX_LOGITS_BYTES", {"cpu": chunk})
    sequences, counts = ragged(model)
    for sequence, count, scored in zip(
        sequences, counts, score(model, sequences, counts), strict=True
    ):
        with torch.no_grad():
            logits = theirs(torch.tensor([sequence[:-1]])).logits[0, -count:]
        exact = logits.log_softmax(dim=-1)[torch.arange(count), sequence[-count:]]
        np.testing.assert_allclose(scored.log_probs, exact, atol=1e-4)
        assert (
            scored.is_greedy.tolist()
            == (logits.argmax(dim=-1) == torch.tensor(sequence[-count:])).tolist()
        )
        # nothing is excluded
        assert scored.is_greedy_filtered.tolist() == scored.is_greedy.tolist()


def test_a_score_does_not_depend_on_its_batch(model: GPT) -> None:
    sequences, counts = ragged(model)
    for sequence, count, together in zip(
        sequences, counts, score(model, sequences, counts), strict=True
    ):
        [alone] = score(model, [sequence], [count])
        np.testing.assert_allclose(together.log_probs, alone.log_probs, atol=1e-5)
        assert together.is_greedy.tolist() == alone.is_greedy.tolist()


def test_excluded_tokens_are_not_predictions(model: GPT) -> None:
    sequences, counts = ragged(model)
    with torch.no_grad():
        first = int(model(torch.tensor([sequences[0][: -counts[0]]]))[0, -1].argmax())
    group = Group([[*sequences[0][: -counts[0]], first]], [1])
    [[kept]] = LogLikelihoodScorer(model, excluded=[first]).score([group])
    assert (kept.is_greedy.tolist(), kept.is_greedy_filtered.tolist()) == ([True], [False])


def test_logits_are_computed_only_at_scored_positions(model: GPT) -> None:
    sequences, counts = ragged(model)
    rows: list[int] = []
    hook = model.lm_head.register_forward_hook(
        lambda module, args, out: rows.append(args[0].shape[0])
    )
    score(model, sequences, counts)
    assert sum(rows) == sum(counts)
    rows.clear()
    LogLikelihoodScorer(model).score(
        [Group([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 6, 7]], [1, 1, 2])]
    )
    hook.remove()
    assert sum(rows) == 2  # after 3, where all three choices begin, and after 6


class RecordedWarnings(Events):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_a_batch_that_does_not_fit_into_memory_is_halved(
    model: GPT, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, counts = ragged(model)
    groups = [Group([sequence], [count]) for sequence, count in zip(sequences, counts, strict=True)]
    exact, hidden, seen = LogLikelihoodScorer(model).score(groups), model.hidden, []

    def scarce(idx: torch.Tensor, *cache: Any) -> torch.Tensor:
        seen.append(idx.numel())
        if idx.numel() > 200:
            raise RuntimeError(
                "[enforce fail at alloc_cpu.cpp:123] DefaultCPUAllocator: can't allocate memory"
            )
        return hidden(idx, *cache)

    monkeypatch.setattr(model, "hidden", scarce)
    monkeypatch.setattr("gptcli.evals.shared_prefix.ROW_TOKENS", 24)
    events = RecordedWarnings()
    scorer = LogLikelihoodScorer(model, events=events)
    for [one], [other] in zip(scorer.score(groups), exact, strict=True):
        np.testing.assert_allclose(one.log_probs, other.log_probs, atol=1e-5)
    failures = sum(size > 200 for size in seen)
    assert failures == len(events.warnings) > 0
    scorer.score(groups)
    assert sum(size > 200 for size in seen) == failures  # later batches are smaller at once
    monkeypatch.setattr(model, "hidden", lambda *args: scarce(torch.zeros(1, 999)))
    with pytest.raises(RunError, match="does not fit into memory"):
        scorer.score(groups[:1])


def test_broken_weights_raise_an_error(model: GPT) -> None:
    broken = GPT(model.config).eval()
    torch.nn.init.constant_(broken.get_parameter("ln_f.bias"), torch.nan)
    with pytest.raises(RunError, match="weights are broken"):
        score(broken, [[1, 2, 3]], [1])


def test_other_errors_are_not_caught(model: GPT, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> torch.Tensor:
        raise RuntimeError("shapes")

    monkeypatch.setattr(model, "hidden", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        score(model, [[1, 2]], [1])


def test_a_shared_prefix_contains_no_scored_token() -> None:
    shots = list(range(100))
    one, two = np.array([*shots, 7]), np.array([*shots, 7, 9])
    # the continuation is predicted at the last token of `one`
    assert find_shared_prefix([one, two]) == shots
    assert find_shared_prefix([one]) == []
    assert find_shared_prefix([one, np.array([*shots[:70], 1, 2])]) == shots[:70]
    assert find_shared_prefix([one, np.array(shots[:64])]) == []  # too short to be cached


@given(
    st.lists(st.integers(1, 9000), max_size=50).map(lambda sizes: sorted(sizes, reverse=True)),
    st.none() | st.integers(1, 9),
)
def test_batches_contain_every_request_once_within_the_limits(
    sizes: list[int], batch_size: int | None
) -> None:
    made = list(batches(sizes, batch_size, 4096))
    assert [place for batch in made for place in batch] == list(range(len(sizes)))
    for batch in made:
        total = sum(sizes[place] for place in batch)
        assert len(batch) <= batch_size if batch_size else len(batch) == 1 or total <= 4096
