"""How reports of long work look: a live bar on a terminal, one plain line every few seconds elsewhere; always on stderr."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from gptcli.events import Events

PLAIN_EVERY = 5.0  # seconds between plain lines
LIVE_EVERY = 0.1


class ConsoleEvents(Events):
    """Draws events on stderr."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()
        self._started: dict[str, tuple[float, float]] = {}
        self._shown: dict[str, float] = {}
        self._bar = False

    def info(self, text: str) -> None:
        self._clear()
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self.info(f"warning: {text}")

    def progress(self, task: str, done: float, total: float | None = None, unit: str = "", **facts: object) -> None:
        now = time.monotonic()
        since, first = self._started.setdefault(task, (now, done))
        every = LIVE_EVERY if self.live else PLAIN_EVERY
        last = self._shown.setdefault(task, now if not self.live else -1e9)
        if now - last < every and not (done == total and self.live):
            return
        self._shown[task] = now
        rate = (done - first) / (now - since) if now > since else 0.0
        line = f"{task}: {_amount(done)}"
        if total:
            line = f"{task}: {done / total:4.0%}  {_amount(done)}/{_amount(total)}"
        line += f" {unit}" if unit else ""
        line += "".join(f"  {name.replace('_', ' ')} {_fact(value)}" for name, value in facts.items())
        if rate > 0:
            line += f"  {_amount(rate)} {unit}/s" if "tokens_per_second" not in facts else ""
            line += f"  {duration((total - done) / rate)} left" if total and done < total else ""
        if self.live:
            self._draw(line, done / total if total else None)
        else:
            print(line, file=sys.stderr, flush=True)

    def finish(self, task: str) -> None:
        self._clear()
        self._started.pop(task, None)
        self._shown.pop(task, None)

    def _draw(self, line: str, share: float | None) -> None:
        import shutil

        width = shutil.get_terminal_size().columns
        bar = ""
        if share is not None and width > len(line) + 14:
            cells = min(24, width - len(line) - 4)
            filled = round(share * cells)
            bar = "━" * filled + "╌" * (cells - filled) + " "
        print(f"\r\x1b[2K{(bar + line)[: width - 1]}", end="", file=sys.stderr, flush=True)
        self._bar = True

    def _clear(self) -> None:
        if self._bar:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self._bar = False


def print_json(command: str, report: dict[str, Any]) -> None:
    """The machine-readable form of a report: one JSON object on stdout."""
    print(json.dumps({"schema": f"gpt.{command}/1", **report}, ensure_ascii=False))


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min, 4 d 3 h."""
    seconds = int(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    if seconds < 86400:
        return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    return f"{seconds // 86400} d {seconds % 86400 // 3600} h"


def _amount(value: float) -> str:
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):.4g}{suffix}"
    return f"{value:.4g}"


def _fact(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
