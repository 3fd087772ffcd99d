"""Few-shot examples: K solved items, drawn for each item by a hash of seed and item id.

Source: GPT-3, section 2.4. They are drawn from the task's file of examples or, if it has none, from
the evaluated items. An item is never an example of itself, wherever its content stands a second
time, and an item without a known answer is never drawn. With
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
from gptcli.evals.find_data import find_examples
from gptcli.evals.task import Task
from gptcli.evals.task_data import Item, fingerprint, format_example, read_items
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
        self.task, self.config = task, config
        self.path = find_examples(task, path, data)
        self.sha256 = fingerprint(task, self.path)
        self.is_evaluated = self.path == path or self.sha256 == fingerprint(task, path)
        """True if the pool is the evaluated items, because there is no other file of examples."""
        texts = (
            format_example(task, item)
            for item in read_items(task, self.path)
            if not item.empty and (item.shot or task.kind != "freeform" or item.answers[0])
        )
        # an example that several items share, as MultiRC's options do, is one
        self.texts = list(dict.fromkeys(texts) if task.shot else texts)
        self.numbers: dict[str, list[int]] = {}
        """Indices of the examples by their text."""
        for number, text in enumerate(self.texts):
            self.numbers.setdefault(text, []).append(number)
        if len(self.texts) < config.shots + self.is_evaluated:
            raise UsageError(
                f"{{option:shots}} {config.shots} needs more few-shot examples than the "
                f"{len(self.texts)} available",
                where=self.path,
            )
        self.shared = self._draw("", []) if config.shared else None
        self._shared_texts = {self.texts[number] for number in self.shared or []}

    def draw(self, item: Item) -> list[int]:
        """Return the indices of this item's examples in the pool, in order."""
        if self.shared is not None:
            return self.shared
        return self._draw(item.key or item.id, self._same(item))

    def is_shared_shot(self, item: Item) -> bool:
        """Return True if the item is one of the shared examples."""
        return bool(self._shared_texts) and format_example(self.task, item) in self._shared_texts

    def _same(self, item: Item) -> list[int]:
        """Return the examples with the content of an item, the item itself among them."""
        return self.numbers.get(format_example(self.task, item), [])

    def _draw(self, key: str, without: Sequence[int]) -> list[int]:
        digest = hashlib.sha256(f"{self.config.seed}/shots/{key}".encode()).digest()
        # More by those without which the item's examples are drawn.
        wanted = min(len(self.texts), self.config.shots + max(1, len(without)))
        numbers = feistel_permutation(
            np.arange(wanted), len(self.texts), int.from_bytes(digest[:8], "little")
        )
        return [number for number in numbers.tolist() if number not in without][: self.config.shots]


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
