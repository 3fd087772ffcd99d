"""`metrics.jsonl`: a line a step, and other logs of the kind. After a resume they read as if nothing had happened."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

from gptcli import strict_json
from gptcli.errors import InputError
from gptcli.files import atomic_write, parse_json

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
Line = dict[str, Any]


class MetricsLog:
    """Appends lines; each is with the system when `write` returns, so that a killed process loses none."""

    def __init__(self, out: Path, *, before: int = 0, name: str = METRICS) -> None:
        """Keeps the lines of steps below `before`, and cuts the rest off."""
        self.path = Path(out) / name
        kept = [line for line in read_lines(self.path) if line["step"] < before]
        with atomic_write(self.path, "w") as file:
            file.writelines(strict_json.dumps(line, ascii_only=True) + "\n" for line in kept)

    def write(self, line: Line) -> None:
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(strict_json.dumps(line, ascii_only=True) + "\n")

    def sync(self) -> None:
        """Bring all lines to disk: a checkpoint that outlives a power cut must find those before it."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())


def read_metrics(out: Path) -> list[Line]:
    """The lines of a run folder so far."""
    return read_lines(Path(out) / METRICS)


def read_lines(path: Path) -> list[Line]:
    """The lines of a JSONL file; none where it does not exist. What a killed process or a lost disk block left is passed over: a last
    line without an end, and any that is no object with a step."""
    if not path.is_file():
        return []
    found = []
    for data in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(InputError):
            line = parse_json(data, path)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append(line)
    return found
