"""Readers of text files, by whole files, lines or paragraphs, and of HTML."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO, Any, Literal

from gptcli.corpus.documents import (
    MAX_DOCUMENT_BYTES,
    ZERO_BYTES,
    Document,
    FileRange,
    Reader,
    bad_document,
    decode_document,
    too_long,
)
from gptcli.corpus.formats.recognize import disguise
from gptcli.encodings import LOST_HINT, lost_bytes
from gptcli.text.compression import SNIFFED_BYTES
from gptcli.tokenizer.tokenizer import END_OF_TEXT

DocumentKind = Literal["file", "line", "paragraph"]
CUT_BYTES = 1 << 26
"""Largest document that a text file of more than MAX_DOCUMENT_BYTES is cut into."""
_MARK = END_OF_TEXT.encode()


def text_reader(
    documents: DocumentKind, *, eot_in_text: bool = False, is_asked: bool = False
) -> Reader:
    """Return a reader of text by files, lines or paragraphs.

    With `eot_in_text`, `<|endoftext|>` ends a document, too. What looks like another format is a
    bad document, unless text `is_asked` for.
    """
    readers: dict[DocumentKind, Reader] = {
        "file": read_marked if eot_in_text else read_whole,
        "line": read_lines,
        "paragraph": read_paragraphs,
    }
    reader = readers[documents]
    if eot_in_text and documents != "file":
        reader = divided(reader)

    def read(stream: Any, name: str, part: FileRange) -> Iterator[Document]:
        if not (is_asked or part.start) and (what := disguise(stream.peek(SNIFFED_BYTES))):
            hint = (
                "say what it is with {option:input_format}, for example jsonl; "
                "{option:input_format} text reads it as it stands"
            )
            if part.selects(0):
                yield bad_document("not text", f"looks like {what}, not text", name, 0, hint)
            return
        yield from reader(stream, name, part)

    return read


def read_whole(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield the whole file as one document, or several of CUT_BYTES if it is too long for one."""
    data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) <= MAX_DOCUMENT_BYTES:
        yield decode_document(data, 0, name)
        return
    position = 0
    for piece in _cut(data, stream):
        yield decode_document(piece, position, f"{name}, byte {position}")
        position += len(piece)


def _cut(data: bytes, stream: IO[bytes]) -> Iterator[bytes]:
    """Yield `data` and the rest of the stream in pieces of at most CUT_BYTES.

    Each ends at a blank line if there is one in its second half, else at a line, a blank, or a
    character.
    """
    start = 0
    while True:
        if len(data) - start <= CUT_BYTES:
            more = stream.read(CUT_BYTES)
            data, start = data[start:] + more, 0
            if not more:
                yield data
                return
        while len(data) - start > CUT_BYTES:
            stop = start + CUT_BYTES
            half = start + CUT_BYTES // 2
            for border in (b"\n\n", b"\n", b" "):
                if (found := data.rfind(border, half, stop)) >= 0:
                    stop = found + len(border)
                    break
            else:
                while stop > half and data[stop] & 0xC0 == 0x80:  # inside a character
                    stop -= 1
            yield data[start:stop]
            start = stop


