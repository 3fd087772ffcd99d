"""A scaling law fitted to runs of one's own, with confidence intervals from the bootstrap.

Where there are at least six runs, and sizes and tokens that do not just grow together, the law is
Chinchilla's E + A/N^alpha + B/D^beta, by least Huber errors of log L (Hoffmann et al. 2022,
approach 3). Otherwise nothing tells its terms apart, and the law is a power of the compute, L =
a·C^-b with C = 6ND in PF-days, by least squares of log L.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gptcli.cost.fit import Point, minimise
from gptcli.cost.scaling import PF_DAY
from gptcli.errors import UsageError

HUBER = 1e-3
JOINT_LEAST = 6  # runs that determine five unknowns
TOGETHER = 0.95  # correlation above which sizes and tokens cannot be told apart
LOWEST = 40.0  # negative logarithm of a negligible term
RESAMPLES = 60
STARTS = ((1.0, 0.3), (2.0, 0.5))  # initial E and exponents


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What one training run came to."""

    name: str
    parameters: int
    tokens: int
    loss: float
    """Nats a token."""

    @property
    def pf_days(self) -> float:
        return 6.0 * self.parameters * self.tokens / PF_DAY


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A law with the values that fit, and the interval that holds each in 95 of 100 resamplings of
    the runs' errors.
    """

    law: str
    formula: str
    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    error: float
    """Root mean square of log(predicted / measured)."""
    drawn: tuple[tuple[Point, float], ...]
    """The values of each resampling, and an error of one more run, as a factor."""

    def loss(self, parameters: float, tokens: float) -> float:
        return _FORMS[self.law].loss(list(self.values.values()), parameters, tokens)

    def between(self, parameters: float, tokens: float) -> tuple[float, float]:
        """The interval that holds the loss of one more run in 95 of 100 resamplings."""
        form = _FORMS[self.law]
        return _middle(
            [error * form.loss(values, parameters, tokens) for values, error in self.drawn]
        )

    def as_dict(self) -> dict[str, Any]:
        return {
            "law": self.law,
            "formula": self.formula,
            "values": self.values,
            "intervals": self.intervals,
            "error": self.error,
        }


@dataclass(frozen=True, slots=True)
class _Form:
    formula: str
    names: tuple[str, ...]
    loss: Callable[[Sequence[float], float, float], float]
    fit: Callable[[Sequence[Run], Point | None], Point]


def fit_law(runs: Sequence[Run], *, seed: int = 0) -> Fitted:
    """The law that `runs` can support. Raises UsageError where they are fewer than three, or all of
    one size and length.
    """
    if len({(run.parameters, run.tokens) for run in runs}) < 3:
        raise UsageError(
            f"a law needs three runs or more of different compute; {len(runs)} given",
            field="fit",
            code="too_few_runs",
        )
    law = "joint" if len(runs) >= JOINT_LEAST and _spread(runs) else "compute"
    form = _FORMS[law]
    values = form.fit(runs, None)
    predicted = [form.loss(values, run.parameters, run.tokens) for run in runs]
    residuals = [math.log(run.loss / loss) for run, loss in zip(runs, predicted, strict=True)]
    # residuals of a fit underestimate the errors
    widen = math.sqrt(len(runs) / max(1, len(runs) - len(values)))
    chance = random.Random(seed)
    drawn: list[tuple[Point, float]] = []
    for _ in range(RESAMPLES):
        again = [
            Run(
                name=run.name,
                parameters=run.parameters,
                tokens=run.tokens,
                loss=loss * math.exp(widen * chance.choice(residuals)),
            )
            for run, loss in zip(runs, predicted, strict=True)
        ]
        drawn.append((form.fit(again, values), math.exp(widen * chance.choice(residuals))))
    intervals = {
        name: _middle([point[i] for point, _ in drawn]) for i, name in enumerate(form.names)
    }
    return Fitted(
        law=law, formula=form.formula, values=dict(zip(form.names, values, strict=True)), intervals=intervals,
        error=math.sqrt(statistics.fmean(r * r for r in residuals)), drawn=tuple(drawn),
    )  # fmt: skip


def _spread(runs: Sequence[Run]) -> bool:
    """Whether sizes and tokens vary, and not just together."""
    sizes, tokens = (
        [math.log(n) for n in values]
        for values in ([run.parameters for run in runs], [run.tokens for run in runs])
    )
    if min(len(set(sizes)), len(set(tokens))) < 3:
        return False
    return abs(statistics.correlation(sizes, tokens)) < TOGETHER


def _joint_loss(values: Sequence[float], parameters: float, tokens: float) -> float:
    E, A, B, alpha, beta = values
    return E + A / parameters**alpha + B / tokens**beta


def _fit_joint(runs: Sequence[Run], start: Point | None) -> Point:
    """Over log E, log of each term at the runs' geometric mean, and both exponents: unknowns of one
    scale, hardly correlated.
    """
    N, D = (
        math.exp(statistics.fmean(map(math.log, xs)))
        for xs in ([r.parameters for r in runs], [r.tokens for r in runs])
    )

    def values(x: Point) -> Point:
        E, a, b = (math.exp(min(max(v, -LOWEST), 5.0)) for v in x[:3])
        alpha, beta = (math.exp(min(max(v, -LOWEST), 2.0)) for v in x[3:])
        return [E, a * N**alpha, b * D**beta, alpha, beta]

    def badness(x: Point) -> float:
        made = values(x)
        return sum(
            _huber(math.log(_joint_loss(made, run.parameters, run.tokens) / run.loss))
            for run in runs
        )

    if start is not None:
        E, A, B, alpha, beta = start
        first = [math.log(v) for v in (E, A / N**alpha, B / D**beta, alpha, beta)]
        return values(minimise(badness, first, step=0.05, rounds=2, iterations=800))
    least = min(run.loss for run in runs)
    starts = [
        [
            math.log(E * least / 2),
            math.log(least / 5),
            math.log(least / 5),
            math.log(p),
            math.log(p),
        ]
        for E, p in STARTS
    ]
    return values(min((minimise(badness, x, step=0.3, rounds=6) for x in starts), key=badness))


def _compute_loss(values: Sequence[float], parameters: float, tokens: float) -> float:
    a, b = values
    return a * (6.0 * parameters * tokens / PF_DAY) ** -b


def _fit_compute(runs: Sequence[Run], start: Point | None) -> Point:
    x, y = [math.log(run.pf_days) for run in runs], [math.log(run.loss) for run in runs]
    slope, intercept = statistics.linear_regression(x, y)
    return [math.exp(intercept), -slope]


def _huber(error: float) -> float:
    size = abs(error)
    return error * error / 2 if size < HUBER else HUBER * (size - HUBER / 2)


def _middle(values: list[float]) -> tuple[float, float]:
    """The interval that leaves out 2.5 % on either side."""
    values, cut = sorted(values), int(0.025 * len(values))
    return values[cut], values[-1 - cut]


_FORMS = {
    "joint": _Form(
        "L = E + A/N^alpha + B/D^beta", ("E", "A", "B", "alpha", "beta"), _joint_loss, _fit_joint
    ),
    "compute": _Form("L = a·C^-b, C = 6ND in PF-days", ("a", "b"), _compute_loss, _fit_compute),
}
