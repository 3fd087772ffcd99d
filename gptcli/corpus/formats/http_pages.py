"""Pages of HTTP responses, decoded from their transfer and content encodings.

Crawlers store bodies that are not encoded as their header says: bodies that are plain already, or
encoded in another way. So an encoding is undone if the body really has it.
"""

from __future__ import annotations

import re
import zlib

from gptcli.corpus.documents import (
    MAX_DOCUMENT_BYTES,
    NOT_A_PAGE,
    UNDECODABLE_BODY,
    Document,
    bad_document,
    decode_page,
)
from gptcli.encodings import BOMS, MAGIC, lost_bytes
from gptcli.errors import install_hint
from gptcli.text.compression import MissingPackageError

_CHARSET = re.compile(r"charset\s*=\s*[\"']?([^\s\"';,]+)", re.IGNORECASE)
BROTLI_BYTES = 256  # decoded at a time
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,8})[ \t]*(?:;[^\r\n]*)?\r?\n")


def http_document(block: bytes, where: str, number: int, url: str) -> Document:
    """Return the document of an HTTP response: status line, header and body."""
    head, body = _split_header(block)
    if what := lost_bytes(head):
        return bad_document(UNDECODABLE_BODY, what, where, number)
    status, *lines = head.decode("latin-1").splitlines() or [""]
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        key = name.strip().lower()
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()
    code = re.match(r"\S+\s+(\d{3})\b", status)
    if code is not None and code[1] != "200":
        return bad_document(NOT_A_PAGE, f"HTTP status {code[1]}", where, number)
    content_type = fields.get("content-type", "")
    if not _is_text_type(content_type):
        return bad_document(NOT_A_PAGE, f"content of type {content_type}", where, number)
    if "chunked" in fields.get("transfer-encoding", "").lower():
        body = _without_chunks(body)
    try:
        body = _decoded(body, fields.get("content-encoding", ""), where)
    except ValueError as error:
        return bad_document(UNDECODABLE_BODY, str(error), where, number)
    return body_document(body, content_type, where, number, url)


def _split_header(block: bytes) -> tuple[bytes, bytes]:
    """Return the HTTP header and the body, which a blank line separates."""
    found = re.search(rb"\r?\n\r?\n", block)
    return (block, b"") if found is None else (block[: found.start()], block[found.end() :])


def _is_text_type(content_type: str) -> bool:
    """Return True if a content type is HTML or plain text, or is not given."""
    kind = content_type.split(";")[0].split(",")[0].strip().lower()
    return not kind or "html" in kind or kind == "text/plain"


def body_document(body: bytes, content_type: str, where: str, number: int, url: str) -> Document:
    """Return a page, or the text of plain text; a bad document if it is neither."""
    if not _is_text_type(content_type):
        return bad_document(NOT_A_PAGE, f"content of type {content_type}", where, number)
    if found := next((what for magic, what in MAGIC.items() if body.startswith(magic)), ""):
        return bad_document(NOT_A_PAGE, f"looks like {found}", where, number)
    if what := lost_bytes(body):
        return bad_document(UNDECODABLE_BODY, what, where, number)
    charset = found_charset[1] if (found_charset := _CHARSET.search(content_type)) else ""
    if content_type.split(";")[0].strip().lower() == "text/plain":
        return Document(decode_page(body, charset, is_html=False), where, number, url)
    return Document("", where, number, url, html=body, charset=charset)


def _without_chunks(body: bytes) -> bytes:
    """Return a chunked body as a whole; a body that is not chunked, as it is.

    What follows a broken chunk is left as it stands.
    """
    pieces, at = [], 0
    while found := _CHUNK_SIZE.match(body, at):
        size, start = int(found[1], 16), found.end()
        stop = start + size
        if not size:
            at = len(body)
            break
        if stop < len(body) and not body.startswith((b"\r\n", b"\n"), stop):
            break
        pieces.append(body[start:stop])
        at = stop + (2 if body.startswith(b"\r\n", stop) else 1)
    return b"".join(pieces) + body[at:] if pieces or at else body


