"""Reports on a build: an estimate before it (`--dry-run`) and `report.md` after it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

from gptcli.corpus.chunks import Tally
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.documents import NON_FATAL_ERRORS, extract_text
from gptcli.corpus.formats import scan
from gptcli.corpus.inputs import STDIN
from gptcli.corpus.recipe import SourceConfig
from gptcli.files import atomic_write
from gptcli.papers.training import GPT3_MIXTURE
from gptcli.shards.format import document_lengths, open_shard, token_dtype
from gptcli.shards.manifest import SPLITS, Manifest, Source, Split
from gptcli.tokenizer.encoders import open_encoder
from gptcli.tokenizer.tokenizer import Tokenizer

SAMPLED_FILES = 8  # read for an estimate, evenly spaced among the inputs
SAMPLED_CHARACTERS = 1 << 16  # from the beginning of each

MAX_LISTED_INPUTS = 10
SHOWN_DOCUMENTS: dict[Split, int] = {"train": 3, "val": 2}
SHOWN_TOKENS = 64  # of each document
SHOWN_CHARACTERS = 100  # of each dropped document


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildEstimate:
    """Estimated size and time of a build, from a sample of its inputs.

    A value is None if it is unknown before the inputs are read: compressed files and standard input
    hide the size of their text.
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


def estimate_build(build: BuildConfig, workers: int) -> BuildEstimate:
    """Read and tokenize the beginning of some inputs, but not of standard input.

    Raises InputError if a sampled input cannot be read.
    """
    files = [(path, source) for source in build.sources for path in source.inputs if path != STDIN]
    text_bytes = tokens = 0
    seconds = 0.0
    encoder = open_encoder(build.tokenizer, build.encoder)
    for path, source in files[:: math.ceil(len(files) / SAMPLED_FILES) or 1]:
        text = _beginning(path, source)
        start = time.perf_counter()
        tokens += len(encoder.encode([text])[0]) + 1
        seconds += time.perf_counter() - start
        text_bytes += len(text.encode())
    size = build.input_bytes()
    known = BuildEstimate(
        input_files=len(files),
        input_bytes=size,
        bytes_per_token=text_bytes / tokens if tokens else None,
    )
    if size is None or build.is_compressed():
        return known
    all_tokens = round(size * tokens / max(text_bytes, 1))
    token_bytes = token_dtype(build.tokenizer.vocab_size).itemsize
    return replace(
        known,
        tokens=all_tokens,
        shards=math.ceil(all_tokens / build.shard_tokens),
        disk_bytes=all_tokens * token_bytes,
        memory_bytes=min(all_tokens, workers * build.shard_tokens) * token_bytes,
        seconds=seconds * all_tokens / tokens / workers,
    )


def _beginning(path: str, source: SourceConfig) -> str:
    """Return the first lines or records of a file, whatever its documents are.

    No more of the file is read than is needed.
    """
    lines: list[str] = []
    size = 0
    by_lines = replace(source, documents="line", inputs=[])
    for document in scan(path, by_lines.reader(path)):
        if document.error is not None:
            if source.on_error == "stop" and document.error_kind not in NON_FATAL_ERRORS:
                raise document.error
            continue
        if document.html is not None:
            document.text = extract_text(document.html, charset=document.charset)
        lines.append(document.text)
        size += len(document.text) + 1
        if size >= SAMPLED_CHARACTERS:
            break
    return "\n".join(lines)


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
    lines += ["", "| documents | |", "|---|---:|", f"| read | {source.documents_in:,} |"]
    lines += [f"| dropped: {reason} | {count:,} |" for reason, count in source.dropped.items()]
    lines += [f"| kept | {source.documents_kept:,} |", ""]
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
    for reason, samples in sorted(tally.samples.items()):
        lines += ["", f"Dropped as {reason}:", ""]
        lines += [
            f"    {where}: {' '.join(text.split())[:SHOWN_CHARACTERS]}" for where, text in samples
        ]
    return lines


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
