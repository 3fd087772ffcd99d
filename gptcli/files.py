"""Files that appear whole or not at all, fingerprints, and the rule for output folders that are not
empty.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gptcli import toml_json
from gptcli.encodings import BOM, decode
from gptcli.errors import InputError, RunError, UsageError, close_to
from gptcli.interrupts import Cleanup

PARTIAL = ".partial"  # the ending of every name that is not whole yet
LOCK = ".lock"  # of a folder, `.NAME.lock` of a file: see `gptcli.locks`
LINKS = 40  # that lead to one file, as Linux follows them
NAME_BYTES = 255  # of a file's name, on the file systems of Linux and macOS
NANOGPT_META = "meta.pkl"  # vocabulary of characters, next to the tokens of nanoGPT


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that gets its name only once it is whole and on disk: temporary name, fsync,
    rename.

    On any error the temporary file is removed and an old file stays; an OSError names `path`. Only
    a regular file is replaced: a link is followed to it, and a device or pipe is written to
    directly. In text, what UTF-8 cannot encode (a byte of a file name that is not UTF-8) is
    escaped.
    """
    text = (
        {} if "b" in mode else {"encoding": "utf-8", "newline": "\n", "errors": "backslashreplace"}
    )
    if written_through(path):
        with naming(path), open(path, mode, **text) as file:  # type: ignore[call-overload]
            yield file
        return
    path = resolved(path)
    partial = partial_name(path, os.urandom(4).hex())
    with Cleanup(partial.unlink):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, mode, **text) as file:  # type: ignore[call-overload]
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            fsync_folder(path.parent)
        except BaseException as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            _name_final(error, partial, path)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Create a folder that gets its name only once every file written in the block is whole and on
    disk.

    A link to a folder is followed.
    """
    path = resolved(path)
    partial = partial_name(path, str(os.getpid()))
    shutil.rmtree(partial, ignore_errors=True)
    with Cleanup(shutil.rmtree, partial, True):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.mkdir()
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
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            _name_final(error, partial, path)
            raise


ADVICE = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EMFILE: "raise the limit of open files, for example ulimit -n 4096",
    errno.ENFILE: "close some programs: the system has no more open files",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f), or use another file system",
    errno.EACCES: "change its permissions",
    errno.EPERM: "change its permissions",
    errno.EROFS: "choose a place that is not read-only",
    errno.EIO: "look after the disk, or its connection",
    errno.ENOMEM: "free some memory",
}


def advice(error: OSError) -> str:
    """Return what to do about an error of the system, as the beginning of a hint; "" if unknown."""
    return ADVICE.get(error.errno or 0, "")


def written_through(path: Path) -> bool:
    """Return whether `path` is a device, a pipe or an open file of a process (/dev/stdout), which
    is written to and never replaced.
    """
    path = Path(path)
    try:
        for _ in range(LINKS):
            if path.parent.resolve().is_relative_to("/proc"):
                return os.path.lexists(path)
            if not path.is_symlink():
                break
            path = path.parent / path.readlink()
        kind = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(kind) or stat.S_ISDIR(kind))


@contextlib.contextmanager
def scratch_folder(within: Path | None = None) -> Iterator[Path]:
    """Create a folder for temporary files, in the system's place for them or `within` another
    folder, and remove it after the block, however it ends.
    """
    folder = (within or Path(tempfile.gettempdir())) / f".gpt.{os.urandom(8).hex()}{PARTIAL}"
    with Cleanup(shutil.rmtree, folder, True):  # before it is there
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def partial_name(path: Path, token: str) -> Path:
    """Return the temporary name, next to `path`, of an unfinished file; shortened to what file
    systems allow.
    """
    room = NAME_BYTES - len(f"..{token}{PARTIAL}")
    name = os.fsencode(path.name)[:room].decode("utf-8", "ignore")
    return path.with_name(f".{name}.{token}{PARTIAL}")


def _name_final(error: BaseException, partial: Path, path: Path) -> None:
    """Make an OSError name `path`, which the user knows, instead of the temporary name, or of none
    if the disk is full.
    """
    if not isinstance(error, OSError):
        return
    if error.filename is None:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
            error.filename = str(path)
    elif os.fsdecode(error.filename).startswith(str(partial)):
        error.filename = str(path) + os.fsdecode(error.filename).removeprefix(str(partial))
    error.filename2 = None


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Run a block that writes `path`, or an unnamed file beside it; an OSError names `path`."""
    try:
        yield
    except OSError as error:
        _name_final(error, path, path)
        raise


