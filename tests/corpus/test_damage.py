"""Damaged inputs of every format, built with 1, 2 and 4 readers: nothing is lost without a count,
and the bytes do not depend on the readers.

GPT_DAMAGE=2000 tries that many inputs instead of a small share of them; GPT_DAMAGE_FIRST=5000
begins at another number, which is the seed of an input.
"""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pyarrow
import pytest
import zstandard
from pyarrow import parquet

from gptcli.corpus import build as build_module
from gptcli.corpus import config
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.formats import DocumentKind
from gptcli.corpus.pool import LocalPool
from gptcli.corpus.recipe import CleanConfig, DedupConfig, RepeatsConfig, SourceConfig
from gptcli.errors import InputError
from gptcli.files import read_json
from gptcli.shards.manifest import Manifest
from gptcli.shards.order import open_split
from gptcli.tokenizer.tokenizer import Tokenizer

INPUTS = int(os.environ.get("GPT_DAMAGE", "32"))
FIRST = int(os.environ.get("GPT_DAMAGE_FIRST", "0"))
DOCUMENTS = 24
READERS = (1, 2, 4)


def texts(random: Random) -> list[str]:
    """Return documents of a line each, some with characters that formats escape."""
    words = ["river", "stone", 'a "quote"', "commas, too", "naïve", "a\\b", "light", "1.5"]
    return [
        f"{number}: " + " ".join(random.choices(words, k=random.randrange(8, 30)))
        for number in range(DOCUMENTS)
    ]


def as_csv(documents: list[str]) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.writer(out)
    writer.writerows([["text", "id"], *([text, number] for number, text in enumerate(documents))])
    return out.getvalue().encode()


def as_parquet(documents: list[str]) -> bytes:
    out = io.BytesIO()
    table = pyarrow.table({"text": documents})
    parquet.write_table(table, out, row_group_size=5, write_page_checksum=True)
    return out.getvalue()


