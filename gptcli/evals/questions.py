"""Items as tokens: what stands before, what is scored, and what is left out by a stated rule.

- A context begins at position 0, with no end-of-text before it; an empty one is end-of-text alone.
- White space at the end of a context goes to what follows it, where byte-pair encoding has it (`" the"` is one token).
- Context and continuation are encoded apart, so that a choice always begins a token of its own.
- Of K shots as many are kept as fit, from the first. A question that is too long by itself loses its beginning, all its choices alike.
- Left out, and counted: an item with an empty choice or target (it would be no token), one whose answer alone is longer than the
  context, and one with an empty prompt where the tokenizer has no end-of-text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.evals.grove import Group
from gptcli.evals.item import Item
from gptcli.evals.shots import Fit, Pool, Protocol
from gptcli.evals.task import Task
from gptcli.tokenizer.tokenizer import Tokenizer

Tokens = np.ndarray  # int32: thousands of few-shot contexts are held at once
NO_TOKEN, TOO_LONG, NO_PROMPT, IS_SHOT = "an empty answer", "an answer longer than the context", "an empty prompt", "a shared shot"


@dataclass(frozen=True, slots=True)
class Question:
    """An item that can be asked. `pairs` are contexts and what is scored after each; of free form there is one, and nothing after it."""

    index: int
    item: Item
    pairs: list[tuple[Tokens, Tokens]]
    unconditional: list[tuple[Tokens, Tokens]]
    """The same choices after the task's unconditional prompt; empty where it has none."""
    shots: int
    truncated: bool
    size: int
    """Tokens that are read for it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """All that a task asks of a model."""

    questions: list[Question]
    skipped: dict[str, int]
    """Items left out, by reason."""
    pool: Pool | None


def ask(
    task: Task, items: Sequence[Item], tokenizer: Tokenizer, n_ctx: int, protocol: Protocol, path: Path | None, data: Path | None
) -> Asked:
    """The questions of `items`, in their order. Raises UsageError or InputError where the shots cannot be drawn."""
    pool = Pool(task, path, data, protocol) if protocol.shots else None
    encoder = _Encoder(task, tokenizer, n_ctx)
    fit = None if pool is None else Fit(pool, task.delimiter, encoder.length)
    shared = None
    if fit is not None and pool is not None and pool.shared is not None:  # as many as fit beside the longest question
        asked = [item for item in items if not pool.serves(item)]
        shared = min((fit.shots(pool.shared, encoder.prompt(item), encoder.room(item)) for item in asked), key=len, default=[])
    questions: list[Question] = []
    skipped: dict[str, int] = {}
    for index, item in enumerate(items):
        reason = IS_SHOT if pool is not None and pool.serves(item) else encoder.objection(item)
        if reason is not None:
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        numbers: list[int] = []
        if fit is not None and pool is not None:
            numbers = fit.shots(pool.draw(item), encoder.prompt(item), encoder.room(item)) if shared is None else shared
        before = task.instruction + (fit.text(numbers) if fit else "")
        questions.append(encoder.question(index, item, before, len(numbers)))
    return Asked(questions, skipped, pool)


class _Encoder:
    """Items of one task for one model."""

    def __init__(self, task: Task, tokenizer: Tokenizer, n_ctx: int) -> None:
        self.task, self.tokenizer, self.n_ctx = task, tokenizer, n_ctx
        self.kept: dict[str, Tokens] = {}  # continuations, and the prompts that all items share

    def length(self, text: str) -> int:
        return len(self.tokenizer.encode(text))

    def prompt(self, item: Item) -> str:
        """The longest of what may stand before the answer, without shots."""
        return self.task.instruction + max(item.contexts or (item.prompt,), key=len).rstrip()

    def room(self, item: Item) -> int:
        """Tokens that instruction, shots and prompt may take."""
        if self.task.kind == "freeform":
            return max(1, self.n_ctx - self.task.max_tokens)
        return self.n_ctx + 1 - max(len(self._piece(text)) for _, text in self._pairs(self.task.delimiter, item))

    def objection(self, item: Item) -> str | None:
        """Why the item cannot be asked."""
        if self.tokenizer.eot_id is None and not min(item.contexts or (item.prompt,), key=len).strip():
            return NO_PROMPT
        if self.task.kind == "freeform":
            return None
        lengths = [len(self._piece(text)) for _, text in self._pairs("", item)]
        if min(lengths) == 0:
            return NO_TOKEN
        return TOO_LONG if max(lengths) > self.n_ctx else None

    def question(self, index: int, item: Item, shots: str, count: int) -> Question:
        texts = self._pairs(shots, item)
        contexts = {text: self._context(text) for text, _ in texts}
        room = self.room(item)
        pairs = [(contexts[context][-room:], self._piece(text)) for context, text in texts]
        unconditional = []
        if item.unconditional:
            before = self._context(item.unconditional.rstrip())
            unconditional = [(before, text) for _, text in pairs]
        truncated = max(map(len, contexts.values())) > room
        sizes = [group(some).size() for some in (pairs, unconditional) if some and self.task.kind != "freeform"]
        size = sum(sizes) or len(pairs[0][0]) + self.task.max_tokens
        return Question(index, item, pairs, unconditional, count, truncated, size)

    def _pairs(self, shots: str, item: Item) -> list[tuple[str, str]]:
        """Context and continuation of each sequence, as text; white space that ends a context begins the continuation."""
        if item.contexts:
            pairs = [(shots + context, item.target) for context in item.contexts]
        else:
            pairs = [(shots + item.prompt, text) for text in item.choices or (item.target,)]
        if self.task.kind == "freeform":
            return [(pairs[0][0], "")]
        kept = [context.rstrip() for context, _ in pairs]
        return [(short, context[len(short) :] + text) for short, (context, text) in zip(kept, pairs, strict=True)]

    def _context(self, text: str) -> Tokens:
        if not text and self.tokenizer.eot_id is not None:
            return np.array([self.tokenizer.eot_id], dtype=np.int32)
        return np.array(self.tokenizer.encode(text), dtype=np.int32)

    def _piece(self, text: str) -> Tokens:
        if text not in self.kept:
            self.kept[text] = np.array(self.tokenizer.encode(text), dtype=np.int32)
        return self.kept[text]


def whole_text(item: Item) -> str:
    """All words of an item, its choices or its first answer among them."""
    return " ".join([item.prompt, *item.contexts, *item.choices, item.target, *(() if item.choices else item.answers[:1])])


def group(pairs: Sequence[tuple[Tokens, Tokens]]) -> Group:
    """The pairs as sequences that are read together."""
    return Group([np.concatenate(pair) for pair in pairs], [len(continuation) for _, continuation in pairs])
