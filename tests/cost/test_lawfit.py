from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.fit import minimise
from gptcli.cost.lawfit import Run, fit_law
from gptcli.cost.scaling import CHINCHILLA, REFIT, JointLaw, gpt3_loss
from gptcli.errors import UsageError


def grid(law: JointLaw, noise: float, seed: int = 0) -> list[Run]:
    chance = random.Random(seed)
    return [
        Run(
            name="",
            parameters=int(n),
            tokens=int(d),
            loss=law.loss(n, d) * math.exp(chance.gauss(0, noise)),
        )
        for n in (1e7, 3e7, 1e8, 3e8, 1e9)
        for d in (3e8, 1e9, 3e9, 1e10)
    ]


@pytest.mark.parametrize("law", [CHINCHILLA, REFIT], ids=lambda law: law.name)
def test_known_constants_come_back(law: JointLaw) -> None:
    fitted_constants = fit_law(grid(law, 0.0))
    for name, value in fitted_constants.values.items():
        assert value == pytest.approx(getattr(law, name), rel=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_known_constants_are_in_their_intervals(seed: int) -> None:
    fitted_constants = fit_law(grid(CHINCHILLA, 0.003, seed))
    inside = [
        low <= getattr(CHINCHILLA, name) <= high
        for name, (low, high) in fitted_constants.intervals.items()
    ]
    assert sum(inside) >= 4, fitted_constants
    assert fitted_constants.error < 0.005


def test_few_runs_fit_a_power_of_compute() -> None:
    chance = random.Random(0)
    runs = [
        Run(
            name="",
            parameters=n,
            tokens=20 * n,
            loss=gpt3_loss(120.0 * n * n) * math.exp(chance.gauss(0, 0.002)),
        )
        for n in (10**7, 3 * 10**7, 10**8, 3 * 10**8)
    ]
    fitted_constants = fit_law(runs)
    assert fitted_constants.law == "compute"
    assert fitted_constants.intervals["b"][0] <= 0.048 <= fitted_constants.intervals["b"][1]
    assert fitted_constants.loss(10**9, 20 * 10**9) == pytest.approx(
        gpt3_loss(120.0 * 10**18), rel=0.01
    )


def test_sizes_and_tokens_that_grow_together_fit_a_power_of_compute() -> None:
    """Along one ratio of tokens to parameters nothing tells the two terms of the joint law
    apart.
    """
    along = [
        Run(name="", parameters=n, tokens=40 * n, loss=gpt3_loss(240.0 * n * n))
        for n in (10**5 * 2**k for k in range(8))
    ]
    assert fit_law(along).law == "compute"
    across = [replace(run, tokens=run.tokens * (1 + 7 * (k % 2))) for k, run in enumerate(along)]
    assert fit_law(across).law == "joint"
    level = [replace(run, tokens=10**7) for run in along]
    assert fit_law(level).law == "compute", "one length of training says nothing of another"


@pytest.mark.parametrize("seed", range(3))
def test_one_more_run_is_in_its_interval(seed: int) -> None:
    chance = random.Random(seed)

    def run(n: int) -> Run:
        return Run(
            name="",
            parameters=n,
            tokens=20 * n,
            loss=gpt3_loss(120.0 * n * n) * math.exp(chance.gauss(0, 0.004)),
        )

    fitted_constants = fit_law([run(10**6 * 2**k) for k in range(6)])
    more = run(10**6 * 2**6)
    low, high = fitted_constants.between(more.parameters, more.tokens)
    assert low < fitted_constants.loss(more.parameters, more.tokens) < high
    assert low <= more.loss <= high
    assert high / low < 1.1
    assert fitted_constants.as_dict()["law"] == "compute"


def test_the_same_runs_the_same_law() -> None:
    runs = grid(CHINCHILLA, 0.003)
    assert fit_law(runs) == fit_law(runs)


def test_too_few_runs() -> None:
    run = Run(name="", parameters=10**7, tokens=10**9, loss=3.0)
    with pytest.raises(UsageError, match="three runs"):
        fit_law([run, run, run])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=4))
def test_minimum_of_a_bowl(centre: list[float]) -> None:
    found = minimise(
        lambda x: sum((a - b) ** 2 for a, b in zip(x, centre, strict=True)), [0.0] * len(centre)
    )
    assert found == pytest.approx(centre, abs=1e-3)


