"""Generate text: prefill the prompts in one pass, then decode one token per sequence and pass.

A finished sequence makes room in the batch for the next prompt. Positions are learned, so the cache
cannot roll: the keys and values of a token contain the position it was read at. When the context is
full, the last n_ctx // 2 tokens are read again from position 0, and decoding continues. Of a prompt
longer than n_ctx, the last n_ctx tokens are read.

Each sequence has its own random generator and takes one number from it per token, so in fp32 its
text does not depend on the rest of the batch. In bf16, and rarely with int8 weights, a different
batch may round differently and so lead to different text.
"""

from __future__ import annotations

import codecs
import hashlib
import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from gptcli.errors import UsageError
from gptcli.model.transformer import GPT
from gptcli.sampling.defaults import MAX_TOKENS
from gptcli.sampling.engine import Engine
from gptcli.sampling.params import SamplingParams, apply_repetition_penalty, next_tokens
from gptcli.tokenizer.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]


def generate(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    params: SamplingParams | None = None,
    *,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    sample_index: int = 0,
    stops: Sequence[str] = (),
    log_probs: bool = False,
    on_text: Callable[[str], object] = lambda piece: None,
) -> Completion:
    """Generate one continuation of `prompt`, a text or its tokens.

    Generation ends at the end-of-text token, before the first of the strings `stops`, or after
    `max_tokens` tokens. The text depends on `seed` and `sample_index` alone: each index gives
    another sample. `on_text` receives each piece of text as soon as its characters are complete.
    """
    sequence = TextSequence(
        tokenizer,
        encode_prompt(tokenizer, prompt) if isinstance(prompt, str) else prompt,
        max_tokens=max_tokens,
        generator=sample_generator(seed, sample_index),
        stops=stops,
        on_text=on_text,
    )
    params = params or SamplingParams()
    for _ in generate_sequences(model, [sequence], params, batch_size=1, log_probs=log_probs):
        pass
    return sequence.completion()


class TokenSequence:
    """A prompt of at least one token and the tokens generated after it."""

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        generator: torch.Generator | None = None,
        stop_id: int | None = None,
    ) -> None:
        """Prepare to generate up to `max_tokens` tokens, or until `stop_id`.

        Raises UsageError if `max_tokens` is below 1.
        """
        if max_tokens < 1:
            raise UsageError(f"max-tokens is {max_tokens}", hint="use at least 1")
        self.prompt = list(prompt)
        self.max_tokens = max_tokens
        # Greedy decoding takes no number from it.
        self.generator = generator or torch.Generator().manual_seed(0)
        self.stop_id = stop_id
        self.tokens: list[int] = []
        """Generated tokens, without a final `stop_id`."""
        self.log_probs: list[float] = []
        """Log-probability in nats of each of `tokens` under the model, before sampling parameters
        apply; empty unless requested.
        """
        self.finish_reason: FinishReason | None = None
        """None while unfinished, "stop" at the end of the text, "length" after `max_tokens`."""

    def append(self, token: int, log_prob: float | None = None) -> None:
        """Add the next token and set `finish_reason` if it is the last."""
        if token == self.stop_id:
            self.finish_reason = "stop"
            return
        self.tokens.append(token)
        if log_prob is not None:
            self.log_probs.append(log_prob)
        if len(self.tokens) >= self.max_tokens:
            self.finish_reason = "length"


