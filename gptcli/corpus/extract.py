"""The text of an HTML page: what a reader came for, without the navigation around it."""

from __future__ import annotations

from gptcli.errors import InputError


def plain_text(html: bytes | str) -> str:
    """The main content of a page as plain text, by resiliparse's rules. Raises InputError where the package is missing."""
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    except ImportError:
        raise InputError("extracting text from HTML needs the package resiliparse", hint="pip install 'gptcli[data]'") from None
    if isinstance(html, bytes):
        html = bytes_to_str(html, detect_encoding(html, from_html_meta=True) or "utf-8", errors="replace")
    text = extract_plain_text(html, main_content=True, alt_texts=False, comments=False)
    return "\n".join(line for line in text.splitlines() if line.strip()).replace("\x00", "")
