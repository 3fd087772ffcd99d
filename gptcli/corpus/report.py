"""Reports on a build: an estimate before it (`--dry-run`) and `report.md` after it."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptcli.corpus.chunks import Tally
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.documents import NON_FATAL_ERRORS, extract_text
from gptcli.corpus.formats import scan
from gptcli.corpus.formats.tables import parquet_rows
from gptcli.corpus.inputs import STDIN, file_suffixes, fingerprint, watch_reads
from gptcli.corpus.recipe import SourceConfig
from gptcli.files import atomic_write
from gptcli.papers.models import GPT3_MIXTURE
from gptcli.shards.format import document_lengths, open_shard, token_dtype
from gptcli.shards.manifest import SPLITS, Manifest, Source, Split
from gptcli.tokenizer.encoders import open_encoder
from gptcli.tokenizer.tokenizer import Tokenizer

SAMPLED_FILES = 8  # read for an estimate, evenly spaced among the inputs
SAMPLED_CHARACTERS = 1 << 16  # from the beginning of each
PACKED_CHARACTERS = 1 << 22  # of a compressed one, to see how much larger its text is

MAX_LISTED_INPUTS = 10
SHOWN_DOCUMENTS: dict[Split, int] = {"train": 3, "val": 2}
SHOWN_TOKENS = 64  # of each document
SHOWN_CHARACTERS = 100  # of each dropped document


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEstimate:
    """Estimated size and time of a build, from a sample of its inputs.

    A value is None if it is unknown before the inputs are read: that of standard input. The size of
    the text in compressed files is that of their sample, scaled up.
    """

    input_files: int
    """Number of input files."""
    input_bytes: int | None
    """Size of all inputs on disk."""
    bytes_per_token: float | None
    """UTF-8 bytes per token in the sample."""
    tokens: int | None = None
    """Number of tokens."""
    shards: int | None = None
    """Number of shards."""
    disk_bytes: int | None = None
    """Size of the shards; a build needs the same size again while it runs."""
    memory_bytes: int | None = None
    """Memory for tokens in all workers while shards are written."""
    seconds: float | None = None
    """Time to tokenize, at the speed of the sample."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Beginning of an input."""

    text: str
    """Up to about SAMPLED_CHARACTERS of its text."""
    expansion: float
    """Bytes of text per byte of the file."""


def estimate_build(build: BuildConfig, workers: int) -> BuildEstimate:
    """Read and tokenize the beginning of some inputs, but not of standard input.

    Raises InputError if a sampled input cannot be read.
    """
    files = [(path, source) for source in build.sources for path in source.inputs if path != STDIN]
    text_bytes = tokens = 0
    seconds = 0.0
    expansions: dict[tuple[str, str], list[float]] = {}
    encoder = open_encoder(build.tokenizer, build.encoder)
    for path, source in files[:: math.ceil(len(files) / SAMPLED_FILES) or 1]:
        sample = _sample(path, source)
        expansions.setdefault(file_suffixes(path), []).append(sample.expansion)
        start = time.perf_counter()
        tokens += len(encoder.encode([sample.text])[0]) + 1
        seconds += time.perf_counter() - start
        text_bytes += len(sample.text.encode())
    size = build.input_bytes()
    known = BuildEstimate(
        input_files=len(files),
        input_bytes=size,
        bytes_per_token=text_bytes / tokens if tokens else None,
    )
    if size is None:
        return known
    every = [one for mine in expansions.values() for one in mine]
    all_text = 0.0
    for path, _ in files:  # a kind of file of which none was sampled is like the others
        mine = expansions.get(file_suffixes(path), every)
        all_text += fingerprint(path)[0] * sum(mine) / len(mine)
    all_tokens = round(all_text * tokens / max(text_bytes, 1))
    token_bytes = token_dtype(build.tokenizer.vocab_size).itemsize
    return replace(
        known,
        tokens=all_tokens,
        shards=math.ceil(all_tokens / build.shard_tokens),
        disk_bytes=all_tokens * token_bytes,
        memory_bytes=min(all_tokens, workers * build.shard_tokens) * token_bytes,
        seconds=seconds * all_tokens / tokens / workers,
    )


def _sample(path: str, source: SourceConfig) -> _Sample:
    """Read the first lines or records of a file, whatever its documents are.

    Of a file whose text is larger or smaller than itself so much is read that their ratio is known.
    """
    texts: list[str] = []
    read = characters = 0
    suffix, compression = file_suffixes(path)
    is_packed = bool(compression) or suffix in (".parquet", ".warc", ".tar", ".zip")
    wanted = PACKED_CHARACTERS if is_packed else SAMPLED_CHARACTERS
    is_whole = True

    def count(size: int) -> None:
        nonlocal read
        read += size

    by_lines = replace(source, documents="line", inputs=[])
    documents: Any = scan(path, by_lines.reader(path))  # a generator
    with watch_reads(count), contextlib.closing(documents):
        for document in documents:
            if document.error is not None:
                if source.on_error == "stop" and document.error_kind not in NON_FATAL_ERRORS:
                    raise document.error
                continue
            if document.html is not None:
                document.text = extract_text(document.html, charset=document.charset)
            texts.append(document.text)
            characters += len(document.text) + 1
            if characters >= wanted:
                is_whole = False
                break
    text = "\n".join(texts)
    if not is_packed:
        return _Sample(text, 1.0)
    size, rows = fingerprint(path)[0], parquet_rows(path) if suffix == ".parquet" else None
    if is_whole or rows is None:
        share = 1.0 if is_whole else read / size
    else:
        share = len(texts) / rows
    return _Sample(text[:SAMPLED_CHARACTERS], len(text.encode()) / max(share * size, 1))


