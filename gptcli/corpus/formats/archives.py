"""Readers of archives, tar and zip: each member is read as a file of its own would be.

A member that is damaged costs no other one: it is counted, and reading continues at the next member
that can be found. Members that are no documents, such as links, pictures and archives inside the
archive, are counted as left out. Memory does not grow with an archive; the size that a zip file may
have when it is unpacked is limited.
"""

from __future__ import annotations

import io
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from tarfile import HeaderError, TarInfo
from typing import IO, Any

from gptcli.corpus.documents import (
    LEFT_OUT,
    WHOLE_FILE,
    Document,
    FileRange,
    Reader,
    bad_document,
)
from gptcli.corpus.formats.tables import seekable_copy
from gptcli.corpus.inputs import file_suffixes
from gptcli.encodings import MEMBER
from gptcli.errors import InputError
from gptcli.text.compression import (
    BUFFER_BYTES,
    SNIFFED_BYTES,
    MissingPackageError,
    StreamDamageError,
    decompressed,
)

DAMAGED_HINT = "copy the archive again, or unpack what can be read of it, and name the files"
BLOCK = 512  # of tar
END_BLOCKS, RECORD_BLOCKS = 2, 20  # zeros that end a tar; the usual record, which they fill
OTHER_RECORDS = sorted(unit << doublings for unit in (1, 5) for doublings in range(15))
MAX_HEADER_BYTES = 1 << 20  # of the long names and other facts of a member
MAX_EXPANSION, ALWAYS_ALLOWED_BYTES = 200, 1 << 30
"""A zip file may unpack to so many times its size, or to that size if it is more."""
REGULAR, DIRECTORY = (b"0", b"\0", b"7"), b"5"  # types of members
WITHOUT_CONTENT = (b"1", b"2", b"3", b"4", DIRECTORY, b"6")  # whatever size their header has
MAGIC_OFFSET = 257  # of "ustar" in a header
SPARSE, OLD_SPARSE = "GNU.sparse.", b"S"  # a file with holes: pax fields' names, type of a member
SPARSE_CONTINUED, HOLES_CONTINUED = 482, 504  # flags of a header, and of a block of holes after it
_ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError)

FindMember = Callable[[str, bytes], "Reader | str"]
"""Function (name, first bytes) that returns the reader of a member, or why it is left out."""


@dataclass(frozen=True, slots=True)
class _Member:
    """Member of an archive."""

    name: str
    """Name, with folders."""
    stream: Any = None
    """Content, readable once; None if it is left out or damaged."""
    problem: str = ""
    """Why it is left out, or what is wrong with it."""
    is_damaged: bool = False
    """True if it could not be read."""


def tar_reader(find: FindMember) -> Reader:
    """Return a reader of tar archives, in the formats of POSIX, GNU and before."""
    return _reader(_tar_members, find)


def zip_reader(find: FindMember) -> Reader:
    """Return a reader of zip archives. A damaged table of contents raises InputError."""
    return _reader(_zip_members, find)


def _reader(members: Callable[[Any, str], Iterator[_Member]], find: FindMember) -> Reader:
    """Return a reader of the documents of all members, numbered in order."""

    def read(stream: Any, name: str, part: FileRange) -> Iterator[Document]:
        number = -1
        for member in members(stream, name):
            for document in _member_documents(member, name, find):
                number += 1
                if part.selects(number):
                    document.position, document.origin = number, -1
                    yield document
        if number < 0 and part.selects(0):
            yield bad_document(LEFT_OUT, "the archive has no files", name)

    return read


def _member_documents(member: _Member, archive: str, find: FindMember) -> Iterator[Document]:
    """Yield the documents of a member, or a bad one that says why there is none."""
    where = f"{archive}{MEMBER}{member.name}" if member.name else archive
    if member.is_damaged:
        what = f"the archive is damaged: {member.problem}"
        yield bad_document("damaged member", what, where, hint=DAMAGED_HINT)
        return
    problem = member.problem or _name_problem(member.name)
    if problem:
        yield bad_document(LEFT_OUT, f"left out: {problem}", where)
        return
    try:
        content: Any = decompressed(member.stream, file_suffixes(member.name)[1], where)
        if not isinstance(content, io.BufferedReader):
            content = io.BufferedReader(content, BUFFER_BYTES)
        head = content.peek(SNIFFED_BYTES)
        if not head:
            yield bad_document(LEFT_OUT, "left out: the file is empty", where)
            return
        reader = find(member.name, head)
        if isinstance(reader, str):
            yield bad_document(LEFT_OUT, f"left out: {reader}", where)
        else:
            yield from reader(content, where, WHOLE_FILE)
    except MissingPackageError:
        raise
    except InputError as error:
        yield bad_document("damaged member", error.what, where, hint=error.hint or DAMAGED_HINT)


def _name_problem(name: str) -> str:
    """Return why a member of this name is left out, or ""."""
    parts = PurePosixPath(name).parts
    if any(part.startswith(".") and part not in (".", "..") for part in parts):
        return "a hidden file"
    if "__MACOSX" in parts:
        return "a description of a file by macOS"
    return ""


