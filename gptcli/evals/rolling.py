"""Rolling log-likelihood: loss, perplexity and bits per byte of running text.

The text is read in windows of n_ctx tokens, each of which starts `stride` tokens after the previous
one. Every token but the first is scored once, in the first window that contains it. With stride =
n_ctx, tokens early in a window have little context. A smaller stride gives each token at least
n_ctx - stride tokens of context, at n_ctx / stride times the cost, and so a lower loss: compare
losses only at the same stride.

Shapes: W windows, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptcli.encodings import no_text
from gptcli.errors import InputError, RunError, UsageError
from gptcli.evals.loglikelihood import BATCH_TOKENS, LogLikelihoodScorer, batches
from gptcli.evals.shared_prefix import Group
from gptcli.evals.stderr import ratio_spread
from gptcli.events import SILENT, Events
from gptcli.files import read_exact_text, read_toml
from gptcli.model.source import CHECKPOINTS, RUN_TOML
from gptcli.model.transformer import GPT
from gptcli.shards.manifest import read_manifest
from gptcli.shards.order import TokenStream, open_split
from gptcli.tokenizer.tokenizer import Tokenizer

MAX_NATS = 700  # exp overflows beyond


@dataclass(frozen=True, slots=True, kw_only=True)
class LossReport:
    """Loss of one text, with the conditions it was measured under."""

    name: str
    """Name of the text."""
    tokens: int
    """Number of scored tokens, end-of-text tokens included."""
    bytes: int
    """Number of UTF-8 bytes of the scored tokens; an end-of-text token has none."""
    windows: int
    """Number of windows."""
    n_ctx: int
    """Tokens in a full window."""
    stride: int
    """Tokens from one window to the next."""
    loss: float
    """Mean negative log-likelihood in nats per token."""
    loss_stderr: float | None
    """Standard error of the loss over windows taken as independent; None for a single window."""
    perplexity: float
    """Perplexity per token of this tokenizer, exp(loss)."""
    bits_per_byte: float | None
    """Total loss in bits, end-of-text tokens included, per byte; None if there are no bytes."""
    unigram_entropy: float
    """Entropy in nats per token of the token frequencies of this same text."""


def resolve_stride(stride: int | None, n_ctx: int) -> int:
    """Return `stride`, or n_ctx if it is None.

    Raises UsageError if it is not between 1 and n_ctx.
    """
    if stride is not None and not 1 <= stride <= n_ctx:
        raise UsageError(
            f"{stride} is out of range",
            field="stride",
            code="stride_out_of_range",
            hint=f"a whole number from 1 to {n_ctx}, the model's context length",
        )
    return n_ctx if stride is None else stride


def rolling_windows(length: int, n_ctx: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """Yield (start, stop, count) of each window over `length` tokens.

    The window is tokens[start:stop], of which the last `count` are scored; the last token is
    predicted but never read.
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
    """Return the loss on `tokens`, read in windows `stride` tokens apart (n_ctx if None).

    `limit` stops after that many windows; `byte_lengths` comes from `token_byte_lengths`. The
    result does not depend on `batch_size`, except for rounding. Raises UsageError for a stride
    outside 1 to n_ctx, InputError for fewer than two tokens, and RunError if the loss is not
    finite.
    """
    n_ctx = model.config.n_ctx
    stride = resolve_stride(stride, n_ctx)
    if len(tokens) < 2:
        raise InputError("too short: the loss needs at least two tokens", where=name)
    spans = list(rolling_windows(len(tokens), n_ctx, stride))[:limit]
    losses: list[float] = []
    frequency_V = np.zeros(model.config.vocab_size, dtype=np.int64)
    scorer = LogLikelihoodScorer(model, events=events)
    for batch in batches(
        [n_ctx] * len(spans), batch_size, BATCH_TOKENS[model.wte.weight.device.type]
    ):
        rows = [tokens[start:stop] for start, stop, _ in spans[batch.start : batch.stop]]
        counts = [count for _, _, count in spans[batch.start : batch.stop]]
        groups = [Group([row], [count]) for row, count in zip(rows, counts, strict=True)]
        for row, count, [score] in zip(rows, counts, scorer.score(groups), strict=True):
            losses.append(float(-score.log_probs.sum(dtype=np.float64)))
            frequency_V += np.bincount(row[-count:], minlength=len(frequency_V))
        events.progress(name, batch.stop, len(spans), "windows")
    events.finish(name)

    loss_W, count_W = np.array(losses), np.array([count for _, _, count in spans])
    total = int(count_W.sum())
    loss = float(loss_W.sum()) / total
    if not loss < MAX_NATS:  # NaN too
        raise RunError(f"the loss is {loss}", where=name, hint="the model's weights are broken")
    n_bytes = int(frequency_V @ byte_lengths)
    spread = ratio_spread(loss_W, count_W, loss)
    return LossReport(
        name=name,
        tokens=total,
        bytes=n_bytes,
        windows=len(spans),
        n_ctx=n_ctx,
        stride=stride,
        loss=loss,
        loss_stderr=None if spread is None else float(spread / count_W.sum()),
        perplexity=math.exp(loss),
        bits_per_byte=loss * total / math.log(2) / n_bytes if n_bytes else None,
        unigram_entropy=_entropy(frequency_V),
    )


