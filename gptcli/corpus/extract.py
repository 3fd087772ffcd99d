"""The text of an HTML page: what a reader came for, without the navigation around it."""

from __future__ import annotations

from gptcli.errors import InputError, install_hint

EXTRACTORS = ("resiliparse", "trafilatura")  # the second is many times slower


def plain_text(html: bytes | str, extractor: str = "resiliparse") -> str:
    """The main content of a page as plain text, by the rules of one of EXTRACTORS; bytes are
    decoded as the page declares or shows.

    Raises InputError where its package is missing.
    """
    try:
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    except ImportError:
        raise _missing("resiliparse") from None
    if isinstance(html, bytes):
        html = bytes_to_str(
            html, detect_encoding(html, from_html_meta=True) or "utf-8", errors="replace"
        )
    text = _by_trafilatura(html) if extractor == "trafilatura" else _by_resiliparse(html)
    return "\n".join(line for line in text.splitlines() if line.strip()).replace("\x00", "")


def _by_resiliparse(html: str) -> str:
    from resiliparse.extract.html2text import extract_plain_text

    return str(extract_plain_text(html, main_content=True, alt_texts=False, comments=False))


def _by_trafilatura(html: str) -> str:
    try:
        from trafilatura import extract
    except ImportError:
        raise _missing("trafilatura") from None
    return extract(html, include_comments=False) or ""


def _missing(package: str) -> InputError:
    return InputError(
        f"extracting text from HTML needs the package {package}", hint=install_hint(package)
    )
