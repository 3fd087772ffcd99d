"""GPT-3's training mixture: Table 2.2 (Brown et al. 2020), as printed."""

from __future__ import annotations

from typing import NamedTuple


class Component(NamedTuple):
    """One data set of the mixture."""

    tokens: float
    """Tokens in the data set."""
    weight: float
    """Percentage of the training mixture; the printed ones sum to 101."""
    epochs: float
    """Epochs over 300 billion training tokens, as printed."""


GPT3_MIXTURE = {
    "common_crawl": Component(410e9, 60, 0.44),
    "webtext2": Component(19e9, 22, 2.9),
    "books1": Component(12e9, 8, 1.9),
    "books2": Component(55e9, 8, 0.43),
    "wikipedia": Component(3e9, 3, 3.4),
}
GPT3_MIXTURE_TOKENS = 300e9
