"""A throw-away vocabulary in GPT-2's layout, and tiktoken's encoder over the same one."""

from __future__ import annotations

import argparse
import inspect
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from tiktoken.load import data_gym_to_mergeable_bpe_ranks

from gptcli.tokenizer.tokenizer import PATTERN, Tokenizer
from gptcli.tokenizer.training import train_tokenizer

SPECIMEN = (
    "Ünïcödé naïve 中文 你好，世界 русский текст 한국어 😀😃 it's we'll I'd\r\n\n\n  \t x  \u2028 \u00a0 0123 ١٢٣ ²½ <|endoftext|> "
    * 20
)


@pytest.fixture(scope="session")
def text() -> str:
    """Some hundred kilobytes of prose and code, with a little of many scripts."""
    return inspect.getsource(argparse) + SPECIMEN


@pytest.fixture(scope="session")
def tokenizer(text: str) -> Tokenizer:
    return train_tokenizer([text], 1500)


@pytest.fixture(scope="session")
def release(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same vocabulary as vocab.bpe and encoder.json, the two files of GPT-2's release."""
    folder = tmp_path_factory.mktemp("release")
    model = json.loads(tokenizer.to_json())["model"]
    (folder / "encoder.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    merges = "".join(f"{merge}\n" for merge in model["merges"])
    (folder / "vocab.bpe").write_text(f"#version: 0.2\n{merges}", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiktoken_of() -> Callable[[Path], tiktoken.Encoding]:
    """tiktoken's encoder over the two files of a release."""

    def build(folder: Path) -> tiktoken.Encoding:
        ranks = data_gym_to_mergeable_bpe_ranks(
            str(folder / "vocab.bpe"), str(folder / "encoder.json")
        )
        return tiktoken.Encoding(
            "gpt2",
            pat_str=PATTERN,
            mergeable_ranks=ranks,
            special_tokens={"<|endoftext|>": len(ranks)},
        )

    return build


@pytest.fixture(scope="session")
def oracle(tiktoken_of: Callable[[Path], tiktoken.Encoding], release: Path) -> tiktoken.Encoding:
    return tiktoken_of(release)
