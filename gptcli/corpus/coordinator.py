"""Coordinator of the workers, in the process of the command.

It prepares what every worker needs, hands out the input splits, compares all documents once they
are read, and returns the chunks of every source. It handles file names, never documents, so its
memory does not grow with the corpus.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

import numpy as np

from gptcli.corpus.chunks import Chunk, Tally, TextChunk
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.decontaminate import MAX_NGRAM_DOCUMENTS, evaluation_ngrams
from gptcli.corpus.dedup import DedupTask, dedup_tasks, find_duplicates, is_duplicate
from gptcli.corpus.formats import find_format, has_lines
from gptcli.corpus.formats.recognize import disguise
from gptcli.corpus.input_splits import InputSplit, damaged_rest, split_inputs
from gptcli.corpus.inputs import STDIN, fingerprint, open_input
from gptcli.corpus.line_blocks import write_line_blocks
from gptcli.corpus.pool import Pool
from gptcli.corpus.quality import train_classifier
from gptcli.corpus.reading_progress import ReadingProgress, reported
from gptcli.corpus.repeats import RepeatsTask, find_repeats, repeats_tasks
from gptcli.corpus.worker_tasks import (
    HandedOut,
    RemovalTask,
    TextChunkTask,
    WorkerContext,
    chunk_path,
    classifier_path,
    finish_text_chunk,
    finished_chunks,
    make_chunk,
    read_groups,
    read_split,
    remove_repeats,
    sample_texts,
)
from gptcli.errors import InputError
from gptcli.events import Events
from gptcli.files import atomic_write
from gptcli.text.compression import SNIFFED_BYTES, MissingPackageError

WORK_FOLDER = ".work"  # of an unfinished build, inside the output folder
# Below this size, importing a faster encoder takes longer than encoding with the slowest one.
MIN_FAST_ENCODER_BYTES = 1 << 21


def make_context(build: BuildConfig, out: Path) -> WorkerContext:
    """Create the work folder and return the context of the build's workers."""
    size = build.input_bytes()
    is_small = size is not None and size < MIN_FAST_ENCODER_BYTES
    (out / WORK_FOLDER).mkdir(exist_ok=True)
    return WorkerContext(
        tokenizer=build.tokenizer,
        encoder_name="tokenizers" if build.encoder == "auto" and is_small else build.encoder,
        sources=build.sources,
        comparisons=build.comparisons(),
        seed=build.seed,
        val_fraction=build.val_fraction,
        chunk_characters=build.chunk_characters(),
        out=out,
        work=out / WORK_FOLDER,
        recorded=build.recorded,
    )


def all_input_splits(context: WorkerContext, jobs: int, workers: int = 1) -> Iterator[InputSplit]:
    """Yield the input splits of all sources, in order.

    A large file that cannot be divided by bytes is read in at most `jobs` stripes, or, in a single
    job of several `workers`, handed out.
    """
    return chain.from_iterable(
        _input_splits(context, source, jobs, workers) for source in range(len(context.sources))
    )


def _input_splits(
    context: WorkerContext, source: int, jobs: int, workers: int = 1
) -> Iterator[InputSplit]:
    config = context.sources[source]
    inputs = [(path, 0 if path == STDIN else fingerprint(path)[0]) for path in config.inputs]
    size, documents = context.chunk_characters, config.documents
    return split_inputs(source, inputs, size, jobs, documents, config.input_format, workers)


def prepare_filters(build: BuildConfig, context: WorkerContext, events: Events) -> None:
    """Write the files that filters need: n-grams of evaluation items, and quality classifiers.

    Files that exist are kept. Raises InputError if an evaluation file has no n-grams, or if a
    classifier has too few documents to learn from.
    """
    if build.evaluation and not (context.work / "items.npy").exists():
        _save_array(context.work / "items.npy", evaluation_ngrams(build.evaluation))
    for source in build.sources:
        path = classifier_path(context.out, source)
        if source.quality is None or path.exists():
            continue
        positives, negatives = source.quality.positives, source.quality.negatives
        events.info(
            f"training the quality classifier of {source.name}: "
            f"{', '.join(positives)} against {', '.join(negatives)}"
        )
        classifier = train_classifier(
            _samples(context, positives, source.quality.sample),
            _samples(context, negatives, source.quality.sample),
        )
        events.info(f"F1 of the classifier is {classifier.f1:.4f} on the tenth held out")
        classifier.save(path)