def write_report(
    folder: Path,
    manifest: Manifest,
    inputs: dict[str, list[str]],
    tallies: list[Tally],
    tokenizer: Tokenizer,
) -> None:
    """Write `report.md` about the shards in `folder`.

    `inputs` are the input files of each source by its name, `tallies` what became of the documents
    of each source, in the manifest's order.
    """
    lines = ["# Shards", "", "## Inputs"]
    for source, tally in zip(manifest.sources, tallies, strict=True):
        if len(tallies) > 1:
            lines += ["", f"### {source.name}"]
        lines += _source_lines(source, inputs[source.name], tally)
    lines += _mixture_lines(manifest) if len(tallies) > 1 else []
    lines += _shard_lines(manifest)
    lines += _document_lines(folder, manifest, tokenizer)
    with atomic_write(folder / "report.md", "w") as file:
        file.write("\n".join([*lines, ""]))


def _source_lines(source: Source, inputs: list[str], tally: Tally) -> list[str]:
    """Return the inputs of a source, and how many of its documents were dropped and kept."""
    lines = ["", f"{len(inputs):,} input{'s' * (len(inputs) != 1)}:", ""]
    lines += [f"- `{name}`" for name in inputs[:MAX_LISTED_INPUTS]]
    hidden = len(inputs) - MAX_LISTED_INPUTS
    lines += [f"- and {hidden:,} more"] * (hidden > 0)
    left_out = getattr(inputs, "left_out", {})
    lines += [f"- left out: {count:,} {reason}" for reason, count in sorted(left_out.items())]
    lines += ["", *_funnel(source), ""]
    if source.cut:
        lines += [
            f"{source.cut:,} of the documents kept lost text to decontamination, "
            f"which divided some and so added {source.pieces:,} documents.",
            "",
        ]
    if source.documents_kept:
        lines += [
            f"{source.text_bytes:,} bytes of text became {source.tokens:,} tokens, including an "
            "end-of-text token before each document: "
            f"{source.text_bytes / source.tokens:.2f} bytes per token, "
            f"{source.tokens / source.documents_kept:,.1f} tokens per document."
        ]
    for reason in (reason for reason in source.dropped if reason in tally.samples):
        samples = tally.samples[reason]
        lines += ["", f"Dropped as {reason}:", ""]
        lines += [
            f"    {where}: {' '.join(text.split())[:SHOWN_CHARACTERS]}" for where, text in samples
        ]
    return lines


def _funnel(source: Source) -> list[str]:
    """Return a table of the documents that each stage drops, in order, and of those left."""
    read = source.documents_in

    def row(name: str, count: int, left: int) -> str:
        shares = [f"{part / read:.1%}" if read else "-" for part in (count, left)]
        return f"| {name} | {count:,} | {shares[0]} | {left:,} | {shares[1]} |"

    lines = ["| stage | documents | of all | left | of all |", "|---|---:|---:|---:|---:|"]
    left = read
    lines.append(row("read", read, left))
    for reason, count in source.dropped.items():
        left -= count
        lines.append(row(f"dropped: {reason}", count, left))
    return [*lines, row("kept", source.documents_kept, source.documents_kept)]


def _mixture_lines(manifest: Manifest) -> list[str]:
    """Return shares and epochs of the sources, next to those of Table 2.2 for sources it names."""
    lines = [
        "",
        "## Mixture",
        "",
        "| source | training tokens | share | epochs | GPT-3's epochs |",
        "|---|---:|---:|---:|---:|",
    ]
    shares = manifest.shares()
    for source in manifest.sources:
        paper = f"{GPT3_MIXTURE[source.name].epochs:g}" if source.name in GPT3_MIXTURE else "-"
        share = f"{shares.get(source.name, 0):.1%} | {source.epochs:.3g}"
        tokens = manifest.tokens("train", source.name)
        lines.append(f"| {source.name} | {tokens:,} | {share} | {paper} |")
    return lines


def _shard_lines(manifest: Manifest) -> list[str]:
    lines = [
        "",
        "## Outputs",
        "",
        "| split | shards | documents | tokens |",
        "|---|---:|---:|---:|",
    ]
    for split in SPLITS:
        shards = manifest.shards_of(split)
        documents = sum(shard.documents for shard in shards)
        lines.append(f"| {split} | {len(shards):,} | {documents:,} | {manifest.tokens(split):,} |")
    return [
        *lines,
        "",
        f"Vocabulary {manifest.vocab_size:,}, end-of-text {manifest.eot_id}, "
        f"tokenizer `{manifest.tokenizer_sha256[:16]}`.",
        f"Seed {manifest.seed}.",
        f"Split: {manifest.split_rule}; val_fraction is {manifest.val_fraction:g}.",
    ]


def _document_lines(folder: Path, manifest: Manifest, tokenizer: Tokenizer) -> list[str]:
    """Return the beginnings of the first documents of each split, indented to be no markup."""
    lines = []
    for split, count in SHOWN_DOCUMENTS.items():
        for shard in manifest.shards_of(split)[:1]:
            tokens, start = open_shard(folder / shard.file), 0
            lengths = document_lengths(folder / shard.file)[:count].tolist()
            for number, length in enumerate(lengths, 1):
                shown = tokens[start + 1 : start + min(length, SHOWN_TOKENS)].tolist()
                text = tokenizer.decode(shown)
                start += length
                lines += ["", f"## {split}, document {number}", ""]
                lines += [f"    {line}" for line in text.splitlines()]
    return lines
