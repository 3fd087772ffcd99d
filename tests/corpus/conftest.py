"""Fixtures for tests of the corpus."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus.chunks import Chunk, Tally, shuffle_keys, write_chunk
from gptcli.shards.format import token_dtype
from gptcli.tokenizer.encoders import open_encoder
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet


@pytest.fixture(scope="session")
def byte_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token per byte; end-of-text is 256."""
    return Tokenizer([*byte_alphabet(), END_OF_TEXT], [])


MakeChunk = Callable[..., Chunk]


@pytest.fixture(scope="session")
def make_chunk(byte_tokenizer: Tokenizer) -> MakeChunk:
    """Return a function that writes a chunk of texts, which are numbered from `first` on."""
    encoder = open_encoder(byte_tokenizer, "tokenizers")

    def make(
        path: Path, texts: list[str], first: int = 0, seed: int = 0, val_fraction: float = 0.0
    ) -> Chunk:
        keys = shuffle_keys(np.arange(first, first + len(texts), dtype=np.uint64), seed)
        write_chunk(
            path,
            encoder,
            256,
            token_dtype(257),
            keys,
            texts,
            val_fraction,
            Tally(read=len(texts), kept=len(texts)),
        )
        return Chunk(path, token_dtype(257))

    return make
