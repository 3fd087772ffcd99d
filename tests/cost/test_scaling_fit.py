from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest

from gptcli.cost import scaling_fit
from gptcli.cost.scaling import CHINCHILLA, KAPLAN, REFIT, JointLaw, gpt3_loss
from gptcli.cost.scaling_fit import fit_law, t_quantile
from gptcli.cost.scaling_forms import RunResult
from gptcli.errors import UsageError
from tests.benchmarks.law_coverage import NOISES, coverage


def grid(law: JointLaw, noise: float, seed: int = 0) -> list[RunResult]:
    chance = random.Random(seed)
    return [
        RunResult(
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
    fitted = fit_law(grid(law, 0.0))
    for name, value in fitted.values.items():
        assert value == pytest.approx(getattr(law, name), rel=1e-3)


@pytest.mark.parametrize("name", ["equal", "small"])
def test_intervals_contain_the_truth_as_often_as_they_say(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 runs with errors that are equal, or grow as models shrink: 15 draws, of which intervals of
    95 % contain all but one or two; 80 % intervals would miss three of each constant.
    """
    monkeypatch.setattr(scaling_fit, "RESAMPLES", 80)
    found = coverage(20, 15, NOISES[name])
    assert statistics.fmean(found) > 0.9, found
    assert min(found) >= 0.8, found


def test_intervals_grow_with_the_errors() -> None:
    narrow, wide = (fit_law(grid(CHINCHILLA, noise, 1)) for noise in (0.001, 0.01))
    for name, (low, high) in wide.intervals.items():
        assert high / low > 3 ** math.log(narrow.intervals[name][1] / narrow.intervals[name][0])
        assert low < wide.values[name] < high
    law, run = wide.law_interval(10**9, 10**10), wide.loss_interval(10**9, 10**10)
    assert run[0] < law[0] < wide.loss(10**9, 10**10) < law[1] < run[1]


def test_few_runs_fit_a_power_of_compute() -> None:
    chance = random.Random(0)
    runs = [
        RunResult(
            name="",
            parameters=n,
            tokens=20 * n,
            loss=gpt3_loss(120.0 * n * n) * math.exp(chance.gauss(0, 0.002)),
        )
        for n in (10**7, 3 * 10**7, 10**8, 3 * 10**8)
    ]
    fitted = fit_law(runs)
    assert fitted.law == "compute"
    assert fitted.intervals["b"][0] <= 0.048 <= fitted.intervals["b"][1]
    assert fitted.loss(10**9, 20 * 10**9) == pytest.approx(gpt3_loss(120.0 * 10**18), rel=0.01)


def test_sizes_and_tokens_that_grow_together_fit_a_power_of_compute() -> None:
    """Along one ratio of tokens to parameters nothing tells the two terms of the joint law
    apart.
    """
    along = [
        RunResult(name="", parameters=n, tokens=40 * n, loss=gpt3_loss(240.0 * n * n))
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

    def run(n: int) -> RunResult:
        return RunResult(
            name="",
            parameters=n,
            tokens=20 * n,
            loss=gpt3_loss(120.0 * n * n) * math.exp(chance.gauss(0, 0.004)),
        )

    fitted = fit_law([run(10**6 * 2**k) for k in range(6)])
    more = run(10**6 * 2**6)
    low, high = fitted.loss_interval(more.parameters, more.tokens)
    assert low < fitted.loss(more.parameters, more.tokens) < high
    assert low <= more.loss <= high
    assert high / low < 1.1
    assert fitted.as_dict()["law"] == "compute"


def test_the_same_runs_the_same_law() -> None:
    runs = grid(CHINCHILLA, 0.003)
    assert fit_law(runs) == fit_law(runs)


def test_too_few_runs_are_refused() -> None:
    run = RunResult(name="", parameters=10**7, tokens=10**9, loss=3.0)
    with pytest.raises(UsageError, match="three or more runs"):
        fit_law([run, run, run])


def test_a_power_of_compute_by_hand() -> None:
    """Exact where there is no noise, C in PF-days; the intervals are as narrow."""
    runs = [
        RunResult(
            name="", parameters=n, tokens=20 * n, loss=3.0 * (120.0 * n * n / 8.64e19) ** -0.05
        )
        for n in (10**7, 10**8, 10**9)
    ]
    fitted = fit_law(runs)
    assert fitted.values == pytest.approx({"a": 3.0, "b": 0.05})
    assert fitted.error == pytest.approx(0, abs=1e-12)
    assert fitted.intervals["b"] == pytest.approx((0.05, 0.05))
    assert runs[0].pf_days == pytest.approx(6 * 1e7 * 2e8 / 8.64e19)
    assert fitted.as_dict() == {
        "law": "compute", "formula": "L = a·C^-b, C = 6ND in PF-days", "values": fitted.values, "intervals": fitted.intervals,
        "error": fitted.error, "outliers": [], "others": [], "warnings": [],
    }  # fmt: skip


def test_the_errors_that_are_drawn() -> None:
    """400 of the residuals of four runs, wider by the root of 4/2: two unknowns take up two of four
    degrees of freedom.
    """
    signs = (1, -1, -1, 1)
    runs = [
        RunResult(
            name="",
            parameters=n,
            tokens=n,
            loss=(6.0 * n * n / 8.64e19) ** -0.05 * math.exp(0.01 * sign),
        )
        for n, sign in zip((10**6, 10**7, 10**8, 10**9), signs, strict=True)
    ]
    fitted = fit_law(runs)
    assert fitted.values == pytest.approx({"a": 1.0, "b": 0.05}), (
        "errors that say nothing of slope or level"
    )
    assert fitted.error == pytest.approx(0.01)
    wide = 0.01 * math.sqrt(2)
    assert len(fitted.resamples) == 400
    assert sorted({round(math.log(error), 9) for _, error in fitted.resamples}) == pytest.approx(
        [-wide, wide]
    )
    assert fit_law(runs, seed=1).resamples != fitted.resamples


def test_an_interval_leaves_out_a_fortieth_on_either_side() -> None:
    fitted = fit_law(
        [RunResult(name="", parameters=n, tokens=n, loss=3.0) for n in (10**6, 10**7, 10**8)]
    )
    for count, ends in ((60, (1, 58)), (200, (5, 194)), (39, (0, 38))):
        resamples = tuple(([float(a), 0.0], 1.0) for a in reversed(range(count)))
        plain = replace(fitted, resamples=resamples, width_factor=1.0)
        assert plain.loss_interval(1, 1) == ends
    one = replace(fitted, resamples=(([2.0, 0.0], 1.5),), width_factor=1.0)
    assert one.loss_interval(1, 1) == (3.0, 3.0), "the law's value, times an error"
    assert one.law_interval(1, 1) == (2.0, 2.0)


def test_intervals_of_few_runs_are_wider_by_students_t() -> None:
    """Logarithms twice as far from the fit, with the resamples as they are."""
    fitted = fit_law(
        [RunResult(name="", parameters=n, tokens=n, loss=3.0) for n in (10**6, 10**7, 10**8)]
    )
    assert fitted.width_factor == pytest.approx(12.7062 / 1.95996, rel=1e-4)
    resamples = tuple(([a, 0.0], 1.0) for a in (2.0, 6.0))
    wide = replace(fitted, resamples=resamples, width_factor=2.0)
    assert wide.loss_interval(1, 1) == pytest.approx((4 / 3, 12))
    assert wide.law_interval(1, 1) == pytest.approx((4 / 3, 12))
    assert fit_law(many_runs(0.003, 1)).width_factor == 1


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 12.7062),
        (2, 4.3027),
        (3, 3.1824),
        (5, 2.5706),
        (10, 2.2281),
        (30, 2.0423),
        (10**6, 1.96),
    ],
)
def test_quantiles_of_students_t(freedom: int, quantile: float) -> None:
    """Tables of the distribution."""
    assert t_quantile(freedom) == pytest.approx(quantile, rel=2e-3)


def test_from_six_runs_on_terms_are_told_apart() -> None:
    def run(n: int, d: int) -> RunResult:
        return RunResult(name="", parameters=n, tokens=d, loss=CHINCHILLA.loss(n, d))

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
        RunResult(
            name="",
            parameters=int(n),
            tokens=8_640_000_000,
            loss=(6e-10 * n) ** -0.05 * math.exp(0.01 * error),
        )
        for n, error in zip(sizes, (-1, -1, 4, -1, -1), strict=True)
    ]
    fitted = fit_law(runs)
    assert fitted.values == pytest.approx({"a": 1.0, "b": 0.05})
    middle = 6e-10 * sizes[2]
    moved = [
        math.log(a * middle**-b * middle**0.05) / (0.01 * math.sqrt(5 / 3))
        for (a, b), _ in fitted.resamples
    ]
    assert min(moved) == pytest.approx(-1)
    assert sum(move > 1 - 1e-9 for move in moved) > 3


def many_runs(spread: float, far: int, *, seed: int = 1) -> list[RunResult]:
    """Return runs of Besiroglu et al.'s law, every seventh with `far` times the error."""
    draw = random.Random(seed)
    runs = []
    for index in range(100):
        n, d = 10 ** draw.uniform(7.7, 10.2), 10 ** draw.uniform(9, 11.5)
        error = spread * (far if index % 7 == 0 else 1) * draw.gauss(0, 1)
        runs.append(
            RunResult(
                name=f"run {index}",
                parameters=round(n),
                tokens=round(d),
                loss=REFIT.loss(n, d) * math.exp(error),
            )
        )
    return runs


@pytest.mark.parametrize("far", [1, 8], ids=["equal errors", "unequal errors"])
def test_many_runs_give_the_law_back_within_its_intervals(far: int) -> None:
    law = fit_law(many_runs(0.003, far))
    assert law.law == "joint"
    true = {name: getattr(REFIT, name) for name in ("E", "A", "B", "alpha", "beta")}
    for name, value in true.items():
        low, high = law.intervals[name]
        assert low - 0.3 * (high - low) < value < high + 0.3 * (high - low)
    assert len(law.resamples) == 400
    assert set(law.outliers) <= {f"run {n}" for n in range(0, 100, 7)}
    assert bool(law.outliers) == (far > 1)


def test_a_law_without_errors_is_exact() -> None:
    law = fit_law(many_runs(0.0, 1))
    for name in ("E", "A", "B", "alpha", "beta"):
        assert law.values[name] == pytest.approx(getattr(REFIT, name), rel=1e-3)


def kaplans(count: int, noise: float) -> list[RunResult]:
    """Runs that follow Kaplan et al.'s law."""
    chance = random.Random(1)
    return [
        RunResult(
            name="",
            parameters=n,
            tokens=d,
            loss=KAPLAN.joint_loss(n, d) * math.exp(chance.gauss(0, noise)),
        )
        for n in (10**6 * 4**k for k in range(count))
        for d in (10**8, 10**9, 10**10)
    ]


def test_the_form_without_a_floor_is_fitted_beside() -> None:
    fitted = fit_law(kaplans(5, 0.0))
    (other,) = fitted.others
    assert other.formula.startswith("L = ((Nc/N)")
    expected = {"Nc": 6.4e13, "Dc": 1.8e13, "aN": 0.076, "aD": 0.103}
    assert other.values == pytest.approx(expected, rel=0.02)
    assert other.bic < -2
    assert any("describes the runs better" in warning for warning in fitted.warnings)


def test_runs_whose_loss_grows_are_no_law() -> None:
    runs = [
        RunResult(name="", parameters=at * 10**7, tokens=2 * 10**9, loss=3 + at / 10)
        for at in range(1, 9)
    ]
    assert "the loss grows with compute" in fit_law(runs).warnings[0]


def test_runs_with_a_floor_need_no_warning() -> None:
    fitted = fit_law(grid(CHINCHILLA, 0.001))
    (other,) = fitted.others
    assert other.bic > 2
    assert other.error > fitted.error
    assert fitted.warnings == ()


def test_a_floor_of_the_compute_is_told() -> None:
    runs = [
        RunResult(name="", parameters=n, tokens=20 * n, loss=2 + (120.0 * n * n / 8.64e19) ** -0.1)
        for n in (10**6 * 3**k for k in range(7))
    ]
    fitted = fit_law(runs)
    assert fitted.law == "compute"
    (other,) = fitted.others
    assert other.values == pytest.approx({"E": 2.0, "a": 1.0, "b": 0.1}, rel=0.02)
    assert "L = E + a·C^-b describes the runs better" in fitted.warnings[0]


def test_a_floor_that_nothing_determines_is_told() -> None:
    """Small models on few tokens, far above the floor, with large errors."""
    chance = random.Random(3)
    runs = [
        RunResult(
            name="",
            parameters=n,
            tokens=d,
            loss=CHINCHILLA.loss(n, d) * math.exp(chance.gauss(0, 0.03)),
        )
        for n in (10**3, 10**4, 10**5)
        for d in (10**5, 10**6, 10**7)
    ]
    warnings = fit_law(runs).warnings
    assert any("do not determine the floor" in warning for warning in warnings)
    assert any("contain the truth less often: of 9 runs" in warning for warning in warnings)


def test_ten_runs_need_no_warning_of_their_intervals() -> None:
    runs = grid(CHINCHILLA, 0.003)
    for count, is_told in ((10, False), (9, True)):
        warnings = fit_law(runs[-count:]).warnings
        assert any("less often" in warning for warning in warnings) == is_told
