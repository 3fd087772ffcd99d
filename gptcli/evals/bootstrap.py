"""Standard errors: closed forms where there is one, else the bootstrap, by sums of what each item contributes, in one product."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

DRAWS = 1000


def of_mean(value_N: np.ndarray) -> float | None:
    """The standard error of a mean of independent values; None for one alone. Of zeros and ones it is sqrt(p·(1 - p) / (N - 1))."""
    N = len(value_N)
    return float(value_N.std(ddof=1)) / math.sqrt(N) if N > 1 else None


def of_clusters(value_N: np.ndarray, cluster_N: np.ndarray) -> float | None:
    """The same where the values of a cluster (items of one passage) belong together; None for one cluster.

    Of the ratio of sums over clusters (Cochran 1977, section 2.11)."""
    _, inverse_N = np.unique(cluster_N, return_inverse=True)
    sum_G, count_G = np.bincount(inverse_N, value_N), np.bincount(inverse_N)
    G = len(sum_G)
    if G < 2:
        return None
    return float(np.sqrt(((sum_G - value_N.mean() * count_G) ** 2).sum() * G / (G - 1)) / len(value_N))


def bootstrap(statistics_NS: np.ndarray, score: Callable[[np.ndarray], float], *, seed: int = 0, draws: int = DRAWS) -> float | None:
    """The standard error of `score` of the sum of all items' statistics, over `draws` samples of N items with replacement."""
    N = len(statistics_NS)
    if N < 2:
        return None
    random = np.random.default_rng(seed)
    scores = [score(random.multinomial(N, np.full(N, 1 / N)) @ statistics_NS) for _ in range(draws)]
    return float(np.std(scores, ddof=1))
