"""Few-shot examples: K solved items, drawn anew for each item by a hash of seed and item (GPT-3,
section 2.4).

They are drawn from the task's own file for them or, if it has none, from the evaluated items
without the one in question; an item whose answer the data does not tell is never drawn. With
`shared`, the same K precede every item: this is not the paper's protocol, but their tokens are then
computed once for all items. Items that serve as shared shots are not evaluated.
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
class FewShotConfig:
    """How many solved examples precede an item, and which."""

    shots: int = 0
    seed: int = 0
    shared: bool = False


class FewShotPool:
    """The examples that the shots of a task are drawn from."""

    def __init__(
        self, task: Task, path: Path | None, data: Path | None, config: FewShotConfig
    ) -> None:
        """Read the examples.

        Raises UsageError if there are fewer than K, InputError if their file is broken.
        """
        self.path = find_shots(task, path, data)
        self.is_evaluated = self.path == path
        """Whether the examples are the evaluated items themselves, because there is no file for
        examples.
        """
        examples = [
            item
            for item in read_items(task, self.path)
            if item.shot or task.kind != "freeform" or item.answers[0]
        ]
        self.ids = [example.id for example in examples]
        self.texts = [solved(task, example) for example in examples]
        self.config = config
        self.sha256 = fingerprint(task, self.path)
        if len(self.texts) < config.shots + self.is_evaluated:
            raise UsageError(
                f"{len(self.texts)} solved examples are fewer than {{option:shots}} {config.shots} "
                "asks for",
                where=self.path,
            )
        self.shared = self._draw("", None) if config.shared else None
        self._shared_ids = (
            {self.ids[number] for number in self.shared or []} if self.is_evaluated else set()
        )

    def draw(self, item: Item) -> list[int]:
        """Return the numbers of this item's shots, in order."""
        if self.shared is not None:
            return self.shared
        return self._draw(item.id, item.id if self.is_evaluated else None)

    def is_shared_shot(self, item: Item) -> bool:
        """Tell whether the item is itself one of the shared shots."""
        return item.id in self._shared_ids

    def _draw(self, key: str, without: str | None) -> list[int]:
        digest = hashlib.sha256(f"{self.config.seed}/shots/{key}".encode()).digest()
        # one more, in case the item itself is drawn
        wanted = min(len(self.texts), self.config.shots + 1)
        numbers = permuted(np.arange(wanted), len(self.texts), int.from_bytes(digest[:8], "little"))
        return [number for number in numbers.tolist() if self.ids[number] != without][
            : self.config.shots
        ]


class ShotFitter:
    """Finds how many shots, from the first, fit into the context in front of an item."""

    def __init__(self, pool: FewShotPool, delimiter: str, length: Callable[[str], int]) -> None:
        """`length` returns the length of a text in tokens."""
        self.pool, self.delimiter, self.length = pool, delimiter, length
        self.lengths: dict[int, int] = {}

    def text(self, numbers: Sequence[int]) -> str:
        """Return the text of the shots, as it precedes an item."""
        return "".join(self.pool.texts[number] + self.delimiter for number in numbers)

    def fit(self, numbers: Sequence[int], prompt: str, capacity: int) -> list[int]:
        """Return the first of `numbers` that fit, with `prompt` after them, into `capacity` tokens.

        Lengths are added up shot by shot, then the whole text is measured.
        """
        left, kept = capacity - self.length(prompt), 0
        for number in numbers:
            if number not in self.lengths:
                self.lengths[number] = self.length(self.pool.texts[number] + self.delimiter)
            left -= self.lengths[number]
            if left < 0:
                break
            kept += 1
        # Shots may join into fewer tokens or more than they have one by one.
        while kept and self.length(self.text(numbers[:kept]) + prompt) > capacity:
            kept -= 1
        return list(numbers[:kept])
