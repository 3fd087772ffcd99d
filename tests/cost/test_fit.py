"""The simplex on functions whose minima are known."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.cost.fit import minimise


def rosenbrock(x: list[float]) -> float:
    return sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in pairwise(x))


@pytest.mark.parametrize("start", [[-1.2, 1.0], [3.0, -2.0], [0.0, 0.0]])
def test_rosenbrocks_valley(start: list[float]) -> None:
    assert minimise(rosenbrock, start) == pytest.approx([1, 1], abs=1e-5)


def test_three_unknowns() -> None:
    assert minimise(rosenbrock, [-1.0, 2.0, 0.5], rounds=6) == pytest.approx([1, 1, 1], abs=1e-4)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=3))
def test_a_corner_is_found_too(centre: list[float]) -> None:
    """Absolute values have no slope at their minimum."""
    found = minimise(lambda x: sum(abs(a - b) for a, b in zip(x, centre, strict=True)), [0.0] * len(centre), step=1.0, rounds=8)
    assert found == pytest.approx(centre, abs=1e-2)


def test_it_gets_no_worse_and_leaves_the_start_alone() -> None:
    start = [0.5, 0.25]
    assert rosenbrock(minimise(rosenbrock, start, iterations=3, rounds=1)) <= rosenbrock(start)
    assert start == [0.5, 0.25]


def test_it_stops_where_nothing_changes() -> None:
    calls = 0

    def flat(x: list[float]) -> float:
        nonlocal calls
        calls += 1
        return math.pi

    assert minimise(flat, [1.0], step=0.1, rounds=1) == pytest.approx([1.0], abs=0.2)
    assert calls < 500
