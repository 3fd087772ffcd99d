"""`metrics.jsonl`, with one line per step, and other logs of a run.

After a resume they have the lines of an uninterrupted run, except for the times of writing.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import deque
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli import toml_json
from gptcli.errors import InputError
from gptcli.files import atomic_write, read_text
from gptcli.model.source import METRICS
from gptcli.toml_json import parse_json

if TYPE_CHECKING:
    from gptcli.cost.scaling_forms import RunResult

MAX_MEAN_STEPS, MIN_MEAN_STEPS = 100, 5  # of a running mean of the loss
Line = dict[str, Any]


class MetricsLog:
    """Log to which lines are appended.

    The operating system has each line when `write` returns: a killed process loses none.
    """

    def __init__(
        self,
        out: Path,
        *,
        before: int = 0,
        name: str = METRICS,
        of: Iterable[Line] | None = None,
    ) -> None:
        """Open the log `name` of the run folder `out`; keep the lines of steps below `before`.

        `of` are the lines of another run, to begin with instead. Lines of METRICS get the `time` at
        which they are written.
        """
        self.path, self.timed = Path(out) / name, name == METRICS
        lines = read_lines(self.path) if of is None else of
        kept = [line for line in lines if line["step"] < before]
        self.newest = deque(kept, MAX_MEAN_STEPS)
        with atomic_write(self.path, "w") as file:
            file.writelines(toml_json.dumps(line, ascii_only=True) + "\n" for line in kept)

    def write(self, line: Line) -> None:
        """Append a line."""
        if self.timed:
            line = {**line, "time": now()}
        self.newest.append(line)
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(toml_json.dumps(line, ascii_only=True) + "\n")

    def sync(self) -> None:
        """Flush all lines to disk, so that a checkpoint never survives a power cut without them."""
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())


def now() -> str:
    """Return the time in UTC, ISO 8601 with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def window(step: int) -> int:
    """Return the number of steps of the training loss's running mean after `step` steps.

    A twentieth of them, at least 5 and at most 100.
    """
    return min(step, MAX_MEAN_STEPS, max(MIN_MEAN_STEPS, step // 20))


def smoothed_loss(lines: Iterable[Line]) -> float | None:
    """Return the mean training loss over the newest `window` steps, in nats per token.

    The last step alone may be a small remainder of the data. None if no loss was finite.
    """
    lines = list(lines)
    near: Sequence[Line] = lines[-window(lines[-1].get("step", len(lines))) :] if lines else []
    found = [
        (line["loss"], line.get("batch_tokens", 1)) for line in near if line.get("loss") is not None
    ]
    total = sum(tokens for _, tokens in found)
    return sum(loss * tokens for loss, tokens in found) / total if total else None


def read_metrics(out: Path) -> list[Line]:
    """Return the metrics of a run folder so far."""
    return read_lines(Path(out) / METRICS)


def read_lines(path: Path) -> list[Line]:
    """Return the lines of a log; none if the file does not exist.

    Lines that a killed process or a lost disk block left are skipped: an incomplete last line, and
    any line that is not an object with a step.
    """
    if not path.is_file():
        return []
    found = []
    for data in path.read_bytes().split(b"\n")[:-1]:
        with contextlib.suppress(InputError):
            line = parse_json(data, path)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                found.append(line)
    return found


def read_run_result(path: Path) -> RunResult:
    """Read a run's parameters from config.json, and its tokens and loss from metrics.jsonl.

    `path` is a run folder or its metrics.jsonl. Raises InputError.
    """
    from gptcli.cost.scaling_forms import RunResult
    from gptcli.model.hf import read_model_config
    from gptcli.model.source import not_a_model_error

    if path.is_file() and path.suffix != ".jsonl":
        raise not_a_model_error(path)
    metrics = path if path.is_file() else path / METRICS
    config = read_model_config(metrics.parent)
    tokens, loss = _final_loss(metrics)
    return RunResult(name=str(path), parameters=config.parameters, tokens=tokens, loss=loss)


def read_batch_tokens(path: Path) -> int | None:
    """Return the tokens of a run's largest step: a ramp is below it, and so is the last remainder.

    `path` is a run folder or its metrics.jsonl. None if no line has them.
    """
    found = [
        line.get("batch_tokens") for line in read_lines(path if path.is_file() else path / METRICS)
    ]
    return max((n for n in found if isinstance(n, int) and n > 0), default=None)


def _final_loss(path: Path) -> tuple[int, float]:
    """Return tokens and validation loss at the last validation of a metrics file.

    Without a validation, return all tokens and the running mean of the training loss. Raises
    InputError for a missing file, a line without tokens and loss, and a loss that is not positive.
    """
    if not path.is_file():
        raise InputError("no such run", where=path, hint="name a run folder of gpt train")
    lines: list[Line] = []
    tokens, loss, validated = 0, math.nan, False
    for number, text in enumerate(read_text(path).splitlines(), 1):
        try:
            line = json.loads(text)
            found = int(line["tokens"]), float(line.get("val_loss", line["loss"]))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise InputError(
                "not a line of metrics: it needs tokens and loss", where=f"{path}:{number}"
            ) from None
        lines.append(line)
        if "val_loss" in line or not validated:
            tokens, loss = found
            validated = validated or "val_loss" in line
    if lines and not validated:
        mean = smoothed_loss(lines)
        loss = math.nan if mean is None else mean
    if not (0 < loss < math.inf and tokens > 0):
        raise InputError("no step with a positive loss", where=path)
    return tokens, loss
