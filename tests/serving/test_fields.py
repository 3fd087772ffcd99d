from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from gptcli.serving.fields import FIELDS, ApiError
from tests.examples.test_formats import DOCUMENTED, check
from tests.golden.surface import keys
from tests.serving.conftest import complete


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("max_tokens", 9.0, 9),
        ("top_k", -1, None),
        ("top_k", 0, None),
        ("stop", "a", ["a"]),
        ("logit_bias", {"7": -3}, {7: -3.0}),
        ("stream_options", {"include_usage": None}, {"include_usage": False}),
    ],
)
def test_fields_are_read(name: str, given: Any, expected: Any) -> None:
    assert FIELDS[name](name, given) == expected


def test_a_long_value_is_shortened_in_the_error() -> None:
    with pytest.raises(ApiError, match=r"user must be a text, not .{39,40}…$") as caught:
        FIELDS["user"]("user", ["x" * 100])
    assert caught.value.as_dict()["error"]["param"] == "user"


def test_fields_are_those_of_the_document(client: TestClient) -> None:
    assert DOCUMENTED["Request of /v1/completions"] - {"<|endoftext|>"} == {*FIELDS}
    made = complete(client, prompt="a", logprobs=1, truncate_prompt_tokens=-1)
    [choice] = made["choices"]
    choice["logprobs"]["top_logprobs"] = [{"a": 1}]
    check("Response of /v1/completions", {*keys(made)})
