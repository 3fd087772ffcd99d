"""`--help` of a command: its usage, its text, and panels of arguments, options and subcommands.

The form is that of typer with rich, which takes a tenth of a second to import and another to draw
the options of `gpt train`. Nothing is imported here that typer has not imported already.

`write_man_pages` writes the same as manual pages: gpt.1, gpt-train.1 and so on.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

ARGUMENTS, OPTIONS, COMMANDS = "Arguments", "Options", "Commands"
MIN_TEXT_COLUMNS = 20  # of a help text beside its option
STANDARD_STREAMS = (0, 1, 2)
DUMB = ("dumb", "unknown")
FORCES = ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS")
"""Variables of the environment that colour even what is not for a terminal."""
HIGHLIGHTS = re.compile(r"(?<!\w)(?:(?P<option>--[\w-]+)|(?P<switch>-\w+)(?![a-zA-Z0-9]))")
STYLES = re.compile(r"\x1b\[[0-9;]*m")

Spans = list[tuple[str, bool]]
"""Pieces of one line, and whether each is dim."""


class Row(NamedTuple):
    """Line of a panel: an argument, an option or a subcommand."""

    cells: tuple[str, ...]
    """Columns before the text: the mark of a required one, --name, -n or argument, metavar."""
    text: str
    """Help text."""
    notes: tuple[str, ...] = ()
    """Notes after the text, such as "[default: 1]"."""


def panels(command: Any, ctx: typer.Context, width: int) -> str | None:
    """Return the help of a command in lines of `width` columns, with colours if stdout shows them.

    None if the lines are too short for a text beside each option.
    """
    usage = [_bold(_highlighted(line)) for line in _wrapped(command.get_usage(ctx), width - 2)]
    lines = ["", *(f" {line}" for line in usage), ""]
    if command.help:
        lines += [f" {line}".rstrip() for line in _text_lines(command.help, width - 2)] + [""]
    for title, rows in sections(command, ctx).items():
        drawn = _panel(title, rows, width)
        if drawn is None:
            return None
        lines += drawn
    text = "\n".join(lines) + "\n"
    return text if is_coloured() else STYLES.sub("", text)


def is_coloured() -> bool:
    """Return whether to colour what is printed: on a terminal, or as the environment says."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").lower() in DUMB:
        return False
    return any(map(os.environ.get, FORCES)) or sys.stdout.isatty()


def terminal_width() -> int:
    """Return the columns of the terminal: COLUMNS, else of a standard stream, else 80."""
    if (set_width := os.environ.get("COLUMNS", "")).isdigit() and int(set_width):
        return int(set_width)
    if os.environ.get("TERM", "").lower() not in DUMB:
        for stream in STANDARD_STREAMS:
            try:
                return os.get_terminal_size(stream).columns or 80
            except OSError:
                continue
    return 80


def _text_lines(text: str, width: int) -> Iterator[str]:
    """Yield the lines of a command's text: its first paragraph, and the others dim."""
    first, *others = inspect.cleandoc(text).split("\n\n")
    yield from map(_highlighted, _wrapped(first.replace("\n", " ").strip(), width))
    if others:
        yield ""
        for line in _wrapped(inspect.cleandoc("\n\n".join(others)), width):
            yield _dim(line) if line else ""


def sections(command: Any, ctx: typer.Context) -> dict[str, list[Row]]:
    """Return the rows of each panel by its title: arguments, options, then subcommands."""
    arguments: dict[str, list[Row]] = {ARGUMENTS: []}
    options: dict[str, list[Row]] = {OPTIONS: []}
    for param in command.get_params(ctx):
        if getattr(param, "hidden", False):
            continue
        is_argument = param.param_type_name == "argument"
        group, default = (arguments, ARGUMENTS) if is_argument else (options, OPTIONS)
        group.setdefault(param.rich_help_panel or default, []).append(_parameter_row(param, ctx))
    commands: list[Row] = []
    if hasattr(command, "list_commands"):
        for name in command.list_commands(ctx):
            about = command.get_command(ctx, name)
            text = inspect.cleandoc(about.short_help or about.help or "").split("\n\n")[0]
            commands.append(Row((name,), text.replace("\n", " ")))
    every = [*arguments.items(), *options.items(), (COMMANDS, commands)]
    return {title: rows for title, rows in every if rows}


def _parameter_row(param: Any, ctx: typer.Context) -> Row:
    long = ",".join(name for name in param.opts if name.startswith("--"))
    short = ",".join(name for name in param.opts if not name.startswith("--"))
    if param.param_type_name == "argument":
        long, short = "", param.metavar or param.name.upper()
    text = inspect.cleandoc(param.help or "")
    notes: tuple[str, ...] = ()
    _, record = param.get_help_record(ctx)
    if record := record[len(param.help or "") :].strip():
        default, is_required, _ = record[1:-1].partition("required")
        # typer puts words in parentheses, and values as they are
        default = re.sub(r"^default: \((.*)\)$", r"default: \1", default.rstrip("; "))
        notes = (f"[{default}]",) * bool(default) + ("[required]",) * bool(is_required)
    mark = "*" if param.required else ""
    metavar = param.display_type_rich(ctx) or ""
    # two columns for the names of a flag's opposite, which typer has and no command uses
    return Row((mark, long, short, "", "", metavar), text.replace("\n", " "), notes)


