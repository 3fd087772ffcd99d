from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.layout import parse_layout
from gptcli.distributed.context import RankContext
from gptcli.events import Events
from gptcli.model.source import TRACE
from gptcli.trainer import monitors as monitors_module
from gptcli.trainer.loop import train
from gptcli.trainer.monitors import (
    GATHER_EVERY_STEPS,
    KINETO_SILENT,
    PROBE_WIDTH,
    RankMonitor,
    TimeLeft,
    probe_seconds,
)
from gptcli.trainer.schedule import Position


def estimates(
    time_left: TimeLeft, seconds: list[float], tokens: int
) -> list[tuple[int, float, float]]:
    """Pass steps that take `seconds`, of `tokens` each; return every estimate with its step."""
    now, found = 100.0, []
    for step, duration in enumerate(seconds, 1):
        now += duration
        if (estimate := time_left.step(step * tokens, now)) is not None:
            found.append((step, *estimate))
    return found


def test_the_time_left_leaves_out_the_first_steps_and_is_estimated_once() -> None:
    [estimate] = estimates(TimeLeft(10_000), [60.0, 5.0, 5.0, *[1.0] * 20], 100)
    assert estimate == pytest.approx((8, 92.0, 100.0))


def test_quick_steps_are_measured_for_some_seconds_and_long_ones_sooner() -> None:
    assert [step for step, *_ in estimates(TimeLeft(10**9), [0.01] * 1000, 100)] == [303]
    assert [step for step, *_ in estimates(TimeLeft(10**9), [40.0] * 10, 100)] == [5]


@given(
    st.lists(st.floats(min_value=1e-3, max_value=1e3), max_size=40),
    st.integers(min_value=1, max_value=10**6),
)
def test_there_is_at_most_one_estimate_and_never_a_negative_time(
    seconds: list[float], tokens: int
) -> None:
    found = estimates(TimeLeft(len(seconds) * tokens), seconds, tokens)
    assert len(found) <= 1
    assert all(left >= 0 and speed > 0 for _, left, speed in found)


def test_the_time_left_waits_for_the_end_of_a_short_ramp_only() -> None:
    time_left, now, found = TimeLeft(10**9), 0.0, []
    for step in range(1, 40):
        now += 2.0
        if (estimate := time_left.step(step * 100, now, ramping=step <= 10)) is not None:
            found.append((step, estimate[1]))
    assert found == [pytest.approx((18, 50.0))]
    time_left = TimeLeft(10**9)
    first = (step for step in range(1, 99) if time_left.step(step * 100, 10.0 * step, ramping=True))
    assert next(first) == 14


@pytest.mark.parametrize("layout", ["dp=4", "shard=4", "tp=2,pp=2"])
def test_a_slow_process_is_named_once_when_it_is_slow_for_a_while(monkeypatch, layout) -> None:
    """Four processes, of which number 2 takes 1.6 times the others' time from step 40 to 100."""
    events, monitors = RecordedEvents(), []
    for rank in range(4):
        context = RankContext(torch.device("cpu"), rank, 4, parse_layout(layout))
        progress: Any = SimpleNamespace(context=context, events=events, position=Position())
        monitors.append(RankMonitor(progress))
    gathered: list[Any] = []

    def gather(self: RankContext, value: Any, group: Any) -> list[Any]:
        gathered.insert(0, value)
        return gathered

    monkeypatch.setattr(RankContext, "all_gather", gather)
    lines = {}
    for step in range(1, 161):
        gathered.clear()
        for rank, monitor in reversed(list(enumerate(monitors))):  # the main one comes last
            own = 0.1 if rank != 2 or not 40 < step <= 100 else 0.16
            its_own = own if layout == "dp=4" else None
            monkeypatch.setattr(monitors_module, "probe_seconds", lambda device, own=own: own)
            result: Any = SimpleNamespace(own_seconds=its_own, data_seconds=rank / 100)
            monitor.progress.position = Position(step)
            line: dict[str, Any] = {}
            monitor.on_step_end(result, line)
            if rank == 0 and line:
                lines[step] = line
                gathered.clear()
    assert list(lines) == list(range(GATHER_EVERY_STEPS, 161, GATHER_EVERY_STEPS))
    name = "rank_own_seconds" if layout == "dp=4" else "rank_probe_seconds"
    assert lines[60][name] == pytest.approx([0.1, 0.1, 0.16, 0.1])
    assert lines[20]["rank_data_seconds"] == pytest.approx([0.0, 0.01, 0.02, 0.03])
    assert len(lines[20]["rank_memory"]) == 4
    assert len(events.texts) == 1
    assert "process 2 on " in events.texts[0]
    what = "a step" if layout == "dp=4" else "a product of matrices"
    found = f"{what} takes it 0.16 s, more than 1.5 times the 0.1 s of the median"
    assert found in events.texts[0]


def test_the_probe_takes_longer_for_a_larger_product(monkeypatch) -> None:
    small = probe_seconds(torch.device("cpu"))
    monkeypatch.setitem(PROBE_WIDTH, "cpu", 4 * PROBE_WIDTH["cpu"])
    assert probe_seconds(torch.device("cpu")) > small > 0


class RecordedEvents(Events):
    """Events that keep their texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def info(self, text: str) -> None:
        self.texts.append(text)

    warn = info


def test_the_profiler_writes_a_trace_and_reports_the_slowest_operators(make_run, monkeypatch):
    monkeypatch.setenv("KINETO_LOG_LEVEL", "")
    monkeypatch.delenv("KINETO_LOG_LEVEL")
    run, events = replace(make_run(), profile=True), RecordedEvents()
    train(run, RankContext(torch.device("cpu")), events)
    trace = json.loads((run.out / TRACE).read_text())
    traced = {event.get("name") for event in trace["traceEvents"]}
    assert "aten::addmm" in traced
    rows = [row for row in events.texts if re.match(r" *[\d.]+ ms  ", row)]
    names = [row.split("  ")[-1] for row in rows]
    assert len(traced.intersection(names)) > len(rows) / 2
    times = [float(row.split()[0]) for row in rows]
    assert times == sorted(times, reverse=True)
    assert max(map(len, rows)) <= 80
    assert os.environ["KINETO_LOG_LEVEL"] == KINETO_SILENT


def test_the_profiler_warns_if_the_run_is_too_short(make_run):
    run, events = replace(make_run(tokens=64), profile=True), RecordedEvents()
    train(run, RankContext(torch.device("cpu")), events)
    assert any("no trace" in text for text in events.texts)
