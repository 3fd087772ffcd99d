"""Standard errors: closed forms where there is one, else the bootstrap, by sums of what each item
contributes, in one product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from gptcli.evals.metrics import GroupMetric

DRAWS, GROUP_DRAWS = 1000, 200


def of_mean(value_N: np.ndarray) -> float | None:
    """The standard error of a mean of independent values; None for one alone. Of zeros and ones it
    is sqrt(p·(1 - p) / (N - 1)).
    """
    N = len(value_N)
    return float(value_N.std(ddof=1)) / math.sqrt(N) if N > 1 else None


def of_clusters(value_N: np.ndarray, cluster_N: np.ndarray) -> float | None:
    """The same where the values of a cluster (items of one passage) belong together; None for one
    cluster.

    Of the ratio of sums over clusters (Cochran 1977, section 2.11)."""
    _, inverse_N = np.unique(cluster_N, return_inverse=True)
    sum_G, count_G = np.bincount(inverse_N, value_N), np.bincount(inverse_N)
    G = len(sum_G)
    if G < 2:
        return None
    return float(
        np.sqrt(((sum_G - value_N.mean() * count_G) ** 2).sum() * G / (G - 1)) / len(value_N)
    )


def bootstrap(
    statistics_NS: np.ndarray,
    score: Callable[[np.ndarray], float],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> float | None:
    """The standard error of `score` of the sum of all items' statistics, over `draws` samples of N
    items with replacement.
    """
    N = len(statistics_NS)
    if N < 2:
        return None
    random = np.random.default_rng(seed)
    scores = [
        score(np.bincount(random.integers(0, N, N), minlength=N) @ statistics_NS)
        for _ in range(draws)
    ]
    return float(np.std(scores, ddof=1))


def of_groups(
    metric: GroupMetric,
    predictions: Sequence[int],
    gold: Sequence[Sequence[int]],
    groups: Sequence[str],
) -> float | None:
    """The standard error of a metric over groups of items, by the bootstrap: groups are drawn
    whole.
    """
    members: dict[str, list[int]] = {}
    for number, group in enumerate(groups):
        members.setdefault(group, []).append(number)
    if len(members) < 2:
        return None
    lists, random = list(members.values()), np.random.default_rng(0)
    scores = []
    for _ in range(GROUP_DRAWS):
        drawn = [lists[place] for place in random.integers(0, len(lists), len(lists))]
        # a group drawn twice is two
        names = [str(place) for place, numbers in enumerate(drawn) for _ in numbers]
        flat = [number for numbers in drawn for number in numbers]
        scores.append(
            metric(
                [predictions[number] for number in flat], [gold[number] for number in flat], names
            )
        )
    return float(np.std(scores, ddof=1))


def of_bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float | None:
    """The standard error of corpus BLEU, by the bootstrap over sentences: BLEU is a function of
    their summed counts.
    """
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU()
    parts = [
        bleu.corpus_score([text], [[one] for one in texts])
        for text, texts in zip(predictions, references, strict=True)
    ]
    statistics_NS = np.array(
        [[*part.counts, *part.totals, part.sys_len, part.ref_len] for part in parts]
    )

    def score(sums: np.ndarray) -> float:
        counts, totals, (sys_len, ref_len) = (
            sums[:4].tolist(),
            sums[4:8].tolist(),
            sums[8:].tolist(),
        )
        return float(BLEU.compute_bleu(counts, totals, sys_len, ref_len, smooth_method="exp").score)

    return bootstrap(statistics_NS, score)
