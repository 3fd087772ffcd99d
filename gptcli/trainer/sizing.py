"""The learning rate of a size between the papers' (GPT-3, Table 2.1)."""

from __future__ import annotations

import math
from itertools import pairwise

from gptcli.papers.models import MODELS

MAX_SMALL_LR = 4e-3


def small_lr(parameters: int) -> float:
    """Return a learning rate for a model smaller than GPT-3 Small, the smallest of Table 2.1.

    Small's rises with the cube root as parameters fall, as the table's does from 175B to Small
    (tenfold for 1,394 times fewer), up to MAX_SMALL_LR: an assumption. In 500 steps at 233k
    parameters, Small's own rate ends 0.9 nats higher than 4e-3.
    """
    small = min(
        (model for model in MODELS if model.paper == "GPT-3"), key=lambda model: model.parameters
    )
    return float(
        f"{min(MAX_SMALL_LR, small.lr * max(1.0, small.parameters / parameters) ** (1 / 3)):.2g}"
    )


def scaled_lr(parameters: int) -> float:
    """Table 2.1's learning rate at this many parameters: a straight line between neighbouring
    sizes, both axes logarithmic; beyond the smallest and the largest, theirs."""
    rows = sorted((model.parameters, model.lr) for model in MODELS if model.paper == "GPT-3")
    if parameters <= rows[0][0]:
        return rows[0][1]
    for (small, high), (large, low) in pairwise(rows):
        if parameters <= large:
            share = math.log(parameters / small) / math.log(large / small)
            return high * (low / high) ** share
    return rows[-1][1]
