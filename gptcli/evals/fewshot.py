"""Few-shot examples: K solved items, drawn for each item by a hash of seed and item id.

Source: GPT-3, section 2.4. They are drawn from the task's file of examples or, if it has none, from
the evaluated items except the one in question; an item without a known answer is never drawn. With
`shared`, the same K examples precede every item: this is not the paper's protocol, but their tokens
are computed only once. Items that serve as shared examples are not evaluated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.errors import UsageError
from gptcli.evals.task import Task
from gptcli.evals.task_data import Item, find_examples, fingerprint, format_example, read_items
from gptcli.shards.order import feistel_permutation


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotConfig:
    """Few-shot configuration."""

    shots: int = 0
    """Number of examples in front of each item, K."""
    seed: int = 0
    """Random seed of the draw."""
    shared: bool = False
    """True if all items have the same examples."""


class FewShotPool:
    """Solved items that the few-shot examples of a task are drawn from."""

    def __init__(
        self, task: Task, path: Path | None, data: Path | None, config: FewShotConfig
    ) -> None:
        """Read the examples.

        Raises UsageError if there are fewer than K, InputError if their file is broken.
        """
        self.path = find_examples(task, path, data)
        self.is_evaluated = self.path == path
        """True if the pool is the evaluated items, because there is no file of examples."""
        examples = [
            item
            for item in read_items(task, self.path)
            if item.shot or task.kind != "freeform" or item.answers[0]
        ]
        self.ids = [example.id for example in examples]
        self.texts = [format_example(task, example) for example in examples]
        self.config = config
        self.sha256 = fingerprint(task, self.path)
        if len(self.texts) < config.shots + self.is_evaluated:
            raise UsageError(
                f"{{option:shots}} {config.shots} needs more few-shot examples than the "
                f"{len(self.texts)} available",
                where=self.path,
            )
        self.shared = self._draw("", None) if config.shared else None
        self._shared_ids = (
            {self.ids[number] for number in self.shared or []} if self.is_evaluated else set()
        )

    def draw(self, item: Item) -> list[int]:
        """Return the indices of this item's examples in the pool, in order."""
        if self.shared is not None:
            return self.shared
        return self._draw(item.id, item.id if self.is_evaluated else None)

    def is_shared_shot(self, item: Item) -> bool:
        """Return True if the item is one of the shared examples."""
        return item.id in self._shared_ids

    def _draw(self, key: str, without: str | None) -> list[int]:
        digest = hashlib.sha256(f"{self.config.seed}/shots/{key}".encode()).digest()
        # One more, in case the item itself is drawn.
        wanted = min(len(self.texts), self.config.shots + 1)
        numbers = feistel_permutation(
            np.arange(wanted), len(self.texts), int.from_bytes(digest[:8], "little")
        )
        return [number for number in numbers.tolist() if self.ids[number] != without][
            : self.config.shots
        ]


class ShotFitter:
    """Selects the examples that fit into the context in front of an item, from the first."""

    def __init__(self, pool: FewShotPool, delimiter: str, length: Callable[[str], int]) -> None:
        """Prepare to fit examples separated by `delimiter`.

        `length` returns the length of a text in tokens.
        """
        self.pool, self.delimiter, self.length = pool, delimiter, length
        self.lengths: dict[int, int] = {}

    def text(self, numbers: Sequence[int]) -> str:
        """Return the text of examples as it precedes an item."""
        return "".join(self.pool.texts[number] + self.delimiter for number in numbers)

    def fit(self, numbers: Sequence[int], prompt: str, capacity: int) -> list[int]:
        """Return the first of `numbers` that fit into `capacity` tokens, with `prompt` after them.

        The lengths of single examples are added, then the length of the whole text is checked.
        """
        left, kept = capacity - self.length(prompt), 0
        for number in numbers:
            if number not in self.lengths:
                self.lengths[number] = self.length(self.pool.texts[number] + self.delimiter)
            left -= self.lengths[number]
            if left < 0:
                break
            kept += 1
        # The whole text may have fewer or more tokens than its parts.
        while kept and self.length(self.text(numbers[:kept]) + prompt) > capacity:
            kept -= 1
        return list(numbers[:kept])
