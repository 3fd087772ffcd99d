"""Input files: find them by file, folder, glob, URL or "-", fingerprint them, and open them."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import io
import os
import re
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from gptcli.corpus.snapshots import find_snapshot, refuse_snapshots, snapshot_of
from gptcli.errors import GptError, InputError, RunError, install_hint
from gptcli.files import similar
from gptcli.text.compression import (
    BUFFER_BYTES,
    START_BYTES,
    MissingPackageError,
    compression_of,
    decompressed,
)

STDIN = "-"
NAMED_TWICE = "named twice"  # reason why a file is left out
COMPRESSED_SUFFIXES = (".gz", ".zst", ".bz2", ".xz", ".lz4")
SHORT_SUFFIXES = {
    ".tgz": (".tar", ".gz"),
    ".tbz2": (".tar", ".bz2"),
    ".tbz": (".tar", ".bz2"),
    ".txz": (".tar", ".xz"),
    ".tzst": (".tar", ".zst"),
}
"""Suffixes that stand for two."""
KNOWN_SUFFIXES: dict[str, Any] = {
    ".txt": "text",
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines"), "jsonl"),
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    **dict.fromkeys((".warc", ".wet"), "warc"),
    ".tar": "tar",
    ".zip": "zip",
}
"""Suffixes that a folder is searched for, with their formats; other files can be named."""
NO_FILES, UNREADABLE = "links that lead nowhere, or pipes", "folders that cannot be read"
NO_SUFFIX = "no suffix"
REMOTE_REQUESTS = 16  # at the same time
REMOTE_ATTEMPTS = 3


@lru_cache(maxsize=1 << 16)
def file_suffixes(path: str) -> tuple[str, str]:
    """Return (kind, compression), such as (".jsonl", ".gz"); a missing suffix is ""."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes[-2:]]
    if suffixes and suffixes[-1] in SHORT_SUFFIXES:
        return SHORT_SUFFIXES[suffixes[-1]]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSED_SUFFIXES else ""
    return (suffixes[-1] if suffixes else ""), compression


def is_url(path: str) -> bool:
    """Return True if `path` has a protocol, as in s3://bucket/file."""
    return "://" in path


class Inputs(list[str]):
    """Paths of input files, with the number of files that were left out, by reason."""

    def __init__(
        self, paths: Iterable[str] = (), left_out: Mapping[str, int] | None = None
    ) -> None:
        super().__init__(paths)
        self.left_out = Counter(left_out or {})
        """Number of files and folders that a search did not read, by reason."""


def left_out_line(left_out: Mapping[str, int]) -> str:
    """Return a line that says how many files a search left out and why, or "" if none."""
    if not left_out:
        return ""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(left_out.items()))
    line = f"left out of the inputs: {reasons}"
    if left_out.keys() <= {NAMED_TWICE}:
        return f"{line} (each file is read once)"
    return (
        f"{line} (name files by a pattern such as 'folder/**/*.md' to read them, or say with "
        "{option:input_format} what all of them are)"
    )


def find_inputs(inputs: Sequence[str], *, every_suffix: bool = False) -> Inputs:
    """Return the files that files, folders, globs, URLs and "-" name, sorted and each once.

    A folder is searched at any depth, through links to folders as well, for KNOWN_SUFFIXES, plain
    or compressed, or for `every_suffix`. Hidden files and folders are left out, and what is left
    out is counted. The matches of a glob are searched likewise, unless the glob spells out the
    suffix ("src/**/*.py"). Raises InputError if an input names no file.
    """
    found: dict[str, str] = {}  # real path: path as given
    left_out: Counter[str] = Counter()
    seen: set[str] = set()
    for at, name in enumerate(inputs):
        try:
            paths = _find(name, every_suffix, left_out)
        except InputError as error:
            if (whole := _divided_name(inputs, at)) and not Path(name).exists():
                error.hint = f"a name with blanks stands between quotes: {shlex.quote(whole)}"
            raise
        for path in paths:
            key = path if path == STDIN or is_url(path) else os.path.realpath(path)
            left_out[NAMED_TWICE] += found.setdefault(key, path) != path or path in seen
            seen.add(path)
    left_out += Counter()  # drops zeros
    return Inputs(sorted(found.values()), left_out)


def _divided_name(inputs: Sequence[str], at: int) -> str:
    """Return the existing file whose name the shell divided at its blanks, of which the word `at`
    is the first; "" if there is none.
    """
    wholes = (" ".join(inputs[at:stop]) for stop in range(at + 2, min(len(inputs), at + 32) + 1))
    return next((whole for whole in wholes if Path(whole).exists()), "")


