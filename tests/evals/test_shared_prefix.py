"""Packed scores equal those of single sequences, for every kind of model and any groups."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.evals.loglikelihood import LogLikelihoodScorer, find_shared_prefix
from gptcli.evals.shared_prefix import NO_SEGMENT, ROW_TOKENS, Group, PackedRows, common_prefix_len
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT


def random_model(**config: Any) -> GPT:
    model = GPT(
        ModelConfig(n_layer=3, n_head=2, d_model=16, n_ctx=200, vocab_size=60, tied=False, **config)
    ).eval()
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        parameter.data += torch.empty_like(parameter).normal_(
            0.0, 1.0 if name.startswith("w") else 0.2, generator=generator
        )
    return model


MODELS = {
    "dense": random_model(),
    "banded": random_model(attention="banded", band=8),
    "post-norm": random_model(norm="post"),
}


def draw_groups(seed: int, prefix_len: int) -> list[Group]:
    random = np.random.default_rng(seed)
    shared = random.integers(0, 60, prefix_len).tolist()
    groups = []
    for _ in range(random.integers(1, 12)):
        context = [*shared, *random.integers(0, 60, random.integers(1, 40)).tolist()]
        choices = [
            random.integers(0, 3, random.integers(1, 12)).tolist()
            for _ in range(random.integers(1, 5))
        ]
        groups.append(
            Group([[*context, *choice] for choice in choices], [len(choice) for choice in choices])
        )
    return groups


@pytest.mark.parametrize("long_prefix", [8, 512], ids="prefixes of {} tokens alone".format)
@pytest.mark.parametrize("kind", MODELS)
@given(seed=st.integers(0, 2**32), prefix_len=st.sampled_from([0, 90]))
@settings(max_examples=12, deadline=None)
def test_packed_scores_equal_scores_of_single_sequences(
    kind: str, long_prefix: int, seed: int, prefix_len: int
) -> None:
    model, groups = MODELS[kind], draw_groups(seed, prefix_len)
    found = find_shared_prefix(
        np.array(sequence[:-count])
        for group in groups
        for sequence, count in zip(group.sequences, group.counts, strict=True)
    )
    assert len(found) >= prefix_len * (len(groups) > 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gptcli.evals.loglikelihood.LONG_GROUP_PREFIX", long_prefix)
        every = LogLikelihoodScorer(model, prefix=found).score(groups)
    for group, scores in zip(groups, every, strict=True):
        for sequence, count, scored in zip(group.sequences, group.counts, scores, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([sequence[:-1]]))[0, -count:]
            exact = logits.log_softmax(-1)[torch.arange(count), torch.tensor(sequence[-count:])]
            np.testing.assert_allclose(scored.log_probs, exact, atol=1e-5)


def test_a_group_prefix_is_computed_once() -> None:
    context = list(range(30))
    group = Group(
        [
            [*context, 40, 41],
            [*context, 40, 42, 43],
            [*context, 44],
            [*context, 40, 45],
            [*context, 40, 41],
        ],
        [2, 3, 1, 2, 2],
    )
    assert (group.prefix_len, group.size(), group.size(cached=20)) == (30, 30 + 1 + 2, 13)
    rows = PackedRows([group], cached=0)
    assert rows.tokens_RT.tolist() == [[*context, 40, 40, 42]]
    assert rows.position_RT.tolist() == [[*range(30), 30, 30, 31]]
    assert [place.tolist() for place in rows.scored_positions[0]] == [
        [29, 30],
        [29, 31, 32],
        [29],
        [29, 30],
        [29, 30],
    ]


def test_groups_are_packed_and_a_single_sequence_is_causal() -> None:
    groups = [Group([list(range(length + 1))], [1]) for length in (300, 180, 100, 300)]
    rows = PackedRows(groups, cached=0)
    assert rows.tokens_RT.shape == (3, 300)
    assert (rows.segment_RT == NO_SEGMENT).sum() == 20
    assert not rows.is_causal
    assert PackedRows(
        [Group([list(range(ROW_TOKENS + 2))], [5]), Group([list(range(ROW_TOKENS))], [5])], cached=0
    ).is_causal


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=4))
def test_common_prefix_len_equals_a_loop(sequences: list[list[int]]) -> None:
    shared = common_prefix_len(sequences)
    assert len({tuple(one[:shared]) for one in sequences}) == 1
    assert (
        any(len(one) == shared for one in sequences) or len({one[shared] for one in sequences}) > 1
    )
