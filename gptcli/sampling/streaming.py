"""Decode tokens to text as they are generated, and the finished text of one sample.

A character of several bytes may span tokens; it appears once it is complete.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

FinishReason = Literal["stop", "length"]


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
