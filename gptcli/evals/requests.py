"""Build requests from items: context tokens, scored tokens, and the items that are skipped.

- A context begins at position 0, without an end-of-text token; an empty context is end-of-text
  alone.
- Trailing white space of a context moves to its continuation, as in byte-pair encoding (`" the"` is
  one token).
- Context and continuation are encoded separately, so that a choice always begins a new token.
- Of K few-shot examples, the first that fit into the context are kept. If a request is too long
  without examples, the beginning of its context is cut, by as many tokens for all its choices.
- Items are skipped, and counted, if a choice or the target is empty (no token to score), if the
  answer alone is longer than the context, or if the prompt is empty and the tokenizer has no
  end-of-text token.
- Running text is detokenized first and begins with end-of-text, so that its first token is scored
  too. Perplexity is per unit of the original file, a word or a newline (GPT-2, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.errors import InputError, UsageError
from gptcli.evals.fewshot import FewShotConfig, FewShotPool, ShotFitter
from gptcli.evals.rolling import resolve_stride, rolling_windows
from gptcli.evals.shared_prefix import Group
from gptcli.evals.task import Task
from gptcli.evals.task_data import Item, read_items
from gptcli.text.detokenize import DETOKENIZERS
from gptcli.tokenizer.tokenizer import Tokenizer

Tokens = np.ndarray  # int32, because thousands of few-shot contexts are in memory at once
EMPTY_ANSWER, LONG_ANSWER = "an empty answer", "an answer longer than the context"
EMPTY_PROMPT, IS_SHOT = "an empty prompt", "a shared shot"


@dataclass(frozen=True, slots=True)
class Request:
    """An item as tokens."""

    index: int
    """Index of the item in its file."""
    item: Item
    """Item the request was built from."""
    pairs: list[tuple[Tokens, Tokens]]
    """Contexts, each with the continuation to score; in free form, one with an empty
    continuation.
    """
    unconditional: list[tuple[Tokens, Tokens]]
    """The same choices after the task's unconditional prompt; empty if it has none."""
    shots: int
    """Number of few-shot examples."""
    truncated: bool
    """True if the beginning of the context was cut."""
    size: int
    """Tokens in the forward pass for this request."""


@dataclass(frozen=True, slots=True)
class RequestSet:
    """All requests of a task."""

    requests: list[Request]
    """Requests in the order of their items."""
    skipped: dict[str, int]
    """Number of skipped items by reason."""
    pool: FewShotPool | None
    """Few-shot examples; None for zero-shot."""
    units: dict[str, int] = field(default_factory=dict)
    """Running text: number of units, bytes and characters of the original."""
    stride: int | None = None
    """Running text: tokens from one window to the next."""


def build_task_requests(
    task: Task,
    tokenizer: Tokenizer,
    n_ctx: int,
    path: Path | None,
    data: Path | None,
    fewshot: FewShotConfig,
    *,
    limit: int | None = None,
    stride: int | None = None,
) -> RequestSet:
    """Build the requests of a task's first `limit` items, or windows of text, for this context.

    `path` is the file of the items, or None if they are generated. Raises InputError if the data is
    broken or every item is skipped, UsageError if few-shot examples or stride are not possible.
    """
    if task.kind != "text":
        items = read_items(task, path, limit)
        request_set = build_requests(task, items, tokenizer, n_ctx, fewshot, path, data)
        if not request_set.requests:
            reasons = ", ".join(
                f"{count:,} ({reason})" for reason, count in request_set.skipped.items()
            )
            raise InputError(f"every item was skipped: {reasons}", where=path)
        return request_set
    if fewshot.shots:
        raise UsageError(
            f"{task.name} is running text and has no few-shot examples",
            field="shots",
            code="shots_on_text",
        )
    stride = resolve_stride(stride, n_ctx)
    requests, units = build_text_requests(task, read_items(task, path), tokenizer, n_ctx, stride)
    # If only some windows are scored, the units are estimated from their share of the tokens.
    if limit is not None and limit < len(requests):
        scored, total = (
            sum(len(one.pairs[0][1]) for one in some) for some in (requests[:limit], requests)
        )
        units = {name: max(1, round(count * scored / total)) for name, count in units.items()}
    return RequestSet(requests[:limit], {}, None, units, stride)


