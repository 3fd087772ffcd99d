"""Token ids in decimal and in token files: any ids of any documents, in batches of any sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.kernels.spell_kernel import Speller, spell_ids
from gptcli.shards import token_ids
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.token_ids import spelled, write_token_file
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet

VOCAB = 300
BATCHES = st.lists(st.lists(st.lists(st.integers(0, VOCAB - 1)), min_size=1))


def batch(documents: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return documents as an encoder does."""
    return (
        np.array([number for ids in documents for number in ids], np.uint32),
        np.array([len(ids) for ids in documents], np.int64),
    )


@pytest.fixture(scope="module")
def kernel() -> Speller | None:
    """Return the kernel for VOCAB."""
    return spell_ids(VOCAB)


@given(batches=BATCHES, at_once=st.integers(1, 9), before=st.sampled_from([0, 3, 1 << 30]))
def test_every_document_is_a_line_of_its_ids(
    batches: list[list[list[int]]], at_once: int, before: int, kernel: Speller | None
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_ids, "SPELLED_TOKENS", at_once)
        patch.setattr(token_ids, "KERNEL_TOKENS", before)
        patch.setattr(token_ids, "spell_ids", lambda _: kernel)
        found = b"".join(map(bytes, spelled(map(batch, batches), VOCAB)))
    lines = [" ".join(map(str, ids)) + "\n" for documents in batches for ids in documents]
    assert found.decode() == "".join(lines)


@pytest.mark.parametrize(
    ("largest", "before"),
    [
        *((largest, before) for largest in (9_999, 99_999) for before in (0, 1 << 30)),
        (10_000_001, 0),  # too many for the kernel
    ],
)
def test_ids_of_every_width_are_spelt(
    largest: int, before: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_ids, "KERNEL_TOKENS", before)
    ids = sorted({min(10**power + more, largest) for power in range(8) for more in (-1, 0, 1)})
    lines = b"".join(map(bytes, spelled([batch([ids, ids[::-1]])], largest + 1)))
    assert lines.decode() == f"{' '.join(map(str, ids))}\n{' '.join(map(str, ids[::-1]))}\n"


@pytest.mark.parametrize("long", [0, 1 << 30])
def test_a_token_file_holds_documents_of_any_batches(
    tmp_path: Path, long: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_ids, "LONG_DOCUMENT", long)
    tokenizer = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])
    batches: list[list[list[int]]] = [[[], [5], [1, 2]], [[]], [[7, 7, 7]]]
    path = tmp_path / "a.bin"
    end = tokenizer.eot_id
    assert write_token_file(path, map(batch, batches), tokenizer) == (5, 11)
    assert open_shard(path).tolist() == [end, end, 5, end, 1, 2, end, end, 7, 7, 7]
    assert document_lengths(path).tolist() == [1, 2, 3, 1, 4]
