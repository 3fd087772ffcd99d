"""What an answer that a model wrote is worth beside the accepted ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Metric = Callable[[str, Sequence[str]], float]


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    return float(prediction in answers)


METRICS: dict[str, Metric] = {"exact_match": exact_match}
