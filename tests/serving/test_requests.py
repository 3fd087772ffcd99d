"""Every field that is refused, fields that are ignored, and the names of models."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from gptcli.serving.requests import (
    ServedModel,
    find_model,
    least_tokens,
    serve_names,
)
from gptcli.tokenizer.training import train_tokenizer
from tests.serving.conftest import complete

REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"prompt": 5}, "must be a text, a list of texts", "prompt"),
    ({"prompt": []}, "must be a text, a list of texts", "prompt"),
    ({"prompt": [[]]}, "at least one token id", "prompt"),
    ({"prompt": ["a", 1]}, "must be a text or a list", "prompt"),
    ({"prompt": [1, 400]}, "token 400 is not in the vocabulary, 0 to 399", "prompt"),
    ({"prompt": [True]}, "must be a text or a list", "prompt"),
    ({"prompt": "\ud800"}, "surrogate", None),
    ({"prompt": "word " * 96}, "context has only 96: shorten the prompt to 80", "prompt"),
    ({"prompt": "a", "max_tokens": 96}, "has 1 token and max_tokens is 96", "max_tokens"),
    ({"prompt": "a", "max_tokens": 97}, "only 96: lower max_tokens", "max_tokens"),
    ({"prompt": ["a"] * 1025}, "at most 1,024 in one request", "prompt"),
    ({"max_tokens": -1}, "from 0 to", "max_tokens"),
    ({"max_tokens": 1.5}, "a whole number, not 1.5", "max_tokens"),
    ({"max_tokens": "9"}, "a whole number", "max_tokens"),
    ({"temperature": -0.1}, "from 0 to 100", "temperature"),
    ({"temperature": True}, "must be a number", "temperature"),
    ({"temperature": math.nan}, "temperature is nan: use a value from 0", "temperature"),
    ({"temperature": math.inf}, "temperature is inf: use a value from 0", "temperature"),
    ({"top_p": 1.1}, "from 0 to 1", "top_p"),
    ({"n": 0}, "from 1 to 128", "n"),
    ({"n": 3, "best_of": 2}, "at least n", "best_of"),
    ({"best_of": 2, "stream": True}, "cannot be combined with stream", None),
    ({"stream_options": {"include_usage": True}}, "needs stream", "stream_options"),
    ({"stream": "yes"}, "true or false", "stream"),
    ({"stream": True, "stream_options": 1}, "include_usage", "stream_options"),
    ({"logprobs": 21}, "from 0 to 20", "logprobs"),
    ({"logprobs": True}, "a whole number, not true", "logprobs"),
    ({"stop": ""}, "empty text", "stop"),
    ({"stop": ["a"] * 17}, "at most 16", "stop"),
    ({"stop": [1]}, "a text or a list of texts", "stop"),
    ({"suffix": "x"}, "only continue", "suffix"),
    ({"temprature": 1}, "did you mean temperature?", "temprature"),
    ({"messages": []}, "unknown field 'messages'", "messages"),
    ({"presence_penalty": 3}, "from -2 to 2", "presence_penalty"),
    ({"logit_bias": {"x": 1}}, "token ids to numbers", "logit_bias"),
    ({"logit_bias": {"1": 101}}, "from -100 to 100", "logit_bias"),
    ({"logit_bias": {"400": 1}}, "the vocabulary has 400", "logit_bias"),
    ({"user": 1}, "must be a text", "user"),
    ({"top_k": -2}, "from -1 to", "top_k"),
    ({"truncate_prompt_tokens": 0}, "at least 1, or -1", "truncate_prompt_tokens"),
    ({"truncate_prompt_tokens": -2}, "from -1 to", "truncate_prompt_tokens"),
    (
        {"prompt": "a", "truncate_prompt_tokens": -1, "max_tokens": 96},
        "use at most 95",
        "max_tokens",
    ),
    (
        {"prompt": "word " * 96, "truncate_prompt_tokens": 90},
        "has 90 tokens and max_tokens is 16",
        "max_tokens",
    ),
    ({"stream": True, "stream_options": {"x": True}}, "include_usage", "stream_options"),
]


@pytest.mark.parametrize(("fields", "says", "param"), REFUSED, ids=lambda one: str(one)[:40])
def test_bad_fields_are_refused(
    client: TestClient, fields: dict[str, Any], says: str, param: str | None
) -> None:
    answer = client.post(
        "/v1/completions",
        content=json.dumps(fields),
        headers={"Content-Type": "application/json"},
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert says in error["message"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert {*error} == {"message", "type", "param", "code"}


def test_fields_that_are_null_are_ignored(client: TestClient) -> None:
    every = dict.fromkeys(("suffix", "logprobs", "stop", "unheard_of", "seed", "n"), None)
    assert complete(client, prompt="a", **every)["choices"][0]["logprobs"] is None


def test_models_have_names_of_their_own(client: TestClient, served: list[ServedModel]) -> None:
    one = served[0].loaded
    named = serve_names([(Path("a/run"), one), (Path("b/run"), one)])
    assert [model.id for model in named] == ["run", "run#2"]
    assert find_model(named, "b/run") == 1
    answer = client.post("/v1/completions", json={"model": "gpt-4", "prompt": "a"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "this server has run" in answer.json()["error"]["message"]


TOKENIZER = train_tokenizer(["a rose is a rose is a rose, and so is another rose"] * 9, 300)


@given(st.text() | st.text("a rosei,<|>endoftext"))
def test_a_text_has_no_fewer_tokens_than_its_bytes_say(text: str) -> None:
    with contextlib.suppress(UnicodeEncodeError):
        assert least_tokens(text, TOKENIZER) <= len(TOKENIZER.encode_prompt(text))
