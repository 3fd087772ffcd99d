"""Terminal output of all commands: progress on stderr; tables, sections and JSON on stdout.

Progress of long work is a live bar on a terminal and plain lines elsewhere. Tables are drawn here
and not by rich, whose import would take a fifth of the time of `gpt cost`.
"""

from __future__ import annotations

import atexit
import codecs
import contextlib
import errno
import io
import os
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli import toml_json
from gptcli.cli.messages import current_messages
from gptcli.cli.options import option
from gptcli.errors import name_parameters
from gptcli.events import Events
from gptcli.interrupts import Cleanup, reserve_descriptor, write
from gptcli.numbers import amount, duration, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

# seconds before the first plain line, and at most between two; each wait doubles the one before,
# so that the log of a day stays short
FIRST_LINE_S, MAX_LINE_WAIT_S = 5.0, 300.0
TOLD_FROM_SHARE, TOLD_FROM_S = 0.02, 120.0  # of the work, or seconds: the time left is told
VERBOSE_LINE_S = 1.0  # seconds between two plain lines with -v
BAR_REFRESH_S = 0.1
REPORT_COLUMNS = 80
MIN_COLUMNS = 30  # in which a report is readable at all
# columns that a note, and the first column of a table, get before they are put below
MIN_NOTE, MIN_NAME = 20, 24
UNENCODABLE = "gpt.unencodable"  # name of the error handler of stdout and stderr
ASCII_FORMS = str.maketrans({
    "±": "+-", "×": "x", "·": "*", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"',
    "…": "...", "≤": "<=", "≥": ">=", "→": "->", "─": "-", "━": "-", "│": "|", "┃": "|", "•": "*",
    "╭": "+", "╮": "+", "╰": "+", "╯": "+",
    "\u00a0": " ",
})  # fmt: skip

# control characters, which a terminal would obey, as Unicode's symbols for them
CONTROLS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)

Row = tuple[str, str, str]
"""Name, value and note of a line of a report. A name without indentation heads a section."""


class _Output(io.FileIO):
    """Standard output or standard error, of which one failure is told, and what is written later is
    discarded.

    Its reader may close a pipe at any time, as `head` does. The exit code must not depend on how
    much of the output was still in the pipe: a reader of stdout that has read enough ends the
    command with code 0. A command goes on without stderr, which carries only messages.
    """

    def write(self, data: Any) -> int:
        """Write bytes to stdout or stderr.

        Raises SystemExit if nobody reads stdout any more, and OSError if its disk is full.
        """
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if self.fileno() != 1:
                return memoryview(data).nbytes
            if isinstance(error, BrokenPipeError):
                raise SystemExit(0) from None
            raise


class _ClosedOutput(_Output):
    """Standard output that was closed before the program began: what is printed would be lost."""

    was_told = False

    def write(self, data: Any) -> int:
        """Raise OSError for the first bytes; discard the others, which nobody misses then."""
        if not self.was_told:
            self.was_told = True
            raise OSError(errno.EBADF, "standard output is closed")
        return memoryview(data).nbytes


def set_up_streams() -> None:
    """Give the process three standard streams that accept any text.

    A closed stream is replaced by /dev/null, and printing to a closed stdout fails. Characters that
    the encoding of stdout or stderr lacks are written in ASCII, or as \\u escapes. A reader that
    closes its end is no error (`_Output`).
    """
    lost = sys.stdout is None
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            reserve_descriptor(number)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    codecs.register_error(UNENCODABLE, _in_ascii)
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if not isinstance(stream, io.TextIOWrapper):  # a test may capture it in another type
            continue
        stream.reconfigure(errors=UNENCODABLE)
        with contextlib.suppress(io.UnsupportedOperation):  # a buffer in memory
            if stream.buffer.fileno() == number:
                kind = _ClosedOutput if lost and number == 1 else _Output
                setattr(sys, name, _watched(stream, kind(number, "wb", closefd=False)))


