"""Every reader of a file that may come from somebody else, each with small valid files to begin
from.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from gptcli.cli.command import read_config
from gptcli.corpus.formats import DOCUMENT_KINDS, DocumentKind, find_reader, scan
from gptcli.corpus.recipe import read_sources
from gptcli.distributed.context import RankContext
from gptcli.events import SILENT
from gptcli.files import sha256, write_json
from gptcli.finetune.task import read_task
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import load_model, save_model
from gptcli.model.source import INDEX, STATE
from gptcli.model.tensor_file import CheckpointStateDict
from gptcli.model.transformer import GPT
from gptcli.runs.metrics import read_metrics
from gptcli.sampling.batch import read_prompts
from gptcli.shards.folder import export_megatron, verify_shards
from gptcli.shards.format import document_lengths, open_shard, open_tokens, token_dtype, write_shard
from gptcli.shards.manifest import MANIFEST, Manifest, Shard, Source, read_manifest, write_manifest
from gptcli.shards.order import open_order, open_split
from gptcli.tokenizer.load import load_tokenizer
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer, byte_alphabet
from gptcli.tokenizer.training import train_tokenizer
from gptcli.trainer.checkpoint import Checkpoints, CheckpointState, newest_state
from gptcli.trainer.schedule import Position
from tests.fuzz.engine import Files, Target, files_in
from tests.fuzz.eval_targets import eval_targets
from tests.model.gpt1_release import release_shapes, write_release

SHAPE = ModelConfig(n_layer=1, n_head=1, d_model=4, n_ctx=8, vocab_size=300)
STEP = "checkpoints/step-00000001"
TEXT = "A small text — for a small vocabulary.\r\n\n  Grüße, 42!\n" * 3


def targets() -> list[Target]:
    return [
        *documents(),
        shards(),
        foreign(),
        manifest(),
        verified(),
        weights(),
        config_json(),
        release(),
        *tokenizers(),
        *tables(),
        *logs(),
        *checkpoints(),
        *eval_targets(),
    ]


def written(write: Callable[[Path], object]) -> Files:
    """The files that `write` makes in a folder."""
    with TemporaryDirectory() as name:
        write(Path(name))
        return files_in(Path(name))


def documents() -> list[Target]:
    def reading(name: str, kind: DocumentKind) -> Callable[[Path], object]:
        return lambda folder: [
            document.html
            for document in scan(str(folder / name), find_reader(str(folder / name), kind))
        ]

    lines = b'{"text": "one", "url": "http://a.org"}\n\n{"text": "tw\\u00e9o"}\n{"text": 3}\n'
    found = [Target("jsonl", {"a.jsonl": lines}, reading("a.jsonl", "file"))]
    found.append(
        Target(
            "csv",
            {"a.csv": b'url,text\nhttp://a,"one\n""two"""\nb,three\n'},
            reading("a.csv", "file"),
        )
    )
    found += [
        Target(f"text by {kind}", {"a.txt": TEXT.encode()}, reading("a.txt", kind))
        for kind in DOCUMENT_KINDS
    ]
    found.append(
        Target("gzip", {"a.jsonl.gz": gzip.compress(lines) * 2}, reading("a.jsonl.gz", "file"))
    )
    try:
        import zstandard

        found.append(
            Target(
                "zstd",
                {"a.jsonl.zst": zstandard.compress(lines) * 2},
                reading("a.jsonl.zst", "file"),
            )
        )
    except ImportError:
        pass
    try:
        import fastwarc  # noqa: F401

        found.append(Target("warc", {"a.warc": archive()}, reading("a.warc", "file")))
        found.append(
            Target("warc.gz", {"a.warc.gz": gzip.compress(archive())}, reading("a.warc.gz", "file"))
        )
    except ImportError:
        pass
    try:
        import pyarrow
        from pyarrow import parquet

        table, out = (
            pyarrow.table({"text": ["one", None, "three" * 20], "url": ["a", "b", None]}),
            io.BytesIO(),
        )
        parquet.write_table(table, out)
        found.append(Target("parquet", {"a.parquet": out.getvalue()}, reading("a.parquet", "file")))
    except ImportError:
        pass
    return found