def _find(name: str, every_suffix: bool, left_out: Counter[str]) -> list[str]:
    if not name.strip():
        raise InputError(
            "INPUT is empty",
            hint="name files or folders; . is the current folder. A shell variable may be unset",
        )
    path = Path(name)
    if name == STDIN:
        return [name]
    if is_url(name):
        return _find_url(name, every_suffix, left_out)
    if path.is_dir():
        return _known_files(_walk(path, left_out), name, every_suffix, left_out)
    if path.exists():
        return [name]
    if path.is_symlink():
        raise InputError(
            f"a link that leads nowhere, to {path.readlink()}",
            where=name,
            hint="restore what it leads to, or name another file",
        )
    if (snapshot := find_snapshot(name)) is not None:
        return [snapshot]
    if not glob.has_magic(name):
        close = similar(path)
        hint = None if close is None else f"did you mean {close}?"
        if name.startswith("~"):
            hint = "the shell did not expand the ~: remove the quotes around it"
        elif windows := re.match(r"([A-Za-z]):[\\/](.*)", name):
            rest = windows[2].replace("\\", "/")
            hint = f"a path of Windows is, in WSL: /mnt/{windows[1].lower()}/{rest}"
        elif "\\" in name:
            hint = f"write {name.replace(chr(92), '/')}, with /"
        elif hint is None and not path.is_absolute():
            hint = f"a relative path begins at the current folder, {Path.cwd()}"
        raise InputError("no such file or folder", where=name, hint=hint)
    files = []
    for match in _glob(name, left_out):
        if Path(match).is_file():
            files.append(match)
        elif not Path(match).is_dir():
            left_out[NO_FILES] += 1
        elif "**" not in path.parts:  # which finds the files inside as well
            left_out["folders"] += 1
    if path.suffix and not glob.has_magic(path.suffix):
        if not files:
            raise InputError("no file matches", where=name, hint="name files or folders that exist")
        return files
    return _known_files(files, name, every_suffix, left_out)


def _glob(pattern: str, left_out: Counter[str]) -> Iterator[str]:
    """Yield what a pattern matches; a loop of links is gone through once.

    Python's own glob goes through each loop until the system refuses the path: without end if there
    are two.
    """
    parts = Path(pattern).parts
    if "**" not in parts:
        # Path.glob refuses absolute patterns.
        yield from glob.glob(pattern)  # noqa: PTH207
        return
    at = parts.index("**")
    base = str(Path(*parts[:at])) if at else ""
    for folder in glob.glob(base) if glob.has_magic(base) else [base]:  # noqa: PTH207
        yield from (
            str(Path(folder, *inside))
            for inside in _tree(Path(folder), (), frozenset(), left_out)
            if _matches(inside, parts[at:])
        )


def _tree(
    folder: Path, inside: tuple[str, ...], above: frozenset[tuple[int, int]], left_out: Counter[str]
) -> Iterator[tuple[str, ...]]:
    """Yield the files below a folder that are not hidden, each as the names that lead to it."""
    above |= {_identity(folder)}
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        left_out[UNREADABLE] += folder.is_dir()
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = (*inside, entry.name)
        try:
            is_folder = entry.is_dir()
        except OSError:  # a link to itself
            is_folder = False
        if not is_folder:
            yield path
        elif _identity(Path(entry.path)) not in above:
            yield from _tree(Path(entry.path), path, above, left_out)


def _matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return True if the names of a path match the parts of a pattern, in which ** is any number."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return len(pattern) == 1 or any(
            _matches(path[start:], pattern[1:]) for start in range(len(path) + 1)
        )
    return (
        bool(path) and fnmatch.fnmatchcase(path[0], pattern[0]) and _matches(path[1:], pattern[1:])
    )


def _walk(folder: Path, left_out: Counter[str]) -> Iterator[str]:
    """Yield the files below a folder, at any depth; count what is hidden or cannot be read.

    Links to folders are followed, each folder once.
    """

    def unreadable(_: OSError) -> None:
        left_out[UNREADABLE] += 1

    seen = {_identity(folder)}
    for parent, folders, files in os.walk(folder, onerror=unreadable, followlinks=True):
        left_out["hidden"] += sum(name.startswith(".") for name in [*folders, *files])
        visible = []
        for name in sorted(folders):
            identity = _identity(Path(parent, name))
            if not name.startswith(".") and identity not in seen:
                seen.add(identity)
                visible.append(name)
        folders[:] = visible
        for name in files:
            path = str(Path(parent, name))
            if name.startswith("."):
                continue
            if Path(path).is_file():
                yield path
            else:
                left_out[NO_FILES] += 1
    left_out += Counter()  # drops zeros


def _identity(folder: Path) -> tuple[int, int]:
    try:
        stat = folder.stat()
    except OSError:  # os.walk reports it
        return (0, hash(folder))
    return stat.st_dev, stat.st_ino


def _known_files(
    files: Iterable[str], where: str, every_suffix: bool, left_out: Counter[str]
) -> list[str]:
    """Return the files of KNOWN_SUFFIXES, and count the others by their suffix.

    Raises InputError if there is none.
    """
    known, others = [], Counter[str]()
    for file in files:
        if every_suffix or file_suffixes(file)[0] in KNOWN_SUFFIXES:
            known.append(file)
        else:
            others["".join(file_suffixes(file)) or NO_SUFFIX] += 1
    if not known:
        names = ", ".join(sorted(others)[:8])
        if Path(where, "manifest.json").is_file():
            raise InputError(
                "contains shards, which are tokens already",
                where=where,
                hint=f"gpt train --data {shlex.quote(where)} reads them",
            )
        hint = "a file of another name is read if you name the file itself"
        if most := next((name for name, _ in others.most_common() if name != NO_SUFFIX), None):
            pattern = shlex.quote(f"{where.rstrip('/')}/**/*{most}")
            hint = f"files of another kind are read by a pattern: {pattern}"
        raise InputError(
            "contains no file that a folder is searched for"
            + (f" (only {names})" if others else ""),
            where=where,
            hint=f"{hint}\na folder is searched for {' '.join(KNOWN_SUFFIXES)}, plain or compressed",
        )
    left_out += others
    return known


