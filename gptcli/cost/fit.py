"""Minimisation without derivatives, in plain Python: small problems of a few unknowns."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Point = list[float]


def minimise(
    f: Callable[[Point], float],
    start: Sequence[float],
    *,
    step: float = 0.1,
    rounds: int = 3,
    iterations: int = 4000,
) -> Point:
    """A local minimum of `f` near `start` by the simplex of Nelder and Mead (1965), begun anew
    `rounds` times from where it ended.
    """
    best = list(start)
    for _ in range(rounds):
        best = _simplex(f, best, step, iterations)
    return best


def _simplex(f: Callable[[Point], float], start: Point, step: float, iterations: int) -> Point:
    n = len(start)
    corners = [start] + [[x + step * (i == j) for j, x in enumerate(start)] for i in range(n)]
    simplex = sorted((f(corner), corner) for corner in corners)
    for _ in range(iterations):
        (lowest, best), (second, _), (highest, worst) = simplex[0], simplex[-2], simplex[-1]
        wide = max(
            abs(x - y) for _, corner in simplex[1:] for x, y in zip(best, corner, strict=True)
        )
        # corners on both sides of a minimum may have equal values
        if wide <= 1e-9 and highest - lowest <= 1e-12 * (abs(highest) + 1e-12):
            break
        centre = [sum(corner[j] for _, corner in simplex[:-1]) / n for j in range(n)]

        def along(t: float, centre: Point = centre, worst: Point = worst) -> tuple[float, Point]:
            point = [c + t * (w - c) for c, w in zip(centre, worst, strict=True)]
            return f(point), point

        tried = along(-1.0)
        if tried[0] < lowest:
            tried = min(tried, along(-2.0))
        elif tried[0] >= second:
            tried = min(along(-0.5), along(0.5))
        if tried[0] < highest:
            simplex[-1] = tried
        else:
            halved = (
                [(x + y) / 2 for x, y in zip(best, corner, strict=True)]
                for _, corner in simplex[1:]
            )
            simplex[1:] = [(f(corner), corner) for corner in halved]
        simplex.sort()
    return simplex[0][1]
