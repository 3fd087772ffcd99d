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
from gptcli.cli.cost import MODEL_OPTIONS, MODES, select_mode
from gptcli.errors import GptError, InputError, RunError, UsageError


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
            RuntimeError("I/O error: No space left on device"),
            1,
            "left on device\n  free some space",
        ),
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
        (
            OSError(errno.ENAMETOOLONG, "File name too long", "a" * 300),
            2,
            "a...: the name is too long",
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


VALUES = {"convention": "dclm", "kind": "gpt2", "sweep": "lr=1e-3", "example": "x", "stop": "x"}
"""Valid values of options that are read at once and take no number."""


def whole_command(name: str) -> Any:
    """Return a command, and its context, without a command line."""
    from typer.main import get_command

    command: Any = get_command(module.build_app([name]))
    return command.commands[name]


def words_of(param: Any) -> list[str]:
    """Return an option, or an argument, as it may be typed."""
    if param.param_type_name == "argument":
        return ["runs/book"]
    return [param.opts[0]] if param.is_flag else [param.opts[0], VALUES.get(param.name, "1")]


def refused_word(command: Any, name: str, line: list[str]) -> str:
    """Return the option of a command line that has no effect; empty if all have one."""
    try:
        command.make_context(name, [*line])
    except GptError as error:
        found = re.search(r"(\S+) has no effect with", str(error))
        return found[1] if found else str(error)
    return ""


@pytest.mark.parametrize("name", ["train", "sample", "eval", "build-shards"])
def test_an_option_without_effect_in_a_mode_is_refused(name: str) -> None:
    command = whole_command(name)
    # of the others, such as -q, the callback takes the value, in every mode
    params = {param.name: param for param in command.params if param.expose_value}
    required = [word for one in params.values() if one.required for word in words_of(one)]
    for mode in command.modes:
        unknown = {mode.name, *mode.uses, *mode.unless} - params.keys()
        assert not unknown, "a mode names an option that the command does not have"
        for other in params.values():
            typed = {mode.name, other.name}
            selected = [
                one for one in command.modes if one.name in typed and not typed & {*one.unless}
            ]
            if len(typed) == 1 or selected[:1] != [mode] or other.required:
                continue
            line = [*required, *words_of(params[mode.name]), *words_of(other)]
            is_refused = other.name not in mode.uses
            spelled = words_of(other)[0] if other.param_type_name == "option" else other.metavar
            assert refused_word(command, name, line) == spelled * is_refused, line


@pytest.mark.parametrize("mode", MODES)
def test_an_option_without_effect_on_an_estimate_is_refused(mode: str) -> None:
    command = whole_command("cost")
    names = [param.name for param in command.params]
    for other in names:
        used = {mode, *MODES[mode], "json", "markdown"}
        if other in used or (other in MODES and [*MODES].index(other) < [*MODES].index(mode)):
            continue
        if mode == "hours" and other in (*MODEL_OPTIONS, "tokens"):
            continue  # the duration of an estimate
        with pytest.raises(UsageError, match="cannot be combined with"):
            select_mode({mode: 1.0, other: True})


def test_an_impossible_limit_of_kernels_is_refused_before_anything_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GPT_KERNELS", "avx3")
    with pytest.raises(UsageError, match="GPT_KERNELS is 'avx3'"):
        module.run_command(["cost", "--size", "gpt2"])
    assert capsys.readouterr().out == ""
