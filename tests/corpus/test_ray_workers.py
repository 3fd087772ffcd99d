"""A Ray cluster on this machine does what local workers do, and makes the same bytes."""

from __future__ import annotations

import json
import operator
import os
import random
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gptcli.corpus import config
from gptcli.corpus.build import begin, finish
from gptcli.corpus.config import Build
from gptcli.corpus.ray_workers import RayWorkers
from gptcli.corpus.recipe import Dedup, Source
from gptcli.corpus.workers import open_pool
from gptcli.errors import InputError, RunError, UsageError
from gptcli.files import read_json, sha256
from gptcli.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Of two cores."""
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray = pytest.importorskip("ray")
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20
    )
    yield
    ray.shutdown()


@pytest.mark.usefixtures("cluster")
def test_results_and_errors_come_as_from_local_workers(tmp_path: Path) -> None:
    with RayWorkers(abs) as workers:
        assert workers.count == 2
        assert sorted(workers.map(operator.call, range(-20, 0))) == list(range(1, 21))
        assert list(workers.map(operator.call, [])) == []
    with (
        RayWorkers(read_json) as workers,
        pytest.raises(InputError, match="no such file") as caught,
    ):
        list(workers.map(operator.call, [tmp_path / "none.json"]))
    assert caught.value.where == str(tmp_path / "none.json")
    with (
        RayWorkers(signal.raise_signal) as workers,
        pytest.raises(RunError, match="worker on the cluster died"),
    ):
        list(workers.map(operator.call, [signal.SIGKILL]))


@pytest.mark.usefixtures("cluster")
def test_the_same_bytes(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "UNIT_CHARACTERS", (2000, 2000))
    monkeypatch.chdir(tmp_path)
    chance = random.Random(1)
    lines = [
        " ".join(str(chance.random()) for _ in range(1 + chance.randrange(30))) for _ in range(100)
    ]
    Path("a.jsonl").write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in [*lines, *lines[:30]])
    )
    build = Build(
        sources=[Source(inputs=["a.jsonl"], dedup=Dedup())],
        tokenizer=byte_tokenizer,
        val_fraction=0.2,
        shard_tokens=5000,
    )
    for runner in ("local", "ray"):
        begin(build, Path(runner), resume=False, force=False)
        assert finish(build, Path(runner), runner=runner).sources[0].dropped == {"duplicate": 30}
    local, ray = (
        {path.name: sha256(path) for path in Path(runner).iterdir()} for runner in ("local", "ray")
    )
    assert len(local) > 10
    assert ray == local


def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"runner: unknown runner 'rai'\n.*ray"):
        open_pool("rai", 1, None)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"runner: ray is not installed\n.*pip install.* ray"):
        open_pool("ray", 1, None)


def test_what_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise ConnectionError("Failed to connect")

    monkeypatch.setitem(
        sys.modules, "ray", SimpleNamespace(is_initialized=lambda: False, init=refuse)
    )
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UsageError, match=r"runner: no Ray cluster is running\n.*ray start"):
        open_pool("ray", 1, None)
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    with pytest.raises(
        UsageError, match=r"runner: no Ray cluster answers at head:6379\n.*RAY_AUTH_MODE=token"
    ):
        open_pool("ray", 1, None)


def test_no_output_is_claimed_for_a_runner_that_is_not_there(
    gpt: Any, tmp_path: Path, byte_tokenizer: Tokenizer
) -> None:
    byte_tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "a.txt").write_text("a text")
    (tmp_path / "ray.py").write_text("raise ImportError")  # found before the installed one
    refused = gpt(
        "build-shards", "a.txt", "-t", "tokenizer.json", "--runner", "ray", "-o", "out", code=2
    ).stderr
    assert "--runner: ray is not installed" in refused
    assert not (tmp_path / "out").exists()
