"""GPT-3's training mixture, Table 2.2, as printed."""

from __future__ import annotations

from typing import NamedTuple


class Component(NamedTuple):
    tokens: float
    """In the data set."""
    weight: float
    """Per cent of the training mixture; the printed ones add up to 101."""
    epochs: float
    """As printed, when training for 300 billion tokens."""


GPT3_MIXTURE = {
    "common_crawl": Component(410e9, 60, 0.44),
    "webtext2": Component(19e9, 22, 2.9),
    "books1": Component(12e9, 8, 1.9),
    "books2": Component(55e9, 8, 0.43),
    "wikipedia": Component(3e9, 3, 3.4),
}
GPT3_MIXTURE_TOKENS = 300e9
