"""Shards are those of a plain loop, with their documents in the order of shuffle keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gptcli.corpus import shuffle
from gptcli.corpus.chunks import Chunk, shuffle_keys
from gptcli.corpus.shuffle import plan_shards, write_planned_shard
from gptcli.errors import InputError
from gptcli.shards.format import document_lengths, open_shard
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

MakeChunk = Callable[..., Chunk]
BYTES = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])


def chunks_of(folder: Path, make_chunk: MakeChunk, texts: list[str], size: int) -> list[Chunk]:
    groups = [texts[start : start + size] for start in range(0, len(texts), size)]
    return [
        make_chunk(folder / f"unit-{number}", group, number * size)
        for number, group in enumerate(groups)
    ]


def plain_shards(texts: list[str], shard_tokens: int) -> list[list[str]]:
    """Add documents in key order; begin a new shard when the next one does not fit."""
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
def test_shards_equal_those_of_a_plain_loop(
    tmp_path_factory: pytest.TempPathFactory,
    make_chunk: MakeChunk,
    monkeypatch: pytest.MonkeyPatch,
    sizes: list[int],
    shard_tokens: int,
    chunk_documents: int,
    planned_documents: int,
) -> None:
    monkeypatch.setattr(shuffle, "MAX_PLANNED_DOCUMENTS", planned_documents)
    monkeypatch.setattr(shuffle, "WRITTEN_DOCUMENTS", 3)
    folder = tmp_path_factory.mktemp("shuffle")
    texts = [chr(ord("a") + number % 26) * size for number, size in enumerate(sizes)]
    chunks = chunks_of(folder, make_chunk, texts, chunk_documents)
    plans = list(plan_shards(chunks, "train", shard_tokens))
    expected = plain_shards(texts, shard_tokens)
    assert [plan.file for plan in plans] == [
        f"train-{number:06d}.bin" for number in range(len(expected))
    ]
    for plan, documents in zip(plans, expected, strict=True):
        shard = write_planned_shard(folder, chunks, plan)
        assert (shard.tokens, shard.documents) == (
            sum(map(len, documents)) + len(documents),
            len(documents),
        )
        tokens = [token for text in documents for token in [256, *BYTES.encode(text)]]
        assert open_shard(folder / shard.file).tolist() == tokens
        assert document_lengths(folder / shard.file).tolist() == [
            len(text) + 1 for text in documents
        ]
    assert list(plan_shards(chunks, "val", shard_tokens)) == []


def test_a_document_too_long_for_any_shard_is_an_error(
    tmp_path: Path, make_chunk: MakeChunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shuffle, "MAX_TOKENS", 10)
    with pytest.raises(InputError, match="a document of 11 tokens is longer than a shard can be"):
        list(plan_shards(chunks_of(tmp_path, make_chunk, ["a" * 10], 1), "train", 10))
