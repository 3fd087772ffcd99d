"""Solved examples before a question: K of them, drawn anew for each item by a hash of seed and item (GPT-3, section 2.4).

Drawn from the task's own file for them, or, where there is none, from the questions themselves without the one that is asked; an item
whose answer the set does not tell is never one. Or the same K for every item ("shared"): not the paper's protocol, but their tokens are
then read once for all items; items that serve as shots are not asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.errors import UsageError
from gptcli.evals.item import Item
from gptcli.evals.task import Task
from gptcli.evals.task_data import find_shots, fingerprint, read_items, solved
from gptcli.shards.order import permuted


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How many solved examples, and which."""

    shots: int = 0
    seed: int = 0
    shared: bool = False


class Pool:
    """What the shots of a task are drawn from."""

    def __init__(self, task: Task, path: Path | None, data: Path | None, protocol: Protocol) -> None:
        """Raises UsageError where it holds fewer than K examples, InputError where its file is broken."""
        self.path = find_shots(task, path, data)
        self.own = self.path == path
        """There is no file for them: they come from the questions' own."""
        examples = [item for item in read_items(task, self.path) if item.shot or task.kind != "freeform" or item.answers[0]]
        self.ids = [example.id for example in examples]
        self.texts = [solved(task, example) for example in examples]
        self.protocol = protocol
        self.sha256 = fingerprint(task, self.path)
        if len(self.texts) < protocol.shots + self.own:
            raise UsageError(f"{len(self.texts)} solved examples are fewer than --shots {protocol.shots} asks for", where=self.path)
        self.shared = self._draw("", None) if protocol.shared else None
        self._served = {self.ids[number] for number in self.shared or []} if self.own else set()

    def draw(self, item: Item) -> list[int]:
        """The numbers of this item's shots, in order."""
        return self._draw(item.id, item.id if self.own else None) if self.shared is None else self.shared

    def serves(self, item: Item) -> bool:
        """Whether the item is itself one of the shots that all share."""
        return item.id in self._served

    def _draw(self, key: str, without: str | None) -> list[int]:
        digest = hashlib.sha256(f"{self.protocol.seed}/shots/{key}".encode()).digest()
        wanted = min(len(self.texts), self.protocol.shots + 1)  # one more, for where the item itself is among them
        numbers = permuted(np.arange(wanted), len(self.texts), int.from_bytes(digest[:8], "little"))
        return [number for number in numbers.tolist() if self.ids[number] != without][: self.protocol.shots]


class Fit:
    """How many shots, from the first, fit into the context beside a question."""

    def __init__(self, pool: Pool, delimiter: str, length: Callable[[str], int]) -> None:
        self.pool, self.delimiter, self.length = pool, delimiter, length
        self.lengths: dict[int, int] = {}

    def text(self, numbers: Sequence[int]) -> str:
        """The shots as they stand before a question."""
        return "".join(self.pool.texts[number] + self.delimiter for number in numbers)

    def shots(self, numbers: Sequence[int], prompt: str, room: int) -> list[int]:
        """The first of `numbers` that leave room for `prompt` in `room` tokens; counted a piece at a time, then as a whole."""
        left, kept = room - self.length(prompt), 0
        for number in numbers:
            if number not in self.lengths:
                self.lengths[number] = self.length(self.pool.texts[number] + self.delimiter)
            left -= self.lengths[number]
            if left < 0:
                break
            kept += 1
        while kept and self.length(self.text(numbers[:kept]) + prompt) > room:  # pieces may join into fewer tokens or more
            kept -= 1
        return list(numbers[:kept])
