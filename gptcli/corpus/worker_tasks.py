"""Tasks of the workers: read an input split into chunks, and finish text chunks.

A task writes its files atomically and skips those that exist, so it can be killed at any moment and
run again. The names of these files ("span-" for a split that is done, "unit-" for a chunk, "text-"
for a text chunk) are those of version 0.1.0, whose unfinished builds can be resumed.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gptcli.corpus.chunks import (
    ENCODE_CHARACTERS,
    NO_MATCHES,
    Tally,
    TextChunk,
    shuffle_keys,
    write_chunk,
    write_text_chunk,
)
from gptcli.corpus.clean import DocumentFilter, document_filters
from gptcli.corpus.decontaminate import MAX_PIECES, remove_ngrams, shared_ngrams
from gptcli.corpus.dedup import URL_KIND, document_signatures, is_duplicate
from gptcli.corpus.documents import NON_FATAL_ERRORS, Document, stopping
from gptcli.corpus.input_splits import (
    LAST_POSITION,
    POSITION_BITS,
    InputSplit,
    NumberedDocument,
    group_into_chunks,
    numbered_documents,
)
from gptcli.corpus.quality import load_classifier
from gptcli.corpus.reading_progress import reported
from gptcli.corpus.recipe import Comparison, SourceConfig
from gptcli.corpus.repeats import read_repeats, repeat_hashes, without_repeats
from gptcli.corpus.text_out import (
    PENDING,
    PREFIX,
    DocumentRecord,
    Recorded,
    finished_records,
    read_records,
    record_path,
    write_records,
)
from gptcli.files import read_json, write_json
from gptcli.shards.format import TokenDtype, token_dtype
from gptcli.shards.order import mix64
from gptcli.text.ngrams import NgramSet
from gptcli.tokenizer.encoders import Encoder, EncoderName, open_encoder
from gptcli.tokenizer.tokenizer import END_OF_TEXT, Tokenizer


@dataclass
class WorkerContext:
    """State that every worker has a copy of. Each worker opens large parts of it itself, once."""

    tokenizer: Tokenizer
    """Tokenizer of the shards."""
    encoder_name: EncoderName
    """Name of the encoder, for `gptcli.tokenizer.encoders`."""
    sources: list[SourceConfig]
    """Sources of the build, in order."""
    comparisons: list[Comparison | None]
    """Comparison that finds the duplicates of each source, or None."""
    seed: int
    """Random seed of the shuffle and of the quality filter."""
    val_fraction: float
    """Expected share of validation documents."""
    chunk_characters: int
    """Approximate number of characters in a chunk. The shards do not depend on it."""
    out: Path
    """Output folder."""
    work: Path
    """Folder of the chunks, inside the output folder."""
    recorded: Recorded = ""
    """Documents that are recorded for `--text-out`."""

    @cached_property
    def encoder(self) -> Encoder:
        """Encoder of this worker."""
        return open_encoder(self.tokenizer, self.encoder_name)

    @cached_property
    def items(self) -> NgramSet:
        """N-grams of the evaluation items."""
        return NgramSet(np.load(self.work / "items.npy"))

    @cached_property
    def contaminated(self) -> np.ndarray:
        """N-grams to remove (uint64), known after all documents have been read."""
        return np.load(self.work / "contaminated.npy")

    @cached_property
    def filters(self) -> list[list[DocumentFilter]]:
        """Filters of each source."""
        classifiers = [
            load_classifier(classifier_path(self.out, source)) if source.quality else None
            for source in self.sources
        ]
        return [
            document_filters(source, self.seed, classifier)
            for source, classifier in zip(self.sources, classifiers, strict=True)
        ]

    @property
    def dtype(self) -> TokenDtype:
        """Data type of a token in chunks and shards."""
        return token_dtype(self.tokenizer.vocab_size)

    def needs_text_chunks(self, source: int) -> bool:
        """Return True if all documents must be read before this source can be tokenized."""
        config = self.sources[source]
        is_compared = self.comparisons[source] is not None or config.repeats is not None
        return is_compared or config.decontaminate

    def write_chunk(self, path: Path, keys: np.ndarray, texts: list[str], tally: Tally) -> None:
        """Tokenize `texts`, which have these shuffle keys, and write them to a chunk."""
        assert self.tokenizer.eot_id is not None
        write_chunk(
            path,
            self.encoder,
            self.tokenizer.eot_id,
            self.dtype,
            keys,
            texts,
            self.val_fraction,
            tally,
            ENCODE_CHARACTERS if self.tokenizer.divides else sys.maxsize,
        )


def classifier_path(out: Path, source: SourceConfig) -> Path:
    """Return the path of a source's quality classifier."""
    return out / f"quality-{source.name}.npz"


