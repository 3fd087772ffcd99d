"""Minimizers in plain Python: Gauss-Newton steps for the joint scaling law, and the simplex of Nelder
and Mead (1965) for any function of few unknowns.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

HUBER_DELTA = 1e-3
MAX_NEGATIVE_LOG = 40.0  # exp(-40) is a negligible term

Point = list[float]
Rows = Mapping[tuple[float, float, float], float]
"""Weight of each run: log size and log tokens, centred, and log loss."""


def huber(error: float) -> float:
    """Return Huber's loss of an error, linear above HUBER_DELTA."""
    size = abs(error)
    return error * error / 2 if size < HUBER_DELTA else HUBER_DELTA * (size - HUBER_DELTA / 2)


def gauss_newton(rows: Rows, start: Point, steps: int) -> Point:
    """Return the joint law's five logarithms near `start` that minimize the Huber loss.

    Steps are damped by Levenberg and Marquardt; each run also has the weight of Huber's loss at its
    residual.
    """
    x, damping = list(start), 1e-3
    lowest = huber_sum(rows, x)
    for _ in range(steps):
        normal = [[0.0] * 5 for _ in range(5)]
        gradient = [0.0] * 5
        E, alpha, beta = math.exp(x[0]), math.exp(x[3]), math.exp(x[4])
        for (n, d, loss), count in rows.items():
            a, b = math.exp(x[1] - alpha * n), math.exp(x[2] - beta * d)
            total = E + a + b
            residual = math.log(total) - loss
            weight = count * min(1.0, HUBER_DELTA / max(abs(residual), 1e-12))
            slopes = (
                E / total,
                a / total,
                b / total,
                -a * alpha * n / total,
                -b * beta * d / total,
            )
            for i in range(5):
                scaled = weight * slopes[i]
                gradient[i] -= scaled * residual
                row = normal[i]
                for j in range(i, 5):
                    row[j] += scaled * slopes[j]
        for i in range(5):
            for j in range(i):
                normal[i][j] = normal[j][i]
        before = lowest
        for _ in range(8):
            damped = [row[:] for row in normal]
            for i in range(5):
                damped[i][i] *= 1 + damping
                damped[i][i] += 1e-12
            move = _solve(damped, gradient)
            tried = [v + max(-1.0, min(1.0, step)) for v, step in zip(x, move, strict=True)]
            value = huber_sum(rows, tried) if all(abs(v) < MAX_NEGATIVE_LOG for v in tried) else math.inf  # fmt: skip
            if value < lowest:
                x, lowest, damping = tried, value, max(damping / 5, 1e-9)
                break
            damping *= 6
        if before - lowest <= 1e-7 * before:
            break
    return x


def huber_sum(rows: Rows, x: Sequence[float]) -> float:
    """Return the Huber loss of the joint law with the five logarithms `x`."""
    E, alpha, beta = math.exp(x[0]), math.exp(x[3]), math.exp(x[4])
    if alpha > 10 or beta > 10:
        return math.inf
    return sum(
        count * huber(math.log(E + math.exp(x[1] - alpha * n) + math.exp(x[2] - beta * d)) - loss)
        for (n, d, loss), count in rows.items()
    )


def _solve(matrix: list[list[float]], right: Sequence[float]) -> Point:
    """Return the solution of a small symmetric positive system, by elimination with pivots."""
    n = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, n):
            factor = rows[k][i] / rows[i][i]
            for j in range(i, n + 1):
                rows[k][j] -= factor * rows[i][j]
    found = [0.0] * n
    for i in reversed(range(n)):
        known = sum(rows[i][j] * found[j] for j in range(i + 1, n))
        found[i] = (rows[i][n] - known) / rows[i][i]
    return found


def nelder_mead(
    f: Callable[[Point], float],
    start: Sequence[float],
    *,
    step: float = 0.1,
    restarts: int = 3,
    iterations: int = 4000,
) -> Point:
    """Return a local minimum of `f` near `start`, by `restarts` runs of the Nelder-Mead simplex.

    Each run starts where the one before ended, with corners `step` apart.
    """
    best = list(start)
    for _ in range(restarts):
        best = _run_simplex(f, best, step, iterations)
    return best


def _run_simplex(f: Callable[[Point], float], start: Point, step: float, iterations: int) -> Point:
    n = len(start)
    corners = [start] + [[x + step * (i == j) for j, x in enumerate(start)] for i in range(n)]
    simplex = sorted((f(corner), corner) for corner in corners)
    for _ in range(iterations):
        (lowest, best), (second, _), (highest, worst) = simplex[0], simplex[-2], simplex[-1]
        width = max(
            abs(x - y) for _, corner in simplex[1:] for x, y in zip(best, corner, strict=True)
        )
        # equal values alone prove nothing: two corners can lie on either side of a minimum
        if width <= 1e-9 and highest - lowest <= 1e-12 * (abs(highest) + 1e-12):
            break
        center = [sum(corner[j] for _, corner in simplex[:-1]) / n for j in range(n)]

        def along(t: float, center: Point = center, worst: Point = worst) -> tuple[float, Point]:
            point = [c + t * (w - c) for c, w in zip(center, worst, strict=True)]
            return f(point), point

        candidate = along(-1.0)  # reflect
        if candidate[0] < lowest:
            candidate = min(candidate, along(-2.0))  # expand
        elif candidate[0] >= second:
            candidate = min(along(-0.5), along(0.5))  # contract
        if candidate[0] < highest:
            simplex[-1] = candidate
        else:  # shrink
            simplex[1:] = [
                (f(point), point)
                for point in (
                    [(x + y) / 2 for x, y in zip(best, corner, strict=True)]
                    for _, corner in simplex[1:]
                )
            ]
        simplex.sort()
    return simplex[0][1]
