"""Input files: find them by file, folder, glob, URL or "-", fingerprint them, and open them.

Files may be plain, gzip or zstd. A compressed stream that is damaged or cut short raises InputError
wherever in the stream that shows.
"""

from __future__ import annotations

import contextlib
import glob
import io
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gptcli.errors import GptError, InputError, RunError, install_hint
from gptcli.files import similar
from gptcli.text.compression import BUFFER_BYTES, DAMAGE, MissingPackageError, decompressed

STDIN = "-"
COMPRESSED_SUFFIXES = (".gz", ".zst")
KNOWN_SUFFIXES = (".txt", ".jsonl", ".csv", ".parquet", ".warc", ".wet")
"""Kinds of files that a folder is searched for; any other file is text if it is named itself."""


def file_suffixes(path: str) -> tuple[str, str]:
    """Return (kind, compression), such as (".jsonl", ".gz"); a missing suffix is ""."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES else ""
    return (suffixes[-1] if suffixes else ""), compression


def is_url(path: str) -> bool:
    """Return True if `path` has a protocol, as in s3://bucket/file."""
    return "://" in path


def find_inputs(inputs: Sequence[str]) -> list[str]:
    """Return the files that files, folders, globs, URLs and "-" name, sorted and each once.

    A folder is searched at any depth for KNOWN_SUFFIXES, plain or compressed; hidden files and
    folders are skipped. The matches of a glob are searched likewise, unless the glob spells out the
    suffix ("src/**/*.py"). Raises InputError if an input names no file.
    """
    found: dict[str, str] = {}  # real path: path as given
    for name in inputs:
        for path in _find(name):
            key = path if path == STDIN or is_url(path) else os.path.realpath(path)
            found.setdefault(key, path)
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
            if file.is_file() and not _is_hidden(file.relative_to(path))
        ]
        return _known_files(files, name)
    if path.exists():
        return [name]
    if not glob.has_magic(name):
        close = similar(path)
        hint = None if close is None else f"did you mean {close}?"
        raise InputError("no such file or folder", where=name, hint=hint)
    # Path.glob refuses absolute patterns.
    matches = [Path(match) for match in glob.glob(name, recursive=True)]  # noqa: PTH207
    files = [match for match in matches if match.is_file()]
    if path.suffix and not glob.has_magic(path.suffix):
        if not files:
            raise InputError("no file matches", where=name)
        return [str(file) for file in files]
    return _known_files(files, name)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _known_files(files: list[Path], where: str) -> list[str]:
    known = [str(file) for file in files if file_suffixes(str(file))[0] in KNOWN_SUFFIXES]
    if not known:
        found = sorted({"".join(file_suffixes(str(file))) or "no suffix" for file in files})
        raise InputError(
            "contains no file of a known kind"
            + (f" (only {', '.join(found[:8])})" if files else ""),
            where=where,
            hint=f"known suffixes are {' '.join(KNOWN_SUFFIXES)}, plain or compressed; "
            "any other file is read as text if you name it",
        )
    return known


def _find_url(url: str) -> list[str]:
    fs, inside = open_filesystem(url)
    with filesystem_errors(url):
        if glob.has_magic(inside):
            found = sorted(fs.glob(inside))
        elif fs.isdir(inside):
            found = sorted(
                path for path in fs.find(inside) if file_suffixes(path)[0] in KNOWN_SUFFIXES
            )
        else:
            found = [inside] if fs.exists(inside) else []
    if not found:
        raise InputError("no file is there", where=url)
    return [fs.unstrip_protocol(path) for path in found]


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec filesystem of a URL and the path inside it.

    Raises InputError if the protocol is unknown or a package is missing.
    """
    try:
        import fsspec
    except ImportError:
        raise MissingPackageError(
            "reading URLs needs the package fsspec", where=url, hint=install_hint("fsspec")
        ) from None
    try:
        return fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(str(error), where=url) from None


@contextlib.contextmanager
def filesystem_errors(url: str) -> Iterator[None]:
    """Translate errors of an fsspec client: InputError if the URL is wrong, else RunError.

    The exceptions of different clients have no common base class.
    """
    try:
        yield
    except (GptError, FileNotFoundError):
        raise
    except ValueError as error:
        raise InputError(str(error), where=url) from error
    except Exception as error:
        raise RunError(f"cannot be reached: {error}", where=url) from error


def fingerprint(path: str) -> tuple[int, str]:
    """Return the size of a file in bytes and a string that changes with its content.

    `--resume` compares it. Raises InputError if there is no such file, RunError if a URL cannot be
    reached.
    """
    try:
        if is_url(path):
            fs, inside = open_filesystem(path)
            with filesystem_errors(path):
                return int(fs.size(inside)), str(fs.ukey(inside))
        stat = Path(path).stat()
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    return stat.st_size, str(stat.st_mtime_ns)


@contextlib.contextmanager
def open_input(path: str, *, start: int = 0) -> Iterator[io.BufferedReader]:
    """Open a file for reading, decompressed, at byte `start`.

    Raises InputError, also inside the `with` block, if the file is missing, damaged or cut short.
    """
    name = "stdin" if path == STDIN else path
    compression = file_suffixes(path)[1]
    with contextlib.ExitStack() as stack:
        stream: Any = sys.stdin.buffer if path == STDIN else stack.enter_context(_open_raw(path))
        stream = decompressed(stream, compression, name)
        if not hasattr(stream, "peek"):
            stream = io.BufferedReader(stream, BUFFER_BYTES)
        if start:
            stream.seek(start)
        try:
            yield stream
        except DAMAGE as error:
            what = "the file is cut short" if isinstance(error, EOFError) else "the file is damaged"
            raise InputError(f"{what}: {error}", where=name) from None


def _open_raw(path: str) -> Any:
    try:
        if is_url(path):
            fs, inside = open_filesystem(path)
            with filesystem_errors(path):
                return fs.open(inside, "rb")
        return open(path, "rb", BUFFER_BYTES)
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
