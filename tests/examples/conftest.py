"""A command line as the command itself would read it, without running it."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer.main

from gptcli.cli import COMMANDS, build_app

CALL = re.compile(r"(?:^|[|;&(]\s*)(?:python -m gptcli|gpt) ([^|;&>]*)")


class Parse:
    """`parse("gpt cost --size 175B")` is the parsed parameters; an option that does not exist fails
    the test.
    """

    def __call__(self, line: str) -> dict[str, Any]:
        argv = shlex.split(line, comments=True)[1:]
        assert argv[0] in COMMANDS or argv[0].startswith("-"), line
        command = typer.main.get_command(build_app(argv))
        path = "gpt"
        while argv and argv[0] in (inner := getattr(command, "commands", {})):
            command, path = inner[argv.pop(0)], f"{path} {command.name}"
        try:
            return command.make_context(path, argv).params
        except typer.Exit:  # --help, --version
            return {}
        except Exception as error:
            pytest.fail(f"{line}\n  {error}")

    @staticmethod
    def commands(text: str) -> list[str]:
        """The calls of gpt in lines of shell, each from `gpt` to its end."""
        lines = text.replace("\\\n", " ").splitlines()
        bare = (
            re.sub(r"(^|\s)#.*", "", line).strip().removeprefix("$ ").removeprefix("@")
            for line in lines
        )
        return [
            f"gpt {call.strip()}"
            for line in bare
            if not line.startswith("echo ")
            for call in CALL.findall(line)
        ]


@pytest.fixture
def parse() -> Parse:
    return Parse()
