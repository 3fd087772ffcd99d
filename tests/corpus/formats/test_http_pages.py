"""Bodies of HTTP responses become pages, whatever encodings their headers declare."""

from __future__ import annotations

import gzip

import pytest

from gptcli.corpus.documents import declared_encoding, decode_page
from gptcli.corpus.formats.http_pages import http_document

WORDS = "Źdźbło trawy rośnie przy drodze, gdy słońce wschodzi."


def response(body: bytes, *fields: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *fields]).encode() + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    ("body", "charset", "is_html", "text"),
    [
        (WORDS.encode("iso-8859-2"), "ISO-8859-2", True, WORDS),
        (WORDS.encode("iso-8859-2"), "iso-8859-2", False, WORDS),
        (WORDS.encode("utf-8-sig"), "iso-8859-2", True, WORDS),  # the mark is first
        (WORDS.encode("utf-16"), "iso-8859-2", True, WORDS),
        (b'<meta charset="utf-16">' + WORDS.encode(), "", True, '<meta charset="utf-16">' + WORDS),
        (
            b"<meta charset=utf-8>" + WORDS.encode("cp1250"),
            "windows-1250",
            True,
            "<meta charset=utf-8>" + WORDS,
        ),
        (WORDS.encode(), "nonsense", True, WORDS),
        (WORDS.encode() + b"\xff", "utf-8", True, WORDS + "\ufffd"),
        (WORDS.encode(), "", False, WORDS),
    ],
)
def test_encodings_in_the_order_of_whatwg(
    body: bytes, charset: str, is_html: bool, text: str
) -> None:
    assert decode_page(body, charset, is_html=is_html) == text


@pytest.mark.parametrize(
    ("page", "label"),
    [
        (b'<meta charset="iso-8859-2">', "iso-8859-2"),
        (b"<META Charset = cp1250 />", "cp1250"),
        (b'<meta http-equiv="Content-Type" content="text/html; charset=koi8-r">', "koi8-r"),
        (b'<meta content="text/html; charset=koi8-r">', ""),
        (b'<!-- <meta charset="a"> --><meta charset=b>', "b"),
        (b'<?xml version="1.0" encoding="iso-8859-2"?><html>', "iso-8859-2"),
        (b'<meta name="x" content="charset=a"><p>', ""),
        (b" " * 1024 + b"<meta charset=late>", ""),
    ],
)
def test_the_encoding_that_a_page_declares(page: bytes, label: str) -> None:
    assert declared_encoding(page) == label


def test_the_charset_of_the_header_reaches_the_page() -> None:
    block = response(WORDS.encode("iso-8859-2"), 'content-type: text/html; Charset="ISO-8859-2"')
    page = http_document(block, "a", 0, "u")
    assert (page.html, page.charset) == (WORDS.encode("iso-8859-2"), "ISO-8859-2")
    plain = http_document(block.replace(b"text/html", b"text/plain"), "a", 0, "u")
    assert plain.text == WORDS


@pytest.mark.parametrize(
    ("fields", "body", "kind"),
    [
        (["Content-Type: image/png"], b"x", "not a page"),
        (["Content-Type: text/html"], b"\x89PNG\r\n", "not a page"),
        ([], b"%PDF-1.5", "not a page"),
        ([], b"<p>words</p>", ""),
        (["Content-Type: application/xhtml+xml"], b"<p>words</p>", ""),
        (["Content-Encoding: gzip"], gzip.compress(b"\x89PNG", mtime=0), "not a page"),
    ],
)
def test_only_text_becomes_a_document(fields: list[str], body: bytes, kind: str) -> None:
    assert http_document(response(body, *fields), "a", 0, "u").error_kind == kind
