"""What money and hours buy."""

from __future__ import annotations

import pytest

from gptcli.cost.budget import affordable
from gptcli.cost.cluster import make_cluster
from gptcli.cost.estimate import Estimate, price_training
from gptcli.cost.hardware import find_gpu
from gptcli.cost.scaling import CHINCHILLA
from gptcli.model.config import ModelConfig, find_size

SIZES = ("125M", "1.3B", "13B")


def estimates(price: float | None = 2.0, gpus: int = 4) -> list[Estimate]:
    found = []
    for size in SIZES:
        model = ModelConfig.from_paper(find_size(size))
        cluster, _ = make_cluster(find_gpu("h200"), gpus, model=model, mfu=0.4, price=price)
        found.append(price_training(size, model, 10**9, cluster, tokens_source=""))
    return found


def test_money_buys_hours_whatever_their_number() -> None:
    for gpus in (1, 4):
        assert affordable(estimates(gpus=gpus), dollars=500, hours=None)[1] == 250


def test_hours_are_those_of_every_gpu() -> None:
    assert affordable(estimates(), dollars=None, hours=3)[1] == 12
    assert affordable(estimates(price=None), dollars=None, hours=3)[1] == 12


def test_one_model_alone() -> None:
    [one], gpu_hours = affordable(estimates()[:1], dollars=500, hours=None)
    assert (one.name, gpu_hours) == (estimates()[0].name, 250)


def test_what_runs_out_first_counts() -> None:
    assert affordable(estimates(), dollars=500, hours=10)[1] == 40
    assert affordable(estimates(), dollars=50, hours=10)[1] == 25


def test_tokens_and_loss() -> None:
    found, gpu_hours = affordable(estimates(), dollars=500, hours=None)
    assert found[-1].loss is None, "13B on so few tokens: outside the law's range, and last"
    losses = [row.loss for row in found if row.loss is not None]
    assert losses == sorted(losses), "best first"
    assert {row.name for row in found} == set(SIZES)
    for row in found:
        parameters = find_size(row.name).parameters
        assert row.tokens == pytest.approx(gpu_hours * 3600 * 0.4 * 989.5e12 / (6 * parameters))
        assert row.loss == (CHINCHILLA.loss(parameters, row.tokens) if row.tokens >= 5e9 else None)
