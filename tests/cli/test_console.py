"""Progress as plain lines where there is no terminal, and numbers a person reads."""

from __future__ import annotations

import itertools
import json
import os

import pytest

from gptcli.cli import console
from gptcli.cli.console import ConsoleEvents, print_json


def test_plain_lines_come_ever_further_apart(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    events = ConsoleEvents()
    times: list[float] = []
    lines: list[str] = []
    for done in range(86_401):  # a day, a second each
        events.progress("train", done * 1000, 86_400_000, "tokens", step=done, loss=4.25, tokens_per_second=1000.0)
        shown = capsys.readouterr() if done % 5 == 0 else None
        if shown is not None and shown.err:
            assert not shown.out
            times.append(clock[0] - 100)
            lines += shown.err.splitlines()
        clock[0] += 1.0
    events.finish("train")
    assert times[:8] == [5, 15, 35, 75, 155, 315, 615, 915]
    assert {later - earlier for earlier, later in itertools.pairwise(times[5:])} == {300}
    assert len(lines) == len(times) < 300, "of a whole day"
    assert lines[2] == "train: 35k/86.4M tokens (<1%)  step 35  loss 4.25  tokens per second 1000  35 s, 23 h 59 min left"
    assert lines[-1].endswith("23 h 55 min, 4 min 45 s left")


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleEvents().warn("careful")
    assert capsys.readouterr() == ("", "warning: careful\n")


def test_print_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("cost", {"flops": 1.0})
    assert json.loads(capsys.readouterr().out) == {"schema": "gpt.cost/1", "flops": 1.0}


def test_on_a_terminal_words_stay_whole(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    text = "gpt: unknown GPU 'h1000'\n\n  give its speed and memory instead: --memory-size 48"
    assert console.wrapped(text) == text
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(console.sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(console.os, "get_terminal_size", lambda number: os.terminal_size((30, 24)))
    assert console.wrapped(text).splitlines() == [
        "gpt: unknown GPU 'h1000'", "", "  give its speed and memory", "  instead: --memory-size 48"
    ]  # fmt: skip
    monkeypatch.setattr(console.os, "get_terminal_size", lambda number: os.terminal_size((0, 0)))
    assert console.wrapped(text) == text
