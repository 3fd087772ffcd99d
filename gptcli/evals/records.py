"""What was measured of each item, on disk as soon as it is: a killed evaluation goes on where it
stopped.

`TASK.jsonl` in the folder of records: a header line that says of what work this is, then a line an
item. Several processes write a file each (`TASK.jsonl.1`), and any number of them may go on. When
all is done, one file holds every item in order.

Items are scored in batches that depend on the work alone, and a batch of which an item is missing
is scored again as a whole: so that what is measured after a kill is the same to the last bit,
whatever the number of processes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gptcli import strict_json
from gptcli.errors import InputError, UsageError
from gptcli.files import PARTIAL, atomic_write, parse_json, sha256
from gptcli.model.source import UNFINISHED, WEIGHTS, ModelSource

Record = dict[str, Any]
INDEX = "index"  # of the item in its file: every record has it


class Records:
    """The records of one task. Without a folder they stay in memory."""

    def __init__(
        self, folder: Path | None, task: str, work: Mapping[str, Any], rank: int = 0
    ) -> None:
        """`work`: whatever decides what is measured. Raises UsageError where the folder has records
        of other work.
        """
        self.folder, self.task, self.rank, self.header = (
            folder,
            task,
            rank,
            strict_json.dumps({"format": 1, "task": task, **work}),
        )
        self.done: dict[int, Record] = {}
        self.path: Path | None = None
        if folder is None:
            return
        self.path = folder / (f"{task}.jsonl.{rank}" if rank else f"{task}.jsonl")
        for path in self._files():
            lines = whole_lines(path)
            if lines and lines[0] != self.header:
                raise UsageError(
                    "these records are of another model, data or options",
                    where=path,
                    hint=f"{{option:force}} starts over; {self._differs(lines[0], path)}",
                )
            for number, line in enumerate(lines[1:], 2):
                record = parse_json(line.encode(), f"{path}:{number}")
                if not isinstance(record, dict) or not isinstance(record.get(INDEX), int):
                    raise InputError(
                        "not a record of an evaluation",
                        where=f"{path}:{number}",
                        hint="{option:force} starts over",
                    )
                self.done[record[INDEX]] = record
        own = whole_lines(self.path)
        with atomic_write(self.path, "w") as file:  # without what a kill left of a last line
            file.writelines(f"{line}\n" for line in own or [self.header])

    def add(self, records: Sequence[Record]) -> None:
        """The records of a batch: on disk when this returns."""
        self.done.update((record[INDEX], record) for record in records)
        if self.path is not None:
            with open(self.path, "a", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{_line(record)}\n" for record in records)
                file.flush()
                os.fsync(file.fileno())

    def has(self, numbers: Iterable[int]) -> bool:
        return all(number in self.done for number in numbers)

    def finish(self, others: Iterable[Record] = ()) -> list[Record]:
        """All records in the order of the items, those of the other processes among them; on disk,
        one file holds them.
        """
        self.done.update((record[INDEX], record) for record in others)
        records = [self.done[number] for number in sorted(self.done)]
        if self.folder is not None and self.rank == 0:
            with atomic_write(self.folder / f"{self.task}.jsonl", "w") as file:
                file.write(self.header + "\n")
                file.writelines(f"{_line(record)}\n" for record in records)
            for path in self._files()[1:]:
                path.unlink()
        return records

    def _files(self) -> list[Path]:
        """The task's file, and those of further processes."""
        assert self.folder is not None
        first = self.folder / f"{self.task}.jsonl"
        parts = sorted(
            path
            for path in self.folder.glob("*")
            if path.stem == first.name and path.suffix[1:].isdigit()
        )
        return [first, *parts]

    def _differs(self, line: str, path: Path) -> str:
        """Which entries of an earlier header are not this work's."""
        before, now = parse_json(line.encode(), f"{path}:1"), json.loads(self.header)
        if not isinstance(before, dict):
            return "it does not begin as records do"
        step = before.get("step")
        again = (
            ""
            if step in (None, now.get("step"))
            else f"; {{option:checkpoint}} {step} goes on with them, as long as that checkpoint is "
            "there"
        )
        return (
            "different: "
            + ", ".join(
                key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
            )
            + again
        )


def claim_records(folder: Path, *, resume: bool, force: bool) -> None:
    """The overwrite rule for a folder of records: those that are there need `resume`, or `force`,
    which removes them. What a kill left of an interrupted write is swept away. Raises UsageError.
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError("is not a folder", where=folder, hint="name another with {option:records}")
    found = sorted([*folder.glob("*.jsonl"), *folder.glob("*.jsonl.[0-9]*")])
    if found and not (resume or force):
        raise UsageError(
            "holds the records of an evaluation",
            where=folder,
            hint="{option:resume} goes on with it, {option:force} starts over",
        )
    for path in [*folder.glob(f".*{PARTIAL}"), *(found if force else [])]:
        path.unlink()


def weights_sha256(source: ModelSource) -> str:
    """A fingerprint of the weights that a model was read from."""
    if source.digest is not None:
        return source.digest
    files = sorted(
        path for pattern in ("*.safetensors", "*.npy") for path in source.folder.glob(pattern)
    )
    if (source.folder / WEIGHTS).is_file():
        files = [path for path in files if path.name != UNFINISHED]
    return hashlib.sha256(
        "".join(f"{path.name} {sha256(path)}\n" for path in files).encode()
    ).hexdigest()


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that a kill may have cut short; none where there is no file."""
    if not path.is_file():
        return []
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]


def _line(record: Record) -> str:
    return strict_json.dumps(record)