def _watched(stream: io.TextIOWrapper, raw: _Output) -> io.TextIOWrapper:
    """Return a stream like `stdout` or `stderr` that writes through `raw`."""
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """Replace characters that an encoding lacks; bytes of file names that are not UTF-8 stay."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    if all("\udc80" <= char <= "\udcff" for char in text):
        return bytes(ord(char) - 0xDC00 for char in text), error.end
    escaped = "".join(
        char
        if char.isascii()
        else f"\\u{ord(char):04x}"
        if ord(char) < 1 << 16
        else f"\\U{ord(char):08x}"
        for char in text.translate(ASCII_FORMS)
    )
    return escaped, error.end


def time_left(done: float, total: float | None, done_here: float, elapsed: float) -> str:
    """Return the time left of work, of which `done_here` took `elapsed` seconds, or "".

    The first of it tells too little: it has imports, warm-up and the small batches of a ramp.
    """
    if not total or done_here <= 0:
        return ""
    if done_here < TOLD_FROM_SHARE * (total - done + done_here) and elapsed < TOLD_FROM_S:
        return ""
    return duration(round((total - done) * elapsed / done_here))


def screen(*, stderr: bool = False, width: int | None = None) -> Console:
    """Return a rich console that prints text literally, without markup, emoji or highlighting.

    All consoles are made here, because names and paths may contain brackets and colons. They never
    hide the cursor: a process that is killed could not show it again.
    """
    import rich.console

    class Console(rich.console.Console):
        def show_cursor(self, show: bool = True) -> bool:
            return False

    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


class ConsoleEvents(Events):
    """Shows progress on stderr. rich is imported only for a terminal."""

    spell = staticmethod(option)

    def __init__(self) -> None:
        self._live: Progress | None = None
        self._line = Cleanup(write, 2, "\r\x1b[2K")  # clears the line of the bar
        self._tasks: dict[str, _Task] = {}
        self.messages = current_messages()

    def info(self, text: str) -> None:
        """Print a line above the bars, unless -q is given, and log it."""
        if self.messages.log is not None:
            self.messages.log.write(text)
        if not self.messages.quiet:
            self._print(text)

    def _print(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(text)
        else:
            print(wrapped(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        """Print a line that begins with "warning:"."""
        self.info(f"warning: {text}")

    def progress(
        self, task: str, done: float, total: float | None = None, unit: str = "", **facts: object
    ) -> None:
        """Update the bar of `task`, or print a line if enough time has passed; log such lines."""
        shows_bar = sys.stderr.isatty() and not self.messages.quiet
        if line := self._progress_line(task, done, total, unit, facts):
            if self.messages.log is not None:
                self.messages.log.write(line)
            if not (shows_bar or self.messages.quiet):
                print(line, file=sys.stderr, flush=True)
        state, now = self._tasks[task], time.monotonic()
        if shows_bar and (now - state.drawn_at >= BAR_REFRESH_S or done == total):
            state.drawn_at = now
            self._draw(task, state, done, total, _format_facts(facts))

    def _progress_line(
        self, task: str, done: float, total: float | None, unit: str, facts: dict[str, object]
    ) -> str:
        """Return the line for a log; "" if the last one is not old enough."""
        now = time.monotonic()
        state = self._tasks.setdefault(task, _Task(now, done))
        wait = VERBOSE_LINE_S if self.messages.verbose else state.wait
        if now - state.line_at < wait:
            return ""
        state.line_at, state.wait = now, min(2 * state.wait, MAX_LINE_WAIT_S)
        elapsed = now - state.started_at
        if not done:
            return f"{task}: starting{_format_facts(facts)}  {duration(elapsed)}"
        line = f"{task}: {amount(done)}"
        line += f"/{amount(total)}" if total else ""
        line += f" {unit}" if unit else ""
        line += f" ({percent(done / total, 0)})" if total else ""
        left = time_left(done, total, done - state.done_at_start, elapsed)
        return f"{line}{_format_facts(facts)}  {duration(elapsed)}{left and f', {left} left'}"

    def finish(self, task: str) -> None:
        """Remove the bar of `task`."""
        state = self._tasks.pop(task, None)
        if self._live is not None and state is not None and state.bar is not None:
            self._live.remove_task(state.bar)
            if not self._tasks:
                self._live.stop()
                self._live = None
                self._line.__exit__()

    def _draw(self, task: str, state: _Task, done: float, total: float | None, facts: str) -> None:
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        if self._live is None:
            name, facts_column = (
                TextColumn(form, markup=False)
                for form in ("{task.description}", "{task.fields[facts]}")
            )
            columns = (name, BarColumn(24), TaskProgressColumn(), facts_column)
            self._live = Progress(
                *columns,
                TimeRemainingColumn(compact=True),
                console=screen(stderr=True),
                transient=True,
            )
            self._line.__enter__()
            self._live.start()
            atexit.register(self._live.stop)
        if state.bar is None:
            state.bar = self._live.add_task(task, total=total, facts="")
        self._live.update(state.bar, completed=done, total=total, facts=facts.strip())


class _Task:
    """Progress of one task: its start, its last line and drawing, the wait until the next line."""

    def __init__(self, now: float, done: float) -> None:
        self.started_at, self.done_at_start = now, done
        self.line_at, self.wait = now, FIRST_LINE_S
        self.drawn_at = now
        self.bar: TaskID | None = None


def _format_facts(facts: dict[str, object]) -> str:
    return "".join(
        f"  {name.replace('_', ' ')} {_format_fact(value)}"
        for name, value in facts.items()
        if value is not None
    )


def _format_fact(value: object) -> str:
    if isinstance(value, float):
        return amount(value) if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def as_options(text: str) -> str:
    """Write the parameters that a message names as options: `{option:n_ctx}` as --n-ctx."""
    return name_parameters(text, option)


def wrapped(text: str) -> str:
    """Return a message for stderr with lines broken between words, if stderr is a terminal."""
    return wrap_lines(text, columns(sys.stderr)) if sys.stderr.isatty() else text


def columns(stream: Any) -> int:
    """Return the columns of lines of text on stdout or stderr: 80 off a terminal."""
    if not stream.isatty():
        return REPORT_COLUMNS
    return os.get_terminal_size(stream.fileno()).columns or REPORT_COLUMNS  # 0 if unknown


def toml_columns() -> int | None:
    """Return the columns of TOML on stdout: None off a terminal, where its lines stay whole."""
    return columns(sys.stdout) if sys.stdout.isatty() else None


def report_columns() -> int:
    """Return the columns of a report on stdout: REPORT_COLUMNS, or fewer of a narrow terminal."""
    return max(MIN_COLUMNS, min(REPORT_COLUMNS, columns(sys.stdout)))


def wrap_lines(text: str, width: int) -> str:
    """Return text with lines of at most `width` columns, if no word is longer.

    Command lines to paste, which begin with "  gpt ", are not broken; the lines of a paragraph have
    the indentation of its first.
    """
    lines = []
    for line in text.splitlines():
        if line.startswith("  gpt "):
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


def print_json(command: str, report: dict[str, Any]) -> None:
    """Print a report as one JSON object on stdout, its schema `gpt.COMMAND/1` first.

    Characters that the encoding of stdout lacks are written as escapes.
    """
    report = {"schema": f"gpt.{command}/1", **report}
    text = toml_json.dumps(report)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = toml_json.dumps(report, ascii_only=True)
    print(text)


@contextlib.contextmanager
def told_by_files() -> Iterator[None]:
    """Print lines about files that a command has written. They tell the same, so that nothing is
    lost if stdout was closed before the command began.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.EBADF:
            raise


