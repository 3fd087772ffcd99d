"""Where documents come from: files, folders, globs, URLs and standard input; one document at a
time, so memory does not grow with the file.

Texts are passed on as they stand: no newline or byte order mark is changed or dropped inside a
document.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gptcli.corpus import formats
from gptcli.corpus.documents import EMPTY_FILE, NOT_A_PAGE, flawed
from gptcli.corpus.documents import Document as Document
from gptcli.corpus.extract import plain_text
from gptcli.corpus.formats import WHOLE, Cut, Reader
from gptcli.corpus.streams import STDIN, ending, filesystem, is_url, opened, reaching
from gptcli.errors import InputError, UsageError, nearest
from gptcli.files import similar

DOCUMENTS = ("file", "line", "paragraph")
# what a folder is searched for; a file named by itself is text otherwise
KNOWN = (".txt", ".jsonl", ".csv", ".parquet", ".warc", ".wet")
UNREADABLE = (
    ".arrow", ".zip", ".tar", ".bz2", ".xz", ".7z", ".rar", ".npy", ".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".xls", ".xlsx",
)  # fmt: skip


def find_inputs(inputs: Sequence[str]) -> list[str]:
    """The files that files, folders, globs, URLs and "-" name: sorted, each once.

    A folder is searched for the endings in `KNOWN` at any depth, plain or compressed, names with a
    leading dot left out. So is what a glob matches, unless the glob spells the ending
    ("src/**/*.py"). Raises InputError where nothing is found.
    """
    found: dict[str, str] = {}  # by real path
    for name in inputs:
        for path in _find(name):
            found.setdefault(
                path if path == STDIN or is_url(path) else os.path.realpath(path), path
            )
    return sorted(found.values())


def _find(name: str) -> list[str]:
    path = Path(name)
    if name == STDIN:
        return [name]
    if is_url(name):
        return _find_url(name)
    if path.is_dir():
        files = [
            file
            for file in path.rglob("*")
            if file.is_file() and not _hidden(file.relative_to(path))
        ]
        return _known(files, name)
    if path.exists():
        return [name]
    if not glob.has_magic(name):
        close = similar(path)
        raise InputError(
            "no such file or folder",
            where=name,
            hint=None if close is None else f"did you mean {close}?",
        )
    matches = [Path(match) for match in glob.glob(name, recursive=True)]  # noqa: PTH207 (Path.glob refuses absolute patterns)
    files = [match for match in matches if match.is_file()]
    if path.suffix and not glob.has_magic(path.suffix):
        if not files:
            raise InputError("nothing matches", where=name)
        return [str(file) for file in files]
    return _known(files, name)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _known(files: list[Path], where: str) -> list[str]:
    known = [str(file) for file in files if ending(str(file))[0] in KNOWN]
    if not known:
        endings = sorted({"".join(ending(str(file))) or "no ending" for file in files})
        raise InputError(
            "no file of a known kind there"
            + (f" (only {', '.join(endings[:8])})" if files else ""),
            where=where,
            hint=f"known are {' '.join(KNOWN)}, plain or compressed; a file of another ending is read as text when it is named",
        )
    return known


def _find_url(url: str) -> list[str]:
    fs, inside = filesystem(url)
    with reaching(url):
        if glob.has_magic(inside):
            found = sorted(fs.glob(inside))
        elif fs.isdir(inside):
            found = sorted(path for path in fs.find(inside) if ending(path)[0] in KNOWN)
        else:
            found = [inside] if fs.exists(inside) else []
    if not found:
        raise InputError("nothing is there", where=url)
    return [fs.unstrip_protocol(path) for path in found]


def read_documents(
    path: str, *, documents: str = "file", field: str = "text"
) -> Iterator[Document]:
    """The documents of one file, or of stdin ("-", as text), that hold anything.

    `documents` says what a document of a text file is: the whole "file", a "line" (without its \\n
    or \\r\\n) or a "paragraph" (lines between blank ones, without the last line's ending). Other
    files hold theirs in a column or `field`; blank lines are skipped. Raises InputError, with file
    and line or byte, on a file that is missing, empty, cut short, not UTF-8 or otherwise broken.
    """
    reader = find_reader(path, documents, field)
    return _usable(scan(path, reader))


def _usable(found: Iterator[Document]) -> Iterator[Document]:
    for document in found:
        if document.error is not None and document.flaw != NOT_A_PAGE:
            raise document.error
        if document.html is not None:
            document.text = plain_text(document.html)
        if document.text:
            yield document


def find_reader(path: str, documents: str, field: str = "text") -> Reader:
    """The reader for a file of this name. Raises InputError where there is none, UsageError on an
    unknown kind of document.
    """
    if documents not in DOCUMENTS:
        raise UsageError(
            f"unknown kind of document {documents!r}",
            field="documents",
            code="unknown_documents",
            hint=nearest(documents, DOCUMENTS),
        )
    kind, _ = ending(path)
    if kind in UNREADABLE:
        raise InputError(
            f"{kind} files cannot be read",
            where=path,
            hint="convert it to .txt, .jsonl or .parquet; .gz and .zst are fine",
        )
    named: dict[str, Reader] = {
        ".jsonl": formats.json_lines(field),
        ".csv": formats.table(field),
        ".parquet": formats.parquet(field),
        ".warc": formats.warc,
        ".wet": formats.warc,
    }
    texts: dict[str, Reader] = {
        "file": formats.whole,
        "line": formats.lines,
        "paragraph": formats.paragraphs,
    }
    return named.get(kind, texts[documents])


def scan(path: str, reader: Reader, cut: Cut = WHOLE) -> Iterator[Document]:
    """Everything that is found in a file, or in a part of it, unusable documents among it: flawed,
    so that they can be counted.

    Raises InputError where the file cannot be opened or its stream breaks off.
    """
    name = "stdin" if path == STDIN else path
    with opened(path, start=max(cut.start - 1, 0)) as stream:
        if not stream.peek(1):
            if not cut.start:
                yield flawed(
                    EMPTY_FILE, "nothing came in" if path == STDIN else "the file is empty", name
                )
            return
        yield from reader(stream, name, cut)


def is_cuttable(path: str, reader: Reader, documents: str) -> bool:
    """Whether a part of this file can be read without what stands before it."""
    kind, compression = ending(path)
    return (
        path != STDIN
        and not compression
        and (kind == ".jsonl" or (documents == "line" and reader is formats.lines))
    )
