"""Files that appear whole or not at all, fingerprints, and the rule for folders that already hold something."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gptcli.errors import InputError, UsageError
from gptcli.interrupts import Cleanup

PARTIAL = ".partial"  # the ending of every name that is not whole yet
LOCK = ".lock"  # of a folder, `.NAME.lock` of a file: see `gptcli.locks`
LINKS = 40  # that lead to one file, as Linux follows them


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """A file that takes its name only once it is whole and on disk: temporary name beside it, fsync, rename.

    On any error the temporary file is removed and the old file, if there was one, stays. Only a regular
    file is replaced: a link is followed to it, and a device or pipe is written to as it is.
    """
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    if written_through(path):
        with open(path, mode, **text) as file:  # type: ignore[call-overload]
            yield file
        return
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL}")
    with Cleanup(partial.unlink):
        try:
            with open(partial, mode, **text) as file:  # type: ignore[call-overload]
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that takes its name only once every file written inside the block is whole and on disk; a link to one is followed."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    shutil.rmtree(partial, ignore_errors=True)
    with Cleanup(shutil.rmtree, partial, True):
        partial.mkdir()
        try:
            yield partial
            for file in partial.rglob("*"):
                if file.is_file():
                    with open(file, "rb") as handle:
                        os.fsync(handle.fileno())
            fsync_folder(partial)
            if path.exists():
                shutil.rmtree(path)
            partial.rename(path)
            fsync_folder(path.parent)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def written_through(path: Path) -> bool:
    """Whether `path` names a device, a pipe or an open file of a process (/dev/stdout), which is written to and never replaced."""
    path = Path(path)
    for _ in range(LINKS):
        if path.parent.resolve().is_relative_to("/proc"):
            return True
        if not path.is_symlink():
            break
        path = path.parent / path.readlink()
    try:
        kind = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


@contextlib.contextmanager
def scratch_folder(within: Path | None = None) -> Iterator[Path]:
    """A folder for temporary files, in the system's place for them or `within` another folder; gone after the block, however it ends."""
    folder = (within or Path(tempfile.gettempdir())) / f".gpt.{secrets.token_hex(8)}{PARTIAL}"
    with Cleanup(shutil.rmtree, folder, True):  # before it is there
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: object) -> None:
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=2, ensure_ascii=False)
        file.write("\n")


def read_json(path: Path) -> Any:
    """The JSON in `path`. Raises InputError where it is missing or broken, with the line."""
    return parse_json(_read(path), path, lines=True)


def parse_json(data: bytes, where: str | Path, *, lines: bool = False) -> Any:
    """The JSON value that `data` spells. Raises InputError where it is broken; with `lines`, its line is added to `where`."""
    try:
        return json.loads(data.decode("utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"not valid JSON: {error.msg}", where=f"{where}:{error.lineno}" if lines else where) from None
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}", where=where) from None
    except ValueError as error:  # a number of over 4,300 digits
        raise InputError(f"not readable JSON: {error}", where=where) from None
    except RecursionError:
        raise InputError("not readable JSON: nested too deeply", where=where) from None


def read_toml(path: Path) -> dict[str, Any]:
    """The table in `path`. Raises InputError where it is missing or broken."""
    try:
        return tomllib.loads(_read(path).decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"not valid UTF-8 at byte {error.start}", where=path) from None
    except ValueError as error:  # TOMLDecodeError, and what `parse_json` meets
        raise InputError(f"not valid TOML: {error}", where=path) from None
    except RecursionError:
        raise InputError("not valid TOML: nested too deeply", where=path) from None


def _read(path: Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError("no such file", where=path) from None


def sha256(path: Path) -> str:
    """The hex SHA-256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_output(folder: Path, *, resume: bool, force: bool) -> None:
    """The overwrite rule for an output folder: a non-empty one needs `--resume` or `--force`. Touches nothing. Raises UsageError."""
    folder = Path(folder)
    if resume and force:
        raise UsageError("--resume and --force contradict each other", hint="choose one")
    if folder.exists() and not folder.is_dir():
        raise UsageError("is not a folder", where=folder, hint="choose another output with -o")
    if contents(folder) and not resume:
        if not force:
            raise UsageError(
                "the output folder is not empty",
                where=folder,
                hint="--resume goes on with it, --force starts over in it",
            )
        if Path.cwd().is_relative_to(folder.resolve()) or Path.home().is_relative_to(folder.resolve()):
            raise UsageError("--force would empty the folder you stand in or your home", where=folder, hint="choose another output")


def claim_output(folder: Path, *, resume: bool, force: bool) -> None:
    """Take an output folder by that rule: `force` empties it, and leftovers of an interrupted write are swept away. Raises UsageError."""
    folder = Path(folder)
    check_output(folder, resume=resume, force=force)
    if force:
        empty(folder)
    Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)
    sweep(folder)


def contents(folder: Path) -> list[Path]:
    """What a folder holds, but for the locks of those who write in it; nothing if there is no folder."""
    if not folder.exists():
        return []
    return [path for path in folder.iterdir() if not is_lock(path)]


def is_lock(path: Path) -> bool:
    """Whether a file is a lock, or one that succeeds a lock whose holder died."""
    return re.fullmatch(rf"(\..+)?\{LOCK}(\.[0-9a-z]+)?", path.name) is not None


def empty(folder: Path) -> None:
    """Remove what a folder holds, but for locks. The folder stays, and so does what links in it lead to."""
    for path in contents(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def sweep(folder: Path, *, keep: Path | None = None) -> None:
    """Remove what interrupted writes left in a folder, at any depth, but for `keep`."""
    for leftover in folder.rglob(f".*{PARTIAL}"):
        if leftover == keep:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def claim_file(path: Path, *, force: bool) -> None:
    """The same rule for a command whose output is one file, which a device or pipe is not: nothing of it is lost. Raises UsageError."""
    if written_through(path):
        return
    if Path(path).is_dir():
        raise UsageError("is a folder, not a file", where=path, hint="name a file")
    if Path(path).exists() and not force:
        raise UsageError("the output file exists already", where=path, hint="--force replaces it")
