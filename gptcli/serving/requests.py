"""Requests of OpenAI's completions API: their fields are checked, and become samples to generate.

`POST /v1/completions` accepts `model`, `prompt` (a text, a list of texts, token ids, a list of
those), `max_tokens`, `temperature` (0 is greedy), `top_p`, `n`, `best_of`, `stream`,
`stream_options`, `logprobs` (0 to MAX_LOGPROBS), `echo`, `stop`, `seed`, `presence_penalty`,
`frequency_penalty`, `logit_bias` and `user`, and beyond OpenAI's `top_k` (0 and -1 are all tokens),
`repetition_penalty`, `truncate_prompt_tokens` and `stream_options.continuous_usage_stats`, as vLLM has
them.
`suffix` and unknown fields are refused unless null. `max_tokens` 0 with `echo` and `logprobs`
scores the prompt.

Where OpenAI's reference leaves a choice:

- Special tokens are not recognised in the text of a prompt, as in `gpt sample`; give them as ids.
  An empty prompt is the end-of-text token, which is not part of the text.
- With a seed, sample i of prompt k is that of `gpt sample --prompts` (k = 0: of `gpt sample`).
- A prompt and `max_tokens` must fit into the context together. `truncate_prompt_tokens` keeps the
  last tokens of a longer prompt: so many, or with -1 as many as fit.
"""

from __future__ import annotations

import functools
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.errors import GptError, InputError, UsageError, close_to
from gptcli.numbers import counted
from gptcli.sampling.generate import encode_prompt, sample_generator
from gptcli.sampling.load import Loaded
from gptcli.sampling.params import SamplingParams
from gptcli.serving.fields import FIELDS, ApiError, Json, shown_value
from gptcli.serving.scheduler import MAX_WAITING, Job, RowOptions, SampleRow
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer
from gptcli.toml_json import parse_json

DEFAULT_MAX_TOKENS = 16


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model under the name by which requests select it."""

    id: str
    """Name in requests and responses."""
    path: Path
    """Folder as it was given, which is accepted as a name too."""
    loaded: Loaded
    """Model, tokenizer and settings."""
    created: int
    """Unix time at which the server loaded it."""

    def as_dict(self) -> Json:
        """Return the entry of `/v1/models`; the fields after `owned_by` are not OpenAI's."""
        config = self.loaded.model.config
        return {
            "id": self.id,
            "object": "model",
            "created": self.created,
            "owned_by": "gpt",
            "max_model_len": config.n_ctx,
            "vocab_size": config.vocab_size,
            "step": self.loaded.source.step,
            "precision": self.loaded.precision,
            "tokenizer_sha256": self.loaded.tokenizer.sha256,
        }


def serve_names(models: Sequence[tuple[Path, Loaded]]) -> list[ServedModel]:
    """Return the models with a name each: the run's folder and step, numbered if that is not
    unique.
    """
    named: dict[str, ServedModel] = {}
    for path, loaded in models:
        source = loaded.source
        name = source.folder.resolve().name or "model"
        name += "" if source.step is None else f"@{source.step}"
        same = sum(one.split("#")[0] == name for one in named)
        name += f"#{same + 1}" if same else ""
        named[name] = ServedModel(name, path, loaded, int(time.time()))
    return list(named.values())