def read_split(context: WorkerContext, split: InputSplit) -> list[Path]:
    """Read the documents of a split into chunks, or text chunks; return the paths of all of them.

    Chunks that exist are not written again. Raises InputError on a document that cannot be read, if
    the source says so.
    """
    paths = finished_chunks(context, split)
    if paths is None:
        with read_groups(context, split) as groups:
            paths = [make_chunk(context, split.source, group, path) for path, group in groups]
        write_json(_done_file(context, split), [path.name for path in paths])
    if split.lines is not None:
        split.lines.unlink(missing_ok=True)
    return paths


def _done_file(context: WorkerContext, split: InputSplit) -> Path:
    return context.work / f"span-{context.chunk_characters}-{split.name}.json"


def finished_chunks(context: WorkerContext, split: InputSplit) -> list[Path] | None:
    """Return the chunks of a split that an earlier attempt has read; None if there is none."""
    done = _done_file(context, split)
    return [context.work / name for name in read_json(done)] if done.exists() else None


@contextlib.contextmanager
def read_groups(
    context: WorkerContext, split: InputSplit
) -> Iterator[Iterator[tuple[Path, list[NumberedDocument]]]]:
    """Return the documents of a split, a chunk at a time, each with the path of its chunk."""
    source = context.sources[split.source]
    with reported(context.work, split, numbered_documents(split, source.reader)) as documents:
        groups = group_into_chunks(documents, split.part.block, context.chunk_characters)
        yield ((chunk_path(context, split.source, group), group) for group in groups)


def chunk_path(context: WorkerContext, source: int, group: list[NumberedDocument]) -> Path:
    """Return the path of the chunk, or text chunk, of consecutive documents of a source."""
    kind = "text" if context.needs_text_chunks(source) else "unit"
    name = f"{kind}-{context.chunk_characters}-{source:03d}-{group[0][0]:016x}"
    return context.work / name


@dataclass(frozen=True, slots=True)
class HandedOut:
    """Documents of a chunk, read by the coordinator."""

    source: int
    """Index of the source."""
    path: Path
    """Chunk to write, if it does not exist."""
    documents: list[NumberedDocument]
    """Documents, none of them filtered."""


def make_chunk(
    context: WorkerContext, source: int, group: list[NumberedDocument], path: Path
) -> Path:
    """Write a chunk, or a text chunk, of documents, unless it exists; return its path.

    Raises InputError on a document that cannot be read, if the source says so.
    """
    if path.exists():
        return path
    config, filters = context.sources[source], context.filters[source]
    tally = Tally()
    numbers, texts, urls = [], [], []
    records: list[DocumentRecord] | None = [] if context.recorded else None
    for number, document in _kept_documents(group, config, filters, tally, records):
        numbers.append(number)
        texts.append(document.text)
        urls.append(document.url)
    is_text_chunk = context.needs_text_chunks(source)
    if records is not None:
        if is_text_chunk:  # what becomes of those kept so far is not known yet
            for record in records:
                record.text = record.text if record.reason else None
        prefix = PENDING if is_text_chunk else PREFIX
        write_records(record_path(path, prefix), config.name, records, context.recorded)
    if is_text_chunk:
        names = [f"{config.name} {number}" for number in numbers]
        signatures = document_signatures(texts, context.comparisons[source], urls, names)
        matches = shared_ngrams(texts, context.items) if config.decontaminate else NO_MATCHES
        repeats = repeat_hashes(texts, numbers, config.repeats)
        write_text_chunk(path, numbers, texts, tally, signatures, matches, repeats)
    else:
        tally.kept = len(texts)
        tally.text_bytes = _utf8_bytes(texts)
        keys = shuffle_keys(np.array(numbers, np.uint64), context.seed)
        context.write_chunk(path, keys, texts, tally)
    return path


def _kept_documents(
    group: list[NumberedDocument],
    source: SourceConfig,
    filters: list[DocumentFilter],
    tally: Tally,
    records: list[DocumentRecord] | None = None,
) -> Iterator[NumberedDocument]:
    """Yield the documents that pass every filter, with their numbers; count the others by reason.

    All of them are added to `records`.
    """

    def record(number: int, document: Document, reason: str) -> None:
        if records is not None:
            name, scores = _document_name(source, number), document.scores or {}
            records.append(
                DocumentRecord(number, name, document.url, document.text, reason, scores)
            )

    for number, document in group:
        tally.read += 1
        reason = document.error_kind
        if document.error is not None:
            if source.on_error == "stop" and reason not in NON_FATAL_ERRORS:
                raise stopping(document.error)
            tally.drop(reason, _document_name(source, number), document.error.what)
            record(number, document, reason)
            continue
        document.scores = None if records is None else {}
        for document_filter in filters:
            if reason := document_filter(document):
                break
            if document.changed:
                tally.changed[document.changed] += 1
                document.changed = ""
        record(number, document, reason)
        if reason:
            tally.drop(reason, _document_name(source, number), document.text)
        else:
            tally.spelled += END_OF_TEXT in document.text
            yield number, document


