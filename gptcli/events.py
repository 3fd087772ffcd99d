"""Progress and messages of long work, independent of a screen. `gptcli.cli.console` draws them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from gptcli.errors import name_parameters


class Events:
    """Receiver of reports from long work.

    This base class is silent; commands pass one that draws. A subclass overrides what it shows, and
    gets texts whose parameters are named for its reader: the core writes `{option:n_ctx}`, which
    arrives as n_ctx, or as `spell` writes it.
    """

    spell: Callable[[str], str] = staticmethod(str)
    """Spelling of a parameter's name in texts."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("info", "warn"):
            if name in cls.__dict__:
                setattr(cls, name, _spelled(cls.__dict__[name]))

    def info(self, text: str) -> None:
        """Report something worth a line."""

    def warn(self, text: str) -> None:
        """Report something that the user should act on, while work continues."""

    def progress(
        self, task: str, done: float, total: float | None = None, unit: str = "", **facts: object
    ) -> None:
        """Report that `done` of `total` units of `task` are done; `facts` (loss=3.1) are shown next
        to it.

        Cheap: call it as often as you like.
        """

    def finish(self, task: str) -> None:
        """Report that `task` is over and its bar can go."""


def _spelled(report: Callable[..., None]) -> Callable[..., None]:
    """Return the method `report` of a receiver, with the parameters of its text spelled."""

    @functools.wraps(report)
    def spelled(self: Events, text: str, *args: Any, **options: Any) -> None:
        report(self, name_parameters(text, self.spell), *args, **options)

    return spelled


SILENT = Events()
