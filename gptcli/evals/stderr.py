"""Standard errors of metrics: in closed form where there is one, otherwise by the bootstrap.

Shapes: N items, G clusters, S statistics per item.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

BOOTSTRAP_SAMPLES = 1000
GROUP_BOOTSTRAP_SAMPLES = 200  # fewer, because each recomputes the metric from its items


def mean_stderr(value_N: np.ndarray) -> float | None:
    """Return the standard error of the mean of independent values, or None for a single value.

    For zeros and ones it is sqrt(p·(1 - p) / (N - 1)).
    """
    N = len(value_N)
    return float(value_N.std(ddof=1)) / math.sqrt(N) if N > 1 else None


def cluster_stderr(value_N: np.ndarray, cluster_N: np.ndarray) -> float | None:
    """Return the standard error of the mean of values that depend on each other within clusters.

    A cluster is, for example, the items of one passage. Returns None for a single cluster.
    """
    _, inverse_N = np.unique(cluster_N, return_inverse=True)
    sum_G, count_G = np.bincount(inverse_N, value_N), np.bincount(inverse_N)
    spread = ratio_spread(sum_G, count_G, value_N.mean())
    return None if spread is None else float(spread / len(value_N))


def ratio_spread(sum_G: np.ndarray, count_G: np.ndarray, ratio: float) -> float | None:
    """Return the standard error of sum(sum_G) / sum(count_G), times the denominator.

    `ratio` is that quotient over G independent clusters, which may differ in size. Returns None for
    a single cluster. Source: Cochran 1977, section 2.11.
    """
    G = len(sum_G)
    if G < 2:
        return None
    return float(np.sqrt(((sum_G - ratio * count_G) ** 2).sum() * G / (G - 1)))


def bootstrap_stderr(
    statistics_NS: np.ndarray,
    score: Callable[[np.ndarray], float],
    *,
    seed: int = 0,
    samples: int = BOOTSTRAP_SAMPLES,
) -> float | None:
    """Return the standard error of `score` of the sum of all items' statistics, by the bootstrap.

    Each sample draws N items with replacement. Returns None for a single item.
    """
    N = len(statistics_NS)
    if N < 2:
        return None
    random = np.random.default_rng(seed)
    scores = [
        score(np.bincount(random.integers(0, N, N), minlength=N) @ statistics_NS)
        for _ in range(samples)
    ]
    return float(np.std(scores, ddof=1))


def group_metric_stderr(
    metric: Callable[[Sequence[int], Sequence[Sequence[int]], Sequence[str]], float],
    predictions: Sequence[int],
    gold: Sequence[Sequence[int]],
    groups: Sequence[str],
) -> float | None:
    """Return the standard error of a metric over groups of items, by the bootstrap over groups.

    Returns None for a single group.
    """
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    if len(members) < 2:
        return None
    lists, random = list(members.values()), np.random.default_rng(0)
    scores = []
    for _ in range(GROUP_BOOTSTRAP_SAMPLES):
        drawn = [lists[index] for index in random.integers(0, len(lists), len(lists))]
        # A group that is drawn twice counts as two groups.
        names = [str(index) for index, numbers in enumerate(drawn) for _ in numbers]
        flat = [number for numbers in drawn for number in numbers]
        scores.append(
            metric(
                [predictions[number] for number in flat], [gold[number] for number in flat], names
            )
        )
    return float(np.std(scores, ddof=1))
