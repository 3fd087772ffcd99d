"""Build requests from items: the context tokens, the tokens that are scored, and which items are
skipped.

- A context begins at position 0, with no end-of-text before it; an empty context is end-of-text
  alone.
- White space at the end of a context moves to what follows it, where byte-pair encoding has it
  (`" the"` is one token).
- Context and continuation are encoded separately, so that a choice always begins a new token.
- Of K shots as many are kept as fit, from the first. A request that is too long by itself loses the
  beginning of its context, the same number of tokens for all its choices.
- Skipped, and counted: an item with an empty choice or target (it would be no token), one whose
  answer
  alone is longer than the context, and one with an empty prompt if the tokenizer has no
  end-of-text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.evals.fewshot import FewShotConfig, FewShotPool, ShotFitter
from gptcli.evals.item import Item
from gptcli.evals.shared_prefix import Group
from gptcli.evals.task import Task
from gptcli.tokenizer.tokenizer import Tokenizer

Tokens = np.ndarray  # int32, because thousands of few-shot contexts are in memory at once
EMPTY_ANSWER, LONG_ANSWER = "an empty answer", "an answer longer than the context"
EMPTY_PROMPT, IS_SHOT = "an empty prompt", "a shared shot"


@dataclass(frozen=True, slots=True)
class Request:
    """An item as tokens."""

    index: int
    item: Item
    pairs: list[tuple[Tokens, Tokens]]
    """Contexts, each with the continuation that is scored; one with an empty continuation in free
    form.
    """
    unconditional: list[tuple[Tokens, Tokens]]
    """The same choices after the task's unconditional prompt; empty if it has none."""
    shots: int
    truncated: bool
    size: int
    """Tokens in the forward pass for this request."""


@dataclass(frozen=True, slots=True)
class RequestSet:
    """All requests of a task."""

    requests: list[Request]
    skipped: dict[str, int]
    """Skipped items by reason."""
    pool: FewShotPool | None


def build_requests(
    task: Task,
    items: Sequence[Item],
    tokenizer: Tokenizer,
    n_ctx: int,
    config: FewShotConfig,
    path: Path | None,
    data: Path | None,
) -> RequestSet:
    """Build the requests of `items`, in their order.

    Raises UsageError or InputError if the shots cannot be drawn.
    """
    pool = FewShotPool(task, path, data, config) if config.shots else None
    encoder = _Encoder(task, tokenizer, n_ctx)
    fitter = None if pool is None else ShotFitter(pool, task.delimiter, encoder.length)
    shared = None
    # as many as fit the longest request
    if fitter is not None and pool is not None and pool.shared is not None:
        others = [item for item in items if not pool.is_shared_shot(item)]
        fitting = (
            fitter.fit(pool.shared, encoder.prompt(item), encoder.capacity(item)) for item in others
        )
        shared = min(fitting, key=len, default=[])
    requests: list[Request] = []
    skipped: dict[str, int] = {}
    for index, item in enumerate(items):
        is_shot = pool is not None and pool.is_shared_shot(item)
        reason = IS_SHOT if is_shot else encoder.skip_reason(item)
        if reason is not None:
            skipped[reason] = skipped.get(reason, 0) + 1
            continue
        numbers: list[int] = []
        if fitter is not None and pool is not None:
            numbers = shared if shared is not None else _own_shots(fitter, pool, encoder, item)
        shots = task.instruction + (fitter.text(numbers) if fitter else "")
        requests.append(encoder.request(index, item, shots, len(numbers)))
    return RequestSet(requests, skipped, pool)


def _own_shots(fitter: ShotFitter, pool: FewShotPool, encoder: _Encoder, item: Item) -> list[int]:
    return fitter.fit(pool.draw(item), encoder.prompt(item), encoder.capacity(item))


