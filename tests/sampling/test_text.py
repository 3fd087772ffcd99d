"""Streamed text is the text, whole characters at a time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gptcli.model.transformer import GPT
from gptcli.sampling.filters import Rules
from gptcli.sampling.text import TextStream, complete
from gptcli.tokenizer.tokenizer import Tokenizer

RULES = Rules(temperature=1.5)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:stop] for start, stop in pairwise(edges)]


@given(st.binary(max_size=40) | st.text(max_size=20).map(str.encode), st.lists(st.integers(0, 10**6)))
def test_pieces_make_the_whole_wherever_it_is_cut(data: bytes, places: list[int]) -> None:
    stream = TextStream()
    assert "".join([*map(stream.push, cut(data, places)), stream.end()]) == data.decode("utf-8", "replace")


@given(st.text(max_size=20), st.lists(st.integers(0, 10**6)))
def test_no_piece_holds_half_a_character(text: str, places: list[int]) -> None:
    stream = TextStream()
    shown = ""
    for piece in cut(text.encode(), places):
        shown += stream.push(piece)
        assert text.startswith(shown)
    assert stream.end() == ""


def test_a_completion_is_its_tokens(model: GPT, tokenizer: Tokenizer) -> None:
    for number in range(20):
        shown: list[str] = []
        made = complete(model, tokenizer, [1, 2], RULES, max_tokens=60, seed=3, number=number, show=shown.append)
        assert made.text == "".join(shown) == tokenizer.decode(made.tokens)
        assert made.finish_reason == ("length" if len(made.tokens) == 60 else "stop")
        assert made.tokens_per_second > 0


def test_end_of_text_ends_it_and_is_not_shown(model: GPT, tokenizer: Tokenizer) -> None:
    ended = [complete(model, tokenizer, [1], RULES, max_tokens=300, seed=0, number=number) for number in range(12)]
    stopped = [made for made in ended if made.finish_reason == "stop"]
    assert stopped
    for made in stopped:
        assert tokenizer.eot_id not in made.tokens
        assert "endoftext" not in made.text