def _entropy(frequency_V: np.ndarray) -> float:
    share = frequency_V[frequency_V > 0] / frequency_V.sum()
    return float((share * np.log(1 / share)).sum())


def open_streams(
    run: Path, texts: Sequence[Path], data: Path | None, tokenizer: Tokenizer, *, tasks: bool
) -> dict[str, TokenStream | np.ndarray]:
    """Return the texts to evaluate as tokens, by name.

    They are the validation split of `data`, or else of the run's own shards, and the files `texts`;
    if there are tasks, or texts without `data`, no shards are read. Raises InputError if a source
    cannot be read.
    """
    streams: dict[str, TokenStream | np.ndarray] = {}
    if not tasks and (data is not None or not texts):
        shards = data or find_run_shards(run)
        streams[f"{shards} (val)"] = open_val_split(shards, tokenizer)
    return streams | {str(path): read_text_tokens(path, tokenizer) for path in texts}


def find_run_shards(run: Path) -> Path:
    """Return the shard folder that a run was trained on, from its run.toml.

    Raises InputError if run.toml does not name one, or if the folder no longer exists.
    """
    path = run / RUN_TOML
    hint = "name a shard folder with {option:data}, or a text file with {option:text}"
    if not path.is_file() and (run / CHECKPOINTS).is_dir():
        raise InputError(
            "is an unfinished fine-tuning run; its accuracy so far is in metrics.jsonl",
            where=run,
            hint="continue it with gpt train --finetune --resume; "
            "{option:text} FILE evaluates its language model",
        )
    if not path.is_file():
        raise InputError(
            f"has no {RUN_TOML} that names its validation shards", where=run, hint=hint
        )
    try:
        data = read_toml(path).get("data")
    except InputError as error:
        raise InputError(error.what, where=path, hint=hint) from None
    if not isinstance(data, str):
        raise InputError("has no key 'data' with a shard folder", where=path, hint=hint)
    if not Path(data).is_dir():
        raise InputError(f"the run's shard folder {data} does not exist", where=path, hint=hint)
    return Path(data)


def open_val_split(folder: Path, tokenizer: Tokenizer) -> TokenStream:
    """Return the verified validation split of a shard folder.

    Raises InputError if it was built with another tokenizer.
    """
    if read_manifest(folder).tokenizer_sha256 != tokenizer.sha256:
        raise InputError(
            "these shards were built with another tokenizer than the model's", where=folder
        )
    return open_split(folder, "val")


def read_text_tokens(path: Path, tokenizer: Tokenizer) -> np.ndarray:
    """Return the tokens of a text file (int64), with end-of-text in front.

    The end-of-text token gives the first token of the text a context, so that it is scored too.
    Raises InputError if the file is empty or not UTF-8.
    """
    text = read_exact_text(path)
    if not text:
        raise no_text([str(path)], "1 empty file")
    start = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    return np.array(start + tokenizer.encode(text), dtype=np.int64)


def token_byte_lengths(tokenizer: Tokenizer) -> np.ndarray:
    """Return the number of UTF-8 bytes of each token, (V,); end-of-text has none."""
    return np.array(
        [
            0 if token == tokenizer.eot_id else len(tokenizer.decode_bytes([token]))
            for token in range(tokenizer.vocab_size)
        ]
    )
