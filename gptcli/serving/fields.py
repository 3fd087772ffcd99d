"""Fields of a request of OpenAI's completions API, each checked by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from gptcli.numbers import counted
from gptcli.toml_json import dumps

MAX_LOGPROBS = 20
MAX_STOPS = 16
MAX_BIAS = 100
Json = dict[str, Any]


class ApiError(Exception):
    """An error of a request: HTTP status, message, parameter and stable code."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def as_dict(self) -> Json:
        """Return the error in OpenAI's form."""
        kind = {401: "authentication_error", 403: "permission_error"}.get(
            self.status, "invalid_request_error" if self.status < 500 else "server_error"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def shown_value(value: object) -> str:
    """Return a value as JSON, shortened; NaN and the infinities, which JSON lacks, by their names."""
    text = str(value) if isinstance(value, float) and not math.isfinite(value) else dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


@dataclass(frozen=True, slots=True)
class _Number:
    """Reader of a number in a range."""

    low: float
    high: float
    whole: bool = False

    def __call__(self, name: str, value: Any) -> Any:
        """Return the number. Raises ApiError."""
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and self.whole and isinstance(value, float) and value.is_integer():
            value = int(value)
        if not number or (self.whole and not isinstance(value, int)):
            kind = "a whole number" if self.whole else "a number"
            raise ApiError(f"{name} must be {kind}, not {shown_value(value)}", param=name)
        if not self.low <= value <= self.high:
            raise ApiError(
                f"{name} is {shown_value(value)}: use a value from {self.low:,} to {self.high:,}",
                param=name,
            )
        return value


def _true_or_false(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ApiError(f"{name} must be true or false, not {shown_value(value)}", param=name)
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ApiError(f"{name} must be a text, not {shown_value(value)}", param=name)
    return value


def _stops(name: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ApiError(
            f"{name} must be a text or a list of texts, not {shown_value(value)}", param=name
        )
    if "" in texts:
        raise ApiError(f"{name} has an empty text, with which every text begins", param=name)
    if len(texts) > MAX_STOPS:
        raise ApiError(f"{name} has {counted(len(texts), 'text')}: at most {MAX_STOPS}", param=name)
    return texts


def _bias(name: str, value: Any) -> dict[int, float]:
    if not isinstance(value, dict) or not all(key.isdecimal() for key in value):
        raise ApiError(
            f'{name} must be an object from token ids to numbers, such as {{"50256": -100}}',
            param=name,
        )
    number = _Number(-MAX_BIAS, MAX_BIAS)
    return {int(key): float(number(name, one)) for key, one in value.items()}


STREAM_OPTIONS = ("include_usage", "continuous_usage_stats", "include_obfuscation")


def _stream_options(name: str, value: Any) -> dict[str, bool]:
    if not isinstance(value, dict) or value.keys() - {*STREAM_OPTIONS}:
        raise ApiError(f'{name} must be an object such as {{"include_usage": true}}', param=name)
    return {key: _true_or_false(f"{name}.{key}", one or False) for key, one in value.items()}


def _top_k(name: str, value: Any) -> int | None:
    """Return the number of tokens to sample from; 0 and -1, as in vLLM, are all of them."""
    k: int = _Number(-1, 10**9, whole=True)(name, value)
    return k if k > 0 else None


def _truncation(name: str, value: Any) -> int:
    """Return the number of tokens of a prompt to keep, -1 for as many as fit."""
    kept: int = _Number(-1, 10**9, whole=True)(name, value)
    if kept == 0:
        raise ApiError(f"{name} is 0: use at least 1, or -1 for as many as fit", param=name)
    return kept


def _unchanged(name: str, value: Any) -> Any:
    return value


FIELDS: Mapping[str, Callable[[str, Any], Any]] = {
    "model": _text,
    "prompt": _unchanged,
    "max_tokens": _Number(0, 10**9, whole=True),
    "temperature": _Number(0, 100),
    "top_p": _Number(0, 1),
    "top_k": _top_k,
    "repetition_penalty": _Number(0.01, 100),
    "n": _Number(1, 128, whole=True),
    "best_of": _Number(1, 128, whole=True),
    "stream": _true_or_false,
    "stream_options": _stream_options,
    "logprobs": _Number(0, MAX_LOGPROBS, whole=True),
    "echo": _true_or_false,
    "stop": _stops,
    "seed": _Number(-(2**63), 2**63 - 1, whole=True),
    "presence_penalty": _Number(-2, 2),
    "frequency_penalty": _Number(-2, 2),
    "logit_bias": _bias,
    "truncate_prompt_tokens": _truncation,
    "user": _text,
}
"""Fields of a request and their readers."""
