"""GPT-3's quality classifier (Brown et al. 2020, Appendix A): logistic regression on hashed words.

The features are those of Spark's Tokenizer and HashingTF: `text.toLowerCase().split("\\\\s")`, the
murmur3 hash (seed 42) of each word modulo 2^18, counted. The paper keeps a document if a Pareto(9)
draw exceeds 1 - score, that is, with probability (2 - score)^-9. The draw here is a hash of the
seed and the text, so the outcome depends neither on the order of documents nor on the workers.
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
PARETO_ALPHA = 9
MAX_CACHED_WORDS = 1 << 20  # words whose buckets are cached, before the cache is cleared
HELD_OUT_EVERY = 10  # every tenth document is held out to measure F1
_BLANK = re.compile(r"[ \t\n\x0b\f\r]")  # Java's \s
_buckets: dict[str, int] = {}


def spark_words(text: str) -> list[str]:
    """Split `text` like Spark's Tokenizer: only blanks at the end make no empty words."""
    words = _BLANK.split(text.lower())
    if len(words) > 1:
        while words and not words[-1]:
            words.pop()
    return words


def spark_features(text: str) -> np.ndarray:
    """Return the bucket of each word, (words,) int64; HashingTF's vector counts them."""
    if len(_buckets) > MAX_CACHED_WORDS:
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
class QualityClassifier:
    """Logistic regression on the word counts of a document."""

    weights: np.ndarray
    """Weight of each bucket, (BUCKETS,) float32."""
    bias: float
    """Intercept."""
    f1: float = 0.0
    """F1 score on the held-out documents."""
    training_documents: int = 0
    """Number of documents it was trained on."""

    def score(self, text: str) -> float:
        """Return the probability that `text` is one of the positives, from 0 to 1."""
        logit = float(self.weights[spark_features(text)].sum(dtype=np.float64)) + self.bias
        return 1 / (1 + np.exp(-np.clip(logit, -500, 500)))

    def save(self, path: Path) -> None:
        """Write the classifier to an .npz file, atomically."""
        facts = np.array([self.bias, self.f1, self.training_documents], np.float64)
        with atomic_write(path) as file:
            np.savez(file, weights=self.weights, facts=facts)


def load_classifier(path: Path) -> QualityClassifier:
    """Read a classifier that `QualityClassifier.save` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        bias, f1, count = stored["facts"].tolist()
        return QualityClassifier(stored["weights"], bias, f1, int(count))


def train_classifier(positives: Iterable[str], negatives: Iterable[str]) -> QualityClassifier:
    """Train on positive and negative documents, and measure F1 on every tenth, which is held out.

    Raises InputError if there are fewer than 10 documents of one kind, or if scikit-learn is not
    installed.
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
    for kind, documents in zip(("negatives", "positives"), rows, strict=True):
        if len(documents) < HELD_OUT_EVERY:
            raise InputError(
                f"the quality classifier has only {len(documents)} {kind} to learn from",
                hint=f"give it {HELD_OUT_EVERY} or more",
            )
    labels = np.repeat([0, 1], [len(documents) for documents in rows])
    matrix = _count_matrix([*rows[0], *rows[1]], csr_matrix)
    held_out = np.arange(len(labels)) % HELD_OUT_EVERY == 0
    model = LogisticRegression(class_weight="balanced", solver="liblinear", random_state=0).fit(
        matrix[~held_out], labels[~held_out]
    )
    f1 = float(f1_score(labels[held_out], model.predict(matrix[held_out])))
    weights = model.coef_[0].astype(np.float32)
    return QualityClassifier(weights, float(model.intercept_[0]), f1, int((~held_out).sum()))


def _count_matrix(rows: Sequence[np.ndarray], csr_matrix: Any) -> Any:
    borders = np.cumsum([0, *map(len, rows)])
    ones = np.ones(borders[-1])
    matrix = csr_matrix((ones, np.concatenate(rows), borders), shape=(len(rows), BUCKETS))
    matrix.sum_duplicates()
    return matrix


def keep_probability(score: float) -> float:
    """Return the probability (2 - score)^-9 with which a document of this score is kept."""
    return (2 - score) ** -PARETO_ALPHA


def is_kept(score: float, text: str, seed: int) -> bool:
    """Return True with probability `keep_probability(score)`, decided by a hash of the text."""
    digest = hashlib.blake2b(
        text.encode(), digest_size=8, key=f"{seed}".encode(), person=b"gpt quality"
    )
    return int.from_bytes(digest.digest()) / 2**64 < keep_probability(score)
