"""Reports on a build: an estimate before it (`--dry-run`) and `report.md` after it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptcli.corpus.chunks import Tally
from gptcli.corpus.clean import document_filters
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.dedup import MAX_TASK_KEYS, document_signatures
from gptcli.corpus.documents import NON_FATAL_ERRORS, stopping
from gptcli.corpus.formats import find_format, scan
from gptcli.corpus.formats.tables import parquet_rows
from gptcli.corpus.inputs import STDIN, file_suffixes, fingerprint, watch_reads
from gptcli.corpus.recipe import Comparison, SourceConfig
from gptcli.corpus.repeats import repeat_hashes
from gptcli.corpus.snapshots import snapshot_of, write_sample
from gptcli.files import atomic_write, scratch_folder
from gptcli.numbers import counted
from gptcli.papers.models import GPT3_MIXTURE
from gptcli.shards.format import document_lengths, open_shard, token_dtype
from gptcli.shards.manifest import SPLITS, Manifest, Source, Split
from gptcli.tokenizer.encoders import open_encoder
from gptcli.tokenizer.tokenizer import Tokenizer

SAMPLED_FILES = 8  # read for an estimate, evenly spaced among the inputs
SAMPLED_CHARACTERS = 1 << 16  # from the beginning of each
PACKED_CHARACTERS = 1 << 22  # of a compressed one, to see how much larger its text is

CHUNK_COPIES = 8  # of a chunk's text in a worker: as read, decoded, encoded, its tokens
HASH_BYTES = 8  # of a hash, in memory and on disk
COMPARED_BYTES = 60  # of memory for a key that is compared

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
    documents: int | None = None
    """Number of documents that readers and filters keep, before any comparison; None if texts are
    divided by paragraphs or end-of-text marks.
    """
    pages: int | None = None
    """Page captures of the snapshots among the inputs; None if there are none."""
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
    cpu_seconds: float | None = None
    """Processor time of reading, extraction, filters, comparison and tokenization, of all workers."""
    work_bytes: int | None = None
    """Size of the files in the work folder, which all workers read and write: texts and hashes of
    documents that are compared, and tokens.
    """
    shuffle_bytes: int | None = None
    """Bytes that are read from the work folder: hashes, texts that wait for the comparison, tokens."""
    worker_bytes: int | None = None
    """Memory of a worker, beside the program: documents, hashes that are compared, tokens."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """Beginning of an input."""

    text: str
    """Up to about SAMPLED_CHARACTERS of its text."""
    expansion: float
    """Bytes of text per byte of the file."""
    read_seconds: float
    """Processor time of reading and filtering, for a byte of the file."""
    documents: float
    """Documents kept, for a byte of the file."""
    hash_bytes: float
    """Bytes of hashes for the comparison, for a byte of the file."""
    hash_seconds: float
    """Processor time of the hashes, for a byte of the file."""


def estimate_build(build: BuildConfig, workers: int) -> BuildEstimate:
    """Read and tokenize the beginning of some inputs, but not of standard input.

    Raises InputError if a sampled input cannot be read.
    """
    files = [
        (path, source, comparison)
        for source, comparison in zip(build.sources, build.comparisons(), strict=True)
        for path in source.inputs
        if path != STDIN
    ]
    text_bytes = tokens = 0
    seconds = 0.0
    samples: dict[tuple[str, tuple[str, str]], list[_Sample]] = {}
    encoder = open_encoder(build.tokenizer, build.encoder)
    real = [file for file in files if snapshot_of(file[0]) is None]
    archives = {source.name for path, source, _ in real if file_suffixes(path)[0] == ".warc"}
    made_up = [
        file for file in files if snapshot_of(file[0]) is not None and file[1].name not in archives
    ]
    for path, source, comparison in [*real[:: math.ceil(len(real) / SAMPLED_FILES) or 1], *made_up]:
        sample = _sample_like(path, source, comparison, build.seed)
        samples.setdefault((source.name, _kind(path)), []).append(sample)
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
    every = [one for mine in samples.values() for one in mine]
    all_text = waiting_text = read_seconds = documents = kept = hash_bytes = 0.0
    for path, source, comparison in files:
        # A kind of file of which none was sampled is like the others.
        mine = (
            samples.get((source.name, _kind(path)))
            or samples.get((source.name, file_suffixes(path)))
            or every
        )
        length = fingerprint(path)[0]

        def mean(measure: Callable[[_Sample], float], mine: list[_Sample] = mine) -> float:
            return sum(map(measure, mine)) / len(mine)

        text = length * mean(lambda one: one.expansion)
        is_compared = comparison is not None or source.repeats is not None
        all_text += text
        waiting_text += text * (is_compared + (source.repeats is not None))
        read_seconds += length * mean(lambda one: one.read_seconds + one.hash_seconds)
        count = length * mean(lambda one: one.documents)
        documents += count
        if (
            find_format(path, source.input_format) not in ("text", None)
            or source.documents == "line"
        ):
            kept += count
        else:  # a sample is read by lines
            kept += 1 if source.documents == "file" and not source.eot_in_text else math.nan
        hash_bytes += length * mean(lambda one: one.hash_bytes)
    all_tokens = round(all_text * tokens / max(text_bytes, 1))
    token_bytes = token_dtype(build.tokenizer.vocab_size).itemsize
    encode_seconds = seconds * all_tokens / max(tokens, 1)
    chunk_bytes = all_tokens * token_bytes + 16 * documents  # with keys and borders
    compared = min(hash_bytes / HASH_BYTES, MAX_TASK_KEYS) * COMPARED_BYTES
    snapshots = [found for path, *_ in files if (found := snapshot_of(path)) is not None]
    return replace(
        known,
        documents=None if math.isnan(kept) else round(kept),
        pages=sum(found.pages for found in snapshots) if snapshots else None,
        tokens=all_tokens,
        shards=math.ceil(all_tokens / build.shard_tokens),
        disk_bytes=all_tokens * token_bytes,
        memory_bytes=min(all_tokens, workers * build.shard_tokens) * token_bytes,
        seconds=encode_seconds / workers,
        cpu_seconds=read_seconds + encode_seconds,
        work_bytes=round(waiting_text + hash_bytes + chunk_bytes),
        shuffle_bytes=round(waiting_text + hash_bytes + chunk_bytes),
        worker_bytes=round(
            max(
                CHUNK_COPIES * build.chunk_characters(),
                compared,
                min(all_tokens, build.shard_tokens) * token_bytes,
            )
        ),
    )


def _kind(path: str) -> tuple[str, str]:
    """Return what files of a source have in common that are sampled together: a snapshot's pages
    have a size of their own.
    """
    return file_suffixes(path) if snapshot_of(path) is None else (path, "")


def _sample_like(
    path: str, source: SourceConfig, comparison: Comparison | None, seed: int
) -> _Sample:
    """Return the sample of a file, or of pages like those of a snapshot."""
    if (snapshot := snapshot_of(path)) is None:
        return _sample(path, source, comparison, seed)
    with scratch_folder() as folder:
        write_sample(snapshot, folder / "pages.warc.gz")
        return _sample(str(folder / "pages.warc.gz"), source, comparison, seed)


def _sample(path: str, source: SourceConfig, comparison: Comparison | None, seed: int) -> _Sample:
    """Read the first lines or records of a file, whatever its documents are.

    Of a file whose text is larger or smaller than itself so much is read that their ratio is known.
    Filters drop records, but not the lines of a text that is one document.
    """
    texts: list[str] = []
    read = characters = seen = 0
    suffix, compression = file_suffixes(path)
    is_packed = bool(compression) or suffix in (".parquet", ".warc", ".tar", ".zip")
    is_filtered = find_format(path, source.input_format) not in ("text", None)
    filters = document_filters(source, seed, None) if is_filtered else []
    wanted = PACKED_CHARACTERS if is_packed or len(filters) > 1 else SAMPLED_CHARACTERS
    is_whole = True

    def count(size: int) -> None:
        nonlocal read
        read += size

    by_lines = replace(source, documents="line", inputs=[])
    documents: Any = scan(path, by_lines.reader(path))  # a generator
    start = time.process_time()
    with watch_reads(count), contextlib.closing(documents):
        for document in documents:
            seen += 1
            if document.error is not None:
                if source.on_error == "stop" and document.error_kind not in NON_FATAL_ERRORS:
                    raise stopping(document.error)
                continue
            characters += len(document.html or document.text) + 1
            if not any(each(document) for each in filters):
                texts.append(document.text)
            if characters >= wanted:
                is_whole = False
                break
    read_seconds = time.process_time() - start
    size = max(fingerprint(path)[0], 1)
    rows = parquet_rows(path) if suffix == ".parquet" else None
    text = "\n".join(texts)
    if is_whole:
        share = 1.0
    elif rows:
        share = seen / rows
    else:
        share = min(read / size, 1.0) if is_packed else characters / size
    start = time.process_time()
    hashes = 0
    if comparison is not None:
        names = [str(row) for row in range(len(texts))]
        signatures = document_signatures(texts, comparison, [""] * len(texts), names)
        hashes = 2 * signatures.keys.size + signatures.features.size
    if source.repeats is not None:
        numbers = list(range(len(texts)))
        hashes += 3 * len(repeat_hashes(texts, numbers, source.repeats)[0])
    hash_seconds = time.process_time() - start
    part = max(share * size, 1)
    return _Sample(
        text[:SAMPLED_CHARACTERS],
        len(text.encode()) / part if is_packed or filters else 1.0,
        read_seconds / part,
        len(texts) / part,
        HASH_BYTES * hashes / part,
        hash_seconds / part,
    )


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
            f"which divided some and so added {counted(source.pieces, 'document')}.",
            "",
        ]
    lines += [
        f"The stage {stage} changed the text of {counted(count, 'document')}.\n"
        for stage, count in source.changed.items()
    ]
    if source.documents_kept:
        lines += [
            f"{source.text_bytes:,} bytes of text became {counted(source.tokens, 'token')}, "
            "including an "
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
