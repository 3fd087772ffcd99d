"""Decode text as UTF-8, or say which encoding it looks like and how to convert it, or that there is
none.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from gptcli.errors import InputError
from gptcli.numbers import counted

BOM = b"\xef\xbb\xbf"  # UTF-8's byte order mark, with which some editors begin a file
SAMPLE_BYTES = 4096  # looked at to guess an encoding
ZEROS = 4  # more in a row than a text has in any encoding
BOMS = {
    b"\xff\xfe\0\0": "UTF-32",
    b"\0\0\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
MAGIC = {  # how files that are no text begin
    b"PK\x03\x04": "a ZIP archive, such as .docx and .xlsx files are",
    b"%PDF-": "a PDF",
    b"\x1f\x8b": "gzip data; its name should end in .gz",
    b"\x28\xb5\x2f\xfd": "zstd data; its name should end in .zst",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ": "xz data",
    b"PAR1": "Parquet; its name should end in .parquet",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GGUF": "a GGUF model",
    b"\x7fELF": "a program",
    b"\x88\xd84\x01": "a shard of tokens",
    b"\x88\xd85\x01": "a shard of tokens",
    b"SQLite": "an SQLite database",
}
LOST_HINT = "copy the file again from where it came"
MEMBER = ", member "  # between the names of an archive and of a file in it
UNPACKERS = {  # suffix of a compressed file: the command that writes its content to stdout
    ".gz": "gzip -dc",
    ".zst": "zstd -dc",
    ".bz2": "bzip2 -dc",
    ".xz": "xz -dc",
    ".lz4": "lz4 -dc",
}
_PLACE = re.compile(r"(:\d+|, (byte|record|row) \d+)$")  # of a document, after its file's name


def without_bom(data: bytes) -> bytes:
    """Return `data` without a UTF-8 byte order mark at its start."""
    return data.removeprefix(BOM)


def decode(data: bytes, where: str | Path, *, start: int = 0) -> str:
    """Return `data` decoded as UTF-8, without a byte order mark.

    `start` is the position of `data` in its file.

    Raises InputError, with the position, the likely encoding and the command that converts it, if
    it is not UTF-8.
    """
    try:
        text = without_bom(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(
            data, error.start + len(data) - len(without_bom(data)), where, start=start
        ) from None
    if (encoding := utf16_without_mark(data)) is not None:
        raise wrong_encoding(
            f"the text looks like {encoding}: every second byte is 0", encoding, where
        )
    if what := lost_bytes(data, start=start):
        raise InputError(what, where=where, hint=LOST_HINT)
    return text


def lost_bytes(data: bytes | str, *, start: int = 0) -> str:
    """Return what is wrong with a text in which zeros stand for bytes that were lost, as a disk or
    an interrupted copy leaves them; "" if there are none. `start` is its position in its file.
    """
    if isinstance(data, str):
        data = data.encode("utf-8", "replace") if "\0" in data else b""
    if b"\0" not in data:  # which is found out fastest
        return ""
    at = data.find(bytes(ZEROS))
    if at < 0 and data.startswith(b"\0") and not data.strip(b"\0"):
        at = 0  # a short text of nothing else
    if at < 0:
        return ""
    size = len(data) - at - len(data[at:].lstrip(b"\0"))
    return f"{counted(size, 'zero byte')} from byte {start + at} on: what stood there is lost"


def not_utf8(data: bytes, at: int, where: str | Path, *, start: int = 0) -> InputError:
    """Return the error for `data` whose byte `at` is not UTF-8; `start` is the position of `data`
    in its file.
    """
    what = f"not valid UTF-8 at byte {start + at}"
    if start == 0 and (
        kind := next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)
    ):
        return InputError(
            f"{what}: it looks like {kind}", where=where, hint="text files hold UTF-8 text alone"
        )
    encoding = guess(data, at)
    return wrong_encoding(
        what if encoding is None else f"{what}: it looks like {encoding}", encoding, where
    )


def wrong_encoding(what: str, encoding: str | None, where: str | Path) -> InputError:
    """Return the error for a file in another `encoding` than UTF-8 (None if unknown), with the
    command that converts it.
    """
    path = Path(_PLACE.sub("", str(where)))
    converts = f"iconv -f {encoding or 'ENCODING'} -t UTF-8"
    archive, is_member, _ = str(where).partition(MEMBER)
    if is_member and not path.exists():
        hint = f"unpack the archive, convert its file with {converts}, and name the folder: "
        return InputError(what, where=where, hint=hint + _unpacked(archive))
    if path.name in ("stdin", "-") or not path.suffix:
        return InputError(what, where=where, hint=f"convert it: {converts}")
    source = shlex.quote(str(path))
    if (program := UNPACKERS.get(path.suffix)) is not None:
        path = path.with_suffix("")
        command = f"{program} {source} | {converts}"
    else:
        command = f"{converts} {source}"
    command += f" > {shlex.quote(str(path.with_suffix(f'.utf8{path.suffix}')))}"
    return InputError(
        what,
        where=where,
        hint=f"convert it: {command}"
        + ("" if encoding else ", with the encoding it was written in"),
    )


def _unpacked(archive: str) -> str:
    """Return the folder to unpack an archive to: its name without suffixes."""
    path = Path(archive)
    while path.suffix in (".tar", ".tgz", ".zip", *UNPACKERS):
        path = path.with_suffix("")
    return str(path)


def guess(data: bytes, at: int = 0) -> str | None:
    """Return the likely encoding, by iconv's name, of `data` whose byte `at` is not UTF-8; None if
    there is no indication.
    """
    for mark, encoding in BOMS.items():
        if data.startswith(mark):
            return encoding
    if (utf16 := utf16_without_mark(data)) is not None:
        return utf16
    sample = data[max(0, at - SAMPLE_BYTES // 2) : at + SAMPLE_BYTES // 2]
    high = [byte for byte in sample if byte >= 0x80]
    # binary, or an alphabet of which the bytes alone do not tell which
    if b"\0" in sample or 3 * len(high) > len(sample):
        return None
    if any(byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) for byte in high):  # which Windows-1252 lacks
        return None
    return "WINDOWS-1252" if any(byte < 0xA0 for byte in high) else "ISO-8859-1"


def utf16_without_mark(data: bytes) -> str | None:
    """Return UTF-16LE or UTF-16BE if `data` has the zero bytes of Western text in it; None
    otherwise.
    """
    if b"\0" not in data[:64]:
        return None
    sample = data[:SAMPLE_BYTES]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if len(sample) < 8 or 5 * max(even, odd) < 2 * len(sample) or 20 * min(even, odd) > len(sample):
        return None
    return "UTF-16LE" if odd > even else "UTF-16BE"


def no_text(inputs: Sequence[str], why: str = "") -> InputError:
    """Return the error for inputs of which no document has any text."""
    names = ["stdin" if name == "-" else name for name in inputs[:3]]
    return InputError(
        f"there is no text in the inputs{f' ({why})' if why else ''}",
        where=", ".join(names) + (" and others" if len(inputs) > 3 else ""),
        hint="name files that contain text",
    )
