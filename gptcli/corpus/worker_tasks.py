"""What a worker does: read a span into units; and, where something had to be known about all
documents first, text units into units.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from gptcli.corpus.chunks import Tally, shuffle_keys, write_unit
from gptcli.corpus.clean import Stage, stages_of
from gptcli.corpus.decontaminate import MOST_PIECES, cut
from gptcli.corpus.dedup import gone_among
from gptcli.corpus.documents import HARMLESS
from gptcli.corpus.input_splits import POSITION_BITS, Run, Span, documents_of, runs
from gptcli.corpus.quality import load_classifier
from gptcli.corpus.recipe import Source
from gptcli.corpus.text_chunks import TextUnit, write_text_unit
from gptcli.files import read_json, write_json
from gptcli.shards.format import TokenDtype, token_dtype
from gptcli.shards.order import mix64
from gptcli.tokenizer.encoders import Encoder, open_encoder
from gptcli.tokenizer.tokenizer import Tokenizer


@dataclass
class Context:
    """What every worker holds. What is large it opens itself, once."""

    tokenizer: Tokenizer
    encoder_name: str
    sources: list[Source]
    methods: list[str | None]
    """How each source's documents are hashed for deduplication, if they are."""
    seed: int
    val_fraction: float
    characters: int
    """About how much text a unit holds. The shards do not depend on it."""
    out: Path
    work: Path

    @cached_property
    def encoder(self) -> Encoder:
        return open_encoder(self.tokenizer, self.encoder_name)

    @cached_property
    def items(self) -> np.ndarray:
        """The evaluation items' grams."""
        return np.load(self.work / "items.npy")

    @cached_property
    def contaminated(self) -> np.ndarray:
        """Those of them that are to be cut; known when all documents are read."""
        return np.load(self.work / "contaminated.npy")

    @cached_property
    def stages(self) -> list[list[Stage]]:
        models = [
            load_classifier(model_path(self.out, source)) if source.quality else None
            for source in self.sources
        ]
        return [
            stages_of(source, self.seed, model)
            for source, model in zip(self.sources, models, strict=True)
        ]

    @property
    def dtype(self) -> TokenDtype:
        return token_dtype(self.tokenizer.vocab_size)

    def waits(self, source: int) -> bool:
        """Whether a source's documents must all be read before the first can be tokenised."""
        return self.methods[source] is not None or self.sources[source].decontaminate

    def write(self, path: Path, numbers: np.ndarray, texts: list[str], tally: Tally) -> None:
        assert self.tokenizer.eot_id is not None
        write_unit(
            path,
            self.encoder,
            self.tokenizer.eot_id,
            self.dtype,
            numbers,
            texts,
            self.val_fraction,
            tally,
        )


def model_path(out: Path, source: Source) -> Path:
    return out / f"quality-{source.name}.npz"


def read_span(context: Context, span: Span) -> list[Path]:
    """Bring a span's documents into units, or text units where they have to wait; those that are
    there stay. Raises InputError.
    """
    done = context.work / f"span-{context.characters}-{span.name}.json"
    if done.exists():
        return [context.work / name for name in read_json(done)]
    source = context.sources[span.source]
    kind = "text" if context.waits(span.source) else "unit"
    paths = []
    for run in runs(
        documents_of(span, source.documents, source.field), span.cut.block, context.characters
    ):
        path = context.work / f"{kind}-{context.characters}-{span.source:03d}-{run[0][0]:016x}"
        if not path.exists():
            _make(context, span.source, run, path)
        paths.append(path)
    write_json(done, [path.name for path in paths])
    return paths


def _make(context: Context, source: int, run: Run, path: Path) -> None:
    tally = Tally()
    numbers, texts = [], []
    for number, text in _kept(run, context.sources[source], context.stages[source], tally):
        numbers.append(number)
        texts.append(text)
    if context.waits(source):
        items = context.items if context.sources[source].decontaminate else None
        write_text_unit(path, numbers, texts, tally, context.methods[source], items)
    else:
        _count(tally, texts)
        context.write(path, shuffle_keys(np.array(numbers, np.uint64), context.seed), texts, tally)


def _kept(run: Run, source: Source, stages: list[Stage], tally: Tally) -> Iterator[tuple[int, str]]:
    """Number and text of the documents that pass every stage; the others are counted by reason."""
    for number, document in run:
        tally.read += 1
        reason = document.flaw
        if document.error is not None:
            if source.on_error == "stop" and reason not in HARMLESS:
                raise document.error
            tally.drop(reason, _place(source, number), document.error.what)
            continue
        for stage in stages:
            if reason := stage(document):
                break
        if reason:
            tally.drop(reason, _place(source, number), document.text)
        else:
            yield number, document.text


def _place(source: Source, number: int) -> str:
    """Where a document stands, in words that do not depend on how the reading was divided."""
    return f"{source.inputs[number >> POSITION_BITS]}, at {number % (1 << POSITION_BITS)}"


def _count(tally: Tally, texts: list[str]) -> None:
    tally.kept = len(texts)
    tally.text_bytes = sum(len(text.encode()) for text in texts)


def sample_texts(context: Context, source: int, spans: Iterator[Span], count: int) -> Iterator[str]:
    """The first documents of a source that pass what comes before the classifier."""
    before = stages_of(context.sources[source], context.seed, None)
    for span in spans:
        numbered = documents_of(
            span, context.sources[source].documents, context.sources[source].field
        )
        for run in runs(numbered, span.cut.block, context.characters):
            for _, text in _kept(run, context.sources[source], before, Tally()):
                yield text
                count -= 1
                if not count:
                    return


@dataclass(frozen=True, slots=True)
class TextTask:
    source: int
    text: Path
    dropped: list[Path]
    """Numbers of duplicates, as the tasks of deduplication wrote them."""


def finish_text(context: Context, task: TextTask) -> Path:
    """Make a unit of a text unit: without duplicates, and without what its documents share with
    evaluation items.
    """
    path = task.text.with_name(task.text.name.replace("text", "unit", 1))
    if path.exists():
        return path
    stored = TextUnit(task.text)
    tally, numbers = stored.tally, stored.numbers
    gone = gone_among(task.dropped, numbers)
    hits = stored.hits() if context.sources[task.source].decontaminate else {}
    keys = shuffle_keys(numbers, context.seed)
    places = []
    texts: list[str] = []
    for row, text in enumerate(stored.texts()):
        reason = "duplicate" if gone[row] else ""
        pieces = [text]
        if not reason and row in hits and np.isin(hits[row], context.contaminated).any():
            pieces = cut(text, context.contaminated)
            reason = (
                "contaminated: nothing left"
                if not pieces
                else "contaminated: cut too often"
                if len(pieces) > MOST_PIECES
                else ""
            )
        if reason:
            tally.drop(reason, _place(context.sources[task.source], int(numbers[row])), text)
            continue
        tally.kept += 1
        tally.pieces += len(pieces) - 1
        tally.cut += pieces != [text]
        places += [
            keys[row],
            *(mix64(keys[row : row + 1] + np.uint64(piece))[0] for piece in range(1, len(pieces))),
        ]
        texts += pieces
    tally.text_bytes = sum(len(text.encode()) for text in texts)
    context.write(path, np.array(places, np.uint64), texts, tally)
    return path
