"""Progress as plain lines where there is no terminal, and numbers a person reads."""

from __future__ import annotations

import codecs
import contextlib
import io
import itertools
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cli import console
from gptcli.cli.console import (
    REPORT_COLUMNS,
    ConsoleEvents,
    print_json,
    print_lines,
    print_rows,
    print_table,
)
from tests.fork_server import python


def test_wait_between_plain_lines_doubles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    events = ConsoleEvents()
    times: list[float] = []
    lines: list[str] = []
    for done in range(86_401):  # a day, a second each
        events.progress(
            "train",
            done * 1000,
            86_400_000,
            "tokens",
            step=done,
            loss=4.25,
            tokens_per_second=1000.0,
        )
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
    assert (
        lines[2]
        == "train: 35k/86.4M tokens (<1%)  step 35  loss 4.25  tokens per second 1000  35 s"
    ), "the first of the work tells too little of the time left"
    assert lines[4].endswith("  2 min 35 s, 23 h 57 min left")
    assert lines[-1].endswith("23 h 55 min, 4 min 45 s left")


def test_progress_without_anything_done_has_no_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    events = ConsoleEvents()
    for at, done in ((0, 0), (6, 0), (20, 1.5)):
        clock[0] = 100.0 + at
        events.progress("read", done, 30, "MB")
    assert capsys.readouterr().err.splitlines() == [
        "read: starting  6 s",
        "read: 1.5/30 MB (5%)  20 s, 6 min 20 s left",
    ]


def test_messages_go_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    ConsoleEvents().warn("careful")
    assert capsys.readouterr() == ("", "warning: careful\n")


def test_print_json_names_its_schema(capsys: pytest.CaptureFixture[str]) -> None:
    print_json("cost", {"flops": 1.0})
    assert json.loads(capsys.readouterr().out) == {"schema": "gpt.cost/1", "flops": 1.0}


def test_messages_are_wrapped_between_words_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = "gpt: unknown GPU 'h1000'\n\n  give its speed and memory instead: --memory-size 48"
    assert console.wrapped(text) == text
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((30, 24)))
    assert console.wrapped(text).splitlines() == [
        "gpt: unknown GPU 'h1000'", "", "  give its speed and memory", "  instead: --memory-size 48"
    ]  # fmt: skip
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((0, 0)))
    assert console.wrapped(text) == text


def test_every_rich_console_is_made_in_one_place() -> None:
    """Names are shown as they are only by `console.screen`."""
    files = Path(console.__file__).parents[1].rglob("*.py")
    made = [
        path.name for path in files if re.search(r"\bConsole\(", path.read_text(encoding="utf-8"))
    ]
    assert made == ["console.py"]


@given(st.text())
def test_text_can_be_printed_in_every_encoding(text: str) -> None:
    codecs.register_error(console.UNENCODABLE, console._in_ascii)
    for encoding in ("ascii", "latin-1", "cp1252", "utf-8"):
        written = text.encode(encoding, console.UNENCODABLE)
        with contextlib.suppress(UnicodeEncodeError):
            assert written == text.encode(encoding)


def test_characters_that_an_encoding_lacks_are_written_in_ascii() -> None:
    codecs.register_error(console.UNENCODABLE, console._in_ascii)
    assert (
        "1.5 ±0.2 → 日🙂".encode("ascii", console.UNENCODABLE) == b"1.5 +-0.2 -> \\u65e5\\U0001f642"
    )
    assert "caf\udce9".encode("utf-8", console.UNENCODABLE) == b"caf\xe9", (
        "the bytes of a file's name"
    )