def print_made(path: str | Path, report: dict[str, Any], *, as_json: bool) -> None:
    """Print the path of what `gpt train` has written, or its report as one JSON object."""
    if as_json:
        print_json("train", report)
        return
    with told_by_files():
        print(path)


def print_file(text: str) -> None:
    """Write the text of a file to stdout, in UTF-8 whatever the locale."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
        return
    buffer.write(text.encode("utf-8"))
    buffer.flush()


@contextlib.contextmanager
def terminal_restored() -> Iterator[None]:
    """Restore the terminal's echo and line editing, which readline changes while it waits."""
    if os.name != "posix" or not sys.stdin.isatty():
        yield
        return
    import termios

    with Cleanup(termios.tcsetattr, 0, termios.TCSANOW, termios.tcgetattr(0)):
        yield


def print_piece(piece: str) -> None:
    """Write text to stdout at once, in UTF-8 whatever the locale."""
    if sys.stdout.isatty():
        piece = piece.translate(CONTROLS)
    sys.stdout.buffer.write(piece.encode("utf-8"))
    sys.stdout.buffer.flush()


def print_rows(title: str, rows: list[Row], *, markdown: bool) -> None:
    """Print a report of sections: a title, then a name, a value and a note per line.

    A note that does not fit into the columns goes on below itself, or below its value.
    """
    if markdown:
        typer.echo(f"**{title}**\n")
        cells = [
            [name.strip() if name[0] == " " else f"**{name}**", value, note]
            for name, value, note in rows
        ]
        print_table([["", "", ""], *cells], markdown=True)
        return
    print_lines(title)
    room = report_columns()
    edge = min(sum(max(len(row[column]) for row in rows) for column in (0, 1)) + 2, room)
    for name, value, note in rows:
        line = f"{name}  {value:>{max(edge - len(name) - 2, 0)}}"
        is_heading = not name.startswith(" ")
        if is_heading:
            typer.echo()
        left = len(line) + 2
        if note and left + len(note) > room and room - left < MIN_NOTE:
            typer.echo(styled(line.rstrip(), bold=is_heading))
            line, left = "", 4
        first, *more = textwrap.wrap(note, max(room - left, 1)) or [""]
        line = f"{line:<{left - 2}}"
        line = styled(line if note else line.rstrip(), bold=is_heading)
        typer.echo(line + (styled("  " + first, dim=True) if note else ""))
        for part in more:
            typer.echo(" " * left + styled(part, dim=True))


