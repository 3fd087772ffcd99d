"""Progress as plain lines where there is no terminal, and numbers a person reads."""

from __future__ import annotations

import json
import os

import pytest

from gptcli.cli import console
from gptcli.cli.console import ConsoleEvents, amount, duration, in_bytes, print_json


def test_plain_lines_come_every_few_seconds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: clock[0])
    events = ConsoleEvents()
    for done in range(101):
        events.progress("train", done * 1000, 100_000, "tokens", loss=4.25, tokens_per_second=1000.0)
        clock[0] += 1.0
    events.finish("train")
    shown = capsys.readouterr()
    assert not shown.out
    lines = shown.err.splitlines()
    assert len(lines) == 20
    assert lines[9] == "train: 50k/100k tokens (50%)  loss 4.25  tokens per second 1000  50 s left"


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleEvents().warn("careful")
    assert capsys.readouterr() == ("", "warning: careful\n")


def test_print_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("cost", {"flops": 1.0})
    assert json.loads(capsys.readouterr().out) == {"schema": "gpt.cost/1", "flops": 1.0}


@pytest.mark.parametrize(("seconds", "text"), [(12, "12 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (270_000, "3 d 3 h")])
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(950, "950"), (12_300, "12.3k"), (4.5e6, "4.5M"), (3e11, "300B"), (2.25e12, "2.25T"), (0.5, "0.5")]
)
def test_amount(value: float, text: str) -> None:
    assert amount(value) == text


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


@pytest.mark.parametrize(("value", "text"), [(12, "12 B"), (6.291e6, "6.29 MB"), (5.694e9, "5.69 GB"), (2.25e12, "2.25 TB")])
def test_in_bytes(value: float, text: str) -> None:
    assert in_bytes(value) == text