def _document_name(source: SourceConfig, number: int) -> str:
    """Return file and position of a document, which do not depend on how reading is divided; of
    what stands for the rest of a damaged file, the file alone.
    """
    file, position = source.inputs[number >> POSITION_BITS], number & LAST_POSITION
    return file if position == LAST_POSITION else f"{file}, at {position}"


def _utf8_bytes(texts: list[str]) -> int:
    return sum(len(text.encode()) for text in texts)


def sample_texts(
    context: WorkerContext, source: int, splits: Iterator[InputSplit], count: int
) -> Iterator[str]:
    """Yield the first `count` texts of a source that pass the filters before the quality filter."""
    config = context.sources[source]
    filters = document_filters(config, context.seed, None)
    for split in splits:
        documents = numbered_documents(split, config.reader)
        for group in group_into_chunks(documents, split.part.block, context.chunk_characters):
            for _, document in _kept_documents(group, config, filters, Tally()):
                yield document.text
                count -= 1
                if not count:
                    return


@dataclass(frozen=True, slots=True)
class RemovalTask:
    """Task to take repeated text out of a text chunk."""

    source: int
    """Index of the source."""
    path: Path
    """Text chunk."""
    repeats: list[Path]
    """Files of `gptcli.corpus.repeats.find_repeats`."""


def remove_repeats(context: WorkerContext, task: RemovalTask) -> Path:
    """Write a text chunk without repeated text, its documents the same; return its path."""
    path = task.path.with_name(task.path.name.replace("text", "once", 1))
    source = context.sources[task.source]
    assert source.repeats is not None
    if path.exists():
        return path
    chunk = TextChunk(task.path)
    numbers, texts = chunk.numbers, list(chunk.texts())
    found = read_repeats(task.repeats, numbers)
    for row, number in enumerate(numbers.tolist()):
        if number in found:
            texts[row] = without_repeats(texts[row], found[number], source.repeats)
            chunk.tally.changed["repeats"] += bool(texts[row])
    matches = shared_ngrams(texts, context.items) if source.decontaminate else NO_MATCHES
    signatures = document_signatures(texts, None)
    write_text_chunk(path, numbers.tolist(), texts, chunk.tally, signatures, matches)
    return path


@dataclass(frozen=True, slots=True)
class TextChunkTask:
    """Task to tokenize a text chunk after all documents have been compared."""

    source: int
    """Index of the source."""
    path: Path
    """Text chunk."""
    duplicates: list[Path]
    """Files of numbers of duplicates, as `gptcli.corpus.dedup.find_duplicates` writes them."""


def finish_text_chunk(context: WorkerContext, task: TextChunkTask) -> Path:
    """Write the chunk of a text chunk, without duplicates and contamination; return its path."""
    path = task.path.with_name(f"unit-{task.path.name.partition('-')[2]}")
    if path.exists():
        return path
    source = context.sources[task.source]
    text_chunk = TextChunk(task.path)
    tally, numbers = text_chunk.tally, text_chunk.numbers
    of_url = [each for each in task.duplicates if each.name.startswith(f"drop{URL_KIND}-")]
    duplicate, same_url = is_duplicate(task.duplicates, numbers), is_duplicate(of_url, numbers)
    hashes, owners = text_chunk.matches()
    matched = np.unique(owners[np.isin(hashes, context.contaminated)]) if len(hashes) else owners
    contaminated = set(matched.tolist())
    document_keys = shuffle_keys(numbers, context.seed)
    keys = []
    texts: list[str] = []
    fates: list[tuple[int, list[str], str]] = []
    for row, text in enumerate(text_chunk.texts()):
        reason = "duplicate URL" if same_url[row] else "duplicate" if duplicate[row] else ""
        if not (reason or text):
            reason = "repeated text: too little left"
        pieces = [text]
        if not reason and row in contaminated:
            pieces = remove_ngrams(text, context.contaminated)
            if not pieces:
                reason = "contaminated: nothing left"
            elif len(pieces) > MAX_PIECES:
                reason = "contaminated: cut too often"
        fates.append((int(numbers[row]), [text] if reason else pieces, reason))
        if reason:
            tally.drop(reason, _document_name(source, int(numbers[row])), text)
            continue
        tally.kept += 1
        tally.pieces += len(pieces) - 1
        tally.cut += pieces != [text]
        key = document_keys[row : row + 1]
        keys += [key[0], *(mix64(key + np.uint64(piece))[0] for piece in range(1, len(pieces)))]
        texts += pieces
    tally.text_bytes = _utf8_bytes(texts)
    if context.recorded:
        pending = read_records(record_path(path, PENDING))
        records = finished_records(pending, iter(fates))
        write_records(record_path(path), source.name, records, context.recorded)
    context.write_chunk(path, np.array(keys, np.uint64), texts, tally)
    return path