def warc_record(text: str) -> bytes:
    body = text.encode()
    head = (
        "WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://a.com/\r\n"
        f"Content-Type: text/plain\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def as_tar(documents: list[str]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number, text in enumerate(documents):
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = len(text.encode())
            archive.addfile(member, io.BytesIO(text.encode()))
    return out.getvalue()


def as_zip(documents: list[str]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, text in enumerate(documents):
            archive.writestr(f"{number}.txt", text)
    return out.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": lambda data: gzip.compress(data, mtime=0),  # not the time of the run
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
}
with contextlib.suppress(ImportError):
    import lz4.frame

    COMPRESS[".lz4"] = lambda data: lz4.frame.compress(data, content_checksum=True)


def json_lines(documents: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


FORMATS: dict[str, Callable[[list[str]], bytes]] = {
    "a.txt": lambda documents: "\n".join(documents).encode(),
    "a.jsonl": json_lines,
    "a.json": lambda documents: json.dumps([{"text": text} for text in documents]).encode(),
    "a.csv": as_csv,
    "a.parquet": as_parquet,
    "a.wet": lambda documents: b"".join(map(warc_record, documents)),
    "a.tar": as_tar,
    "a.zip": as_zip,
}


def whole(name: str, documents: list[str], random: Random) -> bytes:
    """Return a file of this name; a compressed archive has a member for each record."""
    ending = Path(name).suffix
    if ending not in COMPRESS:
        return FORMATS[name](documents)
    inner = Path(name).stem
    if inner == "a.wet" and random.random() < 0.8:
        return b"".join(COMPRESS[ending](warc_record(text)) for text in documents)
    return COMPRESS[ending](FORMATS[inner](documents))


def damage(data: bytes, random: Random) -> tuple[str, int, bytes]:
    """Return what was done, to how many bytes, and the damaged data."""
    how = random.choice(["flip", "remove", "insert", "cut", "swap", "zeros", "zeros to the end"])
    at, size = random.randrange(len(data)), random.choice([1, 3, 20, 150, 1500])
    size = len(data) - at if how == "zeros to the end" else size
    middle = data[at : at + size]
    if how == "flip":
        middle = bytes(byte ^ random.randrange(1, 256) for byte in middle)
    elif how == "insert":
        middle = random.randbytes(size) + middle
    elif how == "swap":
        middle = middle[::-1]
    elif how == "remove":
        middle = b""
    elif how.startswith("zeros"):
        middle = bytes(len(middle))
    return how, size, data[:at] if how == "cut" else data[:at] + middle + data[at + size :]


class InProcess(LocalPool):
    """Pool that divides reading as for several workers and runs the tasks one after another."""

    readers = 1

    def __init__(self, count: int, state: Any) -> None:
        super().__init__(1, state)
        self.count = self.readers

    def map(self, function: Callable[[Any, Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        waiting = list(tasks)
        Random(self.readers).shuffle(waiting)
        yield from super().map(function, waiting)


def keep(text: str) -> bool:
    """Return True for most texts: a filter of one's own."""
    return len(text) % 7 > 0


STAGES: list[dict[str, Any]] = [
    {},
    {"filters": ["pii", "tests.corpus.test_damage:keep"]},
    {"repeats": RepeatsConfig(unit="sentence", size=1)},
    {"dedup": DedupConfig(url=True), "clean": CleanConfig(min_words=12)},
]
"""Stages of a source, a quarter of the inputs each."""


def built(
    path: Path, out: Path, tokenizer: Tokenizer, readers: int, stages: dict[str, Any]
) -> tuple[Manifest, list[str]] | str:
    """Build shards of a file; return the manifest and the texts, or the message of the error."""
    documents: DocumentKind = "line" if ".txt" in path.name else "file"
    source = SourceConfig(inputs=[str(path)], documents=documents, on_error="skip", **stages)
    build = BuildConfig(
        sources=[source],
        tokenizer=tokenizer,
        val_fraction=0.0,
        text_out=out.with_name(f"{out.name}.jsonl"),
        text_dropped=True,
    )
    InProcess.readers = readers
    try:
        begin_build(build, out, resume=False, force=False)
        manifest = finish_build(build, out, workers=readers)
    except InputError as error:
        return error.what
    stream = open_split(out, "train", verify=False)
    tokens = stream[0 : len(stream)].tolist()
    found: list[list[int]] = []
    for token in tokens:
        if token == tokenizer.eot_id:
            found.append([])
        else:
            found[-1].append(token)
    return manifest, [tokenizer.decode(ids) for ids in found]


NAMES = [*FORMATS, *(f"{name}{ending}" for name in FORMATS for ending in COMPRESS)]


@pytest.mark.parametrize("share", range(8))
def test_nothing_is_lost_without_a_count(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, share: int
) -> None:
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (300, 300))
    monkeypatch.setattr(build_module, "open_pool", lambda _, count, state: InProcess(count, state))
    for number in range(FIRST + share, FIRST + INPUTS, 8):
        random = Random(number)
        name = NAMES[number % len(NAMES)]
        documents = texts(random)
        how, size, data = damage(whole(name, documents, random), random)
        stages = STAGES[random.randrange(len(STAGES))]
        path = tmp_path / f"{number}" / name
        path.parent.mkdir()
        path.write_bytes(data)
        results = [
            built(path, path.parent / f"out{readers}", byte_tokenizer, readers, stages)
            for readers in READERS
        ]
        case = f"input {number}: {name}, {how} {size}, {stages}"
        assert all(result == results[0] for result in results[1:]), case
        if isinstance(results[0], str):
            assert results[0], case
            continue
        digests = [
            [
                shard["sha256"]
                for shard in read_json(path.parent / f"out{n}/manifest.json")["shards"]
            ]
            for n in READERS
        ]
        assert digests[0] == digests[1] == digests[2], case
        manifest, kept = results[0]
        (source,) = manifest.sources
        dropped = sum(source.dropped.values())
        assert source.documents_in == source.documents_kept + dropped, case
        records = [(path.parent / f"out{readers}.jsonl").read_bytes() for readers in READERS]
        assert records[0] == records[1] == records[2], case
        rows = [json.loads(line) for line in records[0].splitlines()]
        assert Counter(row["text"] for row in rows if row["kept"]) == Counter(kept), case
        assert not any("\0" * 4 in text for text in kept), case
        reasons = Counter(row["reason"] for row in rows if not row["kept"])
        assert reasons == Counter(source.dropped), case
        # A text that a stage dropped or took away is in its row, or counted as changed.
        found = {row["text"] for row in rows}
        lost = [text for text in documents if text not in found]
        others = [text for text in found if text and text not in documents]
        unread = sum(not row["text"] and not row["kept"] for row in rows)
        is_counted = unread or others or source.changed
        # Whole lines or rows that are gone leave no trace where nothing counts them, nor do files at
        # the end of a tar, which zeros end.
        is_plain = Path(name).suffix not in COMPRESS
        leaves_no_trace = is_plain and (
            how in ("cut", "remove") or (name == "a.tar" and how.startswith("zeros"))
        )
        assert not lost or is_counted or leaves_no_trace, f"{case}: {len(lost)} documents are lost"
        if name.startswith("a.wet") and how != "cut" and is_plain:
            assert len(lost) <= 3 + size // 100, f"{case}: {len(lost)} documents are lost"
