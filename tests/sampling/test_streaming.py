"""Streamed text equals the whole text and consists of complete characters."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gptcli.model.transformer import GPT
from gptcli.sampling.generate import generate
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.streaming import TextStream
from gptcli.tokenizer.tokenizer import Tokenizer

RULES = SamplingParams(temperature=1.5)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


@given(
    st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.lists(st.integers(0, 10**6))
)
def test_pieces_add_up_to_the_text_wherever_bytes_are_split(data: bytes, places: list[int]) -> None:
    stream = TextStream()
    assert "".join([*map(stream.push, cut(data, places)), stream.end()]) == data.decode(
        "utf-8", "replace"
    )


@given(st.text(max_size=20), st.lists(st.integers(0, 10**6)))
def test_pieces_contain_only_complete_characters(text: str, places: list[int]) -> None:
    stream = TextStream()
    shown = ""
    for piece in cut(text.encode(), places):
        shown += stream.push(piece)
        assert text.startswith(shown)
    assert stream.end() == ""


@given(
    st.text("ab", max_size=20),
    st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 10**6)),
)
def test_text_ends_before_the_first_stop_string(
    text: str, stops: list[str], places: list[int]
) -> None:
    stream = TextStream(stops)
    shown = ""
    for piece in cut(text.encode(), places):
        shown += stream.push(piece)
        # no shown text has to be withdrawn
        assert not any(stop in shown for stop in stops)
        assert text.startswith(shown)
    shown += stream.end()
    if stream.stopped:
        assert any(text.startswith(stop, len(shown)) for stop in stops)
    else:
        assert shown == text
    assert stream.stopped == any(stop in text for stop in stops)


def test_a_stop_string_ends_a_sample(model: GPT, tokenizer: Tokenizer) -> None:
    whole = generate(model, tokenizer, [1, 2], RULES, max_tokens=60, seed=3)
    stop = whole.text[10:13]
    made = generate(
        model, tokenizer, [1, 2], RULES, max_tokens=60, seed=3, stops=[stop, "never said"]
    )
    assert made.text == whole.text[: whole.text.index(stop)]
    assert made.finish_reason == "stop"
    assert made.tokens == whole.tokens[: len(made.tokens)]


def test_completion_text_is_that_of_its_tokens(model: GPT, tokenizer: Tokenizer) -> None:
    for number in range(20):
        shown: list[str] = []
        made = generate(
            model,
            tokenizer,
            [1, 2],
            RULES,
            max_tokens=60,
            seed=3,
            sample_index=number,
            on_text=shown.append,
        )
        assert made.text == "".join(shown) == tokenizer.decode(made.tokens)
        assert made.finish_reason == ("length" if len(made.tokens) == 60 else "stop")
        assert made.tokens_per_second > 0


def test_end_of_text_ends_a_sample_and_is_left_out(model: GPT, tokenizer: Tokenizer) -> None:
    ended = [
        generate(
            model,
            tokenizer,
            [1],
            SamplingParams(temperature=8.0),
            max_tokens=300,
            seed=0,
            sample_index=number,
        )
        for number in range(12)
    ]
    stopped = [made for made in ended if made.finish_reason == "stop"]
    assert stopped
    for made in stopped:
        assert tokenizer.eot_id not in made.tokens
        assert "endoftext" not in made.text
