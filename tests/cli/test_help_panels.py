"""Help is what typer would print with rich, without either."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import typer.core
from typer.main import get_command

from gptcli.cli import COMMANDS, build_app
from gptcli.cli import help_panels as module
from gptcli.cli.command import Command, Group

ESCAPES = re.compile(r"\x1b\[[0-9;]*m")
LINES = [*COMMANDS, *(f"tokenize {name}" for name in ("train", "encode", "decode"))]


@pytest.fixture
def gpt(gpt_here: Any) -> Any:
    """Run the command line in this process."""
    return gpt_here


def context(line: str) -> Any:
    """Return the context of a command, as `gpt LINE` has it."""
    command: Any = get_command(build_app(line.split()))
    ctx = command.context_class(command, info_name="gpt", **command.context_settings)
    for name in line.split():
        command = command.commands[name]
        ctx = command.context_class(command, info_name=name, parent=ctx, **command.context_settings)
    return ctx


def plain(text: str) -> list[str]:
    """Return the lines of a text without colours and spaces at their ends."""
    return [line.rstrip() for line in ESCAPES.sub("", text).rstrip().split("\n")]


def by_typer(ctx: Any, width: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the help that typer draws with rich."""
    monkeypatch.setenv("COLUMNS", str(width))
    base: Any = typer.core.TyperGroup if isinstance(ctx.command, Group) else typer.core.TyperCommand
    with redirect_stdout(io.StringIO()) as out:
        base.format_help(ctx.command, ctx, ctx.make_formatter())
    return plain(out.getvalue())


@pytest.mark.parametrize("width", [72, 80, 130])
@pytest.mark.parametrize("line", LINES)
def test_help_is_what_typer_draws(line: str, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compare all but the parentheses around a default in words, which typer alone draws."""
    ctx = context(line)
    shown: Any = vars(typer.core)["_get_default_string"]

    def without_parentheses(param: Any, **options: Any) -> Any:
        is_text = options["show_default_is_str"]
        return param.show_default if is_text else shown(param, **options)

    monkeypatch.setattr(typer.core, "_get_default_string", without_parentheses)
    expected = by_typer(ctx, width, monkeypatch)
    drawn = module.panels(ctx.command, ctx, width)
    assert drawn is not None
    assert plain(drawn) == expected
    assert all(len(line) <= width for line in plain(drawn))


def test_typer_draws_what_has_no_room(monkeypatch: pytest.MonkeyPatch, gpt: Any) -> None:
    ctx = context("train")
    assert module.panels(ctx.command, ctx, 40) is None
    shown = gpt("train", "--help", COLUMNS="40").stdout
    assert plain(shown) == by_typer(ctx, 40, monkeypatch)


@pytest.mark.parametrize(
    ("variables", "coloured"),
    [
        ({}, False),
        ({"FORCE_COLOR": "1"}, True),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ({"FORCE_COLOR": "1", "TERM": "dumb"}, False),
    ],
)
def test_colours_are_for_terminals(gpt: Any, variables: dict[str, str], coloured: bool) -> None:
    shown = gpt(
        "tokenize", "train", "--help", **{"TERM": "xterm", "NO_COLOR": "", **variables}
    ).stdout
    assert bool(ESCAPES.search(shown)) == coloured
    if coloured:
        assert "\x1b[36m\x1b[1m--vocab-size\x1b[0m" in shown


def test_a_terminal_without_unicode_gets_ascii(gpt: Any) -> None:
    shown = gpt("sample", "--help", PYTHONIOENCODING="ascii", COLUMNS="80").stdout
    assert shown.isascii()
    assert f"+- Options {'-' * 68}+\n| --" in shown


@pytest.mark.parametrize(
    "line",
    [
        "train --help",
        "train RUN --lr 1e-3 -h",
        "train --seeds many --help",
        "cost --flops --help",
        "tokenize train --help",
        "tokenize --help train",
        "help train",
    ],
)
def test_help_stands_anywhere(gpt: Any, line: str) -> None:
    assert gpt(*line.split()).stdout.lstrip().startswith("Usage: gpt ")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --frobnicate 1 --help", "--frobnicate"),
        ("frobnicate --help", "frobnicate"),
        ("train --lr --help", "--lr needs a value"),
        ("tokenize frobnicate --help", "frobnicate"),
    ],
)
def test_a_line_that_is_not_understood_is_said_before_help(
    gpt: Any, line: str, message: str
) -> None:
    done = gpt(*line.split(), code=2)
    assert message in done.stderr
    assert not done.stdout


def test_a_value_that_reads_like_help_is_a_value(gpt: Any) -> None:
    done = gpt("sample", "nowhere", "--", "--help", code=2)
    assert "Usage" not in done.stdout
    assert "nowhere" in done.stderr


def test_a_group_alone_shows_its_help_and_says_what_is_missing(gpt: Any) -> None:
    done = gpt("tokenize", code=2)
    assert plain(done.stdout) == plain(gpt("tokenize", "--help").stdout)
    assert done.stderr.startswith("gpt: gpt tokenize needs a command\n")


def test_rows_of_required_arguments_are_marked() -> None:
    command = Command("made", params=[], help="Do it.")
    command.rich_markup_mode = "rich"
    command.params.append(
        typer.core.TyperArgument(
            param_decls=["where"],
            required=True,
            metavar="PLACE",
            help="Where.",
            type_descriptor=context("train").command.params[0].type_descriptor,
        )
    )
    ctx: Any = typer.Context(command, info_name="made")
    drawn = module.panels(command, ctx, 60)
    assert drawn is not None
    assert re.search(r"│ \* +PLACE +Where\. \[required\] +│", ESCAPES.sub("", drawn))


def test_manual_has_a_page_for_every_command_and_option(tmp_path: Path) -> None:
    pages = {path.stem: path.read_text() for path in module.write_man_pages(tmp_path)}
    assert list(pages) == ["gpt", *(line.replace(" ", "-") for line in sorted_lines())]
    for line in LINES:
        page = pages[f"gpt-{line.replace(' ', '-')}"]
        for option in context(line).command.params:
            for name in option.opts if option.param_type_name == "option" else ():
                assert name.replace("-", r"\-") in page
    # no line of text is read as a macro
    macros = {".TH", ".SH", ".PP", ".TP", ".nf", ".fi"}
    lines = [line for page in pages.values() for line in page.splitlines()]
    assert {line.split()[0] for line in lines if line.startswith((".", "'"))} <= macros


def sorted_lines() -> list[str]:
    """Return the names of pages in the order in which they are written."""
    names = []
    for command in COMMANDS:
        names += [f"gpt {command}"]
        names += [f"gpt {line}" for line in LINES if line.startswith(f"{command} ")]
    return names
