"""The sheets that `gpt cost` prints: rows under headings, and tables; as text of 80 columns or as
Markdown. Drawn by hand: rich would take a fifth of the command's time."""

from __future__ import annotations

import os
import sys
import textwrap

import typer

WIDTH = 80

Row = tuple[str, str, str]
"""A name, a figure and a remark. A name that is not indented heads a section."""


def print_rows(title: str, rows: list[Row], *, markdown: bool) -> None:
    if markdown:
        typer.echo(f"**{title}**\n")
        cells = [
            [name.strip() if name[0] == " " else f"**{name}**", text, remark]
            for name, text, remark in rows
        ]
        print_table([["", "", ""], *cells], markdown=True)
        return
    print_lines(title)
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for name, text, remark in rows:
        line = f"{name:<{widths[0]}}  {text:>{widths[1]}}"
        head = not name.startswith(" ")
        line = style(line if remark else line.rstrip(), bold=head) + (
            style("  " + remark, dim=True) if remark else ""
        )
        typer.echo("\n" + line if head else line)


def print_table(rows: list[list[str]], *, markdown: bool) -> None:
    """The first row heads the columns; the first column stands left, the others right."""
    if markdown:
        for number, row in enumerate(rows):
            typer.echo(f"| {' | '.join(row)} |")
            if number == 0:
                typer.echo("|---" + "|---:" * (len(row) - 1) + "|")
        return
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for number, row in enumerate(rows):
        line = " ".join(
            [
                f"{row[0]:<{widths[0]}}",
                *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)),
            ]
        )
        typer.echo(style(line, bold=number == 0))


def print_lines(text: str, **look: bool) -> None:
    # addresses stay whole
    for line in textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False):
        typer.echo(style(line, **look))


def print_paste(command: str) -> None:
    """A command line to paste: never wrapped, however long."""
    typer.echo(style(command, bold=True))


def style(text: str, **look: bool) -> str:
    return (
        typer.style(text, **look)
        if sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        else text
    )