def _decoded(body: bytes, encodings: str, where: str) -> bytes:
    """Return a body without its content encodings, those that it really has.

    Raises ValueError if the body is neither encoded as its header says nor plain.
    """
    for encoding in reversed(encodings.lower().split(",")):
        decode = _DECODERS.get(encoding.strip().strip("\"'"))
        if decode is None:
            continue  # identity, none, a character set
        decoded = decode(body, where)
        if decoded is not None:
            body = decoded
        elif not _is_plain(body):
            raise ValueError(f"the body is neither plain nor readable as {encoding.strip()}")
    return body


def _is_plain(body: bytes) -> bool:
    """Return True if a body may be text: no control characters, or a mark of UTF-16."""
    head = body[:1024]
    return head.startswith(tuple(BOMS)) or not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f]", head)


def _inflate(body: bytes, bits: int) -> bytes | None:
    """Return the inflated body, as far as it goes if it is cut short; None if it is no such data.

    A body may have several gzip members. Raises ValueError if it is longer than a document may be.
    """
    pieces: list[bytes] = []
    size = 0
    while body:
        member = zlib.decompressobj(bits)
        try:
            pieces.append(member.decompress(body, MAX_DOCUMENT_BYTES + 1))
        except zlib.error:
            return None
        size += len(pieces[-1])
        _check_size(size)
        body = member.unused_data if bits == 31 else b""
        if not body.startswith(b"\x1f\x8b"):
            break
    return b"".join(pieces) if pieces else None


def _gunzip(body: bytes, where: str) -> bytes | None:
    return _inflate(body, 31) if body.startswith(b"\x1f\x8b") else None


def _undeflate(body: bytes, where: str) -> bytes | None:
    """Decode "deflate", which is a zlib stream by the standard and a bare one by custom."""
    found = _inflate(body, 15)
    return _inflate(body, -15) if found is None and not _is_plain(body) else found


def _unzstd(body: bytes, where: str) -> bytes | None:
    if not body.startswith(b"\x28\xb5\x2f\xfd"):
        return None
    try:
        import zstandard
    except ImportError:
        raise _missing("zstandard", "zstd", where) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=1 << 31)
    pieces: list[bytes] = []
    size = 0
    try:
        with decompressor.stream_reader(body, read_across_frames=True) as stream:
            while piece := stream.read(1 << 20):
                pieces.append(piece)
                size += len(piece)
                _check_size(size)
    except zstandard.ZstdError:
        return b"".join(pieces) or None  # as far as it goes
    return b"".join(pieces)


def _unbrotli(body: bytes, where: str) -> bytes | None:
    try:
        import brotli
    except ImportError:
        raise _missing("brotli", "br", where) from None
    decompressor = brotli.Decompressor()
    pieces: list[bytes] = []
    size = 0
    try:
        # Few bytes at a time: one may stand for thousands.
        for at in range(0, len(body), BROTLI_BYTES):
            pieces.append(decompressor.process(body[at : at + BROTLI_BYTES]))
            size += len(pieces[-1])
            _check_size(size)
    except brotli.error:
        return None
    return b"".join(pieces) if decompressor.is_finished() else None


def _check_size(size: int) -> None:
    """Raise ValueError if a body has more bytes than a document may."""
    if size > MAX_DOCUMENT_BYTES:
        raise ValueError(
            f"the body is longer than {MAX_DOCUMENT_BYTES >> 20} MiB when it is decoded"
        )


def _missing(package: str, encoding: str, where: str) -> MissingPackageError:
    what = f"decoding pages with Content-Encoding {encoding} needs the package {package}"
    return MissingPackageError(what, where=where, hint=install_hint(package))


_DECODERS = {
    "gzip": _gunzip,
    "x-gzip": _gunzip,
    "deflate": _undeflate,
    "zstd": _unzstd,
    "br": _unbrotli,
}
