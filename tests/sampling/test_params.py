"""Filters equal brute force, and draws follow their distribution."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import RunError, UsageError
from gptcli.sampling.params import (
    SamplingParams,
    apply_top_k,
    apply_top_p,
    draw,
    filter_logits,
    next_tokens,
    top_candidates,
)

# few values, so that there are many ties
LOGITS = st.lists(st.integers(-8, 8).map(lambda n: n / 2), min_size=1, max_size=12)


def kept(logits_BV: torch.Tensor) -> set[int]:
    return set(torch.isfinite(logits_BV[0]).nonzero().flatten().tolist())


def softmax(values: np.ndarray) -> np.ndarray:
    weights = np.exp(values - values.max())
    return weights / weights.sum()


@given(LOGITS, st.integers(1, 15))
def test_top_k_keeps_the_k_most_probable_tokens_and_ties(values: list[float], k: int) -> None:
    threshold = sorted(values, reverse=True)[min(k, len(values)) - 1]
    assert kept(apply_top_k(torch.tensor([values]), k)) == {
        i for i, value in enumerate(values) if value >= threshold
    }


@given(LOGITS, st.floats(0.01, 0.99))
def test_top_p_keeps_the_fewest_tokens_that_reach_p(values: list[float], p: float) -> None:
    probabilities = softmax(np.array(values))
    chosen = kept(apply_top_p(torch.tensor([values]), p))
    ranked = sorted(probabilities, reverse=True)
    fewest = next(n for n in range(1, len(ranked) + 1) if sum(ranked[:n]) >= p - 1e-6)
    # a sum equal to p up to rounding may be on either side
    assert len(chosen) in (fewest, min(fewest + 1, len(values)))
    assert sum(probabilities[list(chosen)]) >= p - 1e-6
    assert min(probabilities[list(chosen)]) >= max([0.0, *np.delete(probabilities, list(chosen))])


def test_top_p_of_a_known_distribution() -> None:
    logits_BV = torch.tensor([[0.1, 0.5, 0.15, 0.25]]).log()
    for p, tokens in {0.3: {1}, 0.6: {1, 3}, 0.8: {1, 2, 3}, 0.95: {0, 1, 2, 3}}.items():
        assert kept(apply_top_p(logits_BV, p)) == tokens


def test_top_p_of_one_keeps_every_token() -> None:
    logits_BV = torch.tensor([[0.0] * 1000 + [-60.0]])
    assert kept(apply_top_p(logits_BV, 1.0)) == set(range(1001))


def test_sequences_are_filtered_independently() -> None:
    logits_BV = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(temperature=0.7, top_k=9, top_p=0.8)
    whole = filter_logits(logits_BV, params)
    for row in range(5):
        assert torch.equal(whole[row : row + 1], filter_logits(logits_BV[row : row + 1], params))


def test_temperature_comes_first_then_top_k_then_top_p() -> None:
    values = np.log([0.4, 0.3, 0.2, 0.06, 0.04])
    # .30 .26 .22 .12 .10 after the temperature: three of the four tokens of top-k reach 0.7
    exact = softmax(values / 2)
    exact[4] = 0
    exact /= exact.sum()
    assert exact[:2].sum() < 0.7 < exact[:3].sum()
    exact[3] = 0
    exact /= exact.sum()
    ours = filter_logits(
        torch.tensor(values)[None], SamplingParams(temperature=2.0, top_k=4, top_p=0.7)
    ).softmax(dim=-1)[0]
    np.testing.assert_allclose(ours, exact, atol=1e-6)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(temperature=1.7, top_k=8, top_p=0.9),
    ],
)
def test_draws_follow_the_distribution(params: SamplingParams) -> None:
    """The chi-square statistic is below the mean plus 5 standard deviations of its distribution."""
    generator = torch.Generator().manual_seed(1)
    logits_BV = torch.randn(1, 12, generator=generator)
    values = logits_BV[0].double().numpy() / params.temperature
    if params.top_k:
        values[values < np.sort(values)[-params.top_k]] = -np.inf
    if params.top_p:
        order = np.argsort(-values)
        before = np.cumsum(softmax(values)[order]) - softmax(values)[order]
        values[order[before >= params.top_p]] = -np.inf
    exact = softmax(values)
    N = 50_000
    tokens = next_tokens(
        logits_BV.expand(N, -1), params, torch.rand(N, generator=generator, dtype=torch.float64)
    )
    seen = np.bincount(tokens, minlength=12)
    possible = exact > 0
    assert seen[~possible].sum() == 0
    freedom = possible.sum() - 1
    statistic = ((seen[possible] - N * exact[possible]) ** 2 / (N * exact[possible])).sum()
    assert statistic < freedom + 5 * np.sqrt(2 * freedom)


@given(
    st.lists(LOGITS, min_size=1, max_size=4).filter(
        lambda rows: len({len(row) for row in rows}) == 1
    ),
    st.sampled_from(
        [
            SamplingParams(top_k=3),
            SamplingParams(top_k=2, top_p=0.7),
            SamplingParams(top_k=99, temperature=0.5),
            SamplingParams(top_k=1),
        ]
    ),
)
def test_candidates_give_the_same_draws_as_the_whole_vocabulary(
    rows: list[list[float]], params: SamplingParams
) -> None:
    logits_BV = torch.tensor(rows)
    found = top_candidates(logits_BV, params)
    assert found is not None
    whole = torch.full_like(logits_BV, -torch.inf).scatter(1, found[1], found[0])
    torch.testing.assert_close(
        whole.softmax(dim=-1), filter_logits(logits_BV, params).softmax(dim=-1)
    )
    uniform_B = torch.linspace(0, 0.99, len(rows), dtype=torch.float64)
    assert (
        next_tokens(logits_BV, params, uniform_B).tolist()
        == draw(filter_logits(logits_BV, params), uniform_B).tolist()
    )


@pytest.mark.parametrize(("spread", "few"), [(4.0, True), (0.01, False)])
def test_top_p_sorts_the_whole_vocabulary_only_if_necessary(spread: float, few: bool) -> None:
    logits_BV = torch.randn(3, 9000, generator=torch.Generator().manual_seed(0)) * spread
    params = SamplingParams(top_p=0.9)
    assert (top_candidates(logits_BV, params) is not None) == few
    uniform_B = torch.tensor([0.1, 0.5, 0.999], dtype=torch.float64)
    assert (
        next_tokens(logits_BV, params, uniform_B).tolist()
        == draw(filter_logits(logits_BV, params), uniform_B).tolist()
    )


@settings(max_examples=50)
@given(
    st.lists(st.booleans(), min_size=1, max_size=20).filter(any),
    st.sampled_from([0.0, 0.5, 1 - 2**-53]),
)
def test_an_impossible_token_is_never_drawn(possible: list[bool], uniform: float) -> None:
    logits_BV = torch.tensor([[0.0 if possible_ else -torch.inf for possible_ in possible]])
    assert possible[int(draw(logits_BV, torch.tensor([uniform], dtype=torch.float64)))]


def test_greedy_takes_the_most_probable_token() -> None:
    logits_BV = torch.tensor([[0.0, 3.0, 1.0], [5.0, 3.0, 1.0]])
    assert next_tokens(logits_BV, SamplingParams(greedy=True), torch.rand(2)).tolist() == [1, 0]


@pytest.mark.parametrize(
    "values",
    [
        *({"temperature": value} for value in (0.0, -1.0, float("nan"), float("inf"))),
        *({"top_k": value} for value in (0, -3)),
        *({"top_p": value} for value in (0.0, 1.01, float("nan"))),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(values)).replace("_", "-")):
        SamplingParams(**values)


@pytest.mark.parametrize("temperature", [1e-29, 1e-31, 1e-39, 1e-45, 1e-200, 5e-324])
@pytest.mark.parametrize("params", [{}, {"top_k": 5}, {"top_p": 0.9}])
def test_tiny_temperatures_are_greedy(temperature: float, params: dict[str, Any]) -> None:
    logits_BV = torch.randn(16, 300, generator=torch.Generator().manual_seed(0)) * 50
    drawn = next_tokens(
        logits_BV, SamplingParams(temperature=temperature, **params), torch.linspace(0, 0.999, 16)
    )
    assert torch.equal(drawn, logits_BV.argmax(-1))


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(greedy=True),
        SamplingParams(top_k=2),
        SamplingParams(top_p=0.5),
    ],
)
@pytest.mark.parametrize("broken", [[0.0, math.nan], [0.0, math.inf], [-math.inf, -math.inf]])
def test_logits_that_are_not_numbers_raise_an_error(
    params: SamplingParams, broken: list[float]
) -> None:
    with pytest.raises(RunError, match="not numbers"):
        next_tokens(torch.tensor([[0.0, 1.0], broken]), params, torch.zeros(2))
