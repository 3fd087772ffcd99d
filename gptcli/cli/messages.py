"""Options of messages: -q, -v and --log-file, which every command has.

`Command` adds `message_options` to its own options. `ConsoleEvents` reads what they say from
`current_messages()`, and so do the processes of a run, to which its events are sent.
"""

from __future__ import annotations

import os
import platform
import re
import sys
import time
import warnings
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli import __version__
from gptcli.cli.options import command_line, flag, value
from gptcli.errors import InputError, UsageError
from gptcli.files import advice
from gptcli.numbers import duration

PANEL = "Messages"
SECRET = re.compile(r"(--api[-_]key[ =])('[^']*'|\S+)")  # an option whose value is not told


@dataclass(slots=True)
class LogFile:
    """File to which lines are appended, each with its time.

    It is opened for each line, so that several processes can write it and a rotated one is found
    again. The work that it tells of goes on if the disk is full.
    """

    path: Path
    """The file, absolute: a command may change its folder."""
    failed: bool = False
    """A line could not be written, and the user was told."""

    def check(self) -> None:
        """Raise InputError if the file cannot be appended to; create it."""
        try:
            with open(self.path, "a", encoding="utf-8"):
                pass
        except OSError as error:
            raise InputError(
                f"cannot be written: {(error.strerror or str(error)).lower()}",
                where=f"--log-file {self.path}",
                hint=advice(error) or "name a file in a folder that exists",
            ) from None

    def write(self, text: str) -> None:
        """Append the lines of `text`. A failure is reported once on stderr."""
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        lines = "".join(f"{now} {line}\n" for line in text.splitlines())
        try:
            with open(self.path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(lines)
        except OSError as error:
            if not self.failed:
                self.failed = True
                why = (error.strerror or str(error)).lower()
                print(f"warning: {self.path} is not written further: {why}", file=sys.stderr)


@dataclass(slots=True)
class Messages:
    """Values of the options -q, -v and --log-file of the running command."""

    quiet: bool = False
    """Print only results and errors."""
    verbose: bool = False
    """Also print versions, machine and folder, and detailed progress."""
    log: LogFile | None = None
    """File that gets every message; None for none."""
    started_at: float = field(default_factory=time.monotonic)
    """Time at which the command line was read."""

    def begin(self) -> None:
        """Tell of the command and its surroundings, to the log and with -v."""
        if self.quiet:
            warnings.simplefilter("ignore")
        if self.verbose or self.log is not None:
            self.detail("command: " + SECRET.sub(r"\1...", command_line()))
            self.detail(
                f"gpt {__version__}, Python {platform.python_version()}, {platform.platform()}, "
                f"process {os.getpid()}, in {Path.cwd()}"
            )

    def end(self, code: int) -> None:
        """Tell of the end of the command, to the log and with -v."""
        if self.verbose or self.log is not None:
            took = duration(time.monotonic() - self.started_at)
            self.detail(f"ended after {took} with exit code {code}")

    def detail(self, text: str) -> None:
        """Write what the log has, and -v shows."""
        if self.log is not None:
            self.log.write(text)
        if self.verbose:
            print(text, file=sys.stderr, flush=True)


_current = Messages()


def current_messages() -> Messages:
    """Return what the running command was told."""
    return _current


def reset() -> None:
    """Forget what another command of this process was told."""
    global _current
    _current = Messages()


def _set_quiet(given: bool) -> None:
    _current.quiet = given
    _check()


def _set_verbose(given: bool) -> None:
    _current.verbose = given
    _check()


def _check() -> None:
    if _current.quiet and _current.verbose:
        reset()
        raise UsageError("cannot be combined with -v", where="-q", hint="leave out one of them")


def _set_log(path: Path | None) -> None:
    if path is not None:
        log = LogFile(path.absolute())
        log.check()
        _current.log = log


def _declare(
    quiet: Annotated[
        bool,
        flag("-q", "Print only results and errors.", PANEL, "--quiet", callback=_set_quiet),
    ] = False,
    verbose: Annotated[
        bool,
        flag(
            *("-v", "Also print versions, machine, folder and detailed progress every second."),
            *(PANEL, "--verbose"),
            callback=_set_verbose,
        ),
    ] = False,
    log_file: Annotated[
        Path | None,
        value(
            "Append every message, with its time, to this file, even with -q.",
            *("FILE", PANEL, False),
            callback=_set_log,
        ),
    ] = None,
) -> None:
    """Declare the options; their callbacks keep what they say."""


def message_options() -> list[Any]:
    """Return the options -q, -v and --log-file, for a command."""
    app = typer.Typer(add_completion=False)
    app.command()(_declare)
    found: list[Any] = typer.main.get_command(app).params
    for param in found:
        param.expose_value = False
    return found
