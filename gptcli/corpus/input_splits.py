"""How reading is divided: many small files together, a large file of lines by byte ranges, a large
table of Parquet by its row groups, another large file in stripes.

Within a source a document's number is its file's number times 2^40 plus its position in the file.
The numbers, and the runs of documents that become units, are the same however the work is divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gptcli.corpus import formats
from gptcli.corpus.documents import Document
from gptcli.corpus.formats import RECORDS, WHOLE, Cut
from gptcli.corpus.readers import find_reader, is_cuttable, scan
from gptcli.corpus.streams import MissingPackageError, ending
from gptcli.errors import InputError

POSITION_BITS = 40
# every stripe reads the whole file, and only spares itself the work on what it finds
MAX_STRIPES = 8
FILES = 4096  # at most in a span
BY_RECORD = (".csv", ".warc", ".wet")  # their positions count records, not bytes


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of work: one cut of one file, or several whole files."""

    source: int
    first: int
    """The number of the first file."""
    paths: tuple[str, ...]
    cut: Cut = WHOLE

    @property
    def name(self) -> str:
        groups = "-groups{}to{}".format(*self.cut.groups) if self.cut.groups else ""
        return f"{self.source:03d}-{self.first:06x}-{self.cut.start:010x}-{self.cut.stripe}of{self.cut.stripes}-{len(self.paths)}{groups}"


def divide(
    source: int, inputs: list[tuple[str, int]], size: int, workers: int, documents: str
) -> Iterator[Span]:
    """Spans over files given as (path, bytes), of about `size` bytes where the format allows it."""
    run: list[str] = []
    first = held = 0
    for number, (path, length) in enumerate(inputs):
        spans = list(
            _large(
                source,
                number,
                path,
                length,
                size,
                workers if len(inputs) < 2 * workers else 1,
                documents,
            )
        )
        if spans or held + length > size or len(run) == FILES:
            if run:
                yield Span(source, first, tuple(run))
            run, held = [], 0
        yield from spans
        if not spans:
            first = first if run else number
            run.append(path)
            held += length
    if run:
        yield Span(source, first, tuple(run))


def _large(
    source: int, number: int, path: str, length: int, size: int, workers: int, documents: str
) -> Iterator[Span]:
    """The cuts of a file that is worth a span of its own."""
    if length <= size:
        return
    reader = find_reader(path, documents)
    if is_cuttable(path, reader, documents):
        for start in range(0, length, size):
            yield Span(source, number, (path,), Cut(start, start + size, block=size))
        return
    kind, compression = ending(path)
    if kind == ".parquet":
        yield from (
            Span(source, number, (path,), Cut(groups=groups, block=RECORDS))
            for groups in _groups(path, size, compression)
        )
        return
    block = RECORDS if kind in BY_RECORD else size
    stripes = min(workers, MAX_STRIPES) if length > 4 * size and reader is not formats.whole else 1
    for stripe in range(stripes):
        yield Span(source, number, (path,), Cut(stripe=stripe, stripes=stripes, block=block))


def _groups(path: str, size: int, compression: str) -> Iterator[tuple[int, int] | None]:
    """Row groups of about `size` bytes together: (first, the one after the last); None, all of
    them, where the file is compressed again.
    """
    held, first, lengths = 0, 0, [] if compression else formats.row_groups(path)
    for last, length in enumerate(lengths, 1):
        held += length
        if held >= size or last == len(lengths):
            yield first, last
            held, first = 0, last
    if not lengths:
        yield None


def documents_of(span: Span, documents: str, field: str) -> Iterator[tuple[int, Document]]:
    """Number and document of all that the span holds. A stream that breaks off ends its file with a
    flawed document.
    """
    for number, path in enumerate(span.paths, span.first):
        try:
            for document in scan(path, find_reader(path, documents, field), span.cut):
                if span.cut.wants(document.position):
                    yield (number << POSITION_BITS) + document.position, document
        except MissingPackageError:
            raise
        except InputError as error:
            if span.cut.stripe == 0:
                broken = Document(
                    "", path, (1 << POSITION_BITS) - 1, flaw="damaged file", error=error
                )
                yield (number << POSITION_BITS) + broken.position, broken


Run = list[tuple[int, Document]]


def runs(numbered: Iterable[tuple[int, Document]], block: int, characters: int) -> Iterator[Run]:
    """Documents that become a unit together: in order, of about this many characters, never across
    the border of a block.
    """
    run: Run = []
    held = 0
    for number, document in numbered:
        if run and (
            held >= characters
            or number % (1 << POSITION_BITS) // block != run[0][0] % (1 << POSITION_BITS) // block
        ):
            yield run
            run, held = [], 0
        run.append((number, document))
        # a document costs something even when it is empty
        held += len(document.text) + len(document.html or b"") + 64
    if run:
        yield run
