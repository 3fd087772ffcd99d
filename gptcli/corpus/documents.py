"""A document on its way into shards, and the errors that make one unusable.

Every reader in `gptcli.corpus.formats` yields documents. One that cannot be read is yielded as
well, with an `error_kind` to count it by and an `error` to show, so that no input is lost silently.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gptcli.encodings import (
    LOST_HINT,
    guess,
    lost_bytes,
    not_utf8,
    utf16_without_mark,
    wrong_encoding,
)
from gptcli.errors import InputError, install_hint

# A longer document is dropped, so that one endless line cannot fill the memory.
MAX_DOCUMENT_BYTES = 1 << 28
# Positions per block in archives and tables, where a position counts records and not bytes.
BLOCK_RECORDS = 1 << 10

EMPTY_FILE, NOT_A_PAGE, UNDECODABLE_BODY = "empty file", "not a page", "undecodable body"
LEFT_OUT, PART_OF_RECORD = "left out of an archive", "segment of a record"
ZERO_BYTES, ZERO_CELL = "zero bytes", "zero bytes in a cell"
NON_FATAL_ERRORS = (EMPTY_FILE, NOT_A_PAGE, UNDECODABLE_BODY, LEFT_OUT, PART_OF_RECORD, ZERO_CELL)
"""Error kinds that are counted and never stop a build."""

MAX_DEPTH = 1000  # of tags; browsers keep 512
_TAG = re.compile(r"<(/?)([A-Za-z][A-Za-z0-9-]*)[^<>]*>")
_WITHOUT_END = frozenset(  # elements whose end tag is not written, or may be left out
    [
        "area",
        "base",
        "br",
        "col",
        "embed",
        "hr",
        "img",
        "input",
        "link",
        "meta",
        "source",
        "track",
        "wbr",
        "p",
        "li",
        "dt",
        "dd",
        "option",
        "tr",
        "td",
        "th",
    ]
)
DECLARATION_BYTES = 1024  # of a page, in which it declares its encoding
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
_ATTRIBUTE = re.compile(rb"([A-Za-z-]+)\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s\"'>]+))")
_CONTENT_CHARSET = re.compile(rb"charset\s*=\s*[\"']?([^\s\"';,]+)", re.IGNORECASE)

Extractor = Literal["resiliparse", "trafilatura"]
EXTRACTORS: tuple[Extractor, ...] = get_args(Extractor)
"""HTML extractors; trafilatura is many times slower."""


@dataclass(slots=True)
class Document:
    """Text of one document, or a page that has not been converted to text yet, or an error."""

    text: str
    where: str
    """"file" or "file:line", for messages."""
    position: int = 0
    """Byte offset or record number, unique within the file.

    It does not depend on how the file is divided among workers.
    """
    url: str = ""
    """URL the document was crawled from, or "" if unknown."""
    html: bytes | None = None
    """HTML page that `extract_text` has yet to convert."""
    charset: str = ""
    """Encoding of the page by its HTTP header, or "" if that names none."""
    origin: int = -1
    """Position of the record that this is a part of, or -1 if it is a whole one."""
    changed: str = ""
    """Stage that changed the text last, for the filter that has just run, or ""."""
    scores: dict[str, float] | None = None
    """Measures of the filters, by their names, if they are wanted."""
    error_kind: str = ""
    """Two or three words to count the error by; "" if the document is readable."""
    error: InputError | None = None
    """Full error message of an unreadable document."""

    def take_page(self) -> bytes | str:
        """Return the page, or the text where that is a page, of which the document keeps nothing.

        A page of the greatest length takes several times its size while it is converted.
        """
        page = self.text if self.html is None else self.html
        self.text, self.html = "", None
        return page


@dataclass(frozen=True, slots=True)
class FileRange:
    """Documents of one file that one worker reads.

    A text file is divided by bytes, a Parquet file by row groups. Any other large file is handed
    out, or divided into stripes: the worker reads the whole file and keeps every `stripes`-th block
    of documents.
    """

    start: int = 0
    """First byte; documents that begin before it are not read."""
    stop: int | None = None
    """First byte after the range, or None for the end of the file."""
    groups: tuple[int, int] | None = None
    """First row group of a Parquet file and the one after the last, or None for all."""
    stripe: int = 0
    """Index of this stripe, below `stripes`."""
    stripes: int = 1
    """Number of stripes that the file is divided into."""
    is_handed_out: bool = False
    """True if one process reads the file and hands its documents or lines to the workers."""
    lines_before: int = 0
    """Number of lines before `start`, or 0 if that is not known."""
    block: int = 1 << 62
    """Positions per block. Chunks do not cross the border between two blocks."""

    def selects(self, position: int) -> bool:
        """Return True if the document at `position` belongs to this stripe."""
        return self.stripes == 1 or position // self.block % self.stripes == self.stripe


WHOLE_FILE = FileRange()
Reader = Callable[[Any, str, FileRange], Iterator[Document]]
"""Function (stream, name, range) that yields the documents of a range of a file.

