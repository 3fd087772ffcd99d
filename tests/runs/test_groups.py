"""Intervals and verdicts against numbers worked out by hand, and against seeds that are noise."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from gptcli.runs.groups import Group, difference, expanded, grouped, interval, t_975, verdict
from gptcli.runs.record import Record


def record(folder: Path, seed: int, lr: float, loss: float | None) -> Record:
    lines = [
        {"step": 1, "tokens": 8, "loss": 9.0, "val_loss": loss},
        {"step": 2, "tokens": 16, "loss": loss},
    ]
    return Record(folder=folder, resolved=f"lr = {lr}\nseed = {seed}\nout = 'x'\n", lines=lines)


def test_intervals_are_students_and_welchs() -> None:
    one = interval([1.0, 2.0, 3.0])
    assert one.mean == 2.0
    assert one.half_width == pytest.approx(4.303 / 3**0.5)
    assert interval([1.0]).half_width is None
    # variances 1 and 4 over 3 values each: error (1/3 + 4/3)^0.5, 2.94 degrees of freedom
    gap = difference([1.0, 2.0, 3.0], [0.0, 2.0, 4.0])
    assert gap.mean == 0.0
    assert gap.half_width == pytest.approx(4.303 * (5 / 3) ** 0.5)
    assert difference([1.0, 1.0], [0.0, 0.0]).half_width == 0
    assert difference([1.0], [0.0, 2.0]).half_width is None
    assert [t_975(n) for n in (0, 1, 30, 31, 119, 120)] == [
        12.706,
        12.706,
        2.042,
        2.042,
        2.042,
        1.96,
    ]


def test_runs_that_differ_in_their_seed_alone_are_one_measurement(tmp_path: Path) -> None:
    runs = [
        record(tmp_path / f"{name}/seed-{seed}", seed, lr, loss + 0.001 * seed)
        for name, lr, loss in (("slow", 1e-4, 3.0), ("fast", 1e-3, 2.0))
        for seed in range(3)
    ]
    best, other = grouped(runs)
    assert (best.name, len(best.values), other.name) == ("fast", 3, "slow")
    assert best.values == pytest.approx([2.0, 2.001, 2.002])
    assert "more than noise" in verdict(other, best)
    alone = Group("alone", [], [2.5])
    assert "one seed does not tell" in verdict(alone, best)


def test_a_difference_of_nothing_is_called_noise_19_times_in_20() -> None:
    draw = random.Random(0)
    called = 0
    for _ in range(1000):
        groups = [Group(name, [], [draw.gauss(3, 0.01) for _ in range(4)]) for name in "ab"]
        called += "more than noise" in verdict(*groups)
    assert 20 <= called <= 70


def test_seeds_stand_for_their_folder(tmp_path: Path) -> None:
    for name in ("one", "many/seed-0", "many/seed-1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.toml").touch()
    folders = [tmp_path / "one", tmp_path / "many", tmp_path / "one"]
    assert expanded(folders) == [tmp_path / name for name in ("one", "many/seed-0", "many/seed-1")]
