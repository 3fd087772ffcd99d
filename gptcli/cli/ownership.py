"""The outputs that a command owns, from when it takes their locks until it ends."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_held = contextlib.ExitStack()


def hold(lock: AbstractContextManager[None]) -> None:
    """Take a lock of `gptcli.locks` for the rest of a command that is `releasing`. Raises what
    taking it raises.
    """
    _held.enter_context(lock)


def releasing(command: Callable[P, R]) -> Callable[P, R]:
    """Give back what `command` holds when it ends: done, failed or interrupted."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _held:
            return command(*args, **kwargs)

    return run
