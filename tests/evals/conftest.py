"""Fixtures: a tiny random model, the same model in transformers, and a matching tokenizer."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import pytest
import torch

from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import Tokenizer
from gptcli.tokenizer.training import train_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([inspect.getsource(textwrap), "naïve café, 日本語 🙂 " * 9], 400)


def varied_model(vocab_size: int, n_ctx: int) -> GPT:
    """Return a model with varied greedy tokens: untied head, large embeddings, noise elsewhere."""
    model = GPT(
        ModelConfig(n_layer=2, n_head=2, d_model=32, n_ctx=n_ctx, vocab_size=vocab_size, tied=False)
    ).eval()
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        std = 1.0 if name.startswith("w") else 0.2
        parameter.data += torch.empty_like(parameter).normal_(0.0, std, generator=generator)
    return model


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> GPT:
    """Return a small model with varied greedy tokens."""
    return varied_model(tokenizer.vocab_size, n_ctx=24)


@pytest.fixture(scope="session")
def theirs(model: GPT, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return transformers' GPT2LMHeadModel with the same weights."""
    from transformers import GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("transformers")
    save_model(folder, model, model.config)
    return GPT2LMHeadModel.from_pretrained(folder).eval()
