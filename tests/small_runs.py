"""Small shards and small runs. Everything here trains on one thread: on tiny tensors more only wait
for each other.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.manifest import (
    Manifest,
    Shard,
    Source,
    Split,
    read_manifest,
    write_manifest,
)
from gptcli.tokenizer.training import train_tokenizer
from gptcli.trainer.config import Run, TrainConfig
from gptcli.trainer.loop import train
from gptcli.trainer.preflight import data_sha256

torch.set_num_threads(1)

COUNTED = Source(
    name="", documents_in=1, documents_kept=1, dropped={}, text_bytes=1, tokens=3300
)  # fmt: skip
RunMaker = Callable[..., Run]
Train = Callable[[Run], dict[str, Any]]


def save_small_model(folder: Path, text: str, vocab_size: int) -> Path:
    """A model folder with random weights, a context of 16 and a tokenizer learned from `text`."""
    tokenizer = train_tokenizer([text], vocab_size)
    model = GPT(
        ModelConfig(n_layer=1, n_head=2, d_model=16, n_ctx=16, vocab_size=tokenizer.vocab_size)
    )
    model.init_weights(0)
    save_model(folder, model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(folder / "tokenizer.json")
    return folder


def make_shards(folder: Path, *, train: int = 6000, val: int = 400) -> Path:
    """A shard folder whose tokens are predictable enough to learn: each is mostly the one before
    plus a step.
    """
    tokenizer = train_tokenizer(["a small text for a small vocabulary\n"], 260)
    folder.mkdir()
    tokenizer.save(folder / "tokenizer.json")
    rng = np.random.default_rng(0)
    ids = np.cumsum(rng.choice([1, 2, 40], size=train + val, p=[0.6, 0.3, 0.1])) % 256
    shards = []
    parts: dict[Split, tuple[int, int]] = {"train": (0, train), "val": (train, val)}
    for split, (start, count) in parts.items():
        if count:
            name = f"{split}-000000.bin"
            digest = write_shard(
                folder / name,
                np.array([count]),
                [ids[start : start + count]],
                token_dtype(tokenizer.vocab_size),
            )
            shards.append(Shard(file=name, split=split, tokens=count, documents=1, sha256=digest))
    assert tokenizer.eot_id is not None
    manifest = Manifest(
        tokenizer_sha256=tokenizer.sha256, vocab_size=tokenizer.vocab_size, eot_id=tokenizer.eot_id, seed=0,
        val_fraction=0.0, split_rule="a test's", shards=shards, sources=[],
    )  # fmt: skip
    write_manifest(folder, manifest)
    return folder


@pytest.fixture(scope="session")
def write_shards() -> Callable[..., Path]:
    return make_shards


@pytest.fixture
def write_sources(write_shards: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A shard folder whose sources, of given weights, all have the same tokens."""

    def write(**weights: float) -> Path:
        folder = tmp_path / "sources"
        if not folder.exists():
            write_shards(folder, train=3000, val=300)
        manifest = read_manifest(folder)
        shards, sources = [], []
        for name, weight in weights.items():
            for split in ("train", "val"):
                of_all = next(shard for shard in manifest.shards if shard.split == split)
                file = f"{split}-{name}-000000.bin"
                shutil.copy(folder / f"{split}-000000.bin", folder / file)
                shards.append(replace(of_all, file=file, source=name))
            sources.append(replace(COUNTED, name=name, weight=weight))
        write_manifest(folder, replace(manifest, shards=shards, sources=sources))
        return folder

    return write


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shards(tmp_path_factory.mktemp("data") / "shards")


@pytest.fixture
def make_run(shards: Path, tmp_path: Path) -> RunMaker:
    """A run of 20 steps of 4 sequences of 16 tokens, with anything changed: fields of Run,
    ModelConfig and TrainConfig alike.
    """

    def make(name: str = "run", data: Path = shards, **changes: Any) -> Run:
        manifest = read_manifest(data)
        model = ModelConfig(
            n_layer=2, n_head=2, d_model=16, n_ctx=16, vocab_size=manifest.vocab_size
        )
        config = TrainConfig(
            tokens=1280, batch_tokens=64, lr=3e-3, min_lr_ratio=0.1, warmup_tokens=128, decay_tokens=1280, ramp_tokens=0, ramp_from=0,
            weight_decay=0.1, beta1=0.9, beta2=0.95, eps=1e-8, clip=1.0, seed=1, micro_batch=4, layout="dp=1", precision="fp32",
            compile=False, checkpoint_every=7, eval_every=5, eval_tokens=128, keep=2,
        )  # fmt: skip
        run = Run(
            name="tiny", out=tmp_path / name, data=data, model=model, train=config, data_sha256=data_sha256(manifest),
            tokenizer_sha256=manifest.tokenizer_sha256, eot_id=manifest.eot_id, resolved="seed = 1  # test\n",
        )  # fmt: skip
        parts = {
            part: {k: v for k, v in changes.items() if hasattr(getattr(run, part), k)}
            for part in ("model", "train")
        }
        of_run = {
            k: v for k, v in changes.items() if k not in parts["model"] and k not in parts["train"]
        }
        return replace(
            run,
            model=replace(model, **parts["model"]),
            train=replace(config, **parts["train"]),
            **of_run,
        )

    return make


@pytest.fixture
def train_here() -> Train:
    """Train in this process, on the CPU."""
    return lambda run: train(run, RankContext(torch.device("cpu")), SILENT)
