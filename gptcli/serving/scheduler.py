"""Decode thread: samples of all requests share the rows of one decode loop per model.

A request waits in a queue of limited length until rows are free, joins between two passes, and
leaves when it is complete or its client has gone. Each sample has its own sampling parameters and
its own random generator, as in `gptcli.sampling.generate`: in fp32 a text depends on the request
and its seed, not on the other requests.

Log-probabilities are those of the model, before bias, penalties and sampling parameters.

Shapes: B sequences, T positions, C d_model, V vocabulary.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import functools
import threading
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gptcli.errors import GptError, RunError
from gptcli.events import SILENT, Events
from gptcli.model.transformer import GPT
from gptcli.numbers import counted
from gptcli.sampling.engine import Engine
from gptcli.sampling.generate import DecodeLoop, TextStream, TokenSequence, sample_tokens
from gptcli.sampling.load import Loaded
from gptcli.sampling.params import SamplingParams
from gptcli.tokenizer.tokenizer import Tokenizer

MAX_WAITING = 1024
"""Samples that may wait for a row; requests beyond them are refused."""
MAX_LOGITS_BYTES = 64 << 20
"""Bytes of fp32 logits to compute at a time for the tokens of a prompt."""


Score = tuple[float, list[tuple[int, float]]]
"""Log-probability of a token, and the most probable tokens at its position with theirs."""


class QueueFullError(RunError):
    """The samples of a request do not fit into the queue at present."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One token of the text, for the `logprobs` of a response."""

    token: int
    """Token id."""
    offset: int
    """Position in the text of the token's first character."""
    log_prob: float | None
    """Log-probability in nats; None for the first token of a text."""
    top: list[tuple[int, float]] | None
    """Most probable tokens with their log-probabilities; None for the first token of a text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOptions:
    """Options of a request that apply to each of its samples."""

    params: SamplingParams
    """Sampling parameters."""
    max_tokens: int
    """Maximum number of tokens; with 0, the prompt is only scored."""
    stops: tuple[str, ...] = ()
    """Texts that end a sample and are left out of it."""
    top: int | None = None
    """Number of most probable tokens to record at each position; None for no log-probabilities."""
    echo: bool = False
    """Begin the text with the prompt."""
    bias: Mapping[int, float] = field(default_factory=dict)
    """Number to add to the logit of a token."""
    presence_penalty: float = 0.0
    """Number to subtract from the logit of every token that has been generated."""
    frequency_penalty: float = 0.0
    """Number to subtract from the logit of a token for each time it has been generated."""


class SampleRow(TokenSequence):
    """One sample of a request: its text so far, and the entries of its tokens.

    The decode thread appends; other threads may read `text` and `entries` at any time.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        options: RowOptions,
        *,
        generator: torch.Generator,
        implied: int = 0,
    ) -> None:
        """Prepare a sample; the first `implied` tokens of the prompt are not part of its text."""
        super().__init__(
            prompt,
            max_tokens=max(1, options.max_tokens),
            generator=generator,
            stop_id=tokenizer.eot_id,
        )
        self.options, self.tokenizer, self.first = options, tokenizer, implied
        self.job: Job
        """Request that the sample belongs to."""
        self.generated = 0
        """Number of generated tokens, with a final end-of-text."""
        self.text = ""
        """Complete characters of the text so far; a prefix of the final text."""
        self.entries: list[Entry] = []
        """Tokens of the text, with log-probabilities if they are requested."""
        self.started = self.done = False
        """True after the prompt has been read, and once text and entries are complete."""
        self.next_top: list[tuple[int, float]] = []
        """Most probable tokens at the position of the next token."""
        self._stream = TextStream(options.stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._length = 0  # characters of the text that are decoded, stop strings included
        self._prompt_offsets: list[int] = []
        if options.echo:
            for token in self.prompt[implied:]:
                self._prompt_offsets.append(self._read(tokenizer.decode_bytes([token]))[0])
            known = tokenizer.decode_bytes(self.prompt[implied:])
            unfinished = self._decoder.getstate()[0]
            self._prompt_text = known[: len(known) - len(unfinished)].decode("utf-8", "replace")
        else:
            self._decoder.decode(tokenizer.decode_bytes(self.prompt[implied:][-4:]))
            unfinished = self._decoder.getstate()[0]
        # a character that begins in the prompt is completed by the first tokens
        self._stream.push(unfinished)

    def _read(self, piece: bytes) -> tuple[int, str]:
        """Return the offset of the bytes of a token, and the characters that they complete."""
        unfinished, start = self._decoder.getstate()[0], self._length
        if unfinished and piece and piece[0] & 0xC0 != 0x80:  # not continued: it is broken
            start += len(unfinished.decode("utf-8", "replace"))
        text = self._decoder.decode(piece)
        self._length += len(text)
        return start, text

    def begin(self, scores: Sequence[Score] = ()) -> None:
        """Note that the prompt has been read; `scores` are those of its tokens after the first."""
        if self.options.echo and not self.started:
            self.text = self._prompt_text
            known = [None, *scores] if self.options.top is not None else []
            for token, offset, score in zip(
                self.prompt[self.first :], self._prompt_offsets, known[self.first :], strict=False
            ):
                log_prob, top = score or (None, None)
                self.entries.append(Entry(token, offset, log_prob, top))
        self.started = True

    def append(self, token: int, log_prob: float | None = None) -> None:
        """Add the next token, its entry and the text that it completes."""
        self.begin()
        if not self.options.max_tokens:
            self.finish_reason, self.done = "length", True
            return
        super().append(token, log_prob)
        self.generated += 1
        text, offset = "", self._length
        if token != self.stop_id:
            piece = self.tokenizer.decode_bytes([token])
            offset, _ = self._read(piece)
            text = self._stream.push(piece)
        if self.finish_reason is not None:
            text += self._stream.end()
            offset = len(self.text) + len(text) if token == self.stop_id else offset
        if self._stream.stopped:
            self.finish_reason = "stop"
        if self.options.top is not None:
            self.entries.append(Entry(token, offset, log_prob, self.next_top))
        self.text += text
        if self.finish_reason is not None:
            # those of a stop string are not part of the text
            self.entries = [
                one
                for one in self.entries
                if one.offset < len(self.text) or one.token == self.stop_id
            ]
            self.done = True

    @property
    def mean_log_prob(self) -> float:
        """Mean log-probability per generated token in nats, by which best-of ranks samples."""
        return sum(self.log_probs) / max(1, len(self.log_probs))


class Job:
    """Samples of one request; `event` is set on `loop` whenever there is something new."""

    def __init__(self, rows: Sequence[SampleRow], *, streams: bool) -> None:
        """Begin a request within the running event loop. `streams` asks for news at every token."""
        self.rows, self.streams = list(rows), streams
        self.loop, self.event = asyncio.get_running_loop(), asyncio.Event()
        self.cancelled = False
        self.error: Exception | None = None
        for row in rows:
            row.job = self

    @property
    def done(self) -> bool:
        """True once every sample is complete, or one has failed."""
        return self.error is not None or all(row.done for row in self.rows)

    async def finished(self) -> None:
        """Wait until the request is done."""
        while not self.done:
            await self.event.wait()
            self.event.clear()

    def wake(self) -> None:
        """Set the event, from any thread."""
        with contextlib.suppress(RuntimeError):  # the event loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self.event.set)


class Scheduler(threading.Thread):
    """Decode thread of one or several models; `batch_size` samples of each are decoded at once.

    Raises RunError if a cache does not fit into memory.
    """

    def __init__(
        self,
        models: Sequence[Loaded],
        *,
        batch_size: int = 16,
        max_waiting: int = MAX_WAITING,
        events: Events = SILENT,
    ) -> None:
        """Allocate the caches."""
        super().__init__(name="gpt-decode", daemon=True)
        self.models, self.max_waiting, self.events = list(models), max_waiting, events
        self.loops = [
            DecodeLoop(
                Engine(
                    one.model,
                    batch_size,
                    # on a GPU the pass is recorded for all rows
                    compiled=None if one.device.type == "cuda" else False,
                ),
                _choose,
                functools.partial(_score_prompt, one.model),
            )
            for one in models
        ]
        self.queues: list[deque[SampleRow]] = [deque() for _ in models]
        self._changed = threading.Condition()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Number of samples that wait for a row."""
        return sum(map(len, self.queues))

    @property
    def requests(self) -> int:
        """Number of requests that wait or are decoded. Takes no lock."""
        rows = [row for loop in self.loops for row in loop.running]
        rows += [row for queue in self.queues for row in [*queue]]
        return len({id(row.job) for row in rows if not row.job.cancelled})

    def submit(self, job: Job, model: int) -> None:
        """Put the samples of a request into the queue of a model, from any thread.

        Raises QueueFullError if they do not fit into it.
        """
        with self._changed:
            if self.waiting + len(job.rows) > self.max_waiting:
                raise QueueFullError(
                    f"waiting already: {counted(self.waiting, 'sample')} of at most "
                    f"{self.max_waiting:,}",
                    hint="try again in a moment",
                )
            self.queues[model].extend(job.rows)
            self._changed.notify()

    def cancel(self, job: Job) -> None:
        """Drop the samples of a request before the next pass, from any thread."""
        with self._changed:
            job.cancelled = True
            self._changed.notify()

    def close(self) -> None:
        """End the thread after the pass under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self.join()

    def run(self) -> None:
        """Decode until the scheduler is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(self._has_work)
                if self._closed:
                    return
                for loop, queue in zip(self.loops, self.queues, strict=True):
                    self._admit(loop, queue)
            for loop, queue in zip(self.loops, self.queues, strict=True):
                if loop.running:
                    self._step(loop, queue)

    def _has_work(self) -> bool:
        return self._closed or any(self.queues) or any(loop.running for loop in self.loops)

    @staticmethod
    def _admit(loop: DecodeLoop, queue: deque[SampleRow]) -> None:
        """Drop the samples whose clients have gone, and fill the free rows."""
        for row in loop.running:
            if row.job.cancelled:
                loop.leave(row)
        for row in [row for row in queue if row.job.cancelled]:
            queue.remove(row)
        while queue and loop.free:
            loop.join(queue.popleft())

    def _step(self, loop: DecodeLoop, queue: deque[SampleRow]) -> None:
        rows = loop.running
        try:
            loop.step()
        except Exception as error:
            self._fail(loop, error)
            return
        for job in {id(row.job): row.job for row in rows}.values():
            if job.streams or job.done:
                job.wake()

    def _fail(self, loop: DecodeLoop, error: Exception) -> None:
        """End every request in the rows of `loop` with an error; later requests go on."""
        what = error if isinstance(error, GptError) else f"{type(error).__name__}: {error}"
        self.events.warn(
            f"a pass has failed, and with it {counted(len(loop.running), 'sample')}: {what}"
        )
        for row in loop.running:
            loop.leave(row)
            row.job.error, row.job.cancelled = error, True
            row.job.wake()


@torch.inference_mode()
def _score_prompt(model: GPT, row: SampleRow, x_TC: torch.Tensor) -> None:
    """Give the row the score of each token of its prompt after the first, if it asks for them."""
    options = row.options
    if not options.echo or options.top is None:
        return
    step = max(1, MAX_LOGITS_BYTES // (4 * model.config.vocab_size))
    scores: list[Score] = []
    for start in range(0, len(row.prompt) - 1, step):
        targets = row.prompt[start + 1 : start + 1 + step]
        logits_TV = model.lm_head(x_TC[start : start + len(targets)])
        scores += log_probs_of(logits_TV, targets, options.top)
    row.begin(scores)


@torch.inference_mode()
def log_probs_of(logits_BV: torch.Tensor, tokens: Sequence[int], top: int) -> list[Score]:
    """Return the log-probability of each token, and the `top` most probable tokens with theirs."""
    log_prob_BV = logits_BV.float().log_softmax(dim=-1)
    token_B1 = torch.tensor(tokens, device=log_prob_BV.device)[:, None]
    best = log_prob_BV.topk(min(top, log_prob_BV.shape[1]), dim=-1)
    return [
        (log_prob, list(zip(ids, values, strict=True)))
        for log_prob, ids, values in zip(
            log_prob_BV.gather(1, token_B1)[:, 0].tolist(),
            best.indices.tolist(),
            best.values.tolist(),
            strict=True,
        )
    ]


def _choose(logits_BV: torch.Tensor, rows: list[SampleRow]) -> list[tuple[int, float | None]]:
    """Return the next token of each row by the parameters of its request, and its log-probability
    if it is requested.
    """
    adjusted_BV = _adjusted(logits_BV, rows)
    groups: dict[SamplingParams, list[int]] = {}
    for number, row in enumerate(rows):
        groups.setdefault(row.options.params, []).append(number)
    tokens = [0] * len(rows)
    for params, numbers in groups.items():
        part_BV = adjusted_BV if len(groups) == 1 else adjusted_BV[numbers]
        chosen = sample_tokens(part_BV, params, [rows[number] for number in numbers], False)
        for number, (token, _) in zip(numbers, chosen, strict=True):
            tokens[number] = token
    log_probs: list[float | None] = [None] * len(rows)
    scored = [number for number, row in enumerate(rows) if row.options.top is not None]
    if scored:
        part_BV = logits_BV if len(scored) == len(rows) else logits_BV[scored]
        top = max(rows[number].options.top or 0 for number in scored)
        found = log_probs_of(part_BV, [tokens[number] for number in scored], top)
        for number, (log_prob, best) in zip(scored, found, strict=True):
            log_probs[number] = log_prob
            rows[number].next_top = best[: rows[number].options.top]
    return list(zip(tokens, log_probs, strict=True))


@torch.inference_mode()
def _adjusted(logits_BV: torch.Tensor, rows: list[SampleRow]) -> torch.Tensor:
    """Return the logits with the bias and the penalties of each row."""
    adjusted_BV = logits_BV
    for number, row in enumerate(rows):
        change, options = dict(row.options.bias), row.options
        if options.presence_penalty or options.frequency_penalty:
            for token, count in Counter(row.tokens).items():
                penalty = options.presence_penalty + count * options.frequency_penalty
                change[token] = change.get(token, 0.0) - penalty
        if change:
            if adjusted_BV is logits_BV:
                adjusted_BV = logits_BV.clone()
            ids = torch.tensor(list(change), device=logits_BV.device)
            values = torch.tensor(list(change.values()), device=logits_BV.device)
            adjusted_BV[number, ids] += values.to(adjusted_BV.dtype)
    return adjusted_BV