def archive() -> bytes:
    def record(kind: str, body: str, content: str) -> str:
        head = f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: http://a.com/x\r\nContent-Type: {content}\r\n"
        return f"{head}Content-Length: {len(body)}\r\n\r\n{body}\r\n\r\n"

    page = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: identity\r\n\r\n<p>Hello</p>"
    return (
        record("warcinfo", "x: y", "text/plain")
        + record("response", page, "application/http")
        + record("conversion", "words", "text/plain")
    ).encode()


def shard_folder(folder: Path) -> None:
    tokenizer = Tokenizer([*byte_alphabet(), END_OF_TEXT], [])
    tokenizer.save(folder / "tokenizer.json")
    made = []
    for split in ("train", "val"):
        ids = np.array([256, 1, 2, 3, 4, 5, 256, 7, 8, 9, 10, 11])
        digest = write_shard(
            folder / f"{split}-000000.bin", np.array([6, 6]), [ids], token_dtype(257)
        )
        made.append(
            Shard(file=f"{split}-000000.bin", split=split, tokens=12, documents=2, sha256=digest)
        )
    source = Source(
        name="inputs",
        documents_in=5,
        documents_kept=4,
        dropped={"quality": 1},
        text_bytes=20,
        tokens=24,
    )
    facts: dict[str, Any] = {
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": 257,
        "eot_id": 256,
        "seed": 0,
        "val_fraction": 0.5,
        "split_rule": "x",
    }
    write_manifest(folder, Manifest(**facts, shards=made, sources=[source]))


def shards() -> Target:
    files = written(shard_folder)
    shard = "train-000000.bin"
    return Target(
        "bin, idx",
        {name: files[name] for name in (shard, "train-000000.idx")},
        lambda folder: (open_shard(folder / shard).sum(), document_lengths(folder / shard).sum()),
    )


def foreign() -> Target:
    """Files of three kinds in a folder without a manifest: Megatron's with its index, nanoGPT's
    bare tokens, and llm.c's.
    """

    def write(folder: Path) -> None:
        shard_folder(folder)
        export_megatron(folder)

    def read(folder: Path) -> None:
        for path in sorted(folder.glob("*.bin")):
            open_tokens(path).sum()
        read_manifest(folder)

    files, kept = (
        written(write),
        ("train.bin", "train.idx", "val.bin", "val-000000.bin", "tokenizer.json"),
    )
    return Target(
        "foreign shards", {name: files[name] for name in kept}, read, fixed=("tokenizer.json",)
    )


def manifest() -> Target:
    def read(folder: Path) -> None:
        found = read_manifest(folder)
        for split in ("train", "val"):
            found.tokens(split)
            open_split(folder, split)
            open_order(folder, split, 4, 0).batch(0, 2)

    files = written(shard_folder)
    return Target("manifest", files, read, fixed=tuple(name for name in files if name != MANIFEST))


def verified() -> Target:
    """All of a shard folder, its checksums made right again."""

    def seal(folder: Path) -> None:
        table = json.loads((folder / "manifest.json").read_bytes())
        for row in table["shards"]:
            row["sha256"] = sha256(folder / row["file"])
        write_json(folder / "manifest.json", table)

    return Target("verify", written(shard_folder), verify_shards, seal)


def weights() -> Target:
    tensors = GPT(SHAPE).state_dict()
    return Target(
        "safetensors", written(lambda folder: save_model(folder, tensors, SHAPE)), load_model
    )


def config_json() -> Target:
    banded = replace(SHAPE, n_layer=2, attention="banded", band=4)
    files = written(lambda folder: save_model(folder, GPT(banded).state_dict(), banded))
    return Target(
        "config.json", files, load_model, fixed=("model.safetensors", "native.safetensors")
    )