class _Part(io.RawIOBase):
    """The next `size` bytes of a stream."""

    def __init__(self, stream: Any, size: int) -> None:
        self._stream, self.left = stream, size
        self.is_cut = False
        """True if the stream ended before."""
        self.is_told = False
        """True if its reader has got an error: it is cut, or the stream is damaged in it."""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`. Raises StreamDamageError, once, where the stream ends too early."""
        wanted = min(len(buffer), self.left)
        if not wanted or self.is_told:
            return 0
        try:
            data = b"" if self.is_cut else self._stream.read(wanted)
        except StreamDamageError:
            self.is_told = True
            raise
        buffer[: len(data)] = data
        self.left -= len(data)
        self.is_cut = self.is_cut or len(data) < wanted
        if not data:
            self.is_told = True
            raise StreamDamageError("the archive is cut short")
        return len(data)

    def skip(self) -> None:
        """Read what is left."""
        while self.left and not self.is_cut:
            data = self._stream.read(min(self.left, 1 << 20))
            self.left -= len(data)
            self.is_cut = not data


class _TarBytes:
    """Stream of an archive, to which bytes can be given back."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._again = stream, b""
        self.position = 0
        """Number of bytes read."""

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer at the end."""
        data, self._again = self._again[:size], self._again[size:]
        data = data if len(data) == size else data + self._stream.read(size - len(data))
        self.position += len(data)
        return data

    def find_header(self, seen: bytes = b"") -> None:
        """Go on to the next header, which may begin at any byte of `seen` or behind it."""
        data, is_end = seen, False
        while not is_end:
            more = self._read_behind_damage()
            is_end, data = not more, data + more
            for found in re.finditer(b"ustar", data):
                start = found.start() - MAGIC_OFFSET
                if start >= 0 and _header(data[start : start + BLOCK]) is not None:
                    self._again = data[start:]
                    self.position -= len(self._again)
                    return
            data = data[-2 * BLOCK :]

    def _read_behind_damage(self) -> bytes:
        while True:
            try:
                return self.read(BUFFER_BYTES)
            except StreamDamageError:
                continue


def _tar_members(stream: Any, _: str) -> Iterator[_Member]:
    """Yield the members of a tar archive; each stretch of damage is one damaged member."""
    archive = _TarBytes(stream)
    once: dict[str, str] = {}  # facts about the next member
    always: dict[str, str] = {}
    is_end = False  # zeros have been read
    start = zeros = 0  # where the archive begins, of several in a row; zero blocks before a header
    while True:
        name, block = "", b""
        try:
            block = archive.read(BLOCK)
            if not block:
                if not is_end:
                    yield _Member("", problem="it has no end: it is cut short", is_damaged=True)
                elif not _ends_file(zeros, archive.position // BLOCK):
                    yield _Member("", problem=_lost(zeros), is_damaged=True)
                return
            if not block.strip(b"\0"):
                is_end, zeros = True, zeros + 1
                continue
            header = _header(block)
            if header is None:
                raise StreamDamageError("bytes that are no header of a file")
            if zeros:
                is_next = _ends_archive(zeros, (archive.position - start) // BLOCK - 1)
                start = archive.position - BLOCK
                if not is_next:
                    yield _Member("", problem=_lost(zeros), is_damaged=True)
            is_end, zeros = False, 0
            is_continued = header.type == OLD_SPARSE and block[SPARSE_CONTINUED] != 0
            while is_continued:
                holes = archive.read(BLOCK)
                is_continued = len(holes) == BLOCK and holes[HOLES_CONTINUED] != 0
            facts = always | once
            name = _text(facts.get("path", header.name))
            size = int(facts.get("size", header.size))
            if size < 0:
                raise ValueError
            content = _Part(archive, 0 if header.type in WITHOUT_CONTENT else size)
            padding = -content.left % BLOCK
            if header.type in (b"x", b"g", b"L", b"K"):
                found = _facts(header.type, content)
                always, once = (
                    (always | found, once) if header.type == b"g" else (always, once | found)
                )
            else:
                once = {}
                if header.type != DIRECTORY:
                    problem = _tar_problem(header, facts)
                    yield _Member(name, content, problem)
            if content.is_told:  # the damage is counted
                archive.find_header()
                once, is_end = {}, True
                continue
            content.skip()
            archive.read(padding)
            is_end = False
        except (StreamDamageError, ValueError) as error:
            problem = error.what if isinstance(error, InputError) else "a header is not valid"
            yield _Member(name, problem=problem, is_damaged=True)
            archive.find_header(b"" if name else block)
            once, is_end, zeros = {}, True, 0  # the damage is counted


def _ends_archive(zeros: int, blocks: int) -> bool:
    """Return True if so many zero blocks may end an archive of `blocks`, behind which another one
    begins: two, or up to the end of a record. Others are files that were lost.
    """
    is_filled = zeros < END_BLOCKS + RECORD_BLOCKS and blocks % RECORD_BLOCKS == 0
    return zeros == END_BLOCKS or (zeros > END_BLOCKS and is_filled)


def _ends_file(zeros: int, blocks: int) -> bool:
    """Return True if so many zero blocks may end a file of `blocks`: as many as fill a record of any
    usual size.
    """
    return zeros < END_BLOCKS + RECORD_BLOCKS or any(
        zeros < END_BLOCKS + record and blocks % record == 0 for record in OTHER_RECORDS
    )


def _lost(zeros: int) -> str:
    return f"{zeros * BLOCK:,} zero bytes where files stood"


def _header(block: bytes) -> TarInfo | None:
    """Return the header of a member, or None if the block is none."""
    if block[MAGIC_OFFSET : MAGIC_OFFSET + 5] not in (b"ustar", bytes(5)):  # zeros before POSIX
        return None
    try:
        found = TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (HeaderError, ValueError):
        return None
    return found if found.size >= 0 else None


def _facts(kind: bytes, content: _Part) -> dict[str, str]:
    """Return the facts in a header of pax or GNU. Raises ValueError if it is not valid."""
    if content.left > MAX_HEADER_BYTES:
        raise ValueError
    data = io.BufferedReader(content).read()
    if kind in (b"L", b"K"):
        name = data.rstrip(b"\0").decode("utf-8", "surrogateescape")
        return {"path": name} if kind == b"L" else {}
    facts = {}
    while data:
        length = int(data.partition(b" ")[0])
        key, sign, value = data[:length].partition(b" ")[2].rstrip(b"\n").partition(b"=")
        if not sign or length < 5:
            raise ValueError
        facts[_text(key.decode("utf-8", "surrogateescape"))] = value.decode(
            "utf-8", "surrogateescape"
        )
        data = data[length:]
    return facts


def _text(name: str) -> str:
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _tar_problem(header: TarInfo, facts: dict[str, str]) -> str:
    """Return why a member is left out, or ""."""
    if header.type == OLD_SPARSE or any(key.startswith(SPARSE) for key in facts):
        return "a file with holes"
    return "" if header.type in REGULAR else "a link or a device"


def _zip_members(stream: Any, name: str) -> Iterator[_Member]:
    """Yield the members of a zip archive, in the order of its table of contents."""
    try:
        archive = zipfile.ZipFile(stream if stream.seekable() else seekable_copy(stream))
    except _ZIP_ERRORS as error:
        raise InputError(
            f"the archive is damaged: {_first_line(error)}", where=name, hint=DAMAGED_HINT
        ) from None
    with archive:
        size = archive.fp.seek(0, io.SEEK_END)  # type: ignore[union-attr]
        files = [member for member in archive.infolist() if not member.filename.endswith("/")]
        unpacked = sum(member.file_size for member in files)
        if unpacked > max(MAX_EXPANSION * size, ALWAYS_ALLOWED_BYTES):
            raise InputError(
                f"the archive would unpack to {unpacked:,} bytes, more than {MAX_EXPANSION} times "
                "its size",
                where=name,
                hint="unpack it, and name the files",
            )
        if problem := _before_files(archive):
            yield _Member("", problem=problem, is_damaged=True)
        for member in files:
            if stat.S_ISLNK(member.external_attr >> 16):
                yield _Member(member.filename, problem="a link")
                continue
            if member.flag_bits & 1:
                yield _Member(member.filename, problem="it is encrypted", is_damaged=True)
                continue
            try:
                with archive.open(member) as content:
                    yield _Member(member.filename, io.BufferedReader(_ZipContent(content)))
            except _ZIP_ERRORS as error:
                yield _Member(member.filename, problem=_first_line(error), is_damaged=True)


def _before_files(archive: zipfile.ZipFile) -> str:
    """Return what is wrong if an archive begins with files that its table of contents does not name,
    as two archives in a row do; "". A program that unpacks the archive may come first.
    """
    first = min((member.header_offset for member in archive.infolist()), default=archive.start_dir)
    archive.fp.seek(0)  # type: ignore[union-attr]
    head = archive.fp.read(4)  # type: ignore[union-attr]
    if not first or head not in (b"PK\x03\x04", bytes(4)):
        return ""
    return f"{first:,} bytes before the first file that its table of contents names"


class _ZipContent(io.RawIOBase):
    """Content of a member of a zip archive, whose damage is a StreamDamageError, once."""

    def __init__(self, content: IO[bytes]) -> None:
        self._content = content
        self._is_damaged = False

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill `buffer`. Raises StreamDamageError where the content is damaged."""
        if self._is_damaged:
            return 0
        try:
            data = self._content.read(min(len(buffer), BUFFER_BYTES))
        except _ZIP_ERRORS as error:
            self._is_damaged = True
            raise StreamDamageError(_first_line(error)) from None
        buffer[: len(data)] = data
        return len(data)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
