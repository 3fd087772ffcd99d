"""Tokens as text while they come. A character of several bytes may span tokens: it appears once it
is whole.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gptcli.model.transformer import GPT
from gptcli.sampling.beam import beam_search
from gptcli.sampling.decode import Row, decode, sample_generator
from gptcli.sampling.params import Rules
from gptcli.tokenizer.tokenizer import Tokenizer


class TextStream:
    """Turns bytes, cut anywhere, into text; the pieces together equal `bytes.decode("utf-8",
    "replace")` of the whole.

    With `stops`, the text ends before the first of them: `stopped` says so, and what might be the
    beginning of one waits.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stops = list(stops)
        self._held = ""
        self.stopped = False

    def push(self, piece: bytes) -> str:
        """The text that `piece` completes; bytes of an unfinished character wait."""
        return self._pass(self._decoder.decode(piece), ended=False)

    def end(self) -> str:
        """What is left: an unfinished character is replaced by U+FFFD."""
        return self._pass(self._decoder.decode(b"", final=True), ended=True)

    def _pass(self, text: str, *, ended: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = 0 if ended else max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    return next(
        (n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0
    )


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample: what came after the prompt."""

    text: str
    """Up to a stop string, which is left out."""
    tokens: list[int]
    """Without the end-of-text that ended it; with those that spell a stop string."""
    log_probs: list[float]
    """Of each token under the model itself, before any rule, in nats; empty where they were not
    asked for.
    """
    finish_reason: str
    """"stop" where the model ended the text or a stop string did, "length" where `max_tokens`
    did.
    """
    seconds: float
    """From the start of its batch to its last token, reading the prompt included."""

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds if self.seconds else 0.0

    @property
    def mean_log_prob(self) -> float:
        """How likely the model finds this text, per token: what best-of-n ranks by."""
        return sum(self.log_probs) / max(1, len(self.log_probs))


class TextRow(Row):
    """A row that is read as text while it is made; `show` receives each piece as soon as it is
    whole.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        generator: torch.Generator | None = None,
        stops: Sequence[str] = (),
        show: Callable[[str], object] = lambda piece: None,
    ) -> None:
        super().__init__(
            prompt, max_tokens=max_tokens, generator=generator, stop_id=tokenizer.eot_id
        )
        self._tokenizer, self._stream, self._show = tokenizer, TextStream(stops), show
        self._pieces: list[str] = []
        self._started = self._ended = time.perf_counter()

    def take(self, token: int, log_prob: float | None = None) -> None:
        super().take(token, log_prob)
        if token != self.stop_id:
            self._put(self._stream.push(self._tokenizer.decode_bytes([token])))
        if self.finish_reason is not None:
            self._put(self._stream.end())
        if self._stream.stopped:
            self.finish_reason = "stop"
        self._ended = time.perf_counter()

    def _put(self, piece: str) -> None:
        if piece:
            self._pieces.append(piece)
            self._show(piece)

    def completion(self) -> Completion:
        return Completion(
            "".join(self._pieces),
            self.tokens,
            self.log_probs,
            self.finish_reason or "length",
            self._ended - self._started,
        )


def complete(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    rules: Rules,
    *,
    max_tokens: int,
    seed: int,
    number: int = 0,
    stops: Sequence[str] = (),
    log_probs: bool = False,
    show: Callable[[str], object] = lambda piece: None,
) -> Completion:
    """Sample `number` (from 0) under `seed` after the tokens of `prompt`; `show` receives each
    piece of text as soon as it is whole.
    """
    row = TextRow(
        tokenizer,
        prompt,
        max_tokens=max_tokens,
        generator=sample_generator(seed, number),
        stops=stops,
        show=show,
    )
    for _ in decode(model, [row], rules, batch=1, log_probs=log_probs):
        pass
    return row.completion()


def search(
    model: GPT, tokenizer: Tokenizer, prompt: Sequence[int], *, max_tokens: int, width: int
) -> Completion:
    """The best continuation that beam search with GPT-3's length penalty finds."""
    begin = time.perf_counter()
    best = beam_search(model, prompt, max_tokens=max_tokens, width=width, stop_id=tokenizer.eot_id)[
        0
    ]
    seconds = time.perf_counter() - begin
    return Completion(
        tokenizer.decode(best.tokens),
        best.tokens,
        best.log_probs[: len(best.tokens)],
        best.finish_reason,
        seconds,
    )
