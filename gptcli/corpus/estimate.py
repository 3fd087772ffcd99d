"""What a build will make and need, from a sample of its inputs: the numbers of `--dry-run`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from gptcli.corpus.config import Build
from gptcli.corpus.documents import HARMLESS
from gptcli.corpus.extract import plain_text
from gptcli.corpus.readers import find_reader, scan
from gptcli.corpus.recipe import Source
from gptcli.corpus.streams import STDIN
from gptcli.shards.format import token_dtype
from gptcli.tokenizer.encoders import open_encoder

SAMPLED_INPUTS = 8  # evenly spaced in the list
SAMPLE_CHARACTERS = 1 << 16  # from the beginning of each


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """None stands for what cannot be known before the inputs are read: compressed files and
    standard input hide their size.
    """

    input_files: int
    input_bytes: int | None
    bytes_per_token: float | None
    """Of the sample."""
    tokens: int | None = None
    shards: int | None = None
    disk_bytes: int | None = None
    """Of the shards; as much again while they are built."""
    memory_bytes: int | None = None
    """Of tokens in all workers at once while shards are written."""
    seconds: float | None = None
    """To tokenise, at the sample's speed."""


def estimate(build: Build, workers: int) -> Estimate:
    """Read and tokenise a little of some inputs. Nothing of standard input is read. Raises
    InputError as the build would.
    """
    files = [(path, source) for source in build.sources for path in source.inputs if path != STDIN]
    text_bytes = tokens = 0
    seconds = 0.0
    encoder = open_encoder(build.tokenizer, build.encoder)
    for path, source in files[:: math.ceil(len(files) / SAMPLED_INPUTS) or 1]:
        text = _beginning(path, source)
        start = time.perf_counter()
        tokens += len(encoder.encode([text])[0]) + 1
        seconds += time.perf_counter() - start
        text_bytes += len(text.encode())
    size = build.input_bytes()
    known = Estimate(
        input_files=len(files),
        input_bytes=size,
        bytes_per_token=text_bytes / tokens if tokens else None,
    )
    if size is None or build.compressed():
        return known
    all_tokens = round(size * tokens / max(text_bytes, 1))
    width = token_dtype(build.tokenizer.vocab_size).itemsize
    return replace(
        known,
        tokens=all_tokens,
        shards=math.ceil(all_tokens / build.shard_tokens),
        disk_bytes=all_tokens * width,
        memory_bytes=min(all_tokens, workers * build.shard_tokens) * width,
        seconds=seconds * all_tokens / tokens / workers,
    )


def _beginning(path: str, source: Source) -> str:
    """The first lines or JSON documents of a file, whatever its documents are: no more of it is
    read than is needed.
    """
    lines: list[str] = []
    size = 0
    for document in scan(path, find_reader(path, "line", source.field)):
        if document.error is not None:
            if source.on_error == "stop" and document.flaw not in HARMLESS:
                raise document.error
            continue
        if document.html is not None:
            document.text = plain_text(document.html)
        lines.append(document.text)
        size += len(document.text) + 1
        if size >= SAMPLE_CHARACTERS:
            break
    return "\n".join(lines)