def resolved(path: Path) -> Path:
    """Return the path that a link leads to, which need not exist.

    Raises UsageError if links lead in a circle.
    """
    path = Path(os.path.realpath(path))
    if os.path.islink(path):  # noqa: PTH114 (Path.is_symlink raises if the name is too long)
        raise UsageError("this link leads back to itself", where=path, hint="choose another path")
    return path


@contextlib.contextmanager
def temporary_room(what: str) -> Iterator[None]:
    """Run a block that writes to the temporary folder.

    Raises RunError, which names that folder and says that it must hold `what`, if the disk is full.
    """
    folder = tempfile.gettempdir()
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not str(
            error.filename or folder
        ).startswith(folder):
            raise
        raise RunError(
            f"the folder for temporary files is full: it must hold {what}",
            where=folder,
            hint="set TMPDIR to a folder on a disk with more room: TMPDIR=/path gpt ...",
        ) from None


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` survive a power cut (a no-op where folders cannot be opened)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path, "w") as file:
        file.write(toml_json.dumps(value, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Return the JSON in `path`. Raises InputError, with the line, if it is missing or broken."""
    return toml_json.parse_json(read_bytes(path), path, lines=True)


def read_toml(path: Path) -> dict[str, Any]:
    """Return the table in `path`.

    Raises InputError, with the corrected line, if it is missing or broken.
    """
    return toml_json.parse_toml(read_bytes(path), path)


def read_exact_text(path: Path) -> str:
    """Return the text in `path` exactly: a byte order mark is part of it.

    Raises InputError as `read_text` does.
    """
    data = read_bytes(path)
    return ("\ufeff" if data.startswith(BOM) else "") + decode(data, path)


def read_text(path: Path) -> str:
    """Return the text in `path`, without a byte order mark.

    Raises InputError if it is missing or not UTF-8.
    """
    return decode(read_bytes(path), path)


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a file. Raises InputError if it is missing or a folder."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        raise missing_file(path) from None
    except IsADirectoryError:
        raise InputError("is a folder, not a file", where=path) from None
    except NotADirectoryError:
        raise InputError(
            "no such file: a part of its path is a file, not a folder", where=path
        ) from None


def sha256(path: Path) -> str:
    """Return the hex SHA-256 of a file's bytes."""
    import hashlib  # here alone: it loads OpenSSL, and every command imports this module

    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def missing_file(path: Path) -> InputError:
    """Return the error for a file that is missing: the closest name, or where its path begins."""
    hint = None
    if (close := similar(path)) is not None:
        hint = f"did you mean {close}?"
    elif not Path(path).is_absolute():
        hint = f"a relative path begins at the current folder, {Path.cwd()}"
    return InputError("no such file", where=path, hint=hint)


def similar(path: Path) -> Path | None:
    """Return the existing file or folder whose path is closest to the missing `path`, each folder
    above it spelled as one that exists; None if none is close.
    """
    path = Path(path)
    if not path.name:
        return None
    parent: Path | None = path.parent
    if parent is not None and not parent.is_dir():
        parent = similar(parent)
    if parent is None:
        return None
    if (parent / path.name).exists():
        return parent / path.name
    try:
        names = [other.name for other in parent.iterdir() if not other.name.startswith(".")]
    except OSError:
        return None
    return next((parent / name for name in close_to(path.name, names)), None)


KINDS = {  # file of a folder: contents that only its own command replaces
    "run.toml": "a run of gpt train",
    "manifest.json": "shards of gpt build-shards",
    ".git": "a git repository",
}


def contradiction() -> UsageError:
    """Return the error for `resume` and `force` together."""
    return UsageError(
        "{option:resume} and {option:force} contradict each other",
        hint="leave out {option:force} to continue what is there; leave out {option:resume} to "
        "delete it and start over",
    )


def check_output(folder: Path, *, resume: bool, force: bool, own: str = "") -> None:
    """Raise UsageError if an output folder is not empty and neither `resume` nor `force` is given.

    `force` does not empty a folder with one of KINDS other than `own`. Touches nothing.
    """
    folder = Path(folder)
    if resume and force:
        raise contradiction()
    check_writable(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError("is not a folder", where=folder, hint="choose another {option:out}")
    if contents(folder) and not resume:
        if not force:
            raise UsageError(
                "the output folder is not empty",
                where=folder,
                hint="{option:resume} continues it; another {option:out} leaves it as it is; "
                "{option:force} deletes its contents and starts over",
            )
        if any(
            place.is_relative_to(folder.resolve())
            for place in (Path.cwd(), home())
            if place is not None
        ):
            raise UsageError(
                "{option:force} would empty the folder you stand in or your home",
                where=folder,
                hint="choose another output",
            )
        for mark, kind in KINDS.items():
            if mark != own and (folder / mark).exists():
                raise UsageError(
                    f"contains {kind}, which {{option:force}} here would delete",
                    where=folder,
                    hint="choose another {option:out}, or delete the folder yourself",
                )


def claim_output(folder: Path, *, resume: bool, force: bool, own: str = "") -> None:
    """Take an output folder by the rule of `check_output`: `force` empties it, and leftovers of
    interrupted writes are removed.

    Raises UsageError.
    """
    folder = Path(folder)
    check_output(folder, resume=resume, force=force, own=own)
    if force:
        empty(folder)
    Path(os.path.realpath(folder)).mkdir(parents=True, exist_ok=True)
    sweep(folder)


def contents(folder: Path) -> list[Path]:
    """Return what a folder contains, apart from locks; nothing if there is no folder."""
    if not folder.exists():
        return []
    return [path for path in folder.iterdir() if not is_lock(path)]


def is_lock(path: Path) -> bool:
    """Return whether a file is a lock, or the successor of a lock whose holder died."""
    return re.fullmatch(rf"(\..+)?\{LOCK}(\.[0-9a-z]+)?", path.name) is not None


def empty(folder: Path) -> None:
    """Remove the contents of a folder, apart from locks.

    The folder stays, and so do the targets of links in it.
    """
    for path in contents(folder):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def home() -> Path | None:
    """Return the user's home folder; None if there is none, as for a user without an entry in the
    system's list.
    """
    try:
        return Path.home()
    except RuntimeError:
        return None


def check_writable(path: Path) -> None:
    """Raise UsageError, before any work, if an output could not be written after it.

    Touches nothing.
    """
    resolved(path)
    path = Path(path)
    for part in path.parts:
        if len(os.fsencode(part)) > NAME_BYTES:
            raise UsageError(
                f"the name {part[:20]}... is longer than {NAME_BYTES} bytes",
                where=f"{str(path)[:40]}...",
                hint="shorten it",
            )
    try:
        there = next((folder for folder in path.parents if folder.exists()), None)
        if path.is_dir() and not os.access(path, os.W_OK | os.X_OK):
            there = path
    except PermissionError as error:
        raise UsageError(
            "no permission to look there",
            where=error.filename,
            hint="choose another {option:out}",
        ) from None
    if there is None:
        return
    if not there.is_dir():
        raise UsageError(
            f"{there} is a file, not a folder", where=path, hint="choose another {option:out}"
        )
    if there.resolve().is_relative_to("/proc") or there.resolve().is_relative_to("/sys"):
        raise UsageError(
            "no file can be created there", where=path, hint="choose another {option:out}"
        )
    if not os.access(there, os.W_OK | os.X_OK):
        hint = f"choose another {{option:out}}, or change the permissions of {there}"
        raise UsageError(f"no permission to write in {there}", where=path, hint=hint)


def sweep(folder: Path, *, keep: Path | None = None) -> None:
    """Remove leftovers of interrupted writes in a folder, at any depth, apart from `keep`."""
    for leftover in folder.rglob(f".*{PARTIAL}"):
        if leftover == keep:
            continue
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def claim_file(path: Path, *, force: bool) -> None:
    """Apply the rule of `check_output` to a command whose output is one file; a device or pipe
    loses nothing.

    Raises UsageError.
    """
    if written_through(path):
        return
    check_writable(path)
    if Path(path).is_dir():
        raise UsageError("is a folder, not a file", where=path, hint="name a file")
    if Path(path).exists() and not force:
        raise UsageError(
            "the output file exists already", where=path, hint="{option:force} replaces it"
        )


def complete_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file whose last line may be incomplete; none if there is no file.

    A process that is killed while it appends leaves such a line, which is left out.
    """
    if not path.is_file():
        return []
    return path.read_bytes().decode("utf-8", errors="replace").split("\n")[:-1]


def find_nanogpt_meta(checkpoint: Path) -> Path | None:
    """Return the meta.pkl of a checkpoint of nanoGPT, or None.

    It is next to the checkpoint, or where nanoGPT keeps it: out-shakespeare-char/ckpt.pt belongs to
    data/shakespeare_char.
    """
    folder = checkpoint.absolute().parent
    name = folder.name.removeprefix("out-").replace("-", "_")
    for path in (folder / NANOGPT_META, folder.parent / "data" / name / NANOGPT_META):
        if path.is_file():
            return path
    return None
