"""Tasks of workers: every document is kept or dropped for a reason, and no chunk is made twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus.chunks import Chunk, TextChunk
from gptcli.corpus.decontaminate import evaluation_ngrams
from gptcli.corpus.input_splits import InputSplit
from gptcli.corpus.recipe import CleanConfig, Comparison, DedupMethod, SourceConfig
from gptcli.corpus.worker_tasks import (
    TextChunkTask,
    WorkerContext,
    finish_text_chunk,
    read_split,
    sample_texts,
)
from gptcli.errors import InputError
from gptcli.tokenizer.tokenizer import Tokenizer

ITEM = "which of these seven rivers runs north past the old stone bridge before it meets the sea"
FILLER = (
    "there is a lot to be said about bridges and about the rivers that they cross on their way. "
    * 6
)
LINES = ["one two three", "", "  ", "four", f"{FILLER}{ITEM} {FILLER}", "five six seven"]


@pytest.fixture
def make(
    tmp_path: Path, byte_tokenizer: Tokenizer
) -> Callable[..., tuple[WorkerContext, InputSplit]]:
    """make(method=None, **source): a context and the split of a file of JSON lines, the last of
    which is broken.
    """

    def context(
        method: DedupMethod | None = None, **source: object
    ) -> tuple[WorkerContext, InputSplit]:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES) + "broken\n")
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        sources = [SourceConfig(inputs=[str(path)], **source)]  # type: ignore[arg-type]
        split = InputSplit(0, 0, (str(path),))
        by = [Comparison(method, False) if method else None]
        return WorkerContext(
            byte_tokenizer, "tokenizers", sources, by, 0, 0.0, 10**6, tmp_path, work
        ), split

    return context


def test_every_document_is_kept_or_dropped_for_a_reason(
    make: Callable[..., tuple[WorkerContext, InputSplit]],
) -> None:
    context, split = make(on_error="skip", clean=CleanConfig(min_words=2))
    (path,) = read_split(context, split)
    chunk = Chunk(path, context.dtype)
    assert (chunk.tally.read, chunk.tally.kept) == (7, 3)
    assert chunk.tally.dropped == {"blank": 2, "too few words": 1, "not valid JSON": 1}
    where, text = chunk.tally.samples["too few words"][0]
    assert (where, text) == (
        f"{context.sources[0].inputs[0]}, at {len(json.dumps({'text': LINES[0]})) + 1 + 13 + 15}",
        "four",
    )
    assert chunk.tokens == sum(len(LINES[row].encode()) + 1 for row in (0, 4, 5))


def test_broken_input_stops_the_build_unless_it_is_skipped(
    make: Callable[..., tuple[WorkerContext, InputSplit]],
) -> None:
    context, split = make()
    with pytest.raises(InputError, match=r"a.jsonl:7: not valid JSON"):
        read_split(context, split)
    assert not list(context.work.iterdir())


def test_existing_chunks_are_not_made_again(
    make: Callable[..., tuple[WorkerContext, InputSplit]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, split = make(on_error="skip")
    paths = read_split(context, split)
    monkeypatch.setattr(
        "gptcli.corpus.worker_tasks.WorkerContext.write_chunk",
        lambda *_: pytest.fail("a chunk was made again"),
    )
    assert read_split(context, split) == paths
    # The split is read again, but its chunks exist.
    next(context.work.glob("span-*")).unlink()
    assert read_split(context, split) == paths


def test_duplicates_and_contamination_are_removed_from_a_text_chunk(
    make: Callable[..., tuple[WorkerContext, InputSplit]], tmp_path: Path
) -> None:
    (tmp_path / "items.txt").write_text(ITEM)
    context, split = make(method="lsh", on_error="skip", decontaminate=True)
    for name in ("items", "contaminated"):
        np.save(context.work / f"{name}.npy", evaluation_ngrams([str(tmp_path / "items.txt")]))
    (path,) = read_split(context, split)
    text_chunk = TextChunk(path)
    assert list(text_chunk.texts()) == [LINES[row] for row in (0, 3, 4, 5)]
    duplicates = context.work / "drop"
    duplicates.write_bytes(text_chunk.numbers[1:2].astype("<u8").tobytes())
    chunk = Chunk(finish_text_chunk(context, TextChunkTask(0, path, [duplicates])), context.dtype)
    tally = chunk.tally
    # The text around the item becomes two documents.
    assert (tally.read, tally.kept, tally.cut, tally.pieces) == (7, 3, 1, 1)
    assert tally.dropped == {"blank": 2, "not valid JSON": 1, "duplicate": 1}
    assert tally.read == tally.kept + sum(tally.dropped.values())
    assert tally.text_bytes == chunk.tokens - sum(chunk.documents.values())


def test_samples_for_the_classifier_are_the_first_documents_that_pass(
    make: Callable[..., tuple[WorkerContext, InputSplit]],
) -> None:
    context, split = make(on_error="skip", clean=CleanConfig(min_words=2))
    assert list(sample_texts(context, 0, iter([split]), 2)) == [LINES[0], LINES[4]]
    assert list(sample_texts(context, 0, iter([split]), 9)) == [LINES[0], LINES[4], LINES[5]]