class _Encoder:
    """Encodes the items of one task for one model."""

    def __init__(self, task: Task, tokenizer: Tokenizer, n_ctx: int) -> None:
        self.task, self.tokenizer, self.n_ctx = task, tokenizer, n_ctx
        self.cached: dict[str, Tokens] = {}  # continuations, and the prompts that all items share

    def length(self, text: str) -> int:
        """Return the length of `text` in tokens."""
        return len(self.tokenizer.encode(text))

    def prompt(self, item: Item) -> str:
        """Return the longest text that may precede the answer, without shots."""
        return self.task.instruction + max(item.contexts or (item.prompt,), key=len).rstrip()

    def capacity(self, item: Item) -> int:
        """Return how many tokens instruction, shots and prompt may take."""
        if self.task.kind == "freeform":
            return max(1, self.n_ctx - self.task.max_tokens)
        longest = max(
            len(self._continuation(text)) for _, text in self._pairs(self.task.delimiter, item)
        )
        return self.n_ctx + 1 - longest

    def skip_reason(self, item: Item) -> str | None:
        """Return why the item is skipped, or None if it is not."""
        if (
            self.tokenizer.eot_id is None
            and not min(item.contexts or (item.prompt,), key=len).strip()
        ):
            return EMPTY_PROMPT
        if self.task.kind == "freeform":
            return None
        lengths = [len(self._continuation(text)) for _, text in self._pairs("", item)]
        if min(lengths) == 0:
            return EMPTY_ANSWER
        return LONG_ANSWER if max(lengths) > self.n_ctx else None

    def request(self, index: int, item: Item, shots: str, count: int) -> Request:
        """Build the request of an item after `count` shots, whose text is `shots`."""
        texts = self._pairs(shots, item)
        contexts = {text: self._context(text) for text, _ in texts}
        capacity = self.capacity(item)
        pairs = [
            (contexts[context][-capacity:], self._continuation(text)) for context, text in texts
        ]
        unconditional = []
        if item.unconditional:
            prompt = self._context(item.unconditional.rstrip())
            unconditional = [(prompt, text) for _, text in pairs]
        truncated = max(map(len, contexts.values())) > capacity
        scored = [some for some in (pairs, unconditional) if some and self.task.kind != "freeform"]
        size = sum(group(some).size() for some in scored) or len(pairs[0][0]) + self.task.max_tokens
        return Request(index, item, pairs, unconditional, count, truncated, size)

    def _pairs(self, shots: str, item: Item) -> list[tuple[str, str]]:
        """Return context and continuation of each sequence as text.

        White space at the end of a context begins the continuation.
        """
        if item.contexts:
            pairs = [(shots + context, item.target) for context in item.contexts]
        else:
            pairs = [(shots + item.prompt, text) for text in item.choices or (item.target,)]
        if self.task.kind == "freeform":
            return [(pairs[0][0], "")]
        stripped = [context.rstrip() for context, _ in pairs]
        return [
            (short, context[len(short) :] + text)
            for short, (context, text) in zip(stripped, pairs, strict=True)
        ]

    def _context(self, text: str) -> Tokens:
        if not text and self.tokenizer.eot_id is not None:
            return np.array([self.tokenizer.eot_id], dtype=np.int32)
        return np.array(self.tokenizer.encode(text), dtype=np.int32)

    def _continuation(self, text: str) -> Tokens:
        if text not in self.cached:
            self.cached[text] = np.array(self.tokenizer.encode(text), dtype=np.int32)
        return self.cached[text]


def whole_text(item: Item) -> str:
    """Return all words of an item, with its choices or else its first answer."""
    answer = () if item.choices else item.answers[:1]
    return " ".join([item.prompt, *item.contexts, *item.choices, item.target, *answer])


def group(pairs: Sequence[tuple[Tokens, Tokens]]) -> Group:
    """Return the pairs as sequences that are scored in one forward pass."""
    return Group(
        [np.concatenate(pair) for pair in pairs], [len(continuation) for _, continuation in pairs]
    )