SHOW = """
import sys
from gptcli.cli.console import print_file, print_json, set_up_streams
set_up_streams()
print(sys.stdin.read() + "±")
print_json("x", {"name": "日"})
print_file("±")
print("±", file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("encoding", "sign", "name"),
    [("ascii", b"+-", b"\\u65e5"), ("utf-8", b"\xc2\xb1", "日".encode())],
)
def test_streams_accept_any_text_in_every_encoding(encoding: str, sign: bytes, name: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        input=b"",
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == sign + b'\n{"schema": "gpt.x/1", "name": "' + name + b'"}\n' + "±".encode()
    )
    assert done.stderr == sign + b"\n"


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_do_not_become_output_files(closed: tuple[int, ...], tmp_path: Path) -> None:
    """A file opened next does not take the number of a standard stream."""
    script = (
        "from gptcli.cli.console import set_up_streams\n"
        "set_up_streams()\n"
        f"opened = open({str(tmp_path / 'file')!r}, 'w')\n"
        "opened.write(str(opened.fileno()))\n"
    )
    shell = " ".join(f"{number}>&-" if number else "<&-" for number in closed)
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(script)} {shell}"
    done = subprocess.run(
        ["bash", "-c", command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert int((tmp_path / "file").read_text()) > 2


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_work_goes_on_without_a_standard_error(closed: str, tmp_path: Path) -> None:
    """Messages went to the pipe that wakes the handlers of signals, as if they were one."""
    (tmp_path / "text.txt").write_text("one two three four five six seven\n" * 50)
    words = ["tokenize", "train", "text.txt", "--vocab-size", "270", "-o", "tokenizer.json"]
    command = shlex.join([sys.executable, "-m", "gptcli", *words])
    done = subprocess.run(["bash", "-c", f"{command} {closed}"], cwd=tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "tokenizer.json").stat().st_size


@pytest.mark.parametrize(
    "words",
    [["--version"], ["cost", "--flops", "1e20"], ["train", "--schema"], ["tokenize", "--help"]],
    ids=" ".join,
)
def test_a_result_that_is_printed_to_a_closed_stdout_is_lost_and_said_so(words: list[str]) -> None:
    command = shlex.join([sys.executable, "-m", "gptcli", *words]) + " >&-"
    done = subprocess.run(["bash", "-c", command], stdin=subprocess.DEVNULL, capture_output=True)
    assert done.returncode == 1
    assert done.stderr.startswith(b"gpt: standard output is closed, so what was printed is lost\n")


def test_a_closed_stdout_loses_nothing_that_files_tell(capsys: pytest.CaptureFixture[str]) -> None:
    def closed(number: int) -> io.TextIOWrapper:
        return io.TextIOWrapper(
            io.BufferedWriter(console._ClosedOutput(number, "wb", closefd=False))
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", closed(1))
        console.print_made("runs/a", {}, as_json=False)
        with console.told_by_files():
            print("a second line")
        patch.setattr(sys, "stdout", closed(1))
        with pytest.raises(OSError, match="closed"):
            console.print_made("runs/a", {}, as_json=True)
            sys.stdout.flush()


def test_a_command_that_prints_nothing_needs_no_stdout(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("some words, and some more words")
    words = ["tokenize", "train", "text", "--vocab-size", "260", "-o", "tokenizer.json", "-q"]
    command = shlex.join([sys.executable, "-m", "gptcli", *words]) + " >&-"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "tokenizer.json").exists()


def test_commands_to_paste_are_not_wrapped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "fileno", lambda: 2)
    monkeypatch.setattr(os, "get_terminal_size", lambda number: os.terminal_size((20, 10)))
    line = "  gpt train --size 350M --lr 3e-4"
    assert console.wrapped(f"gpt: some words that are long\n{line}").splitlines()[-1] == line


def test_report_rows_are_aligned_in_columns(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows(
        "Title",
        [("Head", "", "note"), ("  one", "1", ""), ("  twelve", "12", "remark")],
        markdown=False,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Title", "", "Head          note", "  one      1", "  twelve  12  remark"]


def test_tables_align_their_first_column_left_and_the_others_right(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_table([["size", "tokens"], ["a", "5"], ["longer", "123456789"]], markdown=False)
    assert capsys.readouterr().out.splitlines() == [
        "size      tokens",
        "a              5",
        "longer 123456789",
    ]


def test_tables_and_reports_as_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([["size", "tokens"], ["a", "5"]], markdown=True)
    assert capsys.readouterr().out.splitlines() == ["| size | tokens |", "|---|---:|", "| a | 5 |"]
    print_rows("Title", [("Head", "", ""), ("  one", "1", "x")], markdown=True)
    assert capsys.readouterr().out.splitlines() == [
        "**Title**",
        "",
        "|  |  |  |",
        "|---|---:|---:|",
        "| **Head** |  |  |",
        "| one | 1 | x |",
    ]


def test_paragraphs_are_wrapped_without_breaking_addresses(
    capsys: pytest.CaptureFixture[str],
) -> None:
    address = "https://example.org/" + "a-b-" * 30
    print_lines("word " * 40 + address)
    lines = capsys.readouterr().out.splitlines()
    assert address in lines
    assert all(len(line) <= REPORT_COLUMNS for line in lines if line != address)
    assert len(lines) == 4


@pytest.mark.parametrize("size", [1, 1 << 20])
@pytest.mark.parametrize("number", [1, 2])
def test_a_reader_that_has_read_enough_is_no_error(number: int, size: int, tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "from gptcli.cli.console import set_up_streams\n"
        "reader, writer = os.pipe()\n"
        f"os.dup2(writer, {number})\n"
        "os.close(reader)\n"
        "set_up_streams()\n"
        f"stream = (sys.stdout, sys.stderr)[{number} - 1]\n"
        f"print('x' * {size}, file=stream)\n"
        "stream.flush()\n"
        "open('went-on', 'w').close()\n"
    )
    done = python("-c", program, cwd=tmp_path)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
    assert (tmp_path / "went-on").exists() == (number == 2)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_told_once(tmp_path: Path) -> None:
    program = (
        "import os, sys\n"
        "os.dup2(os.open('/dev/full', os.O_WRONLY), 1)\n"
        "sys.argv = ['gpt', '--version']\n"
        "from gptcli.__main__ import main\n"
        "main()\n"
    )
    done = python("-c", program, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[0] == "gpt: standard output: the disk is full"
    assert b"Exception" not in done.stderr


cells = st.text("abc $.,-", max_size=40)


@given(
    st.integers(1, 9).flatmap(
        lambda n: st.lists(st.lists(cells, min_size=n, max_size=n), min_size=1, max_size=4)
    ),
    st.text("ab =,-", max_size=150),
)
def test_any_table_fits_80_columns_and_nothing_of_it_is_lost(
    table: list[list[str]], name: str
) -> None:
    table[0][0] = name
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_table(table, markdown=False)
    text = printed.getvalue()
    assert max(map(len, text.splitlines()), default=0) <= REPORT_COLUMNS
    for row in table:
        for cell in row:
            assert Counter(cell.replace(" ", "")) <= Counter(text)


@given(
    st.lists(
        st.tuples(st.text("ab", min_size=1, max_size=28), cells, st.text("abc ", max_size=300)),
        min_size=1,
    )
)
def test_any_report_fits_80_columns_and_nothing_of_it_is_lost(
    rows: list[tuple[str, str, str]],
) -> None:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        print_rows("Title", rows, markdown=False)
    text = printed.getvalue()
    assert max(map(len, text.splitlines())) <= REPORT_COLUMNS
    assert Counter("".join(map("".join, rows)).replace(" ", "")) <= Counter(text)