class TextSequence(TokenSequence):
    """A sequence decoded to text as it is generated; `on_text` receives each complete piece."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        generator: torch.Generator | None = None,
        stops: Sequence[str] = (),
        on_text: Callable[[str], object] = lambda piece: None,
    ) -> None:
        super().__init__(
            prompt, max_tokens=max_tokens, generator=generator, stop_id=tokenizer.eot_id
        )
        self._tokenizer, self._stream, self._on_text = tokenizer, TextStream(stops), on_text
        self._pieces: list[str] = []
        self._started = self._ended = time.perf_counter()

    def append(self, token: int, log_prob: float | None = None) -> None:
        """Add the next token and the text that it completes; finish at a stop string."""
        super().append(token, log_prob)
        if token != self.stop_id:
            self._emit(self._stream.push(self._tokenizer.decode_bytes([token])))
        if self.finish_reason is not None:
            self._emit(self._stream.end())
        if self._stream.stopped:
            self.finish_reason = "stop"
        self._ended = time.perf_counter()

    def _emit(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._on_text(piece)

    def completion(self) -> Completion:
        """Return the text, tokens and timing so far."""
        return Completion(
            "".join(self._pieces),
            self.tokens,
            self.log_probs,
            self.finish_reason or "length",
            self._ended - self._started,
        )


def generate_sequences(
    model: GPT,
    sequences: Iterable[TokenSequence],
    params: SamplingParams,
    *,
    batch_size: int,
    log_probs: bool = False,
    max_len: int | None = None,
    compiled: bool | None = None,
    engine: Engine | None = None,
) -> Iterator[TokenSequence]:
    """Finish every sequence, `batch_size` at a time, and yield each when it is finished.

    `sequences` is consumed only as the batch has room (`DecodeLoop`). Tokens are added by
    `TokenSequence.append`.
    `max_len` is the largest length of a prompt with its tokens, if known: a smaller cache is then
    enough. `compiled` is that of `Engine`; an `engine` of `batch_size` rows, compiled earlier, can
    be used again instead. Raises RunError if the cache does not fit into memory.
    """
    source = iter(sequences)
    first = list(itertools.islice(source, batch_size))
    if not first:
        return
    loop = DecodeLoop(
        engine or Engine(model, len(first), max_len=max_len, compiled=compiled),
        lambda logits_BV, batch: sample_tokens(logits_BV, params, batch, log_probs),
    )
    for sequence in first:
        loop.join(sequence)
    while loop.running:
        for sequence in loop.step():
            yield sequence
            if (next_sequence := next(source, None)) is not None:
                loop.join(next_sequence)


class DecodeLoop:
    """Sequences in the rows of an engine, which join and leave between two passes.

    `choose` returns the next token of each sequence, and its log-probability or None, from their
    logits (B, V). `on_prompt` is called with a sequence and the hidden states of its prompt, (T,
    C), when the prompt has been read.
    """

    def __init__(
        self,
        engine: Engine,
        choose: Callable[[torch.Tensor, list[Any]], Sequence[tuple[int, float | None]]],
        on_prompt: Callable[[Any, torch.Tensor], None] | None = None,
    ) -> None:
        """Begin without sequences."""
        self.engine, self.choose, self.on_prompt = engine, choose, on_prompt
        self.capacity, self.n_ctx = engine.rows, engine.model.config.n_ctx
        empty = self.capacity if engine.fixed else 0
        self._slots: list[TokenSequence | None] = [None] * empty
        self._windows: list[list[int]] = [[0] for _ in range(empty)]
        self._to_prefill: set[int] = set()  # slots to read from position 0; the others decode

    @property
    def running(self) -> list[Any]:
        """Sequences that occupy a row."""
        return [sequence for sequence in self._slots if sequence is not None]

    @property
    def free(self) -> int:
        """Number of sequences that can join."""
        return self.capacity - len(self.running)

    def join(self, sequence: TokenSequence) -> None:
        """Give the sequence a free row, of which there must be one."""
        if None not in self._slots:
            self._slots.append(None)
            self._windows.append([0])
        slot = self._slots.index(None)
        self._slots[slot], self._windows[slot] = sequence, sequence.prompt[-self.n_ctx :]
        self._to_prefill.add(slot)

    def leave(self, sequence: TokenSequence) -> None:
        """Free the row of the sequence."""
        slot = self._slots.index(sequence)
        # an empty slot reads an arbitrary token
        self._slots[slot], self._windows[slot] = None, [0]
        self._to_prefill.discard(slot)

    def step(self) -> list[Any]:
        """Read the prompts of new sequences or, if there are none, decode a token in every row.

        Return the sequences that this finishes, whose rows are free again.
        """
        if not self.engine.fixed:
            self._close_gaps()
        for slot, window in enumerate(self._windows):
            if len(window) > self.n_ctx:
                self._windows[slot] = window[-max(1, self.n_ctx // 2) :]
                self._to_prefill.add(slot)
        occupied = [slot for slot, sequence in enumerate(self._slots) if sequence is not None]
        active = sorted(self._to_prefill) or occupied
        if self._to_prefill:
            windows = [self._windows[slot] for slot in active]
            logits_BV = self.engine.prefill(active, windows, self._on_hidden)
        else:
            for slot in range(self.engine.rows):
                if slot not in occupied:
                    self.engine.lengths[slot] = 0  # it would otherwise outgrow the cache
            logits_BV = self.engine.decode([window[-1] for window in self._windows])
            if len(active) < self.engine.rows:
                logits_BV = logits_BV[active]
        self._to_prefill.clear()
        batch = [sequence for slot in active if (sequence := self._slots[slot]) is not None]
        finished = []
        chosen = self.choose(logits_BV, batch)
        for slot, sequence, (token, log_prob) in zip(active, batch, chosen, strict=True):
            sequence.append(token, log_prob)
            self._windows[slot].append(token)
            if sequence.finish_reason is not None:
                self.leave(sequence)
                finished.append(sequence)
        return finished

    def _on_hidden(self, slot: int, x_TC: torch.Tensor) -> None:
        sequence = self._slots[slot]
        if self.on_prompt is not None and sequence is not None and not sequence.tokens:
            self.on_prompt(sequence, x_TC)

    def _close_gaps(self) -> None:
        """Move the last sequences into the rows of those that left, and drop rows at the end."""
        for slot in reversed(range(len(self._slots))):
            if self._slots[slot] is not None:
                continue
            last = len(self._slots) - 1
            if slot < last:
                self._slots[slot], self._windows[slot] = self._slots[last], self._windows[last]
                if last in self._to_prefill:
                    self._to_prefill.add(slot)
                else:
                    self.engine.copy_row(last, slot)
            self._to_prefill.discard(last)
            del self._slots[last], self._windows[last]
        self.engine.resize(len(self._slots))


@torch.inference_mode()
def sample_tokens(
    logits_BV: torch.Tensor,
    params: SamplingParams,
    sequences: Sequence[TokenSequence],
    log_probs: bool,
) -> list[tuple[int, float | None]]:
    """Return the next token of each sequence and, if requested, its log-probability in nats."""
    penalized_BV = logits_BV
    if params.repetition_penalty != 1:
        penalized_BV = apply_repetition_penalty(
            logits_BV,
            [[*sequence.prompt, *sequence.tokens] for sequence in sequences],
            params.repetition_penalty,
        )
    uniform_B = torch.empty(0)
    if not params.greedy:
        uniform_B = torch.cat(
            [
                torch.rand(1, generator=sequence.generator, dtype=torch.float64)
                for sequence in sequences
            ]
        )
    token_B = next_tokens(penalized_BV, params, uniform_B)
    if not log_probs:
        return [(token, None) for token in token_B.tolist()]
    log_prob_B = logits_BV.gather(1, token_B[:, None])[:, 0].float() - logits_BV.float().logsumexp(
        dim=-1
    )
    return list(zip(token_B.tolist(), log_prob_B.tolist(), strict=True))


def sample_generator(seed: int, sample_index: int, prompt_index: int = 0) -> torch.Generator:
    """Return the random generator of one sample of one prompt (both counted from 0) under `seed`.

    It does not depend on the number of samples or prompts.
    """
    key = hashlib.sha256(
        f"{seed}/sample/{sample_index}{f'/prompt/{prompt_index}' if prompt_index else ''}".encode()
    ).digest()
    return torch.Generator().manual_seed(int.from_bytes(key[:8], "little", signed=True))


def encode_prompt(tokenizer: Tokenizer, prompt: str) -> list[int]:
    """Return the tokens of a prompt, special ones that it spells included; an empty prompt is the
    end-of-text token, as in GPT-2.

    Raises UsageError if the prompt is empty and the tokenizer has no end-of-text token.
    """
    if tokens := tokenizer.encode_prompt(prompt):
        return tokens
    if tokenizer.eot_id is None:
        raise UsageError(
            "the prompt is empty, and this tokenizer has no end-of-text token to start from",
            hint="give a prompt",
        )
    return [tokenizer.eot_id]


class TextStream:
    """Decodes UTF-8 bytes, split anywhere, to text.

    The pieces together equal `bytes.decode("utf-8", "replace")` of the whole. With `stops`, the
    text ends before the first of these strings; text that may be the beginning of one is withheld.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = list(stops)
        self._withheld = ""
        self.stopped = False
        """True if a stop string was found."""

    def push(self, piece: bytes) -> str:
        """Return the text that `piece` completes; bytes of an incomplete character are withheld."""
        return self._filter(self._decoder.decode(piece), ended=False)

    def end(self) -> str:
        """Return the withheld text; U+FFFD replaces an incomplete character."""
        return self._filter(self._decoder.decode(b"", final=True), ended=True)

    def _filter(self, text: str, *, ended: bool) -> str:
        if self.stopped:
            return ""
        text = self._withheld + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._withheld = True, ""
            return text[: min(found)]
        count = 0 if ended else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._withheld = text[len(text) - count :]
        return text[: len(text) - count]


def _overlap(text: str, stop: str) -> int:
    """Return the length of the longest suffix of `text` that is a proper prefix of `stop`."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated sample."""

    text: str
    """Generated text, without the stop string."""
    tokens: list[int]
    """Generated tokens, without a final end-of-text; those of a stop string are included."""
    log_probs: list[float]
    """Log-probability in nats of each token under the model, before sampling parameters apply;
    empty unless requested.
    """
    finish_reason: FinishReason
    """"stop" after an end-of-text or stop string, "length" after `max_tokens`."""
    seconds: float
    """Seconds from the start of its batch to its last token, including the prefill."""

    @property
    def tokens_per_second(self) -> float:
        """Number of tokens generated per second."""
        return len(self.tokens) / self.seconds if self.seconds else 0.0

    @property
    def mean_log_prob(self) -> float:
        """Mean log-probability per token in nats, by which best-of-n ranks samples."""
        return sum(self.log_probs) / max(1, len(self.log_probs))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields with mean log-probability and speed, as `gpt sample --json` has them."""
        rates = {
            "mean_log_prob": self.mean_log_prob,
            "tokens_per_second": self.tokens_per_second,
        }
        return asdict(self) | rates
