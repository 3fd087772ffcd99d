"""The run's figures in TensorBoard, beside metrics.jsonl."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from gptcli.errors import UsageError, install_hint, nearest
from gptcli.runs.metrics import Line

TRACKERS = ("tensorboard",)


def check_tracker(name: str) -> None:
    """Raises UsageError where there is none of this name, or it is not installed."""
    if name not in TRACKERS:
        raise UsageError(
            f"unknown tracker {name!r}",
            field="track",
            code="unknown_tracker",
            hint=nearest(name, TRACKERS),
        )
    if importlib.util.find_spec("tensorboard") is None:
        raise UsageError(
            "TensorBoard is not installed",
            field="track",
            code="not_installed",
            hint=install_hint("tensorboard"),
        )


class TensorBoard:
    """Writes RUN/tensorboard."""

    def __init__(self, out: Path, *, before: int) -> None:
        """Of what an earlier process wrote, the steps below `before` stay, and the rest is
        hidden.
        """
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(Path(out) / "tensorboard"), purge_step=before)

    def write(self, line: Line) -> None:
        """A metrics line's numbers, at its step."""
        for name, value in line.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self.writer.close()
