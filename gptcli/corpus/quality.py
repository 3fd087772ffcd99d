"""GPT-3's quality classifier (Appendix A): logistic regression on hashed words, and keeping by
chance, the better the likelier.

The features are those of Spark's Tokenizer and HashingTF: `text.toLowerCase().split("\\\\s")`, each
word's murmur3 (seed 42) modulo 2^18, counted. A document stays where a Pareto(9) draw exceeds 1 -
score, which is the same as u < (2 - score)^-9 for a uniform u; u is a hash of the seed and the
text, so that the outcome depends on neither order nor workers.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.errors import InputError, install_hint
from gptcli.files import atomic_write

BUCKETS = 1 << 18
ALPHA = 9
KNOWN_WORDS = 1 << 20  # kept with their buckets; then the table starts anew
HELD_OUT = 10  # every so manyth document is scored, not learnt from
_BLANK = re.compile(r"[ \t\n\x0b\f\r]")  # Java's \s
_buckets: dict[str, int] = {}


def spark_words(text: str) -> list[str]:
    """As Spark's Tokenizer cuts: blanks at the end make no empty words, blanks elsewhere do."""
    words = _BLANK.split(text.lower())
    if len(words) > 1:
        while words and not words[-1]:
            words.pop()
    return words


def spark_features(text: str) -> np.ndarray:
    """The bucket of each word, (words,) int64: HashingTF's vector counts them."""
    if len(_buckets) > KNOWN_WORDS:
        _buckets.clear()
    words = spark_words(text)
    try:
        return np.array([_buckets[word] for word in words], np.int64)
    except KeyError:
        from sklearn.utils import murmurhash3_32

        for word in words:
            if word not in _buckets:
                _buckets[word] = int(murmurhash3_32(word.encode(), seed=42)) % BUCKETS
        return np.array([_buckets[word] for word in words], np.int64)


@dataclass(frozen=True, slots=True)
class Classifier:
    """`weights` (BUCKETS,) float32 and `bias`; `f1` on documents that it did not learn from."""

    weights: np.ndarray
    bias: float
    f1: float = 0.0
    learnt_from: int = 0

    def score(self, text: str) -> float:
        """How much a document looks like the positives, from 0 to 1."""
        logit = float(self.weights[spark_features(text)].sum(dtype=np.float64)) + self.bias
        return 1 / (1 + np.exp(-np.clip(logit, -500, 500)))

    def save(self, path: Path) -> None:
        with atomic_write(path) as file:
            np.savez(
                file,
                weights=self.weights,
                facts=np.array([self.bias, self.f1, self.learnt_from], np.float64),
            )


def load_classifier(path: Path) -> Classifier:
    with np.load(path, allow_pickle=False) as stored:
        bias, f1, count = stored["facts"].tolist()
        return Classifier(stored["weights"], bias, f1, int(count))


def train_classifier(positives: Iterable[str], negatives: Iterable[str]) -> Classifier:
    """Learn from documents of both kinds. Raises InputError where there are fewer than 10 of one,
    or scikit-learn is missing.
    """
    try:
        from scipy.sparse import csr_matrix
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import f1_score
    except ImportError:
        raise InputError(
            "the quality classifier needs the package scikit-learn",
            hint=install_hint("scikit-learn"),
        ) from None
    rows = [[spark_features(text) for text in texts] for texts in (negatives, positives)]
    for kind, found in zip(("negatives", "positives"), rows, strict=True):
        if len(found) < HELD_OUT:
            raise InputError(
                f"the quality classifier has {len(found)} {kind} to learn from, too few",
                hint=f"give {HELD_OUT} or more",
            )
    labels = np.repeat([0, 1], [len(found) for found in rows])
    matrix = _matrix([*rows[0], *rows[1]], csr_matrix)
    held = np.arange(len(labels)) % HELD_OUT == 0
    model = LogisticRegression(class_weight="balanced", solver="liblinear", random_state=0).fit(
        matrix[~held], labels[~held]
    )
    f1 = float(f1_score(labels[held], model.predict(matrix[held])))
    return Classifier(
        model.coef_[0].astype(np.float32), float(model.intercept_[0]), f1, int((~held).sum())
    )


def _matrix(rows: Sequence[np.ndarray], csr_matrix: Any) -> Any:
    borders = np.cumsum([0, *map(len, rows)])
    found = csr_matrix(
        (np.ones(borders[-1]), np.concatenate(rows), borders), shape=(len(rows), BUCKETS)
    )
    found.sum_duplicates()
    return found


def keeps(score: float, text: str, seed: int) -> bool:
    """The keep law: true with probability (2 - score)^-9 over texts."""
    digest = hashlib.blake2b(
        text.encode(), digest_size=8, key=f"{seed}".encode(), person=b"gpt quality"
    )
    return int.from_bytes(digest.digest()) / 2**64 < (2 - score) ** -ALPHA
