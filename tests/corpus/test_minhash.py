"""Pairs of known similarity share a band as often as the S-curve says."""

from __future__ import annotations

import numpy as np
import pytest

from gptcli.corpus.minhash import BANDINGS, band_keys, shingles

PAIRS = 500


@pytest.mark.parametrize("method", ["lsh", "paper"])
@pytest.mark.parametrize("similarity", [0.5, 0.7, 0.8, 0.9, 1.0])
def test_the_s_curve(method: str, similarity: float) -> None:
    """Within four standard errors, over independent pairs."""
    chance = np.random.default_rng(int(similarity * 1000))
    size = 180
    changed = round(size * (1 - similarity) / (1 + similarity))
    rows = []
    for _ in range(PAIRS):
        one = chance.integers(0, 1 << 63, size, np.uint64)
        two = np.concatenate([chance.integers(0, 1 << 63, changed, np.uint64), one[changed:]])
        rows += [one, two]
    banding = BANDINGS[method]
    keys = band_keys(np.concatenate(rows), np.full(2 * PAIRS, size), banding)
    assert keys.shape == (2 * PAIRS, banding.bands)
    found = (keys[::2] == keys[1::2]).any(1).mean()
    expected = banding.probability((size - changed) / (size + changed))
    assert abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / PAIRS) + 1e-9, (
        found,
        expected,
    )
    strangers = (keys[:-2:2] == keys[2::2]).any(1).mean()
    assert strangers == 0


def test_a_shingle_is_five_words_or_a_shorter_text() -> None:
    found, counts = shingles(["a b c d e f", "A, b c d e!", "a b", "b a", "", "a b"])
    assert counts.tolist() == [2, 1, 1, 1, 0, 1]
    assert found[0] == found[2]
    assert found[3] == found[5]
    assert len(set(found.tolist())) == 4


def test_keys_do_not_depend_on_order_or_company() -> None:
    chance = np.random.default_rng(0)
    features = chance.integers(0, 1 << 63, 9000, np.uint64)
    alone = band_keys(features, np.array([9000]), BANDINGS["lsh"])
    company = band_keys(
        np.concatenate([features[:10], chance.permutation(features)]),
        np.array([10, 9000]),
        BANDINGS["lsh"],
    )
    assert np.array_equal(alone[0], company[1])
    empty = band_keys(features[:0], np.array([0, 0]), BANDINGS["lsh"])
    assert not (empty[0] == empty[1]).any()
