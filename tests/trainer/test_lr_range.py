from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.model.source import LR_RANGE, LR_RANGE_REPORT
from gptcli.trainer.lr_range import MAX_LR, MIN_LR, SUGGESTED_DIVISOR, lr_range, smoothed, suggest

CPU = RankContext(torch.device("cpu"))


def test_the_learning_rate_grows_until_the_loss_rises_above_its_minimum(make_run):
    run = make_run(tokens=64 * 60, clip=1e9)
    run.out.mkdir()
    report = lr_range(run, CPU, SILENT)
    rates = [rate for rate, _ in report["curve"]]
    assert rates[0] == MIN_LR
    assert all(b / a == pytest.approx((MAX_LR / MIN_LR) ** (1 / 59)) for a, b in pairwise(rates))
    assert 1e-4 < report["lowest_loss_lr"] < 1
    assert report["suggested_lr"] == pytest.approx(report["lowest_loss_lr"] / SUGGESTED_DIVISOR)
    assert [
        json.loads(line)["lr"] for line in (run.out / LR_RANGE).read_text().splitlines()
    ] == rates
    page = (run.out / LR_RANGE_REPORT).read_text()
    assert "<svg" in page
    assert "https" not in page
    assert not (run.out / "model.safetensors").exists()
    assert lr_range(run, CPU, SILENT)["curve"] == report["curve"]


def test_the_smoothed_loss_is_an_exponentially_weighted_mean():
    points: list[Any] = []
    for loss in (4.0, 2.0, 2.0):
        points.append(smoothed(points, 1.0, loss))
    assert points[0]["smooth"] == 4.0
    assert points[1]["smooth"] == pytest.approx((2 + 0.8 * 4) / 1.8)
    assert points[2]["smooth"] == pytest.approx((2 + 0.8 * 2 + 0.64 * 4) / 2.44)
    assert suggest([]) == (None, None)
