"""Responses of OpenAI's completions API: whole ones, and the chunks of a stream.

Where OpenAI's reference leaves a choice:

- `text_offset` counts characters of the returned text. A token that is not whole characters is
  written "bytes:\\xe2\\x80", as OpenAI does.
- An end-of-text token that ends a sample is listed in `logprobs`, and counted in `usage`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gptcli.serving.fields import Json
from gptcli.serving.requests import CompletionRequest
from gptcli.serving.scheduler import Entry, SampleRow
from gptcli.tokenizer.tokenizer import Tokenizer


def response(request: CompletionRequest) -> Json:
    """Return the response to a request whose samples are complete."""
    choices: list[Json] = []
    for first in range(0, len(request.rows), request.best_of):
        rows = request.rows[first : first + request.best_of]
        if request.best_of > request.n:
            rows = sorted(rows, key=lambda row: -row.mean_log_prob)[: request.n]
        choices += [
            _choice(request, len(choices) + place, row, row.text, row.entries, row.finish_reason)
            for place, row in enumerate(rows)
        ]
    return _envelope(request, choices) | {"usage": _usage(request)}


class Stream:
    """Chunks of a response as its samples grow."""

    def __init__(self, request: CompletionRequest) -> None:
        """Begin at the start of every sample."""
        self.request = request
        self._sent = [(0, 0)] * len(request.rows)  # characters and entries
        self._open = set(range(len(request.rows)))

    def chunks(self) -> Iterator[Json]:
        """Yield what is new in each sample since the last call, as one chunk each."""
        for index in sorted(self._open):
            row = self.request.rows[index]
            done, started = row.done, row.started  # before what they say is complete
            if not started:
                continue
            (characters, count), text, entries = self._sent[index], row.text, row.entries
            end = count
            # a token is sent with its first character
            while end < len(entries) and (done or entries[end].offset < len(text)):
                end += 1
            if done:
                self._open.discard(index)
            elif len(text) == characters and end == count:
                continue
            self._sent[index] = len(text), end
            reason = row.finish_reason if done else None
            choice = _choice(
                self.request, index, row, text[characters:], entries[count:end], reason
            )
            yield self._envelope([choice])
        if not self._open and self.request.include_usage:
            yield self._envelope([]) | {"usage": _usage(self.request)}

    def _envelope(self, choices: list[Json]) -> Json:
        if not self.request.include_usage:
            return _envelope(self.request, choices)
        usage = _usage(self.request) if self.request.continuous_usage else None
        return _envelope(self.request, choices) | {"usage": usage}


def _envelope(request: CompletionRequest, choices: list[Json]) -> Json:
    return {
        "id": request.id,
        "object": "text_completion",
        "created": request.created,
        "model": request.served.id,
        "choices": choices,
    }


def _usage(request: CompletionRequest) -> Json:
    generated = sum(row.generated for row in request.rows)
    usage = {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": request.prompt_tokens + generated,
    }
    if request.truncated_tokens is not None:
        usage["truncated_prompt_tokens"] = request.truncated_tokens
    return usage


def _choice(
    request: CompletionRequest,
    index: int,
    row: SampleRow,
    text: str,
    entries: Sequence[Entry],
    finish_reason: str | None,
) -> Json:
    logprobs = None
    if request.logprobs is not None:
        logprobs = _logprobs(row.tokenizer, entries)
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(tokenizer: Tokenizer, entries: Sequence[Entry]) -> Json:
    """Return the four lists of `logprobs`; the alternatives include the token itself."""
    tops: list[dict[str, float] | None] = []
    for one in entries:
        if one.top is None or one.log_prob is None:
            tops.append(None)
            continue
        top: dict[str, float] = {}
        for token, log_prob in [*one.top, (one.token, one.log_prob)]:
            # of two tokens that are spelled the same, the more probable one
            top.setdefault(token_text(tokenizer, token), _rounded(log_prob))
        tops.append(top)
    return {
        "tokens": [token_text(tokenizer, one.token) for one in entries],
        "token_logprobs": [
            None if one.log_prob is None else _rounded(one.log_prob) for one in entries
        ],
        "top_logprobs": tops,
        "text_offset": [one.offset for one in entries],
    }


def _rounded(log_prob: float) -> float:
    """Return a log-probability with seven digits, as many as fp32 has; JSON has no infinity."""
    return float(f"{log_prob:.7g}") if math.isfinite(log_prob) else -9999.0


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return the text of a token, or its bytes in OpenAI's spelling if they are no whole
    characters.
    """
    piece = tokenizer.decode_bytes([token])
    try:
        return piece.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
