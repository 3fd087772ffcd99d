"""Shards are cut as by hand, and hold the documents in the order of their keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.corpus import shuffle
from gptcli.corpus.chunks import Unit, shuffle_keys
from gptcli.corpus.shuffle import plan_shards, write_planned
from gptcli.errors import InputError
from gptcli.shards.format import document_lengths, open_shard
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

MakeUnit = Callable[..., Unit]
BYTES = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])


def units_of(folder: Path, make_unit: MakeUnit, texts: list[str], size: int) -> list[Unit]:
    runs = [texts[start : start + size] for start in range(0, len(texts), size)]
    return [
        make_unit(folder / f"unit-{number}", run, number * size) for number, run in enumerate(runs)
    ]


def by_hand(texts: list[str], shard_tokens: int) -> list[list[str]]:
    """One document after the other in key order; the next shard begins where one does not fit."""
    keys = shuffle_keys(np.arange(len(texts), dtype=np.uint64), 0)
    shards: list[list[str]] = []
    room = -1
    for index in np.argsort(keys):
        size = len(texts[index]) + 1  # end-of-text
        if size > room:
            shards.append([])
            room = shard_tokens
        shards[-1].append(texts[index])
        room -= size
    return shards


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 120), st.integers(1, 20), st.sampled_from([1, 5, 1000])
)  # fmt: skip
def test_shards_are_those_made_by_hand(
    tmp_path_factory: pytest.TempPathFactory,
    make_unit: MakeUnit,
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
    shard_tokens: int,
    unit_documents: int,
    planned_at_once: int,
) -> None:
    monkeypatch.setattr(shuffle, "PLAN_DOCUMENTS", planned_at_once)
    monkeypatch.setattr(shuffle, "PIECE_DOCUMENTS", 3)
    folder = tmp_path_factory.mktemp("shuffle")
    texts = [chr(ord("a") + number % 26) * size for number, size in enumerate(sizes)]
    units = units_of(folder, make_unit, texts, unit_documents)
    plans = list(plan_shards(units, "train", shard_tokens))
    expected = by_hand(texts, shard_tokens)
    assert [plan.file for plan in plans] == [
        f"train-{number:06d}.bin" for number in range(len(expected))
    ]
    for plan, documents in zip(plans, expected, strict=True):
        shard = write_planned(folder, units, plan)
        assert (shard.tokens, shard.documents) == (
            sum(map(len, documents)) + len(documents),
            len(documents),
        )
        tokens = [token for text in documents for token in [256, *BYTES.encode(text)]]
        assert open_shard(folder / shard.file).tolist() == tokens
        assert document_lengths(folder / shard.file).tolist() == [
            len(text) + 1 for text in documents
        ]
    assert list(plan_shards(units, "val", shard_tokens)) == []


def test_a_document_too_long_for_any_shard(
    tmp_path: Path, make_unit: MakeUnit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "MAX_TOKENS", 10)
    with pytest.raises(InputError, match="a document of 11 tokens is longer than a shard can be"):
        list(plan_shards(units_of(tmp_path, make_unit, ["a" * 10], 1), "train", 10))
