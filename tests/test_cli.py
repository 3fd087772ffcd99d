"""The command as a whole: help, exit codes, one message an error."""

from __future__ import annotations

import errno
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from gptcli import __version__
from gptcli import cli as module
from gptcli.errors import InputError, RunError


def homeless() -> RuntimeError:
    """Return the error that pathlib raises for a user without a home folder, asked for that of one
    who does not exist.
    """
    with pytest.raises(RuntimeError) as caught:
        Path("~no.such.user/cache").expanduser()
    return caught.value


def test_version_is_printed(gpt: Any) -> None:
    assert gpt("--version").stdout == f"gpt {__version__}\n"


def test_help_lists_all_commands(gpt: Any) -> None:
    text = gpt("--help", COLUMNS="80").stdout
    for command, (_, about) in module.COMMANDS.items():
        assert re.search(rf"\b{command} +{re.escape(about)}\n", text), "whole, on one line"


@pytest.mark.parametrize("command", list(module.COMMANDS))
def test_help_of_every_command(gpt: Any, command: str) -> None:
    text = gpt(command, "--help").stdout
    assert "Usage: gpt" in text
    assert text.count(f"gpt {command}") >= 3, "usage and two examples"
    assert not re.findall(
        r"--[a-z-]+ .*<(?:list\[)?(?:str|int|float|path).*", text, re.IGNORECASE
    ), "a value is named, not its type in Python"


def test_unknown_command_is_one_message(gpt: Any) -> None:
    done = gpt("trian", code=2)
    assert "trian" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("broken", where="a:1", hint="mend it"), 2, "gpt: a:1: broken\n  mend it\n"),
        (RunError("lost a worker"), 1, "gpt: lost a worker\n"),
        (OSError(errno.ENOSPC, "No space left on device", "x.bin"), 1, "the disk is full"),
        (
            FileNotFoundError(errno.ENOENT, "No such file or directory", "x"),
            2,
            "gpt: x: no such file or directory",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "gpt: x: permission denied"),
        (
            PermissionError(errno.EACCES, "Permission denied"),
            2,
            "gpt: permission denied by the system\n  processes that share work need",
        ),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), 1, "--debug shows"),
        (ValueError("surprise"), 1, "this is a bug"),
        (homeless(), 2, "set one: HOME=/path gpt ..."),
        (KeyboardInterrupt(), 130, "gpt: interrupted\n"),
    ],
)
def test_errors_become_one_message(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    def build(argv: list[str]) -> typer.Typer:
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def fail() -> None:
            raise error

        return app

    monkeypatch.setattr(module, "build_app", build)
    monkeypatch.setattr(sys, "argv", ["gpt"])
    with pytest.raises(SystemExit) as stop:
        module.main()
    assert stop.value.code == code
    shown = capsys.readouterr()
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert not shown.out