def release() -> Target:
    """GPT-1 as OpenAI released it, one layer of one head."""
    shapes = release_shapes(n_layer=1, d_model=64, n_ctx=8, vocab_size=300)
    files = written(lambda folder: write_release(folder, shapes, scale=0, dtype=np.float16))
    return Target(
        "GPT-1 release",
        files,
        load_model,
        fixed=tuple(f"params_{number}.npy" for number in range(8)),
    )


def tokenizers() -> list[Target]:
    def read(folder: Path) -> None:
        tokenizer = load_tokenizer(folder)
        tokenizer.decode(tokenizer.encode(TEXT))

    small = train_tokenizer([TEXT], 270)
    ids = {token: number for number, token in enumerate([*byte_alphabet(), "Gr", END_OF_TEXT])}
    release = {"encoder.json": json.dumps(ids).encode(), "vocab.bpe": b"#version: 0.2\nG r\n"}
    return [
        Target(
            "tokenizer.json", written(lambda folder: small.save(folder / "tokenizer.json")), read
        ),
        Target("vocab.bpe", release, read),
    ]


def tables() -> list[Target]:
    recipe = b"""val_fraction = 0.1
[sources.a]
inputs = ["*.txt"]
weight = 3
clean = {min_words = 2}
dedup = {method = "lsh"}
[sources.b]
inputs = ["a.txt"]
"""
    tune = b"""kind = "classification"
train = "a"
validation = "b"
labels = ["x", "y"]
epochs = 2
fields = {text = "t"}
"""

    def read_recipe(folder: Path) -> object:
        table = read_config(
            folder / "a.toml",
            dict.fromkeys(("val_fraction", "sources", "decontaminate", "mixture")),
        )
        with contextlib.chdir(folder):
            return read_sources(table["sources"]) if "sources" in table else None

    return [
        Target("recipe.toml", {"a.toml": recipe, "a.txt": b"one\n"}, read_recipe, fixed=("a.txt",)),
        Target("fine-tuning task", {"a.toml": tune}, lambda folder: read_task(folder / "a.toml")),
    ]


def logs() -> list[Target]:
    """Lines that a run or a user wrote."""
    return [
        Target(
            "prompts",
            {"a.jsonl": b'{"prompt": "one"}\n{"prompt": "two"}\n'},
            lambda folder: read_prompts(folder / "a.jsonl"),
        ),
        Target(
            "metrics.jsonl",
            {"metrics.jsonl": b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null}\n'},
            read_metrics,
        ),
    ]


def checkpoints() -> list[Target]:
    context, model = RankContext(torch.device("cpu")), GPT(SHAPE)
    optimizer = torch.optim.AdamW(model.parameters())

    def write(folder: Path) -> None:
        model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
        optimizer.step()
        store = Checkpoints(folder, context, keep=1)
        parameters = dict(model.named_parameters())
        store.save(
            CheckpointState(Position(1, 2), {"seed": 1}, {"loss": 1.0, "running": {}}),
            parameters,
            optimizer,
        )
        store.wait()

    def seal(folder: Path) -> None:
        table = json.loads((folder / STEP / STATE).read_bytes())
        table["sha256"] = {file: sha256(folder / STEP / file) for file in table["sha256"]}
        write_json(folder / STEP / STATE, table)

    def read(folder: Path) -> None:
        newest_state(folder)
        fresh = GPT(SHAPE)
        store = Checkpoints(folder, context, keep=1)
        if (found := store.newest(SILENT)) is not None:
            store.load(found, dict(fresh.named_parameters()), torch.optim.AdamW(fresh.parameters()))
            dict(CheckpointStateDict(found))

    files = written(write)
    assert f"{STEP}/{INDEX}" in files
    return [Target("checkpoint", files, read, seal), Target("checkpoint, unsealed", files, read)]
