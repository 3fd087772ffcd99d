"""Search for input files: those that names, folders, globs, URLs and "-" stand for."""

from __future__ import annotations

import fnmatch
import glob
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from gptcli.corpus.inputs import (
    KNOWN_SUFFIXES,
    STDIN,
    file_suffixes,
    filesystem_errors,
    is_url,
    open_filesystem,
)
from gptcli.corpus.snapshots import find_snapshot
from gptcli.errors import InputError
from gptcli.files import similar

NAMED_TWICE = "named twice"  # reason why a file is left out
NO_FILES, UNREADABLE = "links that lead nowhere, or pipes", "folders that cannot be read"
NO_SUFFIX = "no suffix"


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