def test_a_power_of_compute_by_hand() -> None:
    """Exact where there is no noise, C in PF-days; the intervals are as narrow."""
    runs = [
        Run(name="", parameters=n, tokens=20 * n, loss=3.0 * (120.0 * n * n / 8.64e19) ** -0.05)
        for n in (10**7, 10**8, 10**9)
    ]
    fitted_constants = fit_law(runs)
    assert fitted_constants.values == pytest.approx({"a": 3.0, "b": 0.05})
    assert fitted_constants.error == pytest.approx(0, abs=1e-12)
    assert fitted_constants.intervals["b"] == pytest.approx((0.05, 0.05))
    assert runs[0].pf_days == pytest.approx(6 * 1e7 * 2e8 / 8.64e19)
    assert fitted_constants.as_dict() == {
        "law": "compute", "formula": "L = a·C^-b, C = 6ND in PF-days", "values": fitted_constants.values, "intervals": fitted_constants.intervals,
        "error": fitted_constants.error,
    }  # fmt: skip


def test_the_errors_that_are_drawn() -> None:
    """60 of the residuals of four runs, wider by the root of 4/2: two unknowns take up two of four
    degrees of freedom.
    """
    signs = (1, -1, -1, 1)
    runs = [
        Run(
            name="",
            parameters=n,
            tokens=n,
            loss=(6.0 * n * n / 8.64e19) ** -0.05 * math.exp(0.01 * sign),
        )
        for n, sign in zip((10**6, 10**7, 10**8, 10**9), signs, strict=True)
    ]
    fitted_constants = fit_law(runs)
    assert fitted_constants.values == pytest.approx({"a": 1.0, "b": 0.05}), (
        "errors that say nothing of slope or level"
    )
    assert fitted_constants.error == pytest.approx(0.01)
    wide = 0.01 * math.sqrt(2)
    assert len(fitted_constants.drawn) == 60
    assert sorted(
        {round(math.log(error), 9) for _, error in fitted_constants.drawn}
    ) == pytest.approx([-wide, wide])
    assert fit_law(runs, seed=1).drawn != fitted_constants.drawn


def test_an_interval_leaves_out_a_fortieth_on_either_side() -> None:
    fitted_constants = fit_law(
        [Run(name="", parameters=n, tokens=n, loss=3.0) for n in (10**6, 10**7, 10**8)]
    )
    for count, ends in ((60, (1, 58)), (200, (5, 194)), (39, (0, 38))):
        drawn = tuple(([float(a), 0.0], 1.0) for a in reversed(range(count)))
        assert replace(fitted_constants, drawn=drawn).between(1, 1) == ends
    assert replace(fitted_constants, drawn=(([2.0, 0.0], 1.5),)).between(1, 1) == (3.0, 3.0), (
        "the law's value, times an error"
    )


def test_from_six_runs_on_terms_are_told_apart() -> None:
    def run(n: int, d: int) -> Run:
        return Run(name="", parameters=n, tokens=d, loss=CHINCHILLA.loss(n, d))

    two = [run(n, d) for n in (10**7, 10**8, 10**9) for d in (10**9, 10**10)]
    assert fit_law(two).law == "compute", "two lengths of training make no curve"
    three = [run(one.parameters, one.tokens * (1 + k // 2)) for k, one in enumerate(two)]
    assert (fit_law(three).law, fit_law(three[1:]).law) == ("joint", "compute")
    assert fit_law(three).loss(10**8, 10**10) == pytest.approx(
        CHINCHILLA.loss(10**8, 10**10), rel=0.01
    )


def test_resampled_losses_carry_errors_as_they_were() -> None:
    """One of five runs is 4 % above the law and the others 1 % below, which leaves level and slope
    as they are. Resampled, the law at the middle run moves by the mean of five errors: at the
    lowest by 1 %, upwards by more; all wider by the root of 5/3."""
    sizes = [10.0**k for k in range(5)]
    runs = [
        Run(
            name="",
            parameters=int(n),
            tokens=8_640_000_000,
            loss=(6e-10 * n) ** -0.05 * math.exp(0.01 * error),
        )
        for n, error in zip(sizes, (-1, -1, 4, -1, -1), strict=True)
    ]
    fitted_constants = fit_law(runs)
    assert fitted_constants.values == pytest.approx({"a": 1.0, "b": 0.05})
    middle = 6e-10 * sizes[2]
    moved = [
        math.log(a * middle**-b * middle**0.05) / (0.01 * math.sqrt(5 / 3))
        for (a, b), _ in fitted_constants.drawn
    ]
    assert min(moved) == pytest.approx(-1)
    assert sum(move > 1 - 1e-9 for move in moved) > 3
