from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.trainer.speed import Pace


def told(pace: Pace, seconds: list[float], tokens: int) -> list[tuple[int, float, float]]:
    """Give `pace` steps that take these seconds, of so many tokens each; return what it said, and
    after which step.
    """
    now, found = 100.0, []
    for number, each in enumerate(seconds, 1):
        now += each
        if (said := pace.step(number * tokens, now)) is not None:
            found.append((number, *said))
    return found


def test_the_first_steps_are_left_out_and_the_rest_is_told_once() -> None:
    assert told(Pace(10_000), [60.0, 5.0, 5.0, *[1.0] * 20], 100) == [
        (8, pytest.approx(92.0), pytest.approx(100.0))
    ]


def test_quick_steps_are_measured_for_some_seconds_and_long_ones_sooner() -> None:
    assert [number for number, *_ in told(Pace(10**9), [0.01] * 1000, 100)] == [303]
    assert [number for number, *_ in told(Pace(10**9), [40.0] * 10, 100)] == [5]


@given(
    st.lists(st.floats(min_value=1e-3, max_value=1e3), max_size=40),
    st.integers(min_value=1, max_value=10**6),
)
def test_it_speaks_once_at_most_and_never_of_a_negative_time(
    seconds: list[float], tokens: int
) -> None:
    found = told(Pace(len(seconds) * tokens), seconds, tokens)
    assert len(found) <= 1
    assert all(left >= 0 and speed > 0 for _, left, speed in found)


def test_a_short_ramp_is_waited_for_and_a_long_one_is_not() -> None:
    pace, now, said = Pace(10**9), 0.0, []
    for number in range(1, 40):
        now += 2.0
        if (found := pace.step(number * 100, now, ramping=number <= 10)) is not None:
            said.append((number, found[1]))
    assert said == [(18, pytest.approx(50.0))]
    pace = Pace(10**9)
    assert (
        next(
            number
            for number in range(1, 99)
            if pace.step(number * 100, 10.0 * number, ramping=True)
        )
        == 14
    )
