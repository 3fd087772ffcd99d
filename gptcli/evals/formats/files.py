"""Read files line by line or as JSON, plain or compressed, with errors that name the place.

The format of enwik8 and text8 is here too.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gptcli.encodings import LOST_HINT, decode, lost_bytes, not_utf8, without_bom
from gptcli.errors import InputError, message_of
from gptcli.files import missing_file
from gptcli.text.compression import StreamDamageError, decompressed
from gptcli.toml_json import parse_json, shown

Row = dict[str, Any]
Reader = Callable[[Path], Iterator[Row]]

# Decompressed bytes of a file that is read at once, so that a small archive cannot fill the memory.
MAX_FILE_BYTES = 1 << 30
MAX_LINE_BYTES = 1 << 28
# The test part of the 100 million bytes of enwik8 and text8.
ENWIK8_BYTES, ENWIK8_TEST_BYTES = 100_000_000, 5_000_000
COMPRESSED_SUFFIXES = (".gz", ".bz2", ".zst")
START_BYTES = 1 << 12  # looked at to recognise a format


def content_suffix(path: Path) -> str:
    """Return the suffix of the content, such as ".jsonl" for dev.jsonl.gz."""
    return Path(path.stem if path.suffix in COMPRESSED_SUFFIXES else path.name).suffix


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file, decompressed. Raises InputError, also inside the block, if that fails."""
    try:
        with open(path, "rb") as file:
            compression = path.suffix if path.suffix in COMPRESSED_SUFFIXES else ""
            yield decompressed(file, compression, str(path))
    except FileNotFoundError:
        raise missing_file(path) from None
    except IsADirectoryError:
        raise InputError("is a folder, not a file", where=path) from None
    except (StreamDamageError, OSError) as error:
        raise InputError(
            f"the file is damaged or cut short: {message_of(error)}", where=path
        ) from None


def numbered_lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield ("file:number", line without its end) for each decompressed line.

    Raises InputError if the file is missing, damaged or not UTF-8.
    """
    with _open(path) as file:
        number = 0
        while True:
            number += 1
            try:
                line = file.readline(MAX_LINE_BYTES + 1)
            except (StreamDamageError, OSError) as error:
                raise InputError(
                    f"the file is damaged or cut short: {message_of(error)}",
                    where=f"{path}:{number}",
                ) from None
            if not line:
                return
            if len(line) > MAX_LINE_BYTES:
                raise InputError(
                    f"a line of more than {MAX_LINE_BYTES:,} bytes", where=f"{path}:{number}"
                )
            if number == 1:
                line = without_bom(line)
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                found = not_utf8(line, error.start, f"{path}:{number}")
                raise InputError(
                    found.what.replace(":", " of the line:", 1), where=found.where, hint=found.hint
                ) from None
            if what := lost_bytes(line):
                what = what.replace(" on:", " of the line on:", 1)
                raise InputError(what, where=f"{path}:{number}", hint=LOST_HINT)
            yield f"{path}:{number}", text.rstrip("\r\n")


def read_bytes(path: Path) -> bytes:
    """Return all bytes of a file, decompressed.

    Raises InputError if it is missing, damaged or larger than MAX_FILE_BYTES.
    """
    with _open(path) as file:
        data = file.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"more than {MAX_FILE_BYTES:,} bytes: too large to read", where=path)
    return data


def first_bytes(path: Path) -> bytes:
    """Return the beginning of a file, decompressed, by which its format is recognised.

    Raises InputError if the file is missing or damaged.
    """
    try:
        with _open(path) as file:
            return file.read(START_BYTES)
    except InputError as error:
        if not error.what.startswith("the file is damaged"):
            raise
        raise InputError(error.what, where=f"{path}:1") from None


def read_whole_text(path: Path) -> str:
    """Return the text of a file, without a byte order mark. Raises `numbered_lines`' errors."""
    return decode(read_bytes(path), path)


WHOLE = re.compile(r"([+-]?[0-9]{1,18})(?:\.0*)?")
"""Whole number in a file, also as a number with a point, into which a table with gaps turns it."""
TRUE, FALSE = ("true", "1", "1.0"), ("false", "0", "0.0")


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
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise InputError(f"{key!r} is not {name}", where=self.where)
        return value

    def text(self, key: str) -> str:
        """Return the string under `key`."""
        return str(self._get(key, str, "text"))

    def number(self, key: str) -> int:
        """Return the integer under `key`, which may be written as text or as 1.0, as pandas does."""
        value = self._get(key, (int, float, str), "a whole number")
        if isinstance(value, int):
            return value
        if found := WHOLE.fullmatch(str(value).strip()):
            return int(found[1])
        raise InputError(f"{key!r} is {shown(value)}, not a whole number", where=self.where)

    def boolean(self, key: str) -> bool:
        """Return the boolean under `key`, which the hub's exports and tables write 1 or 0."""
        value = self._get(key, (bool, int, float, str), "true or false")
        word = str(value).strip().lower()
        if word not in (*TRUE, *FALSE):
            raise InputError(f"{key!r} is {shown(value)}, neither true nor false", where=self.where)
        return word in TRUE

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
        """Return the number that `values` gives for the string or number under `key`: a label."""
        word = self.value.get(key) if isinstance(self.value, dict) else None
        if isinstance(word, bool) or not isinstance(word, str | int) or str(word) not in values:
            names = ", ".join(
                name for name in values if not name.lstrip("-").isdigit()
            ) or ", ".join(values)
            raise InputError(f"{key!r} is {shown(word)}, not one of {names}", where=self.where)
        return values[str(word)]

    def columns(self, key: str, *names: str) -> list[tuple[str, ...]]:
        """Return the rows of the table under `key` as texts, one per name.

        It is a list of objects, or, as in the hub's exports, an object of lists.
        """
        value = self._get(key, (list, dict), "a list")
        if isinstance(value, list):
            return [tuple(node.text(name) for name in names) for node in self.nodes(key)]
        node = JsonNode(value, f"{self.where}.{key}")
        columns = [node.texts(name) for name in names]
        if len({len(column) for column in columns}) > 1:
            raise InputError(f"the lists of {key!r} differ in length", where=self.where)
        return list(zip(*columns, strict=True))


def json_document(path: Path) -> JsonNode:
    """Return the one JSON value of a file."""
    return JsonNode(parse_json(read_bytes(path), path, lines=True), str(path))


def line_id(node_where: str) -> str:
    """Return the id of a row without its own, such as "dev.jsonl:7", independent of the folder."""
    return Path(node_where).name


def turn(question: str, answer: str) -> str:
    """Return an answered question as it stands in GPT-3's prompts before the one to answer."""
    return f"Q: {question}\n\nA: {answer}\n\n"


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
    if what := lost_bytes(test, start=len(data) - len(test)):
        raise InputError(what, where=path, hint=LOST_HINT)
    yield {"id": path.name, "text": text}
