"""Progress and messages of long work, independent of a screen. `gptcli.cli.console` draws them."""

from __future__ import annotations


class Events:
    """Receiver of reports from long work.

    This base class is silent; commands pass one that draws. Texts name parameters as
    `{option:NAME}`, which `gptcli.errors.name_parameters` turns into what a reader expects.
    """

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


SILENT = Events()