def _find_url(url: str, every_suffix: bool, left_out: Counter[str]) -> list[str]:
    fs, inside = open_filesystem(url)
    with filesystem_errors(url):
        if glob.has_magic(inside):
            found = sorted(fs.glob(inside))
        elif fs.isdir(inside):
            found = _known_files(sorted(fs.find(inside)), url, every_suffix, left_out)
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
    except ImportError as error:  # HTTPFileSystem requires "requests" ...; Install s3fs to ...
        packages = re.findall(r'"(\w+)"', str(error)) or re.findall(r"[Ii]nstall (\w+)", str(error))
        if not packages:
            raise InputError(str(error), where=url) from None
        raise MissingPackageError(
            f"reading it needs {' and '.join(packages)}",
            where=url,
            hint=" ".join([install_hint(packages[0]), *packages[1:]]),
        ) from None
    except ValueError as error:
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

    `--resume` compares it. A URL is asked once in a process. Raises InputError if there is no such
    file, RunError if a URL cannot be reached.
    """
    try:
        if is_url(path):
            if (snapshot := snapshot_of(path)) is not None:
                return snapshot.warc_bytes, snapshot.name
            return _remote_fingerprint(path)
        # a build asks ten times for each of its files, which may be millions; a Path takes longer
        stat = os.stat(path)  # noqa: PTH116
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None
    return stat.st_size, str(stat.st_mtime_ns)


@lru_cache(maxsize=1 << 16)
def _remote_fingerprint(url: str) -> tuple[int, str]:
    fs, inside = open_filesystem(url)
    for attempt in range(1, REMOTE_ATTEMPTS + 1):
        try:
            with filesystem_errors(url):
                return int(fs.size(inside)), str(fs.ukey(inside))
        except RunError:
            if attempt == REMOTE_ATTEMPTS:
                raise
            time.sleep(2.0 ** (attempt - 1))
    raise AssertionError("unreachable")


def fingerprints(paths: Sequence[str]) -> dict[str, tuple[int, str]]:
    """Return the fingerprint of each file, those of URLs asked for in parallel."""
    _remote_fingerprint.cache_clear()
    remote = [path for path in paths if is_url(path) and snapshot_of(path) is None]
    with ThreadPoolExecutor(REMOTE_REQUESTS) as pool:
        list(pool.map(_remote_fingerprint, remote))
    return {path: fingerprint(path) for path in paths}


def open_raw(path: str) -> Any:
    """Open a file or URL as it is stored. Raises InputError if there is no such file."""
    try:
        if is_url(path):
            refuse_snapshots([path])
            fs, inside = open_filesystem(path)
            with filesystem_errors(path):
                return fs.open(inside, "rb")
        return open(path, "rb", BUFFER_BYTES)
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None


_watchers: list[Callable[[int], None]] = []


@contextlib.contextmanager
def watch_reads(watcher: Callable[[int], None]) -> Iterator[None]:
    """Call `watcher` with the number of bytes, as stored, of each read from inputs opened here."""
    _watchers.append(watcher)
    try:
        yield
    finally:
        _watchers.remove(watcher)


class _Watched(io.RawIOBase):
    """Stream that tells the watchers how many bytes are read from it."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        # Does not wait for more than is there: a pipe may be slow.
        self._readinto = getattr(stream, "readinto1", None) or stream.readinto

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True if the stream can seek."""
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a position and return it."""
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        """Return the position."""
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer` with what is there, and tell the watchers."""
        count = int(self._readinto(buffer))
        for watcher in _watchers:
            watcher(count)
        return count


@contextlib.contextmanager
def open_input(path: str, *, start: int = 0) -> Iterator[io.BufferedReader]:
    """Open a file for reading, decompressed, at byte `start`.

    Standard input is decompressed if it begins like a compressed file. Raises InputError, also
    inside the `with` block, if the file is missing, damaged or cut short.
    """
    name = "stdin" if path == STDIN else path
    compression = file_suffixes(path)[1]
    with contextlib.ExitStack() as stack:
        stream: Any = sys.stdin.buffer if path == STDIN else stack.enter_context(open_raw(path))
        if _watchers:
            stream = io.BufferedReader(_Watched(stream), BUFFER_BYTES)
        elif not hasattr(stream, "peek"):
            stream = io.BufferedReader(stream, BUFFER_BYTES)
        if path == STDIN:
            compression = compression_of(stream.peek(START_BYTES))
        if compression:
            stream = decompressed(stream, compression, name)
        if start:
            stream.seek(start)
        yield stream