def build_text_requests(
    task: Task, items: Sequence[Item], tokenizer: Tokenizer, n_ctx: int, stride: int
) -> tuple[list[Request], dict[str, int]]:
    """Build a request for each window of the items' texts.

    Returns the requests and the number of units, bytes and characters of the original texts.
    """
    detokenizer = DETOKENIZERS[task.detokenize] if task.detokenize else None
    start = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    requests: list[Request] = []
    units = {"units": 0, "bytes": 0, "characters": 0}
    for item in items:
        text = item.target
        units["units"] += (
            detokenizer.units(text) if detokenizer else len(text.split()) + text.count("\n")
        )
        units["bytes"] += len(text.encode("utf-8"))
        units["characters"] += len(text)
        tokens = np.array(
            start + tokenizer.encode(detokenizer.detokenize(text) if detokenizer else text),
            dtype=np.int32,
        )
        for number, (begin, stop, count) in enumerate(rolling_windows(len(tokens), n_ctx, stride)):
            pair = (tokens[begin : stop - count], tokens[stop - count : stop])
            requests.append(
                Request(
                    index=len(requests),
                    item=Item(id=f"{item.id}/{number}", prompt=""),
                    pairs=[pair],
                    unconditional=[],
                    shots=0,
                    truncated=False,
                    size=stop - begin - 1,
                )
            )
    return requests, units


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

    `path` is the file of the items, `data` what the user named: a file or folder. Raises UsageError
    or InputError if the few-shot examples cannot be drawn.
    """
    pool = FewShotPool(task, path, data, config) if config.shots else None
    encoder = _Encoder(task, tokenizer, n_ctx)
    fitter = None if pool is None else ShotFitter(pool, task.delimiter, encoder.length)
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
            numbers = fitter.fit(pool.draw(item), encoder.prompt(item), encoder.capacity(item))
        examples = task.instruction + (fitter.text(numbers) if fitter else "")
        requests.append(encoder.request(index, item, examples, len(numbers)))
    return RequestSet(requests, skipped, pool)


class _Encoder:
    """Encodes the items of one task for one model."""

    def __init__(self, task: Task, tokenizer: Tokenizer, n_ctx: int) -> None:
        self.task, self.tokenizer, self.n_ctx = task, tokenizer, n_ctx
        self.encoded: dict[str, Tokens] = {}  # continuations by text

    def length(self, text: str) -> int:
        """Return the length of `text` in tokens."""
        return len(self.tokenizer.encode(text))

    def prompt(self, item: Item) -> str:
        """Return the longest text that may precede the answer, without examples."""
        return self.task.instruction + max(item.contexts or (item.prompt,), key=len).rstrip()

    def capacity(self, item: Item) -> int:
        """Return how many tokens instruction, examples and prompt may take."""
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
        if min(lengths) == 0 or item.empty:
            return EMPTY_ANSWER
        return LONG_ANSWER if max(lengths) > self.n_ctx else None

    def request(self, index: int, item: Item, examples: str, count: int) -> Request:
        """Build the request of an item after `count` examples with the text `examples`."""
        texts = self._pairs(examples, item)
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

    def _pairs(self, examples: str, item: Item) -> list[tuple[str, str]]:
        """Return context and continuation of each sequence as text.

        Trailing white space of a context moves to the continuation.
        """
        if item.contexts:
            pairs = [(examples + context, item.target) for context in item.contexts]
        else:
            pairs = [(examples + item.prompt, text) for text in item.choices or (item.target,)]
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
        if text not in self.encoded:
            self.encoded[text] = np.array(self.tokenizer.encode(text), dtype=np.int32)
        return self.encoded[text]


def item_text(item: Item) -> str:
    """Return the text of an item, with its choices or else its first answer."""
    answer = () if item.choices else item.answers[:1]
    return " ".join([item.prompt, *item.contexts, *item.choices, item.target, *answer])


def group(pairs: Sequence[tuple[Tokens, Tokens]]) -> Group:
    """Return contexts and continuations as sequences to score in one forward pass."""
    return Group(
        [np.concatenate(pair) for pair in pairs], [len(continuation) for _, continuation in pairs]
    )


def show_request(task: Task, request: Request, tokenizer: Tokenizer) -> dict[str, Any]:
    """Return what the model reads for an item: texts, and the tokens they are encoded as.

    `contexts` and `continuations` have an entry per choice; of a free-form item there is one,
    without continuation.
    """
    contexts = [context.tolist() for context, _ in request.pairs]
    continuations = [tokens.tolist() for _, tokens in request.pairs]
    if all(context == contexts[0] for context in contexts):
        contexts = contexts[:1]
    shown: dict[str, Any] = {
        "contexts": [tokenizer.decode(tokens) for tokens in contexts],
        "context_tokens": contexts,
        "continuations": [tokenizer.decode(tokens) for tokens in continuations],
        "continuation_tokens": continuations,
    }
    if request.unconditional:
        tokens = request.unconditional[0][0].tolist()
        shown |= {"unconditional_context": tokenizer.decode(tokens)}
    if task.kind == "freeform":
        shown = {name: shown[name] for name in ("contexts", "context_tokens")}
        shown["accepted"] = list(request.item.answers)
    return shown
