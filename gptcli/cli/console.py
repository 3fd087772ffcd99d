"""How reports of long work look, always on stderr: a live bar on a terminal, plain lines
elsewhere.
"""

from __future__ import annotations

import atexit
import codecs
import io
import os
import sys
import time
from typing import TYPE_CHECKING, Any

from gptcli import strict_json
from gptcli.cli.config import option
from gptcli.errors import name_parameters
from gptcli.events import Events
from gptcli.interrupts import Cleanup, write
from gptcli.numbers import amount, duration, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

# Seconds to the first plain line, and between lines at most: each wait is twice the one before, so
# that the log of a day stays short.
FIRST, LONGEST = 5.0, 300.0
UNENCODABLE = "gpt.unencodable"  # the name of the error handler of stdout and stderr
IN_ASCII = str.maketrans({
    "±": "+-", "×": "x", "·": "*", "–": "-", "—": "-", "‘": "'", "’": "'", "“": '"', "”": '"', "…": "...", "≤": "<=", "≥": ">=", "→": "->",
    "─": "-", "━": "-", "│": "|", "┃": "|", "•": "*", "\u00a0": " ",
})  # fmt: skip


def set_up_streams() -> None:
    """Give the process three standard streams that take any text: one that was closed is /dev/null,
    and what stdout's or stderr's encoding lacks is written in ASCII, or as \\u escapes."""
    for name, number, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        if getattr(sys, name) is None:
            _hold_descriptor(number)
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - open as long as the process
    codecs.register_error(UNENCODABLE, _in_ascii)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not so in a test that captures it
            stream.reconfigure(errors=UNENCODABLE)


def _hold_descriptor(number: int) -> None:
    """Keep the next file that is opened from taking the number of a standard stream, which a child
    process would then write to.
    """
    try:
        os.fstat(number)
    except OSError:
        taken = os.open(os.devnull, os.O_RDWR)
        if taken != number:
            os.dup2(taken, number)
            os.close(taken)


def _in_ascii(error: UnicodeError) -> tuple[str | bytes, int]:
    """What is written for characters that an encoding lacks; the bytes of a file name that is not
    UTF-8 stay as they are.
    """
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    if all("\udc80" <= char <= "\udcff" for char in text):
        return bytes(ord(char) - 0xDC00 for char in text), error.end
    written = text.translate(IN_ASCII)
    escaped = "".join(
        char
        if char.isascii()
        else f"\\u{ord(char):04x}"
        if ord(char) < 1 << 16
        else f"\\U{ord(char):08x}"
        for char in written
    )
    return escaped, error.end


def screen(*, stderr: bool = False, width: int | None = None, soft_wrap: bool = False) -> Console:
    """A rich console that shows text as it is: names hold no markup, no emoji and no highlights.
    Every console is made here.
    """
    from rich.console import Console

    return Console(
        stderr=stderr, width=width, soft_wrap=soft_wrap, markup=False, emoji=False, highlight=False
    )


class ConsoleEvents(Events):
    """Draws events on stderr. rich is imported only where there is a terminal to draw on."""

    def __init__(self) -> None:
        self._live: Progress | None = None
        # on a cleared line, in place of the bar
        self._cursor = Cleanup(write, 2, "\r\x1b[2K\x1b[?25h")
        self._tasks: dict[str, _Task] = {}

    def info(self, text: str) -> None:
        text = as_options(text)
        if self._live is not None:
            self._live.console.print(text)
        else:
            print(wrapped(text), file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.info(f"warning: {text}")

    def progress(
        self, task: str, done: float, total: float | None = None, unit: str = "", **facts: object
    ) -> None:
        now = time.monotonic()
        if task not in self._tasks:
            self._tasks[task] = _Task(now, done)
        state = self._tasks[task]
        if sys.stderr.isatty():
            if now - state.shown >= 0.1 or done == total:
                state.shown = now
                self._draw(task, state, done, total, _facts(facts))
        elif now - state.shown >= state.wait:
            state.shown, state.wait = now, min(2 * state.wait, LONGEST)
            spent = now - state.since
            rate = (done - state.first) / spent
            line = (
                f"{task}: {amount(done)}"
                + (f"/{amount(total)}" if total else "")
                + (f" {unit}" if unit else "")
            )
            line += f" ({percent(done / total, 0)})" if total else ""
            left = f", {duration(round((total - done) / rate))} left" if total and rate > 0 else ""
            print(f"{line}{_facts(facts)}  {duration(spent)}{left}", file=sys.stderr, flush=True)

    def finish(self, task: str) -> None:
        state = self._tasks.pop(task, None)
        if self._live is not None and state is not None and state.bar is not None:
            self._live.remove_task(state.bar)
            if not self._tasks:
                self._live.stop()
                self._live = None
                self._cursor.__exit__()

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
            self._cursor.__enter__()
            self._live.start()
            # whatever ends the program, the terminal gets its cursor back
            atexit.register(self._live.stop)
        if state.bar is None:
            state.bar = self._live.add_task(task, total=total, facts="")
        self._live.update(state.bar, completed=done, total=total, facts=facts.strip())


class _Task:
    """What the console remembers of one task: when and where it began, when it was last shown, how
    long it waits until the next line, its live bar."""

    def __init__(self, now: float, first: float) -> None:
        self.since, self.first, self.shown, self.wait = now, first, now, FIRST
        self.bar: TaskID | None = None


def as_options(text: str) -> str:
    """Write the parameters that a message names as options: `{option:n_ctx}` as --n-ctx."""
    return name_parameters(text, option)


def wrapped(text: str) -> str:
    """A message for stderr, broken between words where a terminal would break inside them; as it is
    where there is no terminal.
    """
    if not sys.stderr.isatty():
        return text
    import textwrap

    # 0 where a terminal does not know
    width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
    lines = []
    for line in text.splitlines():
        if line.startswith("  gpt "):  # a command to paste
            lines.append(line)
            continue
        indent = line[: len(line) - len(line.lstrip())]
        lines += textwrap.wrap(
            line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines)


def print_json(command: str, report: dict[str, Any]) -> None:
    """Print the machine-readable form of a report: one JSON object on stdout, with escapes for what
    its encoding lacks.
    """
    named = {"schema": f"gpt.{command}/1", **report}
    text = strict_json.dumps(named)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        text = strict_json.dumps(named, ascii_only=True)
    print(text)


def print_file(text: str) -> None:
    """Write a file's text to stdout, in UTF-8 as the file would be, whatever the locale."""
    sys.stdout.flush()
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None:
        sys.stdout.write(text)
        return
    buffer.write(text.encode("utf-8"))
    buffer.flush()


def _facts(facts: dict[str, object]) -> str:
    return "".join(
        f"  {name.replace('_', ' ')} {_fact(value)}"
        for name, value in facts.items()
        if value is not None
    )


def _fact(value: object) -> str:
    if isinstance(value, float):
        return amount(value) if abs(value) >= 1e4 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
