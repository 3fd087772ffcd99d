"""What so much money and so many hours buy: for each size of GPT-3, the tokens and the loss it
would reach.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.cost.estimate import Estimate
from gptcli.cost.flops import flops_per_token
from gptcli.cost.scaling import CHINCHILLA


@dataclass(frozen=True, slots=True)
class Affordable:
    name: str
    tokens: float
    loss: float | None
    """By Chinchilla as printed; on their text, not on yours. None outside that law's range."""


def affordable(
    estimates: list[Estimate], *, dollars: float | None, hours: float | None
) -> tuple[list[Affordable], float]:
    """Return each estimate's model on the GPU-hours that `dollars` and `hours` of its cluster buy,
    best first and those without a loss last; and those GPU-hours.

    The fleets have one price and one count, and a price where `dollars` are given.
    """
    cluster = estimates[0].cluster
    limits = [] if hours is None else [hours * cluster.count]
    if dollars is not None and cluster.price is not None:
        limits.append(dollars / cluster.price.value)
    gpu_hours = min(limits)
    found = []
    for estimate in estimates:
        assert estimate.model is not None
        tokens = gpu_hours * 3600 * estimate.cluster.flops / flops_per_token(estimate.model, "6N")
        n = estimate.model.parameters
        found.append(
            Affordable(
                estimate.name,
                tokens,
                CHINCHILLA.loss(n, tokens) if CHINCHILLA.range.holds(n, tokens) else None,
            )
        )
    return sorted(found, key=lambda row: float("inf") if row.loss is None else row.loss), gpu_hours
