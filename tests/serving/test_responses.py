"""Responses against a forward pass of the model and against `gpt sample`; offsets and stop strings of
drawn requests.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient

from gptcli.evals.loglikelihood import score
from gptcli.sampling.generate import generate
from gptcli.sampling.params import SamplingParams
from gptcli.serving.requests import ServedModel, read_request, serve_names
from gptcli.serving.responses import Stream, response, token_text
from gptcli.serving.scheduler import Scheduler
from gptcli.serving.server import application
from gptcli.tokenizer.tokenizer import Tokenizer
from tests.serving.conftest import complete, loaded


def streamed(client: TestClient, **fields: Any) -> list[Any]:
    """Return the chunks of a streamed response; it ends with [DONE]."""
    with client.stream("POST", "/v1/completions", json={**fields, "stream": True}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def joined(chunks: list[Any]) -> list[Any]:
    """Return the choices of a response from the chunks of a stream."""
    choices: dict[int, Any] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            whole = choices.setdefault(
                choice["index"], choice | {"text": "", "logprobs": None, "finish_reason": None}
            )
            whole["text"] += choice["text"]
            assert whole["finish_reason"] is None
            whole["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"] is not None:
                whole["logprobs"] = whole["logprobs"] or {name: [] for name in choice["logprobs"]}
                for name, values in choice["logprobs"].items():
                    whole["logprobs"][name] += values
    return [choices[index] for index in sorted(choices)]


def test_text_is_that_of_gpt_sample(client: TestClient, served: list[ServedModel]) -> None:
    model, tokenizer = served[0].loaded.model, served[0].loaded.tokenizer
    fields = {"temperature": 0.9, "top_p": 0.9, "seed": 7, "max_tokens": 12}
    made = complete(client, prompt="naïve def", n=3, **fields)["choices"]
    params = SamplingParams(temperature=0.9, top_p=0.9)
    for index, choice in enumerate(made):
        one = generate(
            model, tokenizer, "naïve def", params, max_tokens=12, seed=7, sample_index=index
        )
        assert (choice["index"], choice["text"]) == (index, one.text)
        assert choice["finish_reason"] == one.finish_reason
    assert len({choice["text"] for choice in made}) == 3
    assert complete(client, prompt="naïve def", **fields)["choices"] == made[:1]
    ids = tokenizer.encode("naïve def")
    assert complete(client, prompt=ids, **fields)["choices"] == made[:1]
    assert complete(client, prompt=[ids, "a"], **fields)["choices"][:1] == made[:1]


def test_temperature_0_is_greedy_and_top_k_1_too(client: TestClient) -> None:
    greedy = complete(client, prompt="class", temperature=0)["choices"][0]["text"]
    assert greedy == complete(client, prompt="class", top_k=1)["choices"][0]["text"]
    assert greedy == complete(client, prompt="class", top_p=0)["choices"][0]["text"]


def test_texts_without_a_seed_differ(client: TestClient) -> None:
    assert len({complete(client, prompt="a")["choices"][0]["text"] for _ in range(3)}) > 1


def test_log_probs_are_those_of_a_forward_pass(
    client: TestClient, served: list[ServedModel]
) -> None:
    model, tokenizer = served[0].loaded.model, served[0].loaded.tokenizer
    made = complete(client, prompt="def café", echo=True, logprobs=3, max_tokens=9, seed=1)
    [choice] = made["choices"]
    found, ids = choice["logprobs"], tokenizer.encode("def café")
    # greedy spelling of the text is not always how it was generated: take the ids by their texts
    spelled = {token_text(tokenizer, token): token for token in range(tokenizer.vocab_size)}
    tokens = [spelled[text] for text in found["tokens"]]
    assert tokens[: len(ids)] == ids
    assert len(tokens) == len(ids) + 9 == made["usage"]["total_tokens"]
    with torch.no_grad():
        expected_TV = model(torch.tensor([tokens]))[0].float().log_softmax(dim=-1)
    assert found["token_logprobs"][0] is found["top_logprobs"][0] is None
    for place, token in enumerate(tokens[1:]):
        own = found["token_logprobs"][place + 1]
        assert own == pytest.approx(float(expected_TV[place, token]), abs=1e-5)
        best = expected_TV[place].topk(3)
        top = found["top_logprobs"][place + 1]
        for value, other in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            assert top[token_text(tokenizer, other)] == pytest.approx(value, abs=1e-5)
        assert top[found["tokens"][place + 1]] == own
        assert 3 <= len(top) <= 4


def test_scores_of_a_prompt_are_those_of_gpt_eval(
    client: TestClient, served: list[ServedModel]
) -> None:
    """As lm-evaluation-harness asks: token ids, echo, and one more token, which it drops."""
    model, tokenizer = served[0].loaded.model, served[0].loaded.tokenizer
    texts = ["def wrap(self, text):", "naïve café, 日本語", "x"]
    assert tokenizer.eot_id is not None
    prompts = [[tokenizer.eot_id, *tokenizer.encode(text)] for text in texts]
    expected = score(model, prompts, [len(prompt) - 1 for prompt in prompts])
    for max_tokens in (0, 1):
        fields = {"prompt": prompts, "echo": True, "logprobs": 1, "temperature": 0}
        made = complete(client, **fields, max_tokens=max_tokens)["choices"]
        for choice, prompt, one in zip(made, prompts, expected, strict=True):
            found = choice["logprobs"]["token_logprobs"]
            found = found[:-1] if max_tokens else found
            assert len(found) == len(prompt)
            assert found[1:] == pytest.approx(one.log_probs.tolist(), abs=1e-4)


def test_penalties_and_bias_change_the_choice_not_the_log_probs(
    client: TestClient, served: list[ServedModel]
) -> None:
    tokenizer = served[0].loaded.tokenizer
    fields = {"prompt": "self", "temperature": 0, "max_tokens": 8, "logprobs": 1}
    plain = complete(client, **fields)["choices"][0]["logprobs"]
    first = next(
        token for token in range(400) if token_text(tokenizer, token) == plain["tokens"][0]
    )
    banned = complete(client, **fields, logit_bias={str(first): -100})["choices"][0]["logprobs"]
    assert plain["tokens"][0] not in banned["tokens"]
    assert plain["tokens"][0] in banned["top_logprobs"][0]
    forced = complete(client, **fields, logit_bias={"65": 100})["choices"][0]["logprobs"]
    assert {*forced["tokens"]} == {token_text(tokenizer, 65)}
    fields["max_tokens"] = 40
    repeated, varied = (
        len({*complete(client, **fields, **penalty)["choices"][0]["logprobs"]["tokens"]})
        for penalty in ({}, {"presence_penalty": 2, "frequency_penalty": 2})
    )
    assert varied > repeated


def test_best_of_returns_the_most_probable_samples(client: TestClient) -> None:
    fields = {"prompt": "def", "seed": 3, "max_tokens": 10, "logprobs": 0}

    def mean(choice: Any) -> float:
        found = choice["logprobs"]["token_logprobs"]
        return sum(found) / len(found)

    every = complete(client, **fields, n=5)["choices"]
    best = complete(client, **fields, n=2, best_of=5)
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    assert [choice["text"] for choice in best["choices"]] == [
        choice["text"] for choice in sorted(every, key=mean, reverse=True)[:2]
    ]
    assert best["usage"]["completion_tokens"] >= sum(
        len(choice["logprobs"]["tokens"]) for choice in every
    )


@pytest.mark.parametrize("echo", [False, True])
def test_a_stream_has_the_same_content(client: TestClient, echo: bool) -> None:
    fields = {"prompt": ["naïve", "def 日"], "seed": 5, "n": 2, "max_tokens": 20, "logprobs": 2}
    fields |= {"echo": echo, "stop": ["e", "(\n"]}
    whole = complete(client, **fields)
    chunks = streamed(client, **fields, stream_options={"include_usage": True})
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    assert joined(chunks) == whole["choices"]


def test_a_truncated_prompt_is_its_last_tokens(client: TestClient, tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode_prompt("def naïve(text): return text " * 20)
    assert len(tokens) > 96
    fields = {"seed": 3, "max_tokens": 16, "logprobs": 1, "echo": True}
    for kept, count in ((-1, 80), (7, 7)):
        cut = complete(client, prompt=tokens, truncate_prompt_tokens=kept, **fields)
        whole = complete(client, prompt=tokens[-count:], **fields)
        assert cut["choices"] == whole["choices"]
        dropped = {"truncated_prompt_tokens": len(tokens) - count}
        assert cut["usage"] == whole["usage"] | dropped
    short = complete(client, prompt="a", truncate_prompt_tokens=-1)
    assert short["usage"]["truncated_prompt_tokens"] == 0


def test_a_stream_may_tell_the_usage_with_every_chunk(client: TestClient) -> None:
    every = {"include_usage": True, "continuous_usage_stats": True}
    chunks = streamed(client, prompt="a", max_tokens=9, stream_options=every)
    told = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert told == sorted(told)
    assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {1}
    once = streamed(client, prompt="a", max_tokens=9, stream_options={"include_usage": True})
    assert [chunk["usage"] is None for chunk in once] == [True] * (len(once) - 1) + [False]


@settings(max_examples=60)
@given(
    text=st.text(st.sampled_from("xy-é日🙂"), min_size=1, max_size=9),
    stops=st.lists(st.sampled_from(["xy", "é-", "yx-", "日"]), max_size=2), echo=st.booleans(),
)  # fmt: skip
def test_chunks_after_every_token_make_the_whole(
    served: list[ServedModel], text: str, stops: list[str], echo: bool
) -> None:
    """The samples are fed by hand, byte by byte, so that every state of a stream is seen."""
    tokenizer = served[0].loaded.tokenizer
    byte_of = {tokenizer.decode_bytes([token])[0]: token for token in range(256)}
    fields = {"prompt": "é-", "stop": stops, "echo": echo, "max_tokens": len(text.encode())}
    body = json.dumps({**fields, "stream": True, "logprobs": 0, "n": 2}).encode()
    request = read_request(body, served)
    stream = Stream(request)
    chunks = list(stream.chunks())
    assert chunks == []
    for byte in text.encode():
        for row in request.rows:
            if not row.done:
                row.append(byte_of[byte], -1.5)
                chunks += stream.chunks()
    assert joined(chunks) == response(request)["choices"]
    assert list(stream.chunks()) == []


def test_empty_prompt_is_end_of_text_and_not_part_of_the_text(client: TestClient) -> None:
    fields = {"seed": 1, "echo": True, "logprobs": 0, "max_tokens": 4}
    made = [complete(client, **fields), complete(client, **fields, prompt="")]
    assert made[0]["choices"] == made[1]["choices"]
    assert made[0]["usage"]["prompt_tokens"] == 1
    assert made[0]["choices"][0]["logprobs"]["text_offset"][0] == 0
    assert all(made[0]["choices"][0]["logprobs"]["token_logprobs"])


DRAWN_TEXTS = st.text(st.sampled_from("abe (\n日é🙂"), max_size=12)


@settings(max_examples=25)
@given(
    prompt=DRAWN_TEXTS, stops=st.lists(st.sampled_from(["a", "e ", "(", "\n\n", "日", "self"]), max_size=3),
    seed=st.integers(0, 99), echo=st.booleans(), cut=st.integers(0, 3), streams=st.booleans(),
)  # fmt: skip
def test_offsets_and_stop_strings(
    client: TestClient,
    served: list[ServedModel],
    prompt: str,
    stops: list[str],
    seed: int,
    echo: bool,
    cut: int,
    streams: bool,
) -> None:
    """Every token of whole characters is at its offset; the text is the model's up to the first stop
    string. Prompts of token ids may end within a character.
    """
    loaded_model = served[0].loaded
    ids = loaded_model.tokenizer.encode(prompt)
    ids = ids[: len(ids) - cut] or [0]
    fields = {"prompt": ids, "seed": seed, "echo": echo, "max_tokens": 12, "logprobs": 0}
    if streams:
        [choice] = joined(streamed(client, **fields, stop=stops))
    else:
        [choice] = complete(client, **fields, stop=stops)["choices"]
    text, found = choice["text"], choice["logprobs"]
    assert all(before <= after for before, after in pairwise(found["text_offset"]))
    for place, (token, offset) in enumerate(
        zip(found["tokens"], found["text_offset"], strict=True)
    ):
        is_last = place == len(found["tokens"]) - 1
        assert offset <= len(text)
        if not token.startswith("bytes:") and token != "<|endoftext|>":
            known = text[offset : offset + len(token)]
            assert token.startswith(known) if is_last else token == known
    [free] = complete(client, **fields)["choices"]
    start = len(loaded_model.tokenizer.decode(ids).rstrip("\ufffd")) if echo else 0
    places = [place for stop in stops if (place := free["text"].find(stop, start)) >= 0]
    assert text == (free["text"][: min(places)] if places else free["text"])
    assert choice["finish_reason"] == ("stop" if places else free["finish_reason"])


def test_two_models_share_the_thread(served: list[ServedModel]) -> None:
    from gptcli.tokenizer.training import train_tokenizer

    other = train_tokenizer(["another vocabulary for another model " * 20], 280)
    both = serve_names([(Path("run"), served[0].loaded), (Path("two"), loaded(other, "two"))])
    scheduler = Scheduler([one.loaded for one in both], batch_size=2)
    scheduler.start()
    client = TestClient(application(both, scheduler), base_url="http://localhost")
    answer = client.post("/v1/completions", json={"prompt": "a"})
    assert answer.json()["error"]["message"] == "say which model: run, two"
    for one in both:
        made = complete(client, model=one.id, prompt="a", seed=1)
        assert made["model"] == one.id
        assert (
            made["choices"][0]["text"]
            == generate(one.loaded.model, one.loaded.tokenizer, "a", seed=1, max_tokens=16).text
        )
    scheduler.close()
