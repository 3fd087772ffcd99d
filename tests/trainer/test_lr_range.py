from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.model.source import LR_RANGE, LR_RANGE_REPORT
from gptcli.trainer.lr_range import BELOW, HIGH, LOW, lr_range, smoothed, suggest

CPU = RankContext(torch.device("cpu"))


def test_the_rate_sweeps_until_the_loss_has_left_its_lowest(make_run):
    run = make_run(tokens=64 * 60, clip=1e9)
    run.out.mkdir()
    report = lr_range(run, CPU, SILENT)
    rates = [rate for rate, _ in report["curve"]]
    assert rates[0] == LOW
    assert all(b / a == pytest.approx((HIGH / LOW) ** (1 / 59)) for a, b in pairwise(rates))
    assert 1e-4 < report["lowest_loss_lr"] < 1
    assert report["suggested_lr"] == pytest.approx(report["lowest_loss_lr"] / BELOW)
    assert [
        json.loads(line)["lr"] for line in (run.out / LR_RANGE).read_text().splitlines()
    ] == rates
    page = (run.out / LR_RANGE_REPORT).read_text()
    assert "<svg" in page
    assert "https" not in page
    assert not (run.out / "model.safetensors").exists()
    assert lr_range(run, CPU, SILENT)["curve"] == report["curve"]


def test_the_smooth_loss_is_a_mean_that_forgets():
    points = []
    for loss in (4.0, 2.0, 2.0):
        points.append(smoothed(points, 1.0, loss))
    assert points[0]["smooth"] == 4.0
    assert points[1]["smooth"] == pytest.approx((2 + 0.8 * 4) / 1.8)
    assert points[2]["smooth"] == pytest.approx((2 + 0.8 * 2 + 0.64 * 4) / 2.44)
    assert suggest([]) == (None, None)
