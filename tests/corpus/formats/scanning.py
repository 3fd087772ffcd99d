"""Reading of a whole file, and of what is wrong in it, by the reader of its format."""

from __future__ import annotations

from pathlib import Path

from gptcli.corpus.documents import WHOLE_FILE, Document, FileRange
from gptcli.corpus.formats import DocumentKind, find_reader, scan


def scanned(
    path: str | Path, documents: DocumentKind = "file", part: FileRange = WHOLE_FILE
) -> list[Document]:
    """Return every document of a file, unreadable ones included."""
    return list(scan(str(path), find_reader(str(path), documents), part))


def error_kinds(path: str | Path, documents: DocumentKind = "file") -> list[str]:
    return [document.error_kind for document in scanned(path, documents)]
