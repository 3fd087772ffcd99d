"""Fit a scaling law to finished training runs, with confidence intervals from a bootstrap.

With at least six runs whose sizes and tokens vary independently, the law is Chinchilla's
L = E + A/N^alpha + B/D^beta, fitted by the Huber loss of log L (Hoffmann et al. 2022, approach 3).
Otherwise its terms cannot be separated, and the law is a power of the compute, L = a·C^-b with
C = 6ND in PF-days, fitted by least squares of log L. The other form of each, Kaplan's without a floor
and a power of the compute with one, is fitted too: a warning says if it describes the runs as well,
because beyond them the two differ.

The bootstrap weighs whole runs, which assumes nothing about their errors (they may be unequal and
heavy-tailed): from PAIRS_FROM runs on a run counts as often as it is drawn. With fewer, draws that leave
out runs determine little, and each run gets a weight from the exponential distribution (Rubin 1981,
The Bayesian bootstrap). A power of the compute is fitted to as few as three runs; there residuals are
drawn. Intervals of fewer than PAIRS_FROM runs are those of the bootstrap, wider by the quantile of
Student's t at the residual degrees of freedom over that of the normal distribution. How often they
contain the truth is measured by tests/benchmarks/law_coverage.py. All in plain Python.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from gptcli.cost.minimize import Point
from gptcli.cost.scaling_forms import FORMS, Form, Refit, RunResult
from gptcli.errors import UsageError
from gptcli.numbers import counted

MIN_JOINT_RUNS = 6  # fewer cannot determine five unknowns
MAX_CORRELATION = 0.95  # of log sizes and log tokens; above it they count as one variable
PAIRS_FROM = 100  # runs; intervals of fewer by drawing runs are too wide
# share of 95 % intervals of the joint law that contain the truth, by the number of runs, in 900 sets
# of runs with equal, unequal and heavy-tailed errors (tests/benchmarks/LOG.md); of more 91 to 98 %
COVERAGE_OF_FEW = {6: 0.83, 7: 0.84, 8: 0.87, 9: 0.90}
OUTLIERS_FROM = 40  # runs; fewer do not tell an outlier
RESAMPLES = 400
NORMAL_QUANTILE = 1.959964  # of 97.5 %
OUTLIER = 5.0  # robust standard deviations of log(measured / predicted)

EXACT = 1e-9  # relative errors below it are rounding
UNDECIDED = 2.0  # difference of the Bayesian information criterion that says little
NO_FLOOR = 0.1  # share of the lowest loss below which a floor is as good as none

EXPONENTS = ("alpha", "beta", "b")  # of parameters, tokens and compute; above 0 in any law
LawName = Literal["joint", "compute"]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Loss that a fitted law predicts for a run that it was not fitted to."""

    name: str
    parameters: int
    tokens: int
    loss: float
    """Predicted loss, nats per token."""
    interval: tuple[float, float]
    """95 % interval of the loss."""
    measured: float | None
    """Loss of the run; None for a run that does not exist yet."""

    @property
    def error(self) -> float | None:
        """Relative error of the prediction; None without a measured loss."""
        return None if self.measured is None else self.loss / self.measured - 1

    def as_dict(self) -> dict[str, Any]:
        """Return the prediction as `gpt cost --fit --json` reports it."""
        return {
            "name": self.name,
            "parameters": self.parameters,
            "tokens": self.tokens,
            "loss": self.loss,
            "between": self.interval,
            "measured": self.measured,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherForm:
    """Another form of law, fitted to the same runs."""

    formula: str
    values: dict[str, float]
    error: float
    """Root mean square of log(predicted / measured) over the runs."""
    bic: float
    """Its Bayesian information criterion minus that of the law: below 0 it describes them better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FittedLaw:
    """Scaling law with its fitted constants and their 95 % bootstrap intervals."""

    law: LawName
    formula: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    error: float
    """Root mean square of log(predicted / measured) over the runs."""
    resamples: tuple[tuple[Point, float], ...]
    """Constants of each bootstrap resample, and the error factor of one further run."""
    width_factor: float = 1.0
    """Factor of the width of the bootstrap's intervals, of logarithms around the fit."""
    outliers: tuple[str, ...] = ()
    """Names of the runs whose loss is far from the law's, by OUTLIER."""
    others: tuple[OtherForm, ...] = ()
    """Other forms of law, fitted to the same runs."""
    warnings: tuple[str, ...] = ()
    """Questions that the runs leave open, a sentence each."""

    def loss(self, parameters: float, tokens: float) -> float:
        """Return the predicted loss of a model, in nats per token."""
        return FORMS[self.law].loss(list(self.values.values()), parameters, tokens)

    def loss_interval(self, parameters: float, tokens: float) -> tuple[float, float]:
        """Return the 95 % interval of the loss of one further run."""
        form = FORMS[self.law]
        losses = [error * form.loss(values, parameters, tokens) for values, error in self.resamples]
        return _interval(self.loss(parameters, tokens), losses, self.width_factor)

    def law_interval(self, parameters: float, tokens: float) -> tuple[float, float]:
        """Return the 95 % interval of the law itself: the mean loss of many further runs."""
        form = FORMS[self.law]
        losses = [form.loss(values, parameters, tokens) for values, _ in self.resamples]
        return _interval(self.loss(parameters, tokens), losses, self.width_factor)

    def predict(
        self, name: str, parameters: int, tokens: int, measured: float | None = None
    ) -> Prediction:
        """Return the predicted loss of a run next to its measured one, if there is one."""
        return Prediction(
            name,
            parameters,
            tokens,
            self.loss(parameters, tokens),
            self.loss_interval(parameters, tokens),
            measured,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the law as `gpt cost --fit --json` reports it."""
        return {
            "law": self.law,
            "formula": self.formula,
            "values": self.values,
            "intervals": self.intervals,
            "error": self.error,
            "outliers": list(self.outliers),
            "others": [asdict(other) for other in self.others],
            "warnings": list(self.warnings),
        }


def fit_report(
    law: FittedLaw, runs: Sequence[RunResult], predictions: Sequence[Prediction]
) -> dict[str, Any]:
    """Return the JSON report of a fit: the law, the runs and the predictions."""
    return law.as_dict() | {
        "runs": [asdict(run) for run in runs],
        "predicted": [prediction.as_dict() for prediction in predictions],
    }


def fit_law(runs: Sequence[RunResult], *, seed: int = 0) -> FittedLaw:
    """Fit the law that `runs` can support; `seed` draws the bootstrap resamples.

    Raises UsageError for fewer than three runs of different size or length.
    """
    if len({(run.parameters, run.tokens) for run in runs}) < 3:
        raise UsageError(
            f"a scaling law needs three or more runs of different compute; {len(runs)} given",
            field="fit",
            code="too_few_runs",
        )
    law: LawName = "joint" if len(runs) >= MIN_JOINT_RUNS and _is_spread(runs) else "compute"
    form = FORMS[law]
    values = form.fit(runs)
    predicted = [form.loss(values, run.parameters, run.tokens) for run in runs]
    residuals = [math.log(run.loss / loss) for run, loss in zip(runs, predicted, strict=True)]
    generator = random.Random(seed)
    # three runs of a power of the compute may be left with one: too few to weigh
    if form.refit is not None and (law == "joint" or len(runs) >= PAIRS_FROM):
        resamples = _weighted_resamples(form.refit, runs, values, residuals, generator)
    else:
        resamples = _resample_residuals(form, runs, len(values), predicted, residuals, generator)
    freedom = max(1, len(runs) - len(values))
    width_factor = 1.0 if len(runs) >= PAIRS_FROM else t_quantile(freedom) / NORMAL_QUANTILE
    intervals = {
        name: _interval(value, [point[i] for point, _ in resamples], width_factor)
        for i, (name, value) in enumerate(zip(form.names, values, strict=True))
    }
    others = _other_forms(law, runs, len(values), residuals)
    return FittedLaw(
        law=law,
        formula=form.formula,
        values=dict(zip(form.names, values, strict=True)),
        intervals=intervals,
        error=math.sqrt(statistics.fmean(r * r for r in residuals)),
        resamples=tuple(resamples),
        width_factor=width_factor,
        outliers=_outliers(runs, residuals),
        others=others,
        warnings=_warnings(runs, intervals, others),
    )


def _other_forms(
    law: LawName, runs: Sequence[RunResult], unknowns: int, residuals: Sequence[float]
) -> tuple[OtherForm, ...]:
    """Return the other form of a law; none if the runs are too few for its unknowns."""
    name = "kaplan" if law == "joint" else "floor"
    form = FORMS[name]
    if len(runs) <= len(form.names) + 1:
        return ()
    values = form.fit(runs)
    rest = [math.log(run.loss / form.loss(values, run.parameters, run.tokens)) for run in runs]

    def criterion(errors: Sequence[float], count: int) -> float:
        mean = max(statistics.fmean(error * error for error in errors), EXACT**2)
        return len(errors) * math.log(mean) + count * math.log(len(errors))

    return (
        OtherForm(
            formula=form.formula,
            values=dict(zip(form.names, values, strict=True)),
            error=math.sqrt(statistics.fmean(error * error for error in rest)),
            bic=criterion(rest, len(values)) - criterion(residuals, unknowns),
        ),
    )


def _warnings(
    runs: Sequence[RunResult],
    intervals: dict[str, tuple[float, float]],
    others: Sequence[OtherForm],
) -> tuple[str, ...]:
    """Return what is strange about the runs, and what they do not decide: the form of the law, and
    its floor.
    """
    found = []
    if again := len(runs) - len({(run.parameters, run.tokens, run.loss) for run in runs}):
        found.append(
            f"{counted(again, 'run')} of {len(runs)} repeat the size, tokens and loss of another: "
            "the same run counted twice narrows the intervals"
        )
    if rising := [name for name in EXPONENTS if intervals.get(name, (0, 1))[1] < 0]:
        found.append(
            f"the loss grows with compute, parameters or tokens ({', '.join(rising)} below 0): no "
            "law predicts from such runs; are the columns in the right order?"
        )
    for other in others:
        if other.bic < UNDECIDED:
            how = "better" if other.bic < -UNDECIDED else "as well"
            found.append(
                f"{other.formula} describes the runs {how}, with an error of {other.error:.2%}: "
                "beyond them the two differ"
            )
    if "E" in intervals and len(runs) in COVERAGE_OF_FEW:
        share = COVERAGE_OF_FEW[len(runs)]
        found.append(
            f"95 % intervals contain the truth less often: of {counted(len(runs), 'run')}, {share:.0%}"
        )
    if "E" in intervals and intervals["E"][0] < NO_FLOOR * min(run.loss for run in runs):
        found.append("the runs do not determine the floor E: larger ones would")
    return tuple(found)


def _weighted_resamples(
    refit: Refit,
    runs: Sequence[RunResult],
    values: Point,
    residuals: Sequence[float],
    generator: random.Random,
) -> list[tuple[Point, float]]:
    """Return the constants of runs that count differently each time."""
    count, width_mult = len(runs), _width_mult(len(runs), len(values))
    resamples: list[tuple[Point, float]] = []
    for _ in range(RESAMPLES):
        if count >= PAIRS_FROM:
            weights = [0.0] * count
            for drawn in generator.choices(range(count), k=count):
                weights[drawn] += 1.0
        else:
            weights = [generator.expovariate(1.0) for _ in range(count)]
        error = math.exp(width_mult * generator.choice(residuals))
        resamples.append((refit(runs, values, weights), error))
    return resamples


def _resample_residuals(
    form: Form,
    runs: Sequence[RunResult],
    unknowns: int,
    predicted: Sequence[float],
    residuals: Sequence[float],
    generator: random.Random,
) -> list[tuple[Point, float]]:
    """Return the constants of runs whose losses are the law's with other runs' errors."""
    width_mult = _width_mult(len(runs), unknowns)
    resamples: list[tuple[Point, float]] = []
    for _ in range(RESAMPLES):
        resample = [
            replace(run, loss=loss * math.exp(width_mult * generator.choice(residuals)))
            for run, loss in zip(runs, predicted, strict=True)
        ]
        error = math.exp(width_mult * generator.choice(residuals))
        resamples.append((form.fit(resample), error))
    return resamples


def _width_mult(runs: int, unknowns: int) -> float:
    """Return how much larger errors are than residuals, by the degrees of freedom of the fit."""
    return math.sqrt(runs / max(1, runs - unknowns))


def _outliers(runs: Sequence[RunResult], residuals: Sequence[float]) -> tuple[str, ...]:
    """Return the names of the runs with a residual above OUTLIER robust standard deviations."""
    if len(runs) < OUTLIERS_FROM:
        return ()
    middle = statistics.median(residuals)
    deviation = 1.4826 * statistics.median(abs(value - middle) for value in residuals)
    return tuple(
        run.name
        for run, value in zip(runs, residuals, strict=True)
        if abs(value - middle) > OUTLIER * deviation
    )


def _is_spread(runs: Sequence[RunResult]) -> bool:
    """Tell whether sizes and tokens vary, and not only together."""
    sizes, tokens = (
        [math.log(n) for n in values]
        for values in ([run.parameters for run in runs], [run.tokens for run in runs])
    )
    if min(len(set(sizes)), len(set(tokens))) < 3:
        return False
    return abs(statistics.correlation(sizes, tokens)) < MAX_CORRELATION


def _interval(value: float, resampled: Sequence[float], width_factor: float) -> tuple[float, float]:
    """Return the interval that leaves out 2.5 % of the resampled values on each side, its logarithms
    `width_factor` times as far from `value`.
    """
    found, cut = sorted(resampled), int(0.025 * len(resampled))
    low, high = found[cut], found[-1 - cut]
    if width_factor == 1 or not min(low, value) > 0:
        return low, high
    return value * (low / value) ** width_factor, value * (high / value) ** width_factor


def t_quantile(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t, by its expansion in 1 / `freedom` (Abramowitz and
    Stegun 1964, 26.7.5) above two degrees of freedom, and exactly below.
    """
    if freedom == 1:
        return math.tan(0.475 * math.pi)
    if freedom == 2:
        return 0.95 * math.sqrt(2 / (1 - 0.95**2))
    z = NORMAL_QUANTILE
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / freedom ** (k + 1) for k, term in enumerate(terms))