Readers ask `FileRange.selects` before they decode or parse a document.
"""


def bad_document(
    error_kind: str, what: str, where: str, position: int = 0, hint: str | None = None
) -> Document:
    """Return a document without text that carries an InputError."""
    error = InputError(what, where=where, hint=hint)
    return Document("", where, position, error_kind=error_kind, error=error)


def stopping(error: InputError) -> InputError:
    """Return an error that ends reading, with the advice how to go on without what is broken."""
    skips = "{option:on_error} skip"
    if skips not in (error.hint or ""):
        line = f"{skips} leaves out what cannot be read, and counts it"
        error.hint = line if error.hint is None else f"{error.hint}\n{line}"
    return error


def too_long(where: str, position: int) -> Document:
    """Return a bad document for one of more than MAX_DOCUMENT_BYTES."""
    what = f"longer than {MAX_DOCUMENT_BYTES >> 20} MiB, the most a document may be"
    return bad_document("too long", what, where, position)


def decode_document(data: bytes, position: int, where: str, url: str = "") -> Document:
    """Decode UTF-8 into a document; a bad document if `data` is not UTF-8, looks like UTF-16 or has
    zeros for bytes that were lost.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        found = not_utf8(data, error.start, where, start=position)
        return bad_document("not valid UTF-8", found.what, where, position, found.hint)
    if (encoding := utf16_without_mark(data)) is not None:
        what = f"the text looks like {encoding}: every second byte is 0"
        found = wrong_encoding(what, encoding, where)
        return bad_document("not valid UTF-8", found.what, where, position, found.hint)
    if b"\0" in data and (what := lost_bytes(data, start=position)):
        return bad_document(ZERO_BYTES, what, where, position, LOST_HINT)
    return Document(text, where, position, url)


def reject_escaped_bytes(document: Document) -> Document:
    """Return `document`, or a bad document if its text contains bytes escaped as surrogates.

    The "surrogateescape" error handler decodes each byte that is not UTF-8 to one of U+DC80 to
    U+DCFF.
    """
    if not document.text.isascii() and any(
        "\udc80" <= character <= "\udcff" for character in document.text
    ):
        data = document.text.encode("utf-8", "surrogateescape")
        encoding = guess(data, next(at for at, byte in enumerate(data) if byte >= 0x80))
        what = "not valid UTF-8" + (f": it looks like {encoding}" if encoding else "")
        found = wrong_encoding(what, encoding, document.where)
        return bad_document(
            "not valid UTF-8", found.what, document.where, document.position, found.hint
        )
    return document


def decode_page(data: bytes, charset: str, *, is_html: bool) -> str:
    """Return the text of a page or of plain text, decoded in the order of WHATWG.

    The order (https://html.spec.whatwg.org/#determining-the-character-encoding) is: byte order
    mark, `charset` of the HTTP header, for HTML the encoding that the page declares, detection.
    Bytes that do not belong to the encoding become U+FFFD. Raises InputError if resiliparse is not
    installed.
    """
    try:
        from resiliparse.parse.encoding import (
            bytes_to_str,
            detect_encoding,
            map_encoding_to_html5,
        )
    except ImportError:
        raise _missing_package("resiliparse") from None
    mark = next((codec for mark, codec in _MARKS.items() if data.startswith(mark)), None)
    if mark is not None:
        return data.decode(mark, "replace")
    declared = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    if declared is None and is_html and (label := declared_encoding(data)):
        declared = map_encoding_to_html5(label, fallback_utf8=False)
        if declared is not None and declared.startswith("utf-16"):
            declared = "utf-8"  # the declaration was read as ASCII
    if declared is not None:
        return bytes_to_str(data, declared, errors="replace", fallback_encodings=())
    detected = detect_encoding(data) or "utf-8"
    return bytes_to_str(data, detected, errors="replace")


