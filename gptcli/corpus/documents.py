"""One document, and what is wrong with it where something is."""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.errors import InputError

EMPTY_FILE, NOT_A_PAGE = "empty file", "not a page"
HARMLESS = (EMPTY_FILE, NOT_A_PAGE)  # flaws that are counted and never stop a build


@dataclass(slots=True)
class Document:
    text: str
    where: str
    """"file" or "file:line", for messages."""
    position: int = 0
    """Distinct within its file, and the same however the file is cut into ranges: the byte it
    begins at, or its record's number.
    """
    url: str = ""
    """Where it was crawled, if that is known."""
    html: bytes | None = None
    """A page that has yet to become text."""
    flaw: str = ""
    """Why nothing can be read here, in two or three words to count by; `error` is then the whole
    message.
    """
    error: InputError | None = None


def flawed(
    flaw: str, what: str, where: str, position: int = 0, hint: str | None = None
) -> Document:
    return Document("", where, position, flaw=flaw, error=InputError(what, where=where, hint=hint))