def print_table(rows: list[list[str]], *, markdown: bool) -> None:
    """Print a table; its first row is the header, its first column is aligned left.

    A table that is too wide has its first column wrapped, or its other columns one group below
    the other, each with the first.
    """
    if markdown:
        for number, row in enumerate(rows):
            typer.echo(f"| {' | '.join(row)} |")
            if number == 0:
                typer.echo("|---" + "|---:" * (len(row) - 1) + "|")
        return
    first, *widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    most = report_columns()
    for at, end in _column_groups(min(first, MIN_NAME), widths, most):
        if at:
            typer.echo()
        room = most - sum(widths[at:end]) - (end - at)
        left = min(first, max(room, MIN_NAME))
        for number, (name, *others) in enumerate(rows):
            cells = zip(others[at:end], widths[at:end], strict=True)
            parts = [name] if len(name) <= left else textwrap.wrap(name, left) or [""]
            line = " ".join([f"{parts[0]:<{left}}", *(f"{cell:>{width}}" for cell, width in cells)])
            for text in (line, *parts[1:]):
                typer.echo(styled(text, bold=number == 0))


def _column_groups(first: int, widths: list[int], most: int) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the groups of columns that fit into `most` next to one of the width
    `first`.
    """
    at = 0
    while at < len(widths) or at == 0:
        end, used = at, first
        while end < len(widths) and (end == at or used + 1 + widths[end] <= most):
            used += 1 + widths[end]
            end += 1
        yield at, end
        at = max(end, 1)


def print_lines(text: str, **style: bool) -> None:
    """Print a paragraph, wrapped; long words such as addresses are not broken."""
    for line in wrap_lines(text, report_columns()).splitlines():
        typer.echo(styled(line, **style))


def print_command(command: str) -> None:
    """Print a command line to paste, on one line however long it is."""
    typer.echo(styled(command, bold=True))


def styled(text: str, **style: bool) -> str:
    """Return `text` with terminal styles, if stdout is a terminal and NO_COLOR is not set."""
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR"):
        return typer.style(text, **style)
    return text
