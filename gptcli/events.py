"""How long work tells what it is doing, without knowing a screen. `gptcli.cli.console` draws it."""

from __future__ import annotations


class Events:
    """Receives what long work reports. This base class is silent; a command passes one that
    draws.
    """

    def info(self, text: str) -> None:
        """Something worth a line of its own."""

    def warn(self, text: str) -> None:
        """Something the user should act on, though work goes on."""

    def progress(
        self, task: str, done: float, total: float | None = None, unit: str = "", **facts: object
    ) -> None:
        """`done` of `total` units of `task`; `facts` (loss=3.1) are shown beside it. Cheap: call it
        as often as you like.
        """

    def finish(self, task: str) -> None:
        """`task` is over; its bar goes."""


SILENT = Events()
