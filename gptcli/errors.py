"""The errors a user can meet.

    GptError                what went wrong, where, and what to do about it
    ├── UsageError          an option or configuration that cannot be met       exit 2
    ├── InputError          a file that is missing, broken or does not belong   exit 2
    ├── RunError            it failed while running (disk full, lost worker)    exit 1
    └── Interrupted         it was asked to stop, and did in good order         exit 130

Anything else that reaches the top is a bug and keeps its traceback under `--debug`.
"""

from __future__ import annotations

import difflib
import importlib.util
import shlex
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path


class GptError(Exception):
    """One clear message: `what` is wrong, `where` (file, line or option), and what to do (`hint`)."""

    exit_code = 1

    def __init__(self, what: str, *, where: str | Path | None = None, hint: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = None if where is None else str(where)
        self.hint = hint

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return "\n  ".join([text, *(self.hint or "").splitlines()])

    def __reduce__(self) -> tuple[object, ...]:  # workers raise these across process borders
        return (_rebuild, (type(self), self.what, self.where, self.hint))


class UsageError(GptError):
    exit_code = 2


class InputError(GptError):
    exit_code = 2


class RunError(GptError):
    exit_code = 1


class Interrupted(GptError):  # noqa: N818 - what it is called everywhere
    exit_code = 130


def _rebuild(kind: type[GptError], what: str, where: str | None, hint: str | None) -> GptError:
    return kind(what, where=where, hint=hint)


def nearest(word: str, choices: Iterable[str]) -> str:
    """A hint that names the closest of `choices`, or lists them all: "did you mean 350M?"."""
    choices = list(choices)
    if close := close_to(word, choices):
        return f"did you mean {' or '.join(close)}?"
    return f"one of: {', '.join(choices)}"


def close_to(word: str, choices: Iterable[str], *, cutoff: float = 0.6) -> list[str]:
    """Up to three of `choices` that look like `word`, whatever their case, closest first."""
    lowered = {choice.lower(): choice for choice in choices}
    return [lowered[close] for close in difflib.get_close_matches(word.lower(), lowered, n=3, cutoff=cutoff)]


def install_hint(package: str) -> str:
    """Say how to install `package` for the Python that runs: "python -m pip install ray".

    The Python is named by its path if `python` means another, and uv installs if it has no pip.
    """
    python = sys.executable
    if not python or shutil.which("python") == python:
        python = "python"
    if importlib.util.find_spec("pip") is None:
        return shlex.join(["uv", "pip", "install", "--python", python, package])
    return shlex.join([python, "-m", "pip", "install", package])
