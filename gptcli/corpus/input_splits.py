"""Input splits: the pieces of work that reading is divided into.

Many small files make one split. A large file of lines is divided by byte ranges, a large Parquet
file by row groups. A large file of records, or of lines that are compressed, is read once, by the
coordinator, which hands the documents or the lines to the workers. The jobs of a job array divide
it into stripes, and so do workers a file of paragraphs.

Within a source, a document's number is the number of its file times 2^40 plus its position in the
file. Neither the numbers nor the groups of documents that become chunks depend on how the work is
divided, so any number of workers writes the same chunks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from gptcli.corpus.documents import BLOCK_RECORDS, WHOLE_FILE, Document, FileRange, Reader
from gptcli.corpus.formats import DocumentKind, find_format, has_lines, is_splittable, scan
from gptcli.corpus.formats.tables import row_group_bytes
from gptcli.corpus.inputs import file_suffixes
from gptcli.errors import InputError
from gptcli.text.compression import MissingPackageError

POSITION_BITS = 40
LAST_POSITION = (1 << POSITION_BITS) - 1  # of what stands for the rest of a damaged file
# Every stripe decompresses the whole file, and passes over the blocks of others.
MAX_STRIPES = 8
MAX_FILES = 4096  # in one split
RECORD_FORMATS = (
    "csv",
    "tsv",
    "json",
    "warc",
    "tar",
    "zip",
)  # whose positions count records, not bytes
MIN_DOCUMENT_CHARACTERS = 64  # an empty document, too, takes room in a chunk

NumberedDocument = tuple[int, Document]
"""Number of a document within its source, and the document."""


@dataclass(frozen=True, slots=True)
class InputSplit:
    """Piece of work: several whole files of a source, or one range of a file."""

    source: int
    """Index of the source."""
    first: int
    """Number of the first file within the source."""
    paths: tuple[str, ...]
    """Files, in order."""
    part: FileRange = WHOLE_FILE
    """Range of the one file, or WHOLE_FILE."""
    lines: Path | None = None
    """File with the lines of the range, decompressed, as `gptcli.corpus.line_blocks` writes it."""

    @property
    def name(self) -> str:
        """Name for the file that records that this split is done."""
        part = self.part
        files = len(self.paths)
        groups = "-groups{}to{}".format(*part.groups) if part.groups else ""
        stripe = f"{part.stripe}of{part.stripes}"
        block = "-block" if self.lines is not None else ""
        return (
            f"{self.source:03d}-{self.first:06x}-{part.start:010x}-{stripe}-{files}{groups}{block}"
        )


def split_inputs(
    source: int,
    inputs: list[tuple[str, int]],
    size: int,
    jobs: int,
    documents: DocumentKind,
    input_format: str = "auto",
    workers: int = 1,
) -> Iterator[InputSplit]:
    """Yield the splits of files given as (path, bytes), of about `size` bytes where possible.

    A large file that cannot be divided by bytes or row groups is divided into at most as many
    stripes as there are `jobs`, or `workers` in a single job, which hands out one of
    RECORD_FORMATS or of lines; unless there are enough files to keep them busy.
    """
    group: list[str] = []
    first = group_bytes = 0
    readers = max(jobs, workers if jobs == 1 else 1)
    stripes = readers if len(inputs) < 2 * readers else 1
    for number, (path, length) in enumerate(inputs):
        parts = _file_ranges(path, length, size, stripes, documents, input_format)
        if (
            parts
            and parts[0].stripes > 1
            and jobs == 1
            and (
                find_format(path, input_format) in RECORD_FORMATS
                or has_lines(path, documents, input_format)
            )
        ):
            parts = [replace(parts[0], stripes=1, is_handed_out=True)]
        splits = [InputSplit(source, number, (path,), part) for part in parts]
        if splits or group_bytes + length > size or len(group) == MAX_FILES:
            if group:
                yield InputSplit(source, first, tuple(group))
            group, group_bytes = [], 0
        yield from splits
        if not splits:
            first = first if group else number
            group.append(path)
            group_bytes += length
    if group:
        yield InputSplit(source, first, tuple(group))


def _file_ranges(
    path: str,
    length: int,
    size: int,
    stripes: int,
    documents: DocumentKind,
    input_format: str,
) -> list[FileRange]:
    """Return the ranges of a file of more than `size` bytes; [] if it is not divided."""
    if length <= size:
        return []
    found = find_format(path, input_format)
    if is_splittable(path, documents, input_format):
        return [FileRange(start, start + size, block=size) for start in range(0, length, size)]
    if found == "parquet":
        groups = _row_groups(path, size, file_suffixes(path)[1])
        return [FileRange(groups=group, block=BLOCK_RECORDS) for group in groups]
    block = BLOCK_RECORDS if found in RECORD_FORMATS else size
    is_whole = found in ("html", None) or (found == "text" and documents == "file")
    count = 1 if is_whole or length <= 4 * size else min(stripes, MAX_STRIPES)
    return [FileRange(stripe=stripe, stripes=count, block=block) for stripe in range(count)]


def _row_groups(path: str, size: int, compression: str) -> Iterator[tuple[int, int] | None]:
    """Yield (first row group, the one after the last) of about `size` bytes each.

    The only value is None, for all row groups, if they are unknown or the file is compressed again.
    """
    sizes = [] if compression else row_group_bytes(path)
    group_bytes = first = 0
    for last, length in enumerate(sizes, 1):
        group_bytes += length
        if group_bytes >= size or last == len(sizes):
            yield first, last
            group_bytes, first = 0, last
    if not sizes:
        yield None


def numbered_documents(
    split: InputSplit, reader_of: Callable[[str], Reader]
) -> Iterator[NumberedDocument]:
    """Yield the documents of a split with their numbers; `reader_of` returns the reader of a file.

    A file whose stream breaks off ends with a bad document, which its first stripe yields.
    """
    for number, path in enumerate(split.paths, split.first):
        first = number << POSITION_BITS
        try:
            for document in _scan(path, reader_of(path), split):
                origin = document.position if document.origin < 0 else document.origin
                if split.part.selects(origin):
                    yield first + document.position, document
        except MissingPackageError:
            raise
        except InputError as error:
            if split.part.stripe == 0:
                yield damaged_rest(number, path, error)


def damaged_rest(number: int, path: str, error: InputError) -> NumberedDocument:
    """Return the bad document that stands for the rest of the source's file `number`."""
    document = Document("", path, LAST_POSITION, error_kind="damaged file", error=error)
    return (number << POSITION_BITS) + LAST_POSITION, document


def _scan(path: str, reader: Reader, split: InputSplit) -> Iterator[Document]:
    if split.lines is None:
        yield from scan(path, reader, split.part)
        return
    with open(split.lines, "rb") as stream:
        yield from reader(stream, path, split.part)


def group_into_chunks(
    numbered: Iterable[NumberedDocument], block: int, characters: int
) -> Iterator[list[NumberedDocument]]:
    """Yield consecutive documents of about this many `characters`, never across two blocks."""
    group: list[NumberedDocument] = []
    size = 0
    for number, document in numbered:
        if group and (size >= characters or _block(number, block) != _block(group[0][0], block)):
            yield group
            group, size = [], 0
        group.append((number, document))
        size += len(document.text) + len(document.html or b"") + MIN_DOCUMENT_CHARACTERS
    if group:
        yield group


def _block(number: int, block: int) -> int:
    return number % (1 << POSITION_BITS) // block
