"""Fixtures: a tiny random model of each kind, and a matching tokenizer."""

from __future__ import annotations

import inspect
import textwrap
from typing import Any

import pytest
import torch

from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.sampling.load import prepare_for_inference
from gptcli.tokenizer.tokenizer import Tokenizer
from gptcli.tokenizer.training import train_tokenizer

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer([inspect.getsource(textwrap), "naïve café, 日本語 🙂 " * 9], 400)


FAMILY = {  # every kind of model; each row is used by every test of this folder
    "gpt2": {"attention": "dense", "tied": True},
    "untied": {"attention": "dense", "tied": False},
    "gpt3": {"attention": "banded", "band": 5, "tied": False},
}


def small_model(vocab_size: int, **kind: Any) -> GPT:
    """Return a model with noise on every tensor, so that its greedy tokens vary."""
    config = ModelConfig(
        **{"n_layer": 4, "n_head": 2, "d_model": 32, "n_ctx": 24, "vocab_size": vocab_size} | kind
    )
    model = GPT(config).eval()
    model.init_weights(0)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        std = 0.4 if parameter.dim() > 1 else 0.05  # a large bias would always give the same token
        parameter.data += torch.empty_like(parameter).normal_(0.0, std, generator=generator)
    return model


@pytest.fixture(scope="session", params=FAMILY)
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> GPT:
    return prepare_for_inference(small_model(tokenizer.vocab_size, **FAMILY[request.param]))