def read_marked(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield the text between marks of `<|endoftext|>`, without the line ends next to a mark."""
    data, is_end = bytearray(), False
    base = start = searched = 0  # base: position of data[0] in the file
    while not is_end or start < len(data):
        at = data.find(_MARK, max(start, searched))
        if at < 0 and not is_end and len(data) - start <= MAX_DOCUMENT_BYTES:
            del data[:start]
            base, start, searched = base + start, 0, max(0, len(data) - start - len(_MARK))
            block = stream.read(1 << 20)
            data += block
            is_end = not block
            continue
        stop = at if at >= 0 else min(len(data), start + MAX_DOCUMENT_BYTES)
        where = f"{name}, byte {base + start}"
        document = _between_marks(bytes(data[start:stop]), base + start, where)
        if document is not None:
            yield document
        start = searched = stop + (len(_MARK) if at >= 0 else 0)


def _between_marks(data: bytes, position: int, where: str) -> Document | None:
    """Return the document between two marks, or None if it is blank."""
    text = data.removeprefix(b"\r\n") if data.startswith(b"\r") else data.removeprefix(b"\n")
    text = without_newline(text)
    return decode_document(text, position, where) if text.strip() else None


def divided(reader: Reader) -> Reader:
    """Return a reader that divides each document of `reader` at `<|endoftext|>`."""

    def read(stream: Any, name: str, part: FileRange) -> Iterator[Document]:
        for document in reader(stream, name, part):
            if END_OF_TEXT not in document.text:
                yield document
                continue
            offset = 0
            for piece in document.text.encode().split(_MARK):
                position = document.position + offset
                found = _between_marks(piece, position, document.where)
                if found is not None:
                    found.url, found.origin = document.url, document.position
                    yield found
                offset += len(piece) + len(_MARK)

    return read


def read_html(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield the whole file as one HTML page."""
    data = stream.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        yield too_long(name, 0)
    elif what := lost_bytes(data):
        yield bad_document(ZERO_BYTES, what, name, hint=LOST_HINT)
    else:
        yield Document("", name, html=data)


def read_lines(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield each line that is not empty as a document."""
    for number, position, line in selected_lines(stream, part):
        if line is None:
            yield too_long(line_name(name, number, position), position)
        elif data := without_newline(line):
            yield decode_document(data, position, line_name(name, number, position))


def read_paragraphs(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
    """Yield each run of lines between blank lines as a document."""
    paragraph: list[bytes] = []
    size = position = first_line = 0

    def end_paragraph() -> Iterator[Document]:
        if paragraph and part.selects(position):
            where = f"{name}:{first_line}"
            document = (
                decode_document(without_newline(b"".join(paragraph)), position, where)
                if size <= MAX_DOCUMENT_BYTES
                else too_long(where, position)
            )
            if document.error_kind in (
                "not valid UTF-8",
                ZERO_BYTES,
            ):  # report the line, not the paragraph
                offsets = [
                    position + sum(map(len, paragraph[:row])) for row in range(len(paragraph))
                ]
                lines = (
                    decode_document(line, offset, f"{name}:{first_line + row}")
                    for row, (line, offset) in enumerate(zip(paragraph, offsets, strict=True))
                )
                document = next((line for line in lines if line.error_kind), document)
            yield document
        paragraph.clear()

    for number, line_position, line in lines(stream, part):
        if line is not None and _is_blank(line):
            yield from end_paragraph()
            continue
        if not paragraph:
            first_line, position, size = number, line_position, 0
        size += MAX_DOCUMENT_BYTES + 1 if line is None else len(line)
        paragraph.append(line if line is not None and size <= MAX_DOCUMENT_BYTES else b"")
    yield from end_paragraph()


def lines(stream: IO[bytes], part: FileRange) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield (line number, byte position, line) for each line that begins in the range.

    The number is 0 if it is not known how many lines come before the range, and the line is None if
    it is longer than MAX_DOCUMENT_BYTES. Only \\n ends a line. The stream is at the byte before
    `part.start`: if that is not a newline, a line of the previous range has to be skipped.
    """
    number, position = part.lines_before, 0
    if part.start:
        position = part.start - 1 + _skip_line(stream)
    while part.stop is None or position < part.stop:
        line, length = _read_line(stream)
        if not length:
            return
        number += bool(part.lines_before or not part.start)
        yield number, position, line
        position += length


def selected_lines(stream: IO[bytes], part: FileRange) -> Iterator[tuple[int, int, bytes | None]]:
    """Yield those of `lines` that the range selects.

    The blocks of other stripes are passed over without a look at their lines.
    """
    if part.stripes == 1:
        yield from lines(stream, part)
        return
    number = position = 0  # a stripe begins at the start of the file
    while True:
        if part.selects(position):
            line, length = _read_line(stream)
            number += 1
            if length:
                yield number, position, line
        else:
            count, length = _skip_lines(stream, part.block - position % part.block)
            number += count
        if not length:
            return
        position += length


def _read_line(stream: IO[bytes]) -> tuple[bytes | None, int]:
    """Return a line, None if it is longer than MAX_DOCUMENT_BYTES, and its length."""
    line = stream.readline(MAX_DOCUMENT_BYTES + 1)
    length = len(line)
    if length > MAX_DOCUMENT_BYTES and not line.endswith(b"\n"):
        return None, length + _skip_line(stream)
    return line, length


def _skip_lines(stream: IO[bytes], size: int) -> tuple[int, int]:
    """Skip the lines that begin in the next `size` bytes; return their number and their length."""
    count = length = 0
    piece = b""
    while length < size and (data := stream.read(min(size - length, 1 << 20))):
        piece = data
        count += piece.count(b"\n")
        length += len(piece)
    if piece and not piece.endswith(b"\n"):
        count, length = count + 1, length + _skip_line(stream)
    return count, length


def _skip_line(stream: IO[bytes]) -> int:
    """Skip the rest of a line and return the number of bytes skipped."""
    skipped = 0
    while piece := stream.readline(1 << 20):
        skipped += len(piece)
        if piece.endswith(b"\n"):
            break
    return skipped


def line_name(name: str, number: int, position: int) -> str:
    """Return the place of a line for messages, by its number or, if that is 0, its byte."""
    return f"{name}:{number}" if number else f"{name}, byte {position}"


def without_newline(line: bytes) -> bytes:
    """Return a line without the \\n or \\r\\n at its end."""
    return line.removesuffix(b"\n").removesuffix(b"\r")


def _is_blank(line: bytes) -> bool:
    """Return True if a line has only whitespace, Unicode's included."""
    return not line.decode("utf-8", "replace").strip()