def _samples(context: WorkerContext, names: list[str], count: int) -> Iterator[str]:
    """Yield about `count` texts, the same number from each of the named sources."""
    sources = [source.name for source in context.sources]
    for name in names:
        index = sources.index(name)
        splits = _input_splits(context, index, 1)
        yield from sample_texts(context, index, splits, -(-count // len(names)))


def _save_array(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as file:
        np.save(file, array)


def make_chunks(
    build: BuildConfig, context: WorkerContext, pool: Pool, jobs: int, events: Events
) -> list[list[Chunk]]:
    """Write every document to a chunk, and return the chunks of each source, in order of reading.

    Chunks that exist are kept.
    """
    size = build.input_bytes()
    total = None if size is None or build.is_compressed() else size / 1e6
    text_paths: list[list[Path]] = [[] for _ in build.sources]
    chunks: list[list[Chunk]] = [[] for _ in build.sources]
    done = Tally()
    tokens = 0

    def add(source: int, path: Path) -> None:
        nonlocal tokens
        chunk = Chunk(path, context.dtype)
        chunks[source].append(chunk)
        done.add(chunk.tally)
        tokens += chunk.tokens
        events.progress(
            "tokenize", done.text_bytes / 1e6, total, "MB", documents=done.kept, tokens=tokens
        )

    reading = ReadingProgress(context.work, size, events)
    splits = reading.hand_out(all_input_splits(context, jobs, pool.count))
    with reading.during(pool):
        tasks = _read_tasks(context, splits, reading)
        for source, paths, name in pool.map(read_task, tasks):
            if name:
                reading.finish(name)
            if context.needs_text_chunks(source):
                text_paths[source] += paths
            else:
                for path in paths:
                    add(source, path)
    text_chunks = [[TextChunk(path) for path in sorted(paths)] for paths in text_paths]
    unfinished = _compare_documents(build, context, text_chunks, pool, events)
    for source, path in pool.map(_finish_task, unfinished):
        add(source, path)
    events.finish("tokenize")
    return [sorted(mine, key=lambda chunk: chunk.path.name) for mine in chunks]


def _read_tasks(
    context: WorkerContext,
    splits: Iterator[InputSplit],
    reading: ReadingProgress,
) -> Iterator[InputSplit | HandedOut]:
    """Yield the splits; of those that are read here, the documents, a chunk at a time, or blocks of
    lines.

    A worker holds no more of them than one, and the pool two for each worker.
    """
    for split in splits:
        source = context.sources[split.source]
        if not split.part.is_handed_out or finished_chunks(context, split) is not None:
            yield split
            continue
        if has_lines(split.paths[0], source.documents, source.input_format):
            yield from _line_tasks(context, split)
            reading.finish(split.name)
            continue
        with read_groups(context, split) as groups:
            for path, group in groups:
                yield HandedOut(split.source, path, [] if path.exists() else group)
        reading.finish(split.name)


def _line_tasks(context: WorkerContext, split: InputSplit) -> Iterator[InputSplit | HandedOut]:
    """Yield the blocks of lines of a split that is handed out.

    A file that is empty or no text is left to its reader.
    """
    source, path = context.sources[split.source], split.paths[0]
    try:
        with reported(context.work, split, ()), open_input(path) as stream:
            head = stream.peek(SNIFFED_BYTES)
            is_text = find_format(path, source.input_format) == "text"
            if not head or (is_text and source.input_format == "auto" and disguise(head)):
                yield replace(split, part=replace(split.part, is_handed_out=False))
                return
            yield from write_line_blocks(stream, split, context.work)
    except MissingPackageError:
        raise
    except InputError as error:
        rest = [damaged_rest(split.first, path, error)]
        yield HandedOut(split.source, chunk_path(context, split.source, rest), rest)


def read_task(context: WorkerContext, task: InputSplit | HandedOut) -> tuple[int, list[Path], str]:
    """Read a split or a chunk in a worker; return the source's index, the chunks' paths, and the
    split's name, "" for that of a chunk.
    """
    if isinstance(task, HandedOut):
        return task.source, [make_chunk(context, task.source, task.documents, task.path)], ""
    return task.source, read_split(context, task), task.name


def _finish_task(context: WorkerContext, task: TextChunkTask) -> tuple[int, Path]:
    return task.source, finish_text_chunk(context, task)


def _find_duplicates(_: WorkerContext, task: DedupTask) -> Path:
    return find_duplicates(task)


def _compare_documents(
    build: BuildConfig,
    context: WorkerContext,
    text_chunks: list[list[TextChunk]],
    pool: Pool,
    events: Events,
) -> list[TextChunkTask]:
    """Find duplicates and contaminated n-grams; return the tasks that finish the text chunks."""
    duplicates = [
        _compare_source(index, build, context, text_chunks, pool, events)
        for index in range(len(build.sources))
    ]
    text_chunks = [
        _remove_repeats(index, build, context, chunks, duplicates[index], pool, events)
        for index, chunks in enumerate(text_chunks)
    ]
    if build.evaluation and not (context.work / "contaminated.npy").exists():
        items = context.items.hashes
        documents = np.zeros(len(items), np.int64)
        for mine, paths in zip(text_chunks, duplicates, strict=True):
            for chunk in mine:
                # Duplicates are gone before n-grams are counted: eleven copies of one page are one
                # document, and not proof that its n-grams are ordinary text.
                hashes, owners = chunk.matches()
                kept = ~is_duplicate(sorted(paths), chunk.numbers)
                found, counts = np.unique(hashes[kept[owners]], return_counts=True)
                documents[np.searchsorted(items, found)] += counts
        is_contaminated = (documents > 0) & (documents <= MAX_NGRAM_DOCUMENTS)
        _save_array(context.work / "contaminated.npy", items[is_contaminated])
    return [
        TextChunkTask(index, chunk.path, sorted(duplicates[index]))
        for index, mine in enumerate(text_chunks)
        for chunk in mine
    ]


def _remove_repeats(
    index: int,
    build: BuildConfig,
    context: WorkerContext,
    text_chunks: list[TextChunk],
    duplicates: list[Path],
    pool: Pool,
    events: Events,
) -> list[TextChunk]:
    """Return the text chunks of a source without repeated text; themselves if it keeps that."""
    config = build.sources[index].repeats
    if config is None:
        return text_chunks
    name = f"repeats {build.sources[index].name}"
    paths: list[Path] = []
    found = repeats_tasks(context.work, index, config, text_chunks, sorted(duplicates))
    for path in pool.map(_find_repeats, found):
        paths.append(path)
        events.progress(name, len(paths), None, "tables")
    events.finish(name)
    tasks = [RemovalTask(index, chunk.path, sorted(paths)) for chunk in text_chunks]
    return [TextChunk(path) for path in sorted(pool.map(remove_repeats, tasks))]


def _find_repeats(_: WorkerContext, task: RepeatsTask) -> Path:
    return find_repeats(task)


def _compare_source(
    index: int,
    build: BuildConfig,
    context: WorkerContext,
    text_chunks: list[list[TextChunk]],
    pool: Pool,
    events: Events,
) -> list[Path]:
    """Deduplicate one source; return the files of its duplicates' numbers."""
    source = build.sources[index]
    if source.dedup is None:
        return []
    names = [other.name for other in build.sources]
    others = [chunk for name in source.dedup.against for chunk in text_chunks[names.index(name)]]
    tasks = dedup_tasks(
        context.work,
        index,
        source.dedup.comparison,
        source.dedup.within,
        source.dedup.threshold,
        text_chunks[index],
        others,
    )
    paths: list[Path] = []
    for path in pool.map(_find_duplicates, tasks):
        paths.append(path)
        events.progress(f"compare {source.name}", len(paths), None, "tables")
    events.finish(f"compare {source.name}")
    return paths
