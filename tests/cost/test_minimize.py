"""Minimizers of few unknowns."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.cost.minimize import nelder_mead


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=4))
def test_minimum_of_a_bowl(centre: list[float]) -> None:
    found = nelder_mead(
        lambda x: sum((a - b) ** 2 for a, b in zip(x, centre, strict=True)), [0.0] * len(centre)
    )
    assert found == pytest.approx(centre, abs=1e-3)


def rosenbrock(x: list[float]) -> float:
    return sum(100 * (b - a * a) ** 2 + (1 - a) ** 2 for a, b in pairwise(x))


@pytest.mark.parametrize("start", [[-1.2, 1.0], [3.0, -2.0], [0.0, 0.0]])
def test_rosenbrocks_valley(start: list[float]) -> None:
    assert nelder_mead(rosenbrock, start) == pytest.approx([1, 1], abs=1e-5)


def test_three_unknowns() -> None:
    assert nelder_mead(rosenbrock, [-1.0, 2.0, 0.5], restarts=6) == pytest.approx(
        [1, 1, 1], abs=1e-4
    )


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=3))
def test_a_corner_is_found_too(centre: list[float]) -> None:
    """Absolute values have no slope at their minimum."""
    found = nelder_mead(
        lambda x: sum(abs(a - b) for a, b in zip(x, centre, strict=True)),
        [0.0] * len(centre),
        step=1.0,
        restarts=8,
    )
    assert found == pytest.approx(centre, abs=1e-2)


def test_it_gets_no_worse_and_leaves_the_start_alone() -> None:
    start = [0.5, 0.25]
    assert rosenbrock(nelder_mead(rosenbrock, start, iterations=3, restarts=1)) <= rosenbrock(start)
    assert start == [0.5, 0.25]


def test_it_stops_where_nothing_changes() -> None:
    calls = 0

    def flat(x: list[float]) -> float:
        nonlocal calls
        calls += 1
        return math.pi

    assert nelder_mead(flat, [1.0], step=0.1, restarts=1) == pytest.approx([1.0], abs=0.2)
    assert calls < 500


def steps(
    f: dict[tuple[float, ...], float], start: list[float], step: float
) -> tuple[list[tuple[float, ...]], list[float]]:
    """The points that one iteration looks at, in their order, and where it ends, on a function of
    which only those are known.
    """
    seen: list[tuple[float, ...]] = []

    def known(x: list[float]) -> float:
        seen.append(tuple(x))
        return f[tuple(x)]

    return seen, nelder_mead(known, start, step=step, restarts=1, iterations=1)


@pytest.mark.parametrize(
    ("f", "ends"),
    [
        ({(1.0,): 5, (1.5,): 9, (0.5,): 4, (0.0,): 3}, 0.0),  # reflected, and twice as far
        ({(1.0,): 5, (1.5,): 9, (0.5,): 4, (0.0,): 4.5}, 0.5),  # which is too far
        # contracted on either side
        ({(1.0,): 5, (1.5,): 9, (0.5,): 6, (0.75,): 4, (1.25,): 3}, 1.25),
        ({(1.0,): 5, (1.5,): 9, (0.5,): 5, (0.75,): 4, (1.25,): 8}, 0.75),
        ({(1.0,): 5, (1.5,): 9, (0.5,): 9, (0.75,): 9, (1.25,): 9}, 1.0),  # shrunk
    ],
)
def test_one_step_in_one_unknown(f: dict[tuple[float, ...], float], ends: float) -> None:
    """From 1 and 1.5, as Nelder and Mead go."""
    seen, end = steps(f, [1.0], 0.5)
    assert (seen[: len(f)], end) == (list(f), [ends])
    assert seen[len(f) :] == ([(1.25,)] if ends == 1.0 else []), "half of the way to the best"


@pytest.mark.parametrize(
    ("f", "ends"),
    [
        ({(1, -1): 9, (1.5, -2): 8}, (1.5, -2)),
        ({(1, -1): 10.5}, (0, 0)),  # better than the second, and taken
        # no better than the second
        ({(1, -1): 11, (0.75, -0.5): 9, (0.25, 0.5): 10}, (0.75, -0.5)),
        # shrunk towards the best
        ({(1, -1): 13, (0.75, -0.5): 13, (0.25, 0.5): 12, (0.5, 0): 9, (0, 0.5): 10}, (0.5, 0)),
    ],
)
def test_one_step_in_two_unknowns(
    f: dict[tuple[float, ...], float], ends: tuple[float, ...]
) -> None:
    """The worst of three corners, through the middle of the others."""
    corners: dict[tuple[float, ...], float] = {(0, 0): 10, (1, 0): 11, (0, 1): 12}
    seen, end = steps(corners | f, [0.0, 0.0], 1.0)
    assert (seen, tuple(end)) == ([*corners, *f], ends)


def test_a_flat_function_ends_after_27_halvings() -> None:
    """0.1 at the start; to at most a billionth; each takes a reflection, two contractions and a
    corner. Three rounds.
    """
    calls: list[float] = []
    nelder_mead(lambda x: calls.append(x[0]) or 1.0, [1.0])  # type: ignore[func-returns-value]
    assert calls[:2] == [1.0, 1.1]
    assert len(calls) == 3 * (2 + 27 * 4)


def test_iterations_are_all_it_takes() -> None:
    calls: list[float] = []
    nelder_mead(
        lambda x: calls.append(x[0]) or -x[0],  # type: ignore[func-returns-value]
        [1.0],
        restarts=2,
        iterations=5,
    )
    assert len(calls) == 2 * (2 + 5 * 2), "downhill for ever: reflected, and twice as far"
