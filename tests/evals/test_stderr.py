"""Standard errors: closed forms against numpy and each other, the bootstrap against the closed
form.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

from gptcli.evals.stderr import bootstrap_stderr, cluster_stderr, mean_stderr


def test_of_a_share() -> None:
    right = np.array([True] * 30 + [False] * 70)
    assert mean_stderr(right) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert mean_stderr(right[:1]) is None


def test_clusters_of_one_are_no_clusters_and_copies_add_nothing() -> None:
    value = np.random.default_rng(0).random(50)
    assert cluster_stderr(value, np.arange(50)) == pytest.approx(mean_stderr(value))
    assert cluster_stderr(np.repeat(value, 3), np.repeat(np.arange(50), 3)) == pytest.approx(
        mean_stderr(value)
    )
    assert cluster_stderr(value, np.zeros(50)) is None


def test_the_bootstrap_of_a_mean_is_its_closed_form() -> None:
    value = np.random.default_rng(0).random(300)
    statistics = np.stack([value, np.ones(300)], axis=1)
    made = bootstrap_stderr(statistics, lambda sums: float(sums[0] / sums[1]))
    assert made == pytest.approx(mean_stderr(value), rel=0.1)
    assert made == bootstrap_stderr(statistics, lambda sums: float(sums[0] / sums[1]))
    assert bootstrap_stderr(statistics[:1], lambda sums: 0.0) is None
