"""Loss, perplexity and bits per byte of running text, and the unigram entropy of the same tokens to
hold them against.

The text is read in windows of n_ctx tokens, each starting `stride` tokens after the one before, and
every token but the first is scored once, in the first window that holds it. With stride = n_ctx,
tokens early in a window have little context; a smaller stride gives each at least n_ctx - stride
tokens of it, for n_ctx / stride times the work, and a lower loss: figures compare only at the same
stride.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gptcli.errors import InputError, RunError, UsageError
from gptcli.evals.loglikelihood import BATCH_TOKENS, LogLikelihoodScorer, batches
from gptcli.evals.shared_prefix import Group
from gptcli.events import SILENT, Events
from gptcli.model.transformer import GPT
from gptcli.shards.loader import TokenStream


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReport:
    name: str
    tokens: int
    """Scored; end-of-text tokens among them."""
    bytes: int
    """UTF-8 bytes that the scored tokens spell; an end-of-text spells none."""
    windows: int
    n_ctx: int
    stride: int
    loss: float
    """Nats per token."""
    loss_stderr: float | None
    """Of the mean over windows, taken as independent; None for a single window."""
    perplexity: float
    """Per token of this tokenizer: exp(loss)."""
    bits_per_byte: float | None
    """All the loss, that of end-of-text too, over all the bytes; None where the tokens spell
    none.
    """
    unigram_entropy: float
    """Nats per token of the best model that knows only how frequent each token is in this very
    text.
    """


def stride_of(stride: int | None, n_ctx: int) -> int:
    """Tokens from one window to the next, n_ctx where not given. Raises UsageError for one outside
    1 to n_ctx.
    """
    if stride is not None and not 1 <= stride <= n_ctx:
        raise UsageError(
            f"{stride} is out of range",
            field="stride",
            code="stride_out_of_range",
            hint=f"from 1 to the model's context, {n_ctx}",
        )
    return n_ctx if stride is None else stride


def windows(length: int, n_ctx: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, stop, count): the window tokens[start:stop], of which the last `count` are scored and
    the last is never an input.
    """
    start, scored = 0, 1
    while scored < length:
        stop = min(start + n_ctx + 1, length)
        yield start, stop, stop - scored
        start, scored = start + stride, stop


def evaluate_loss(
    model: GPT,
    tokens: TokenStream | np.ndarray,
    byte_lengths: np.ndarray,
    *,
    name: str,
    stride: int | None = None,
    limit: int | None = None,
    batch_size: int | None = None,
    events: Events = SILENT,
) -> LossReport:
    """The loss on `tokens`, read in windows `stride` apart (n_ctx if None), the first `limit` of
    them; the result is the same for any `batch_size` but for rounding. `byte_lengths` is the table
    of `token_bytes`.

    Raises UsageError for a stride outside 1 to n_ctx, InputError for fewer than two tokens,
    RunError where the loss is not a number.
    """
    n_ctx = model.config.n_ctx
    stride = stride_of(stride, n_ctx)
    if len(tokens) < 2:
        raise InputError("too short: the loss needs at least two tokens", where=name)
    spans = list(windows(len(tokens), n_ctx, stride))[:limit]
    losses: list[float] = []
    frequency = np.zeros(model.config.vocab_size, dtype=np.int64)
    scorer = LogLikelihoodScorer(model, events=events)
    for batch in batches(
        [n_ctx] * len(spans), batch_size, BATCH_TOKENS[model.wte.weight.device.type]
    ):
        rows = [tokens[start:stop] for start, stop, _ in spans[batch.start : batch.stop]]
        counts = [count for _, _, count in spans[batch.start : batch.stop]]
        groups = [Group([row], [count]) for row, count in zip(rows, counts, strict=True)]
        for row, count, [scored] in zip(rows, counts, scorer.score(groups), strict=True):
            losses.append(float(-scored.log_probs.sum(dtype=np.float64)))
            frequency += np.bincount(row[-count:], minlength=len(frequency))
        events.progress(name, batch.stop, len(spans), "windows")
    events.finish(name)

    loss_W, count_W = np.array(losses), np.array([count for _, _, count in spans])
    total = int(count_W.sum())
    loss = float(loss_W.sum()) / total
    if not loss < 700:  # exp overflows beyond; NaN too
        raise RunError(f"the loss is {loss}", where=name, hint="the model's weights are broken")
    n_bytes = int(frequency @ byte_lengths)
    return LossReport(
        name=name,
        tokens=total,
        bytes=n_bytes,
        windows=len(spans),
        n_ctx=n_ctx,
        stride=stride,
        loss=loss,
        loss_stderr=_stderr(loss_W, count_W, loss),
        perplexity=math.exp(loss),
        bits_per_byte=loss * total / math.log(2) / n_bytes if n_bytes else None,
        unigram_entropy=_entropy(frequency),
    )


def _stderr(loss_W: np.ndarray, count_W: np.ndarray, loss: float) -> float | None:
    """The standard error of a ratio of sums over W windows, the last of which may be shorter
    (Cochran 1977, section 2.11).
    """
    W = len(loss_W)
    if W < 2:
        return None
    return float(np.sqrt(((loss_W - loss * count_W) ** 2).sum() * W / (W - 1)) / count_W.sum())


def _entropy(frequency: np.ndarray) -> float:
    share = frequency[frequency > 0] / frequency.sum()
    return float((share * np.log(1 / share)).sum())
