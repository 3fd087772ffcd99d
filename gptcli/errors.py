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
    """One clear message: `what` is wrong, `where` (file, line or option), and what to do
    (`hint`).
    """

    exit_code = 1

    def __init__(
        self, what: str, *, where: str | Path | None = None, hint: str | None = None
    ) -> None:
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


def close_to(word: str, choices: Iterable[str]) -> list[str]:
    """Return up to three of `choices` that `word` may be a misspelling of, closest first.

    Case does not count, nor do the dashes that an option begins with.
    """
    plain = {choice: choice.lower().lstrip("-") for choice in choices}
    word = word.lower().lstrip("-")
    near = [choice for choice, text in plain.items() if _is_near(word, text)]
    return sorted(near, key=lambda choice: -_likeness(word, plain[choice]))[:3]


def _is_near(word: str, choice: str) -> bool:
    """Tell whether `word` is the beginning of `choice`, one edit away from it, or much like it."""
    if min(len(word), len(choice)) >= 3 and (choice.startswith(word) or _is_one_edit(word, choice)):
        return True
    return _likeness(word, choice) >= 0.8


def _is_one_edit(a: str, b: str) -> bool:
    """Tell whether one letter was added, left out or changed, or two neighbours were swapped."""
    same = next(
        (at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )
    a, b = a[same:], b[same:]
    return a[1:] == b[1:] or a[1:] == b or a == b[1:] or (a[1::-1] == b[:2] and a[2:] == b[2:])


def _likeness(a: str, b: str) -> float:
    return difflib.SequenceMatcher(None, a, b).ratio()


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
