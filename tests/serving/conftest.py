"""Fixtures: a tiny random model that is served, and a client of the application in this process."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from starlette.testclient import TestClient

from gptcli.model.source import ModelSource
from gptcli.sampling.load import Loaded, prepare_for_inference
from gptcli.serving.requests import ServedModel, serve_names
from gptcli.serving.scheduler import Scheduler
from gptcli.serving.server import application
from gptcli.tokenizer.tokenizer import Tokenizer
from gptcli.tokenizer.training import train_tokenizer
from tests.sampling.conftest import small_model

torch.set_num_threads(1)


def loaded(tokenizer: Tokenizer, name: str = "run") -> Loaded:
    """Return a random model of a context of 96 tokens, as `load` would."""
    model = small_model(tokenizer.vocab_size, n_ctx=96, n_layer=2)
    return Loaded(
        prepare_for_inference(model),
        tokenizer,
        torch.device("cpu"),
        "fp32",
        ModelSource(Path(name)),
    )


@pytest.fixture(scope="package")
def tokenizer() -> Tokenizer:
    return train_tokenizer([inspect.getsource(textwrap), "naïve café, 日本語 🙂 " * 9], 400)


@pytest.fixture(scope="package")
def served(tokenizer: Tokenizer) -> list[ServedModel]:
    return serve_names([(Path("runs/run"), loaded(tokenizer))])


@pytest.fixture(scope="package")
def scheduler(served: list[ServedModel]) -> Iterator[Scheduler]:
    """A decode thread of four rows, so that requests wait for each other."""
    running = Scheduler([one.loaded for one in served], batch_size=4)
    running.start()
    yield running
    running.close()


@pytest.fixture(scope="package")
def client(served: list[ServedModel], scheduler: Scheduler) -> TestClient:
    return TestClient(application(served, scheduler), base_url="http://localhost:8000")


def complete(client: TestClient, **fields: Any) -> Any:
    answer = client.post("/v1/completions", json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()
