"""Progress as plain lines where there is no terminal, and numbers a person reads."""

from __future__ import annotations

import codecs
import contextlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


def test_every_rich_console_is_made_in_one_place() -> None:
    """Names are shown as they are only by `console.screen`."""
    files = Path(console.__file__).parents[1].rglob("*.py")
    made = [path.name for path in files if re.search(r"\bConsole\(", path.read_text(encoding="utf-8"))]
    assert made == ["console.py"]


@given(st.text())
def test_no_encoding_stops_a_result(text: str) -> None:
    codecs.register_error(console.UNENCODABLE, console._in_ascii)
    for encoding in ("ascii", "latin-1", "cp1252", "utf-8"):
        written = text.encode(encoding, console.UNENCODABLE)
        with contextlib.suppress(UnicodeEncodeError):
            assert written == text.encode(encoding)


def test_what_an_encoding_lacks_is_written_in_ascii() -> None:
    codecs.register_error(console.UNENCODABLE, console._in_ascii)
    assert "1.5 ±0.2 → 日🙂".encode("ascii", console.UNENCODABLE) == b"1.5 +-0.2 -> \\u65e5\\U0001f642"
    assert "caf\udce9".encode("utf-8", console.UNENCODABLE) == b"caf\xe9", "the bytes of a file's name"


SHOW = """
import sys
from gptcli.cli.console import print_file, print_json, set_up_streams
set_up_streams()
print(sys.stdin.read() + "±")
print_json("x", {"name": "日"})
print_file("±")
print("±", file=sys.stderr)
"""


@pytest.mark.parametrize(("encoding", "sign", "name"), [("ascii", b"+-", b"\\u65e5"), ("utf-8", b"\xc2\xb1", "日".encode())])
def test_streams_of_any_encoding(encoding: str, sign: bytes, name: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW], input=b"", capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == sign + b'\n{"schema": "gpt.x/1", "name": "' + name + b'"}\n' + "±".encode()
    assert done.stderr == sign + b"\n"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_are_no_file_of_ours(closed: tuple[int, ...], tmp_path: Path) -> None:
    """What is opened next does not take the number of a standard stream."""
    script = SHOW + f"opened = open({str(tmp_path / 'file')!r}, 'w')\nopened.write(str(opened.fileno()))\n"
    shell = " ".join(f"{number}>&-" if number else "<&-" for number in closed)
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} {shell}"
    done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, "PYTHONUTF8": "1"})
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "file").read_text()) > 2


def test_a_command_to_paste_is_not_wrapped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(console.sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(console.sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(console.os, "get_terminal_size", lambda number: os.terminal_size((20, 10)))
    line = "  gpt train --size 350M --lr 3e-4"
    assert console.wrapped(f"gpt: some words that are long\n{line}").splitlines()[-1] == line
