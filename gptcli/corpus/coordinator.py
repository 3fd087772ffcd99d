"""What the parent of the workers does: it learns what every worker has to know, hands out the
reading, looks at all documents together, and ends with a unit of tokens for every run of
documents."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.corpus.chunks import Tally, Unit
from gptcli.corpus.config import Build
from gptcli.corpus.decontaminate import MOST_DOCUMENTS, item_grams
from gptcli.corpus.dedup import find_duplicates, plan_dedup
from gptcli.corpus.input_splits import Span, divide
from gptcli.corpus.quality import train_classifier
from gptcli.corpus.streams import STDIN, fingerprint
from gptcli.corpus.text_chunks import TextUnit
from gptcli.corpus.worker_tasks import (
    Context,
    TextTask,
    finish_text,
    model_path,
    read_span,
    sample_texts,
)
from gptcli.corpus.workers import Pool
from gptcli.events import Events
from gptcli.files import atomic_write

WORK = ".work"  # in the output folder: everything on the way to a shard
FAST_BYTES = 1 << 21  # below, importing a faster encoder takes longer than the slowest one does


def context_of(build: Build, out: Path) -> Context:
    """What the workers of this build hold; its work folder is made."""
    size = build.input_bytes()
    (out / WORK).mkdir(exist_ok=True)
    return Context(
        tokenizer=build.tokenizer,
        encoder_name="tokenizers"
        if build.encoder == "auto" and size is not None and size < FAST_BYTES
        else build.encoder,
        sources=build.sources,
        methods=build.methods(),
        seed=build.seed,
        val_fraction=build.val_fraction,
        characters=build.unit_characters(),
        out=out,
        work=out / WORK,
    )


def spans_of(context: Context, cuts: int) -> Iterator[Span]:
    """All pieces of reading, source by source; a large file that cannot be cut by its bytes is read
    in up to `cuts` stripes.
    """
    return chain.from_iterable(
        _spans(context, source, cuts) for source in range(len(context.sources))
    )


def _spans(context: Context, source: int, cuts: int) -> Iterator[Span]:
    recipe = context.sources[source]
    inputs = [(path, 0 if path == STDIN else fingerprint(path)[0]) for path in recipe.inputs]
    return divide(source, inputs, context.characters, cuts, recipe.documents)


def prepare(build: Build, context: Context, events: Events) -> None:
    """What has to be known before the first document is judged: the evaluation items' grams, and
    the quality classifiers.
    """
    if build.evaluation and not (context.work / "items.npy").exists():
        _save(context.work / "items.npy", item_grams(build.evaluation))
    names = [source.name for source in build.sources]
    for source in build.sources:
        path = model_path(context.out, source)
        if source.quality is None or path.exists():
            continue
        events.info(
            f"learning what {source.name} is judged by: {', '.join(source.quality.positives)} against {', '.join(source.quality.negatives)}"
        )
        samples = []
        for kind in (source.quality.positives, source.quality.negatives):
            each = -(-source.quality.sample // len(kind))
            indices = [names.index(name) for name in kind]
            samples.append(
                [
                    text
                    for index in indices
                    for text in sample_texts(context, index, _spans(context, index, 1), each)
                ]
            )
        classifier = train_classifier(*samples)
        events.info(
            f"the classifier reaches F1 {classifier.f1:.4f} on every tenth document, which it did not learn from"
        )
        classifier.save(path)


def _save(path: Path, array: np.ndarray) -> None:
    with atomic_write(path) as file:
        np.save(file, array)


def tokenize(
    build: Build, context: Context, pool: Pool, cuts: int, events: Events
) -> list[list[Unit]]:
    """Bring every document into a unit on disk, source by source, in order; units that are there
    stay.
    """
    size = build.input_bytes()
    total = None if size is None or build.compressed() else size / 1e6
    found: list[list[Path]] = [[] for _ in build.sources]
    units: list[list[Unit]] = [[] for _ in build.sources]
    done = Tally()
    tokens = 0

    def add(source: int, path: Path) -> None:
        nonlocal tokens
        unit = Unit(path, context.dtype)
        units[source].append(unit)
        done.add(unit.tally)
        tokens += unit.tokens
        events.progress(
            "tokenize", done.text_bytes / 1e6, total, "MB", documents=done.kept, tokens=tokens
        )

    for source, paths in pool.map(read_one, spans_of(context, cuts)):
        if context.waits(source):
            found[source] += paths
            events.progress("read", sum(map(len, found)), None, "units")
        else:
            for path in paths:
                add(source, path)
    events.finish("read")
    waiting = [sorted(paths) for paths in found]
    tasks = _text_tasks(
        build, context, [[TextUnit(path) for path in paths] for paths in waiting], pool, events
    )
    for source, path in pool.map(_finish_text, tasks):
        add(source, path)
    events.finish("tokenize")
    return [sorted(mine, key=lambda unit: unit.path.name) for mine in units]


def read_one(context: Context, span: Span) -> tuple[int, list[Path]]:
    return span.source, read_span(context, span)


def _finish_text(context: Context, task: TextTask) -> tuple[int, Path]:
    return task.source, finish_text(context, task)


def _text_tasks(
    build: Build, context: Context, texts: list[list[TextUnit]], pool: Pool, events: Events
) -> list[TextTask]:
    """Look at all documents together: which are duplicates, and which evaluation grams are too
    common to be contamination.
    """
    names = [source.name for source in build.sources]
    dropped: list[list[Path]] = [[] for _ in build.sources]
    for number, source in enumerate(build.sources):
        if source.dedup is not None:
            others = [unit for name in source.dedup.against for unit in texts[names.index(name)]]
            rule = source.dedup
            tasks = plan_dedup(
                context.work,
                number,
                rule.method,
                rule.within,
                rule.threshold,
                texts[number],
                others,
            )
            for path in pool.map(_find_duplicates, tasks):
                dropped[number].append(path)
                events.progress(f"compare {source.name}", len(dropped[number]), None, "tables")
            events.finish(f"compare {source.name}")
    if build.evaluation and not (context.work / "contaminated.npy").exists():
        items = context.items
        documents = np.zeros(len(items), np.int64)
        for unit in chain(*texts):
            grams, counts = unit.gram_counts()
            documents[np.searchsorted(items, grams)] += counts.astype(np.int64)
        _save(
            context.work / "contaminated.npy",
            items[(documents > 0) & (documents <= MOST_DOCUMENTS)],
        )
    return [
        TextTask(number, unit.path, sorted(dropped[number]))
        for number, mine in enumerate(texts)
        for unit in mine
    ]


def _find_duplicates(_: Context, task: Any) -> Path:
    return find_duplicates(task)