def declared_encoding(page: bytes) -> str:
    """Return the label of the encoding that an HTML page declares in its first 1,024 bytes, or "".

    It stands in an XML declaration, in `<meta charset>` or in `<meta http-equiv content>`.
    """
    head = re.sub(rb"<!--.*?(?:-->|$)", b"", page[:DECLARATION_BYTES], flags=re.DOTALL)
    found = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([^\"']+)", head)
    if found is not None:
        return found[1].decode("ascii", "replace").strip()
    for meta in re.findall(rb"<meta[\s/][^>]*", head, re.IGNORECASE):
        values = {
            name.lower(): (double or single or bare)
            for name, double, single, bare in _ATTRIBUTE.findall(meta)
        }
        label = values.get(b"charset", b"")
        if not label and values.get(b"http-equiv", b"").lower() == b"content-type":
            content = _CONTENT_CHARSET.search(values.get(b"content", b""))
            label = content[1] if content is not None else b""
        if label:
            return label.decode("ascii", "replace").strip()
    return ""


def extract_text(html: bytes | str, extractor: Extractor = "resiliparse", charset: str = "") -> str:
    """Return the main content of an HTML page as plain text, without navigation and blank lines.

    Bytes are decoded by `decode_page`; `charset` is the encoding by the HTTP header. Raises
    InputError if the extractor's package is not installed.
    """
    if isinstance(html, bytes):
        html = decode_page(html, charset, is_html=True)
    # Each form of the page is dropped as soon as the next is made.
    data = html.encode("utf-8", "replace")
    html = ""
    if data.count(b"<") > MAX_DEPTH and _may_be_deep(data):
        data = flattened(data.decode()).encode()
    if extractor == "trafilatura":
        lines = _by_trafilatura(data.decode()).splitlines()
    else:
        tree = _resiliparse_tree(data)
        data = b""
        lines = _by_resiliparse(tree).splitlines()
        del tree
    return "\n".join([line for line in lines if line.strip()]).replace("\x00", "")


def _may_be_deep(html: bytes) -> bool:
    """Return False if no tag is nested in MAX_DEPTH others, by a quick count of starts and ends."""
    import numpy as np  # here: no other format needs it to be read

    data = np.frombuffer(html, np.uint8)
    after = data[np.flatnonzero(data[:-1] == ord("<")) + 1]
    is_letter = (after | 0x20 >= ord("a")) & (after | 0x20 <= ord("z"))
    depth = (is_letter.astype(np.int64) - (after == ord("/"))).cumsum()
    lowest = np.minimum.accumulate(np.minimum(depth, 0))
    return bool((depth - lowest).max(initial=0) > MAX_DEPTH)


def flattened(html: str) -> str:
    """Return a page without the tags that would be nested in MAX_DEPTH others or more.

    Extractors take time with the square of the depth. Browsers flatten such pages, too.
    """
    depth = 0

    def tag(found: re.Match[str]) -> str:
        """Return the tag, or nothing if it is nested too deeply."""
        nonlocal depth
        if found[2].lower() in _WITHOUT_END:
            return found[0]
        before = depth
        depth = max(depth - 1, 0) if found[1] else depth + 1
        return found[0] if max(before, depth) <= MAX_DEPTH else ""

    return _TAG.sub(tag, html)


def _resiliparse_tree(html: bytes) -> Any:
    try:
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise _missing_package("resiliparse") from None
    return HTMLTree.parse_from_bytes(html)


def _by_resiliparse(tree: Any) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(tree, main_content=True, alt_texts=False, comments=False))


def _by_trafilatura(html: str) -> str:
    try:
        from trafilatura import extract
    except ImportError:
        raise _missing_package("trafilatura") from None
    # precision before recall, as FineWeb extracts
    return extract(html, include_comments=False, favor_precision=True) or ""


def _missing_package(package: str) -> InputError:
    return InputError(
        f"extracting text from HTML needs the package {package}", hint=install_hint(package)
    )
