"""What a worker does with a span and with a text unit: every document is kept or dropped for a
reason, and nothing is made twice.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus.chunks import Unit
from gptcli.corpus.decontaminate import item_grams
from gptcli.corpus.input_splits import Span
from gptcli.corpus.recipe import Clean, Source
from gptcli.corpus.text_chunks import TextUnit
from gptcli.corpus.worker_tasks import Context, TextTask, finish_text, read_span, sample_texts
from gptcli.errors import InputError
from gptcli.tokenizer.tokenizer import Tokenizer

ITEM = "which of these seven rivers runs north past the old stone bridge before it meets the sea"
FILLER = (
    "there is a lot to be said about bridges and about the rivers that they cross on their way. "
    * 6
)
LINES = ["one two three", "", "  ", "four", f"{FILLER}{ITEM} {FILLER}", "five six seven"]


@pytest.fixture
def make(tmp_path: Path, byte_tokenizer: Tokenizer) -> Callable[..., tuple[Context, Span]]:
    """make(method=None, **source): a context and the span of a file of JSON lines, the last of
    which is broken.
    """

    def context(method: str | None = None, **source: object) -> tuple[Context, Span]:
        path = tmp_path / "a.jsonl"
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in LINES) + "broken\n")
        work = tmp_path / "work"
        work.mkdir(exist_ok=True)
        sources = [Source(inputs=[str(path)], **source)]  # type: ignore[arg-type]
        span = Span(0, 0, (str(path),))
        return Context(
            byte_tokenizer, "tokenizers", sources, [method], 0, 0.0, 10**6, tmp_path, work
        ), span

    return context


def test_every_document_is_kept_or_dropped_for_a_reason(
    make: Callable[..., tuple[Context, Span]],
) -> None:
    context, span = make(on_error="skip", clean=Clean(min_words=2))
    (path,) = read_span(context, span)
    unit = Unit(path, context.dtype)
    assert (unit.tally.read, unit.tally.kept) == (7, 3)
    assert unit.tally.dropped == {"blank": 2, "too few words": 1, "not valid JSON": 1}
    where, text = unit.tally.samples["too few words"][0]
    assert (where, text) == (
        f"{context.sources[0].inputs[0]}, at {len(json.dumps({'text': LINES[0]})) + 1 + 13 + 15}",
        "four",
    )
    assert unit.tokens == sum(len(LINES[row].encode()) + 1 for row in (0, 4, 5))


def test_broken_input_stops_where_it_is_not_skipped(
    make: Callable[..., tuple[Context, Span]],
) -> None:
    context, span = make()
    with pytest.raises(InputError, match=r"a.jsonl:7: not valid JSON"):
        read_span(context, span)
    assert not list(context.work.iterdir())


def test_what_is_there_is_not_made_again(
    make: Callable[..., tuple[Context, Span]], monkeypatch: pytest.MonkeyPatch
) -> None:
    context, span = make(on_error="skip")
    paths = read_span(context, span)
    monkeypatch.setattr(
        "gptcli.corpus.worker_tasks._make", lambda *_: pytest.fail("a unit is made again")
    )
    assert read_span(context, span) == paths
    # the span has to be read again, but its units are there
    next(context.work.glob("span-*")).unlink()
    assert read_span(context, span) == paths


def test_a_text_unit_loses_duplicates_and_contamination(
    make: Callable[..., tuple[Context, Span]], tmp_path: Path
) -> None:
    (tmp_path / "items.txt").write_text(ITEM)
    context, span = make(method="lsh", on_error="skip", decontaminate=True)
    for name in ("items", "contaminated"):
        np.save(context.work / f"{name}.npy", item_grams([str(tmp_path / "items.txt")]))
    (path,) = read_span(context, span)
    stored = TextUnit(path)
    assert list(stored.texts()) == [LINES[row] for row in (0, 3, 4, 5)]
    gone = context.work / "drop"
    gone.write_bytes(stored.numbers[1:2].astype("<u8").tobytes())
    unit = Unit(finish_text(context, TextTask(0, path, [gone])), context.dtype)
    tally = unit.tally
    # what stood around the item became two documents
    assert (tally.read, tally.kept, tally.cut, tally.pieces) == (7, 3, 1, 1)
    assert tally.dropped == {"blank": 2, "not valid JSON": 1, "duplicate": 1}
    assert tally.read == tally.kept + sum(tally.dropped.values())
    assert tally.text_bytes == unit.tokens - sum(unit.documents.values())


def test_samples_for_the_classifier_are_the_first_that_pass(
    make: Callable[..., tuple[Context, Span]],
) -> None:
    context, span = make(on_error="skip", clean=Clean(min_words=2))
    assert list(sample_texts(context, 0, iter([span]), 2)) == [LINES[0], LINES[4]]
    assert list(sample_texts(context, 0, iter([span]), 9)) == [LINES[0], LINES[4], LINES[5]]
