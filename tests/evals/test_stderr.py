"""Standard errors: closed forms equal numpy's, and the bootstrap is near the closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gptcli.evals.stderr import bootstrap_stderr, cluster_stderr, mean_stderr


def test_standard_error_of_a_share_is_its_closed_form() -> None:
    right = np.array([True] * 30 + [False] * 70)
    assert mean_stderr(right) == pytest.approx(math.sqrt(0.3 * 0.7 / 99))
    assert mean_stderr(right[:1]) is None


def test_cluster_stderr_ignores_copies_within_a_cluster() -> None:
    value = np.random.default_rng(0).random(50)
    assert cluster_stderr(value, np.arange(50)) == pytest.approx(mean_stderr(value))
    assert cluster_stderr(np.repeat(value, 3), np.repeat(np.arange(50), 3)) == pytest.approx(
        mean_stderr(value)
    )
    assert cluster_stderr(value, np.zeros(50)) is None


def test_bootstrap_of_a_mean_is_near_its_closed_form() -> None:
    value = np.random.default_rng(0).random(300)
    statistics = np.stack([value, np.ones(300)], axis=1)
    made = bootstrap_stderr(statistics, lambda sums: float(sums[0] / sums[1]))
    assert made == pytest.approx(mean_stderr(value), rel=0.1)
    assert made == bootstrap_stderr(statistics, lambda sums: float(sums[0] / sums[1]))
    assert bootstrap_stderr(statistics[:1], lambda sums: 0.0) is None
