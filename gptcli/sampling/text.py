"""Tokens as text while they come. A character of several bytes may span tokens: it appears once it is whole."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gptcli.model.transformer import GPT
from gptcli.sampling.decode import decode, sample_generator
from gptcli.sampling.filters import Rules
from gptcli.tokenizer.tokenizer import Tokenizer


class TextStream:
    """Turns bytes, cut anywhere, into text; the pieces together equal `bytes.decode("utf-8", "replace")` of the whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, piece: bytes) -> str:
        """The text that `piece` completes; bytes of an unfinished character wait."""
        return self._decoder.decode(piece)

    def end(self) -> str:
        """What is left: an unfinished character is replaced by U+FFFD."""
        return self._decoder.decode(b"", final=True)


@dataclass(frozen=True, slots=True)
class Completion:
    """One sample: what came after the prompt."""

    text: str
    tokens: list[int]
    """Without the end-of-text that ended it."""
    finish_reason: str
    """"stop" where the model ended the text, "length" where `max_tokens` did."""
    seconds: float
    """Reading the prompt included."""

    @property
    def tokens_per_second(self) -> float:
        return len(self.tokens) / self.seconds if self.seconds else 0.0


def complete(
    model: GPT,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    rules: Rules,
    *,
    max_tokens: int,
    seed: int,
    number: int = 0,
    show: Callable[[str], object] = lambda piece: None,
) -> Completion:
    """Sample `number` (from 0) under `seed` after the tokens of `prompt`; `show` receives each piece of text as soon as it is whole."""
    started = time.perf_counter()
    stream = TextStream()
    pieces: list[str] = []
    tokens: list[int] = []
    finish_reason = "length"
    for token in decode(model, prompt, rules, max_tokens=max_tokens, generator=sample_generator(seed, number), stop_id=tokenizer.eot_id):
        if token == tokenizer.eot_id:
            finish_reason = "stop"
            break
        tokens.append(token)
        piece = stream.push(tokenizer.decode_bytes([token]))
        if piece:
            pieces.append(piece)
            show(piece)
    rest = stream.end()
    if rest:
        pieces.append(rest)
        show(rest)
    return Completion("".join(pieces), tokens, finish_reason, time.perf_counter() - started)
