"""Read files line by line or as JSON, plain or compressed, with errors that name the place.

Formats that are not a task's own are here too: JSON lines, CSV, lines of text and whole texts.
"""

from __future__ import annotations

import contextlib
import csv
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gptcli.encodings import not_utf8, without_bom
from gptcli.errors import InputError
from gptcli.text.compression import decompressed
from gptcli.toml_json import parse_json

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[Row]]

# Decompressed bytes of a file that is read at once, so that a small archive cannot fill the memory.
MAX_FILE_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 28
# The test part of the 100 million bytes of enwik8 and text8.
ENWIK8_BYTES, ENWIK8_TEST_BYTES = 100_000_000, 5_000_000


COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst")


def content_suffix(path: Path) -> str:
    """Return the suffix of the content, such as ".jsonl" for dev.jsonl.gz."""
    return Path(path.stem if path.suffix in COMPRESSED_SUFFIXES else path.name).suffix


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    with open(path, "rb") as file:
        compression = path.suffix if path.suffix in COMPRESSED_SUFFIXES else ""
        yield decompressed(file, compression, str(path))


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file:number", line without its end) for each decompressed line.

    Raises InputError if the file is missing, damaged or not UTF-8.
    """
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE_BYTES + 1), b""), 1):
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(
                        f"a line of more than {MAX_LINE_BYTES:,} bytes", where=f"{path}:{number}"
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


def read_bytes(path: Path) -> bytes:
    """Return all bytes of a file, decompressed.

    Raises InputError if it is missing, damaged or larger than MAX_FILE_BYTES.
    """
    try:
        with _open(path) as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError("no such file", where=path) from None
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"the file is damaged or cut short: {error}", where=path) from None
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"more than {MAX_FILE_BYTES:,} bytes: too large to read", where=path)
    return data


def read_whole_text(path: Path) -> str:
    """Return the exact text of a file. Raises the errors of `numbered_lines`."""
    data = read_bytes(path)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(data, error.start, path) from None


@dataclass(frozen=True, slots=True)
class JsonNode:
    """JSON value with its place; methods raise InputError if a value has another type."""

    value: Any
    """Value."""
    where: str
    """Place of the value in its file, for messages."""

    def has(self, key: str) -> bool:
        """Return True if the object has a value other than null under `key`."""
        return isinstance(self.value, dict) and self.value.get(key) is not None

    def _get(self, key: str, kind: type | tuple[type, ...], name: str) -> Any:
        if not isinstance(self.value, dict):
            raise InputError("not a JSON object", where=self.where)
        if key not in self.value:
            raise InputError(
                f"has no {key!r}", where=self.where, hint=f"its keys are {', '.join(self.value)}"
            )
        value = self.value[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
            raise InputError(f"{key!r} is not {name}", where=self.where)
        return value

    def text(self, key: str) -> str:
        """Return the string under `key`."""
        return str(self._get(key, str, "text"))

    def number(self, key: str) -> int:
        """Return the integer under `key`."""
        return int(self._get(key, int, "a whole number"))

    def boolean(self, key: str) -> bool:
        """Return the boolean under `key`."""
        return bool(self._get(key, bool, "true or false"))

    def node(self, key: str) -> JsonNode:
        """Return the object under `key`."""
        return JsonNode(self._get(key, dict, "an object"), f"{self.where}.{key}")

    def nodes(self, key: str) -> list[JsonNode]:
        """Return the elements of the list under `key`."""
        values = self._get(key, list, "a list")
        return [
            JsonNode(value, f"{self.where}.{key}[{number}]") for number, value in enumerate(values)
        ]

    def texts(self, key: str) -> list[str]:
        """Return the list of strings under `key`."""
        values = self._get(key, list, "a list of texts")
        if not all(isinstance(value, str) for value in values):
            raise InputError(f"{key!r} is not a list of texts", where=self.where)
        return list(values)

    def one_of(self, key: str, values: dict[str, int]) -> int:
        """Return the number that `values` gives for the string under `key`, such as a label."""
        word = self.value.get(key) if isinstance(self.value, dict) else None
        if not isinstance(word, str) or word not in values:
            raise InputError(
                f"{key!r} is {word!r}, not one of {', '.join(values)}", where=self.where
            )
        return values[word]


def json_lines(path: Path) -> Iterator[JsonNode]:
    """Yield the JSON object of each line that is not blank."""
    for where, line in numbered_lines(path):
        if not line.strip():
            continue
        value = parse_json(line.encode(), where)
        if not isinstance(value, dict):
            raise InputError("not a JSON object", where=where)
        yield JsonNode(value, where)


def json_document(path: Path) -> JsonNode:
    """Return the one JSON value of a file."""
    return JsonNode(parse_json(read_bytes(path), path, lines=True), str(path))


def line_id(node_where: str) -> str:
    """Return the id of a row without its own, such as "dev.jsonl:7", independent of the folder."""
    return Path(node_where).name


def read_jsonl(path: Path) -> Iterator[Row]:
    """Read JSON lines unchanged; "id" defaults to file:line."""
    for node in json_lines(path):
        yield {"id": line_id(node.where), **node.value}


def read_csv(path: Path) -> Iterator[Row]:
    """Read a table with a header, separated by commas, or by tabs if the file ends in .tsv.

    The "id" defaults to file:line.
    """
    position = [str(path)]

    def texts() -> Iterator[str]:
        for where, line in numbered_lines(path):
            position[0] = where
            yield line + "\n"

    rows = csv.DictReader(
        texts(), delimiter="\t" if content_suffix(path) == ".tsv" else ",", strict=True
    )
    try:
        for row in rows:
            if None in row or None in row.values():
                raise InputError(
                    f"does not have the {len(rows.fieldnames or ())} fields of the header",
                    where=position[0],
                )
            yield {"id": line_id(position[0]), **row}
    except csv.Error as error:
        raise InputError(f"not valid CSV: {error}", where=position[0]) from None


def read_lines(path: Path) -> Iterator[Row]:
    """Read a text per line; blank lines are skipped."""
    for where, line in numbered_lines(path):
        if line.strip():
            yield {"id": line_id(where), "text": line}


def read_text(path: Path) -> Iterator[Row]:
    """Read the whole file as one running text."""
    yield {"id": path.name, "text": read_whole_text(path)}


def read_enwik8(path: Path) -> Iterator[Row]:
    """Read the test part of enwik8 or text8, their last 5 million bytes; all of a smaller file.

    A character split by the cut is left out.
    """
    data = read_bytes(path)
    test = data[-ENWIK8_TEST_BYTES:] if len(data) == ENWIK8_BYTES else data
    start = next((place for place, byte in enumerate(test[:4]) if byte & 0xC0 != 0x80), 0)
    try:
        text = test[start:].decode("utf-8")
    except UnicodeDecodeError as error:
        if len(test) - start - error.start >= 4 or error.reason != "unexpected end of data":
            raise InputError(
                f"not valid UTF-8 at byte {len(data) - len(test) + start + error.start}", where=path
            ) from None
        text = test[start : start + error.start].decode("utf-8")
    yield {"id": path.name, "text": text}
