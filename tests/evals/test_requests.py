"""Requests: white space, truncation and skipped items."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.requests import (
    EMPTY_ANSWER,
    EMPTY_PROMPT,
    LONG_ANSWER,
    Request,
    build_requests,
    group,
    item_text,
)
from gptcli.evals.task import read_task
from gptcli.evals.task_data import Item
from gptcli.tokenizer.tokenizer import Tokenizer

HEAD = 'title = "t"\nsource = "s"\nfiles = {items = "*.jsonl"}\nreader = "jsonl"\nkind = "choice"\n'
TOML = HEAD + 'prompt = "{q}"\nchoices = "c"\ngold = "g"\n'


def built(
    tokenizer: Tokenizer, folder: Path, item: Item, n_ctx: int = 24
) -> tuple[list[Request], dict[str, int]]:
    (folder / "t.toml").write_text(TOML)
    made = build_requests(
        read_task(folder / "t.toml"), [item], tokenizer, n_ctx, FewShotConfig(), None, None
    )
    return made.requests, made.skipped


def test_trailing_white_space_of_a_prompt_moves_to_the_answer(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    [request], _ = built(
        tokenizer, tmp_path, Item(id="1", prompt="the text: ", choices=("a", "b"), gold=(0,))
    )
    assert [tuple(tokenizer.decode(part.tolist()) for part in pair) for pair in request.pairs] == [
        ("the text:", " a"),
        ("the text:", " b"),
    ]


def test_truncation_cuts_the_same_beginning_for_all_choices(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    item = Item(
        id="1", prompt="the text of self " * 9, choices=(" a", " " + "long " * 4), gold=(0,)
    )
    [request], _ = built(tokenizer, tmp_path, item)
    (short, _), (same, longest) = request.pairs
    assert request.truncated
    np.testing.assert_array_equal(short, same)
    assert (
        len(same) + len(longest) - 1 == 24
    )  # tokens that are read: the last one is only predicted
    assert group(request.pairs).prefix_len >= len(short) - 1


@pytest.mark.parametrize(
    ("item", "reason"),
    [
        (Item(id="1", prompt="q", choices=(" a", ""), gold=(0,)), EMPTY_ANSWER),
        (Item(id="1", prompt="q", choices=(" a", " x" * 40), gold=(0,)), LONG_ANSWER),
    ],
)
def test_skipped_items_are_counted_by_reason(
    tokenizer: Tokenizer, tmp_path: Path, item: Item, reason: str
) -> None:
    assert built(tokenizer, tmp_path, item) == ([], {reason: 1})


def test_an_empty_prompt_needs_an_end_of_text_token(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = Item(id="1", prompt=" ", choices=("a", "b"), gold=(0,))
    [request], _ = built(tokenizer, tmp_path, item)
    assert [pair[0].tolist() for pair in request.pairs] == [[tokenizer.eot_id]] * 2
    monkeypatch.setattr(tokenizer, "eot_id", None)
    assert built(tokenizer, tmp_path, item) == ([], {EMPTY_PROMPT: 1})


def test_item_text_contains_the_choices_or_the_first_answer() -> None:
    assert item_text(Item(id="1", prompt="p", choices=("a", "b"), answers=("x", "y"))).split() == [
        "p",
        "a",
        "b",
    ]
    assert item_text(Item(id="1", prompt="p", answers=("x", "y"))).split() == ["p", "x"]
