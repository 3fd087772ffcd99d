"""The learning rate of a size between the papers' (GPT-3, Table 2.1)."""

from __future__ import annotations

import math
from itertools import pairwise

from gptcli.papers.models import MODELS


def scaled_lr(parameters: int) -> float:
    """Table 2.1's learning rate at this many parameters: a straight line between neighbouring sizes, both axes logarithmic; beyond the
    smallest and the largest, theirs."""
    rows = sorted((model.parameters, model.lr) for model in MODELS if model.paper == "GPT-3")
    if parameters <= rows[0][0]:
        return rows[0][1]
    for (small, high), (large, low) in pairwise(rows):
        if parameters <= large:
            share = math.log(parameters / small) / math.log(large / small)
            return high * (low / high) ** share
    return rows[-1][1]
