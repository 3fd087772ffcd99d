"""Functional forms of a scaling law, each with its fit to finished training runs, in plain Python."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptcli.cost.minimize import (
    MAX_NEGATIVE_LOG,
    Point,
    Rows,
    gauss_newton,
    huber,
    huber_sum,
    nelder_mead,
)
from gptcli.cost.scaling import PF_DAY

STEPS = 60  # Gauss-Newton steps of a fit at most
RESAMPLE_STEPS = 30  # at most; a resample starts at the fit
STARTS = ((1.0, 0.3), (2.0, 0.5))  # scale of E, and both exponents


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """Size, tokens and loss of one finished training run."""

    name: str
    parameters: int
    tokens: int
    loss: float
    """Nats per token."""

    @property
    def pf_days(self) -> float:
        """Training compute by 6ND, in PF-days."""
        return 6.0 * self.parameters * self.tokens / PF_DAY


Refit = Callable[[Sequence[RunResult], Point, Sequence[float]], Point]


@dataclass(frozen=True, slots=True)
class Form:
    """Functional form of a law."""

    formula: str
    names: tuple[str, ...]
    loss: Callable[[Sequence[float], float, float], float]
    fit: Callable[[Sequence[RunResult]], Point]
    refit: Refit | None = None
    """Fit from a starting point to runs with weights."""


def _joint_loss(values: Sequence[float], parameters: float, tokens: float) -> float:
    E, A, B, alpha, beta = values
    return E + A / parameters**alpha + B / tokens**beta


def _fit_joint(runs: Sequence[RunResult]) -> Point:
    """Return the constants with the smallest Huber loss of the runs."""
    N, D = _middle(runs)
    rows = _rows(runs, [1.0] * len(runs))
    fits = [gauss_newton(rows, start, STEPS) for start in _starts(runs)]
    return _constants(min(fits, key=lambda x: huber_sum(rows, x)), N, D)


def _refit_joint(runs: Sequence[RunResult], start: Point, weights: Sequence[float]) -> Point:
    """Return the constants near `start` with the smallest Huber loss of the weighted runs."""
    N, D = _middle(runs)
    E, A, B, alpha, beta = start
    first = [math.log(v) for v in (E, A / N**alpha, B / D**beta, alpha, beta)]
    return _constants(gauss_newton(_rows(runs, weights), first, RESAMPLE_STEPS), N, D)


def _middle(runs: Sequence[RunResult]) -> tuple[float, float]:
    """Return the geometric means of sizes and of tokens."""
    return (
        math.exp(statistics.fmean(math.log(run.parameters) for run in runs)),
        math.exp(statistics.fmean(math.log(run.tokens) for run in runs)),
    )


def _rows(runs: Sequence[RunResult], weights: Sequence[float]) -> Rows:
    """Return log size and log tokens, centred, and log loss of the runs, with their weights."""
    N, D = _middle(runs)
    rows: defaultdict[tuple[float, float, float], float] = defaultdict(float)
    for run, weight in zip(runs, weights, strict=True):
        if weight:
            row = math.log(run.parameters / N), math.log(run.tokens / D), math.log(run.loss)
            rows[row] += weight
    return rows


def _constants(x: Point, N: float, D: float) -> Point:
    """Return E, A, B, alpha and beta, of which `x` has the logs: of the terms of A and B at N and D.

    These unknowns have one scale and are hardly correlated.
    """
    E, a, b = (math.exp(min(max(v, -MAX_NEGATIVE_LOG), 5.0)) for v in x[:3])
    alpha, beta = (math.exp(min(max(v, -MAX_NEGATIVE_LOG), 2.0)) for v in x[3:])
    return [E, a * N**alpha, b * D**beta, alpha, beta]


def _starts(runs: Sequence[RunResult]) -> list[Point]:
    """Return where the fit of a joint law starts."""
    lowest = min(run.loss for run in runs)
    return [
        [
            math.log(scale * lowest / 2),
            math.log(lowest / 5),
            math.log(lowest / 5),
            math.log(exponent),
            math.log(exponent),
        ]
        for scale, exponent in STARTS
    ]


def _compute_loss(values: Sequence[float], parameters: float, tokens: float) -> float:
    a, b = values
    return a * (6.0 * parameters * tokens / PF_DAY) ** -b


def _fit_compute(runs: Sequence[RunResult]) -> Point:
    return _refit_compute(runs, [], [1.0] * len(runs))


def _refit_compute(runs: Sequence[RunResult], start: Point, weights: Sequence[float]) -> Point:
    """Return the weighted regression of log loss on log compute; it needs no start."""
    x, y = [math.log(run.pf_days) for run in runs], [math.log(run.loss) for run in runs]
    mean_x, mean_y = statistics.fmean(x, weights), statistics.fmean(y, weights)
    rows = [(w, v - mean_x, u - mean_y) for w, v, u in zip(weights, x, y, strict=True)]
    slope = sum(w * v * u for w, v, u in rows) / sum(w * v * v for w, v, _ in rows)
    return [math.exp(mean_y - slope * mean_x), -slope]


def _kaplan_loss(values: Sequence[float], parameters: float, tokens: float) -> float:
    Nc, Dc, alpha_N, alpha_D = values
    return ((Nc / parameters) ** (alpha_N / alpha_D) + Dc / tokens) ** alpha_D


def _fit_kaplan(runs: Sequence[RunResult]) -> Point:
    """Fit the log of both terms at the runs' geometric mean, of their exponents' ratio and of
    alpha_D.
    """
    N, D, L = (
        math.exp(statistics.fmean(map(math.log, xs)))
        for xs in ([r.parameters for r in runs], [r.tokens for r in runs], [r.loss for r in runs])
    )
    rows = [(r.parameters / N, r.tokens / D, math.log(r.loss)) for r in runs]

    def objective(x: Point) -> float:
        n, d, ratio, power = (math.exp(min(max(v, -MAX_NEGATIVE_LOG), 20.0)) for v in x)
        return sum(
            huber(power * math.log(n * size**-ratio + d / tokens) - loss)
            for size, tokens, loss in rows
        )

    half = math.log(L) / 0.1 - math.log(2)
    n, d, ratio, power = nelder_mead(objective, [half, half, -0.2, math.log(0.1)], step=0.3)
    ratio, power = math.exp(ratio), math.exp(power)
    return [N * math.exp(n / ratio), D * math.exp(d), ratio * power, power]


def _floor_loss(values: Sequence[float], parameters: float, tokens: float) -> float:
    E, a, b = values
    return E + _compute_loss((a, b), parameters, tokens)


def _fit_floor(runs: Sequence[RunResult]) -> Point:
    middle = statistics.geometric_mean([run.pf_days for run in runs])
    rows = [(run.pf_days / middle, math.log(run.loss)) for run in runs]

    def objective(x: Point) -> float:
        E, a, b = (math.exp(min(max(v, -MAX_NEGATIVE_LOG), 5.0)) for v in x)
        return sum(huber(math.log(E + a * flops**-b) - loss) for flops, loss in rows)

    half = math.log(min(run.loss for run in runs) / 2)
    E, a, b = map(math.exp, nelder_mead(objective, [half, half, math.log(0.1)], step=0.3))
    return [E, a * middle**b, b]


FORMS = {
    "joint": Form(
        "L = E + A/N^alpha + B/D^beta",
        ("E", "A", "B", "alpha", "beta"),
        _joint_loss,
        _fit_joint,
        _refit_joint,
    ),
    "compute": Form(
        "L = a·C^-b, C = 6ND in PF-days", ("a", "b"), _compute_loss, _fit_compute, _refit_compute
    ),
    "kaplan": Form(
        "L = ((Nc/N)^(aN/aD) + Dc/D)^aD", ("Nc", "Dc", "aN", "aD"), _kaplan_loss, _fit_kaplan
    ),
    "floor": Form("L = E + a·C^-b", ("E", "a", "b"), _floor_loss, _fit_floor),
}