def find_model(models: Sequence[ServedModel], name: str | None) -> int:
    """Return the number of the model that a request names. Raises ApiError if there is none."""
    known = ", ".join(one.id for one in models)
    if name is None:
        if len(models) == 1:
            return 0
        raise ApiError(
            f"say which model: {known}", param="model", code="missing_required_parameter"
        )
    for number, one in enumerate(models):
        if name in (one.id, str(one.path)):
            return number
    raise ApiError(
        f"there is no model {name!r}; this server has {known}",
        status=404,
        param="model",
        code="model_not_found",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionRequest:
    """A checked request, with the samples to generate."""

    id: str
    """Name of the response."""
    created: int
    """Unix time."""
    model: int
    """Number of the model."""
    served: ServedModel
    """The model."""
    rows: list[SampleRow]
    """Samples to generate: for each prompt `best_of` or `n` of them."""
    prompt_tokens: int
    """Number of tokens of all prompts that the model reads."""
    truncated_tokens: int | None
    """Number of tokens dropped before them; None where the request lets none be dropped."""
    n: int
    """Samples of each prompt to return."""
    best_of: int
    """Samples of each prompt to generate."""
    logprobs: int | None
    """Number of alternatives to report at each token; None for no log-probabilities."""
    stream: bool
    """Send the text as it is generated."""
    include_usage: bool
    """Send the usage at the end of a stream."""
    continuous_usage: bool
    """Send it with every chunk."""


def read_request(body: bytes, models: Sequence[ServedModel]) -> CompletionRequest:
    """Check a request and return it. Raises ApiError."""
    try:
        value = parse_json(body, "the body of the request")
    except InputError as error:  # its hint is for files
        raise ApiError(f"{error.where}: {error.what}") from None
    if not isinstance(value, dict):
        raise ApiError(
            f'the body must be a JSON object such as {{"prompt": "Once"}}, not {shown_value(value)}'
        )
    given = {name: one for name, one in value.items() if one is not None}
    if "suffix" in given:
        raise ApiError("suffix is not supported: these models only continue a text", param="suffix")
    for name in given:
        if name not in FIELDS:
            close = close_to(name, FIELDS)
            also = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ApiError(f"unknown field {name!r}{also}", param=name, code="unknown_parameter")
    fields = {name: FIELDS[name](name, one) for name, one in given.items()}
    number = find_model(models, fields.get("model"))
    try:
        return _checked(fields, number, models[number])
    except GptError as error:
        raise ApiError(str(error), param=error.field, code=error.code) from None


def _checked(fields: Json, number: int, served: ServedModel) -> CompletionRequest:
    """Return the request of fields that are valid, each by itself. Raises ApiError and UsageError."""
    tokenizer, n_ctx = served.loaded.tokenizer, served.loaded.model.config.n_ctx
    n: int = fields.get("n", 1)
    best_of: int = fields.get("best_of", n)
    max_tokens: int = fields.get("max_tokens", DEFAULT_MAX_TOKENS)
    logprobs: int | None = fields.get("logprobs")
    echo, stream = fields.get("echo", False), fields.get("stream", False)
    if best_of < n:
        raise ApiError(f"best_of is {best_of}, and n {n}: it must be at least n", param="best_of")
    if stream and best_of > n:
        raise ApiError("best_of cannot be combined with stream: the best is known at the end")
    if "stream_options" in fields and not stream:
        raise ApiError("stream_options needs stream", param="stream_options")
    bias = fields.get("logit_bias", {})
    if bias and max(bias) >= tokenizer.vocab_size:
        raise ApiError(
            f"logit_bias names token {max(bias):,}: the vocabulary has {tokenizer.vocab_size:,}",
            param="logit_bias",
        )

    kept: int | None = fields.get("truncate_prompt_tokens")
    if kept == -1:
        kept = n_ctx - max_tokens
        if kept < 1:
            raise ApiError(
                f"max_tokens is {max_tokens:,}, but the model's context has only {n_ctx:,}, with at "
                f"least 1 token of the prompt: use at most {n_ctx - 1:,}",
                param="max_tokens",
                code="context_length_exceeded",
            )

    def check_length(index: int, of: int, size: int, more: str = "") -> None:
        if size + (0 if more else max_tokens) <= n_ctx or (more and kept):
            return
        which = f"prompt {index}" if of > 1 else "the prompt"
        left = n_ctx - max_tokens
        todo = f"shorten the prompt to {left:,}, or lower max_tokens"
        raise ApiError(
            f"{which} has {counted(size, 'token')}{more} and max_tokens is {max_tokens:,}, but the "
            f"model's context has only {n_ctx:,}: {todo if left > 0 else 'lower max_tokens'}",
            param="prompt" if size > n_ctx else "max_tokens",
            code="context_length_exceeded",
        )

    prompts = _prompts(fields.get("prompt", ""), tokenizer, check_length)
    if len(prompts) * best_of > MAX_WAITING:
        raise ApiError(
            f"{counted(len(prompts), 'prompt')} of {counted(best_of, 'sample')} are "
            f"{len(prompts) * best_of:,}: "
            f"at most {MAX_WAITING:,} in one request",
            param="prompt",
        )
    whole = sum(len(tokens) for tokens, _ in prompts)
    if kept is not None:
        prompts = [(tokens[-kept:], implied) for tokens, implied in prompts]
    for index, (tokens, _) in enumerate(prompts):
        check_length(index, len(prompts), len(tokens))
    prompt_tokens = sum(len(tokens) for tokens, _ in prompts)
    stream_options = fields.get("stream_options", {})
    seed = fields.get("seed")
    seed = secrets.randbits(63) if seed is None else seed
    options = RowOptions(
        params=_params(fields),
        max_tokens=max_tokens,
        stops=tuple(fields.get("stop", ())),
        top=0 if logprobs is None and best_of > n else logprobs,
        echo=echo,
        bias=bias,
        presence_penalty=fields.get("presence_penalty", 0.0),
        frequency_penalty=fields.get("frequency_penalty", 0.0),
    )
    rows = [
        SampleRow(
            tokenizer,
            tokens,
            options,
            generator=sample_generator(seed, sample, index),
            implied=implied,
        )
        for index, (tokens, implied) in enumerate(prompts)
        for sample in range(best_of)
    ]
    return CompletionRequest(
        id=f"cmpl-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=number,
        served=served,
        rows=rows,
        prompt_tokens=prompt_tokens,
        truncated_tokens=None if kept is None else whole - prompt_tokens,
        n=n,
        best_of=best_of,
        logprobs=logprobs,
        stream=stream,
        include_usage=stream_options.get("include_usage", False),
        continuous_usage=stream_options.get("continuous_usage_stats", False),
    )


def _params(fields: Json) -> SamplingParams:
    """Return the sampling parameters; temperature 0 is greedy, and so is top_p 0."""
    penalty = fields.get("repetition_penalty", 1.0)
    if fields.get("temperature") == 0 or fields.get("top_p") == 0:
        return SamplingParams(greedy=True, repetition_penalty=penalty)
    return SamplingParams(
        temperature=fields.get("temperature", 1.0),
        top_p=fields.get("top_p"),
        top_k=fields.get("top_k"),
        repetition_penalty=penalty,
    )


def _prompts(
    value: Any, tokenizer: Tokenizer, check_length: Callable[[int, int, int, str], None]
) -> list[tuple[list[int], int]]:
    """Return the tokens of each prompt, and how many of them are implied and not part of its text.

    `check_length` refuses, by its number among how many and its least tokens, a text that is too
    long, before the time is taken to encode it.
    """
    if isinstance(value, str) or (isinstance(value, list) and value and _is_id(value[0])):
        value = [value]
    if not isinstance(value, list) or not value:
        raise ApiError(
            "prompt must be a text, a list of texts, a list of token ids or a list of those, not "
            f"{shown_value(value)}",
            param="prompt",
        )
    prompts = []
    for index, one in enumerate(value):
        if isinstance(one, str):
            check_length(index, len(value), least_tokens(one, tokenizer), " or more")
            prompts.append((encode_prompt(tokenizer, one), 0 if one else 1))
            continue
        if not isinstance(one, list) or not one or not all(map(_is_id, one)):
            raise ApiError(
                f"a prompt must be a text or a list of at least one token id, not {shown_value(one)}",
                param="prompt",
            )
        if strange := [token for token in one if not 0 <= token < tokenizer.vocab_size]:
            raise ApiError(
                f"token {strange[0]} is not in the vocabulary, 0 to {tokenizer.vocab_size - 1}",
                param="prompt",
            )
        prompts.append((one, 0))
    return prompts


def least_tokens(text: str, tokenizer: Tokenizer) -> int:
    """Return a number of tokens that `text` has at least, without encoding it.

    A token spells at most the bytes of the longest one. It is 0 where a tokenizer changes the text
    before it divides it, or has tokens that take blanks around them.
    """
    if tokenizer.unknown is not None or tokenizer.has_words:
        return 0
    return math.ceil(len(text.encode("utf-8", "surrogatepass")) / _longest_token(tokenizer))


@functools.lru_cache(maxsize=8)
def _longest_token(tokenizer: Tokenizer) -> int:
    """Return the bytes of the longest token."""
    longest = max(len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocab_size))
    return max(longest, len(END_OF_TEXT))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def job_of(request: CompletionRequest) -> Job:
    """Return the request as work for the decode thread."""
    return Job(request.rows, streams=request.stream)


def error_of(error: Exception) -> ApiError:
    """Return the error of a failed pass as an error of the API."""
    if isinstance(error, UsageError | InputError):
        return ApiError(str(error), param=error.field, code=error.code)
    text = str(error) if isinstance(error, GptError) else f"{type(error).__name__}: {error}"
    return ApiError(text, status=500)
