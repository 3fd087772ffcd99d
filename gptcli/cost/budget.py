"""What so much money and so many hours buy: for each size of GPT-3, the tokens and the loss it would reach."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.cost.estimate import Estimate
from gptcli.cost.flops import flops_per_token
from gptcli.cost.scaling import CHINCHILLA


@dataclass(frozen=True, slots=True)
class Affordable:
    name: str
    tokens: float
    loss: float
    """By Chinchilla as printed; on their text, not on yours."""


def affordable(estimates: list[Estimate], *, dollars: float | None, hours: float | None) -> tuple[list[Affordable], float]:
    """Each estimate's model, best first, on the GPU-hours that `dollars` and `hours` of its fleet buy; and those GPU-hours.

    The fleets have one price and one count, and a price where `dollars` are given.
    """
    fleet = estimates[0].fleet
    limits = [] if hours is None else [hours * fleet.count]
    if dollars is not None and fleet.price is not None:
        limits.append(dollars / fleet.price.value)
    gpu_hours = min(limits)
    found = []
    for estimate in estimates:
        assert estimate.model is not None
        tokens = gpu_hours * 3600 * estimate.fleet.flops / flops_per_token(estimate.model, "6N")
        found.append(Affordable(estimate.name, tokens, CHINCHILLA.loss(estimate.model.parameters, tokens)))
    return sorted(found, key=lambda row: row.loss), gpu_hours