def _panel(title: str, rows: list[Row], width: int) -> list[str] | None:
    """Return the lines of a panel; None if it is too narrow."""
    if len(rows[0].cells) > 1 and not any(row.cells[0] for row in rows):
        rows = [Row(row.cells[1:], row.text, row.notes) for row in rows]
    columns = [max(map(len, column)) for column in zip(*(row.cells for row in rows), strict=True)]
    text_width = width - 4 - sum(columns) - 2 * len(columns)
    if text_width < max(MIN_TEXT_COLUMNS, *columns):
        return None
    name = f"─ {title} "
    lines = [_dim(f"╭{name}{'─' * (width - 2 - len(name))}╮")]
    edge = _dim("│")
    for row in rows:
        cells = [cell.ljust(column) for cell, column in zip(row.cells, columns, strict=True)]
        blank = "  ".join(" " * column for column in columns)
        head = "  ".join(_styled_cell(cell, row, index) for index, cell in enumerate(cells))
        for number, spans in enumerate(_beside(row, text_width)):
            length = sum(len(text) for text, _ in spans)
            body = "".join(_dim(text) if dim else _highlighted(text) for text, dim in spans)
            start = blank if number else head
            lines.append(f"{edge} {start}  {body}{' ' * (text_width - length)} {edge}")
    return [*lines, _dim(f"╰{'─' * (width - 2)}╯")]


def _beside(row: Row, width: int) -> Iterator[Spans]:
    """Yield the lines of a row's text and notes: one line if both fit on it."""
    parts = [part for part in (row.text, *row.notes) if part]
    if sum(map(len, parts)) + len(parts) - 1 <= width:
        spans: Spans = []
        for part in parts:
            spans += [(" ", False)] * bool(spans) + [(part, part != row.text)]
        yield spans
        return
    for part in parts:
        for line in _wrapped(part, width):
            yield [(line, part != row.text)]


def _wrapped(text: str, width: int) -> list[str]:
    """Return the lines of a text, broken at spaces only."""
    return [
        part
        for line in text.replace("\b", "").splitlines()  # typer's mark of lines to keep
        for part in textwrap.wrap(line, width, break_on_hyphens=False) or [""]
    ]


def _styled_cell(cell: str, row: Row, index: int) -> str:
    if len(row.cells) == 1:
        return typer.style(cell, fg="cyan", bold=True)
    if index == len(row.cells) - 1:
        return typer.style(cell, fg="yellow", bold=True) if cell.strip() else cell
    return _highlighted(cell) if cell.strip() != "*" else typer.style(cell, fg="red")


def _highlighted(text: str) -> str:
    """Colour the options that a text names."""
    return HIGHLIGHTS.sub(
        lambda found: typer.style(
            found[0], fg="cyan" if found.lastgroup == "option" else "green", bold=True
        ),
        text,
    )


def _bold(text: str) -> str:
    return typer.style(text, bold=True)


def _dim(text: str) -> str:
    return typer.style(text, dim=True)


def man_page(command: Any, ctx: typer.Context, version: str) -> str:
    """Return the manual page of a command in the macros of man(7), of the section 1."""
    name = ctx.command_path.replace(" ", "-")
    first, *others = inspect.cleandoc(command.help or "").replace("\b", "").split("\n\n")
    lines = [
        f'.TH "{name.upper()}" "1" "" "gpt {version}" "gpt manual"',
        ".SH NAME",
        _man_text(f"{name} - {first}").replace(r"\-", "-"),  # man(1) splits the name here
        ".SH SYNOPSIS",
        _man_text(" ".join(command.get_usage(ctx).split()).removeprefix("Usage: ")),
    ]
    if others:
        lines.append(".SH DESCRIPTION")
    for paragraph in others:
        if paragraph.startswith(" "):  # lines that stay as they are
            lines += [".nf", _man_text(paragraph), ".fi"]
        else:
            lines += [".PP", _man_text(paragraph)]
    for title, rows in sections(command, ctx).items():
        lines.append(f".SH {title.upper()}")
        for row in rows:
            # the mark of a required one is the first cell of several
            head = " ".join(cell for cell in row.cells[len(row.cells) > 1 :] if cell)
            lines += [
                ".TP",
                rf"\fB{_man_text(head)}\fR",
                _man_text(" ".join([row.text, *row.notes])),
            ]
    return "\n".join(lines) + "\n"


def _man_text(text: str) -> str:
    """Escape what roff would read as a macro or an escape."""
    text = text.replace("\\", r"\e").replace("-", r"\-")
    return "\n".join(rf"\&{line}" if line[:1] in (".", "'") else line for line in text.splitlines())


def write_man_pages(folder: Path) -> list[Path]:
    """Write a manual page for `gpt` and each of its commands, and return the files."""
    from typer.main import get_command

    from gptcli import __version__
    from gptcli.cli import COMMANDS as NAMES
    from gptcli.cli import build_app

    folder.mkdir(parents=True, exist_ok=True)
    written = []

    def write(command: Any, name: str, parent: Any) -> None:
        ctx = command.context_class(
            command, info_name=name, parent=parent, **command.context_settings
        )
        path = folder / f"{ctx.command_path.replace(' ', '-')}.1"
        path.write_text(man_page(command, ctx, __version__), encoding="utf-8")
        written.append(path)
        for inner in getattr(command, "commands", {}) if parent is not None else ():
            write(command.commands[inner], inner, ctx)

    whole: Any = get_command(build_app([]))
    write(whole, "gpt", None)
    top = whole.context_class(whole, info_name="gpt", **whole.context_settings)
    for name in NAMES:
        app: Any = get_command(build_app([name]))
        write(app.commands[name], name, top)
    return written
