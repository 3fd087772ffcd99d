"""What every reader stands on: lines and JSON of files, plain or compressed, and fields that say
where they are missing.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gptcli.encodings import not_utf8, without_bom
from gptcli.errors import InputError, install_hint
from gptcli.files import parse_json

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[Row]]

# bytes of a file that is read as a whole, decompressed, so that a small archive cannot fill the
# memory
MAX_FILE_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 28  # and of a line
PIECE = 1 << 12  # compressed bytes decoded at once: every four of zstd's may stand for 128 KiB


def _zstd(path: Path) -> IO[bytes]:
    try:
        import zstandard
    except ImportError:
        raise InputError(
            "reading .zst needs the package zstandard", where=path, hint=install_hint("zstandard")
        ) from None
    found, packed = io.BytesIO(), b""
    frame: Any = None
    # a frame at a time: zstandard's own reader does not say that the last one is cut short
    with open(path, "rb") as file:
        while found.tell() <= MAX_FILE_BYTES and (packed := packed or file.read(PIECE)):
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            try:
                found.write(frame.decompress(packed))
            except zstandard.ZstdError as error:
                raise OSError(str(error)) from None
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if found.tell() > MAX_FILE_BYTES:
        raise InputError(
            f"over {MAX_FILE_BYTES:,} bytes unpacked", where=path, hint="unpack it first"
        )
    if frame is not None:
        raise EOFError("its zstd stream ends early")
    found.seek(0)
    return found


OPENERS: dict[str, Callable[[Path], Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".zst": _zstd}


def kind_of(path: Path) -> str:
    """The ending that says what is in the file: ".jsonl" of dev.jsonl.gz."""
    return Path(path.stem if path.suffix in OPENERS else path.name).suffix


def _open(path: Path) -> IO[bytes]:
    stream: IO[bytes] = OPENERS[path.suffix](path) if path.suffix in OPENERS else open(path, "rb")  # noqa: SIM115 - the caller closes it
    return stream


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """("file:number", line without its ending) of each line, decompressed. Raises InputError where
    it is missing, damaged or not UTF-8.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(
                        f"a line of over {MAX_LINE_BYTES:,} bytes", where=f"{path}:{number}"
                    )
                if number == 1:
                    line = without_bom(line)
                yield f"{path}:{number}", line.decode("utf-8").rstrip("\r\n")
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("no such file", where=path) from None
    except UnicodeDecodeError as error:
        found = not_utf8(error.object, error.start, f"{path}:{number}")
        raise InputError(
            found.what.replace(":", " of the line:", 1), where=found.where, hint=found.hint
        ) from None
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(
            f"the file is damaged or cut short: {error}", where=f"{path}:{number + 1}"
        ) from None


def content(path: Path) -> bytes:
    """All bytes of a file, decompressed. Raises InputError where it is missing or damaged."""
    try:
        with _open(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("no such file", where=path) from None
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"the file is damaged or cut short: {error}", where=path) from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"over {MAX_FILE_BYTES:,} bytes, which are not read at once", where=path)
    return data


def read_whole(path: Path) -> str:
    """The text of a file, to the character. Raises InputError like `lines`."""
    data = content(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(data, error.start, path) from None


@dataclass(frozen=True, slots=True)
class Node:
    """A JSON value and where it stands. All its methods raise InputError, with the place, where it
    is not what is asked for.
    """

    value: Any
    where: str

    def has(self, key: str) -> bool:
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def _get(self, key: str, kind: type | tuple[type, ...], name: str) -> Any:
        if not isinstance(self.value, dict):
            raise InputError("not a JSON object", where=self.where)
        if key not in self.value:
            raise InputError(
                f"has no {key!r}", where=self.where, hint=f"it has {', '.join(self.value)}"
            )
        value = self.value[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise InputError(f"{key!r} is not {name}", where=self.where)
        return value

    def text(self, key: str) -> str:
        return str(self._get(key, str, "a text"))

    def number(self, key: str) -> int:
        return int(self._get(key, int, "a whole number"))

    def truth(self, key: str) -> bool:
        return bool(self._get(key, bool, "true or false"))

    def node(self, key: str) -> Node:
        return Node(self._get(key, dict, "an object"), f"{self.where}.{key}")

    def nodes(self, key: str) -> list[Node]:
        values = self._get(key, list, "a list")
        return [Node(value, f"{self.where}.{key}[{number}]") for number, value in enumerate(values)]

    def texts(self, key: str) -> list[str]:
        values = self._get(key, list, "a list of texts")
        if not all(isinstance(value, str) for value in values):
            raise InputError(f"{key!r} is not a list of texts", where=self.where)
        return list(values)

    def one_of(self, key: str, values: dict[str, int]) -> int:
        """The number that stands for a word: of "label": "entailment"."""
        word = self.value.get(key) if isinstance(self.value, dict) else None
        if not isinstance(word, str) or word not in values:
            raise InputError(
                f"{key!r} is {word!r}, not one of {', '.join(values)}", where=self.where
            )
        return values[word]


def objects(path: Path) -> Iterator[Node]:
    """The JSON object of each line that holds anything."""
    for where, line in lines(path):
        if not line.strip():
            continue
        value = parse_json(line.encode(), where)
        if not isinstance(value, dict):
            raise InputError("not a JSON object", where=where)
        yield Node(value, where)


def document(path: Path) -> Node:
    """The one JSON value that a file holds."""
    return Node(parse_json(content(path), path, lines=True), str(path))


def line_id(node_where: str) -> str:
    """ "dev.jsonl:7" of a row that has no id of its own: the same wherever the folder lies."""
    return Path(node_where).name


def read_jsonl(path: Path) -> Iterator[Row]:
    """A JSON object a line, as it stands; its "id" is file:line where it has none."""
    for node in objects(path):
        yield {"id": line_id(node.where), **node.value}


def read_csv(path: Path) -> Iterator[Row]:
    """A table with a header, separated by commas, or by tabs where the file ends in .tsv; its "id"
    is file:line where it has none.
    """
    position = [str(path)]

    def texts() -> Iterator[str]:
        for where, line in lines(path):
            position[0] = where
            yield line + "\n"

    rows = csv.DictReader(texts(), delimiter="\t" if kind_of(path) == ".tsv" else ",", strict=True)
    try:
        for row in rows:
            if None in row or None in row.values():
                raise InputError(
                    f"has not the {len(rows.fieldnames or ())} fields of the header",
                    where=position[0],
                )
            yield {"id": line_id(position[0]), **row}
    except csv.Error as error:
        raise InputError(f"not valid CSV: {error}", where=position[0]) from None


def read_lines(path: Path) -> Iterator[Row]:
    """A text a line; blank lines are none."""
    for where, line in lines(path):
        if line.strip():
            yield {"id": line_id(where), "text": line}


def read_text(path: Path) -> Iterator[Row]:
    """The whole file as one running text."""
    yield {"id": path.name, "text": read_whole(path)}
