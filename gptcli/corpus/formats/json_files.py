"""Readers of JSON lines, and of JSON: an array, or objects one after another."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from itertools import islice
from typing import IO, Any

from gptcli.corpus.documents import (
    MAX_DOCUMENT_BYTES,
    Document,
    FileRange,
    Reader,
    bad_document,
    decode_document,
    reject_escaped_bytes,
    too_long,
)
from gptcli.corpus.formats.text import divided, line_name, selected_lines, without_newline
from gptcli.encodings import BOM
from gptcli.errors import InputError, close_to
from gptcli.toml_json import json_fault, long_number

JSON_CHARACTERS = 1 << 16  # of JSON read at a time
MAX_TRIED = 16  # places where a value may begin behind damage
_SURROGATE = re.compile("[\ud800-\udfff]")
_NEXT_OBJECT = re.compile(r"\}\s*,?\s*(?=\{)")
# What may stand before the first value: byte order marks, and comments that hide no value.
_BEFORE = re.compile(r'(?:[\s\ufeff]|//[^\n{"\[]*\n|#[^\n{"\[]*\n|/\*(?:(?!\*/)[^{"\[])*\*/)+')
# Other characters before the array that is the file.
_BEFORE_ARRAY = re.compile(r'[^{"\[]+(?=\[\s*[{"\[])')
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[{}\[\],:"]|[^\s"{}\[\],:]+', re.DOTALL)
# Places where the next value of an array may begin, by the first character of its values.
_STARTS = {
    "{": re.compile(r"[},\n]\s*(?=\{)"),
    "[": re.compile(r"[\],\n]\s*(?=\[)"),
    '"': re.compile(r'(?:(?<!\\)"\s*,|\n)\s*(?=")'),
    # Where it is a bracket that is surplus, quotes are what they seem.
    '["': re.compile(r'[,\n]\s*(?=")'),
}


def json_lines_reader(field: str, *, eot_in_text: bool = False) -> Reader:
    """Return a reader of JSON lines that takes the text from `field` and the URL from "url".

    A `field` "a.b" is the field b of the object a. With `eot_in_text`, `<|endoftext|>` divides
    documents.
    """

    def read(stream: IO[bytes], name: str, part: FileRange) -> Iterator[Document]:
        loads, is_strict = _fastest_json()
        for number, position, line in selected_lines(stream, part):
            where = line_name(name, number, position)
            if line is None:
                yield too_long(where, position)
                continue
            if line.startswith(BOM):  # of the file, or of one that was appended to it
                line = line.removeprefix(BOM)
            is_valid = is_strict
            try:
                record = loads(line)
            except ValueError:
                if line.isspace() or not line:
                    continue
                is_valid, record = False, _standard_json(line, position, where)
                if isinstance(record, Document):
                    yield record
                    continue
            yield _document_of(record, field, where, position, is_valid=is_valid)

    return divided(read) if eot_in_text else read


def json_reader(field: str) -> Reader:
    """Return a reader of JSON: an array of objects or texts, or objects one after another.

    Objects are read as in JSON lines. An object that is not valid JSON costs no other one.
    """

    def read(stream: Any, name: str, part: FileRange) -> Iterator[Document]:
        text = io.TextIOWrapper(stream, "utf-8-sig", "surrogateescape", newline="")
        for number, value in enumerate(_json_values(text)):
            if not part.selects(number):
                continue
            where = f"{name}, record {number}"
            if isinstance(value, _InvalidJsonError):
                yield bad_document("not valid JSON", str(value), where, number)
            elif isinstance(value, str):
                yield _document_of({field: value}, field, where, number, is_escaped=True)
            else:
                yield _document_of(value, field, where, number, is_escaped=True)

    return read


class _InvalidJsonError(Exception):
    """A place in a JSON file that is not valid; the argument says what is wrong."""


def _json_values(text: IO[str]) -> Iterator[Any]:
    """Yield the values of an array, or those that follow each other, and _InvalidJsonError for what is not JSON.

    No more than one value is in memory.
    """
    decoder = json.JSONDecoder()
    buffer, at, size = "", 0, JSON_CHARACTERS
    kind = ""  # first character of the values
    is_end = is_array = has_array = False
    is_first = True
    while True:
        while at < len(buffer) and (buffer[at].isspace() or (buffer[at] == "," and not is_first)):
            at += 1
        if at == len(buffer):
            if is_end:
                break
            buffer, at = text.read(JSON_CHARACTERS), 0
            is_end = not buffer
            continue
        if is_first and (found := _BEFORE.match(buffer, at)):
            at = found.end()
            continue
        # An array begins the file, or follows another one.
        if buffer[at] == "[" and (is_first or (has_array and not is_array)):
            is_array, has_array, is_first, at = True, True, False, at + 1
            continue
        if buffer[at] == "]" and is_array:
            is_array, at = False, at + 1
            continue
        if is_first and (found := _BEFORE_ARRAY.match(buffer, at)):
            yield _InvalidJsonError(f"not valid JSON: {found[0][:40].strip()!r} before the array")
            at = found.end()
            continue
        is_first = False
        kind = kind or (buffer[at] if buffer[at] in _STARTS else "{")
        problem = ""
        try:
            value, stop = decoder.raw_decode(buffer, at)
            is_whole = stop < len(buffer) or is_end
        except json.JSONDecodeError as error:
            is_whole = is_end or not _is_open(error, buffer)
            problem = f"not valid JSON: {_fault(error)}"
        except (ValueError, RecursionError) as error:
            is_whole, problem = True, f"not readable JSON: {type(error).__name__}"
        if not is_whole and len(buffer) - at <= MAX_DOCUMENT_BYTES:
            more = text.read(size)
            buffer, at, size, is_end = buffer[at:] + more, 0, 2 * size, not more
            continue
        size = JSON_CHARACTERS
        if problem or not is_whole:
            yield _InvalidJsonError(problem or "longer than a document may be")
            buffer, at, is_end = _behind_damage(buffer, at, text, kind, is_end=is_end)
            continue
        yield value
        at = stop
    if is_array:
        yield _InvalidJsonError("the array is cut short: it has no ]")


def json_file_values(stream: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for each value of a JSON file. Raises InputError at the first problem."""
    for number, value in enumerate(_json_values(io.TextIOWrapper(stream, "utf-8-sig"))):
        where = f"{name}, record {number}"
        if isinstance(value, _InvalidJsonError):
            raise InputError(str(value), where=where)
        yield where, value


def _behind_damage(
    buffer: str, at: int, text: IO[str], kind: str, *, is_end: bool
) -> tuple[str, int, bool]:
    """Return the buffer, the place in it to read on at, and True if the text has ended.

    `at` is the start of a value that is not valid; `kind` is the first character of the others.
    """
    size = JSON_CHARACTERS
    while (found := _place_behind(buffer, at, kind, is_end=is_end)) is None:
        if len(buffer) - at > MAX_DOCUMENT_BYTES:
            return _behind_object(buffer, at + 1, text)
        more = text.read(size)
        buffer, at, size, is_end = buffer[at:] + more, 0, 2 * size, not more
    return buffer, found, is_end


def _place_behind(buffer: str, start: int, kind: str, *, is_end: bool) -> int | None:
    """Return the end of the value at `start`, which is not valid; None if more text is needed.

    It ends where its brackets close, or at a comma outside of them. Where a quote or a bracket is
    missing or surplus, those tell nothing: it ends before the first valid value behind `start` as
    well.
    """
    stop, starts = _end_by_brackets(buffer, start, kind, is_end=is_end)
    if starts:
        place = _next_value(buffer, start, stop, starts, is_end=is_end)
        if place is not None:
            return None if place < 0 else place
    return len(buffer) if stop is None and is_end else stop


def _end_by_brackets(buffer: str, start: int, kind: str, *, is_end: bool) -> tuple[int | None, str]:
    """Return the end of a value by its brackets, None if it is not in the buffer; and a key of
    _STARTS if a quote or a bracket is missing or surplus, "" if not.
    """
    opened, last, starts = "", ",", ""  # brackets; the token before, "v" for a value
    for token in _TOKEN.finditer(buffer, start):
        first = token[0][0]
        is_tear = False
        if first in "{[":
            if not opened and last == "v" and first == kind:  # a comma is missing
                return token.start(), starts
            is_tear = first != kind if not opened else opened[-1] == "{" and last != ":"
            opened, last = opened + first, first
        elif first in "}]":
            if not opened:
                is_own = first == "}" or token.start() == start
                return (token.end() if is_own else token.start()), starts
            is_tear = opened[-1] + first not in ("{}", "[]")
            opened, last = opened[:-1], "v"
        elif first in ",:":
            if first == "," and not opened:
                return token.end(), starts
            last = first
        else:
            is_tear = last == "v" or (token[0] == '"' and is_end)
            last = "v"
        if is_tear and not starts:
            starts = f"[{kind}" if kind == '"' and first in "{[}]" else kind
        if last == "v" and first in "}]" and not opened:
            return token.end(), starts
        if token[0] == '"':
            break
    return None, starts


def _next_value(
    buffer: str, start: int, stop: int | None, kind: str, *, is_end: bool
) -> int | None:
    """Return the place of the first valid value between `start` and `stop`, of MAX_TRIED places.

    Returns None if there is none, and -1 if more text is needed to tell.
    """
    decoder = json.JSONDecoder()
    places = _STARTS[kind].finditer(buffer, start, len(buffer) if stop is None else stop)
    for found in islice(places, MAX_TRIED):
        try:
            _, stop = decoder.raw_decode(buffer, found.end())
        except json.JSONDecodeError as error:
            if not is_end and _is_open(error, buffer):
                return -1
            continue
        except (ValueError, RecursionError):
            continue
        after = buffer[stop : stop + 256].lstrip()
        if not after:
            return found.end() if is_end else -1
        if after[0] in (",", "]", kind[-1]):
            return found.end()
    return None


def _is_open(error: json.JSONDecodeError, buffer: str) -> bool:
    """Return True if what is wrong may be that the buffer ends."""
    # The scanner stops at the end of what is there, or at the start of an open string.
    return error.pos >= len(buffer) - 16 or error.msg.startswith("Unterminated string")


def _behind_object(buffer: str, at: int, text: IO[str]) -> tuple[str, int, bool]:
    """Return the buffer, the place of the next object in it, and True if the text has ended."""
    while (found := _NEXT_OBJECT.search(buffer, at)) is None:
        more = text.read(JSON_CHARACTERS)
        if not more:
            closing = buffer[at:].rstrip().endswith("]")
            return "]" if closing else "", 0, True
        buffer, at = buffer[max(at, len(buffer) - 256) :] + more, 0
    return buffer, found.end(), False


def field_of(record: Any, field: str) -> Any:
    """Return the value of `field`, or of "a.b" in nested objects; None if there is none."""
    if isinstance(record, dict) and field in record:
        return record[field]
    for name in field.split("."):
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _fields_hint(record: Any, field: str) -> str:
    """Return what to do about an object without the text's field: the fields that have text."""
    texts = (
        [name for name, value in record.items() if isinstance(value, str)]
        if isinstance(record, dict)
        else []
    )
    if not texts:
        return f'a line looks like {{"{field}": "..."}}'
    longest = max(texts, key=lambda name: len(record[name]))
    named = close[0] if (close := close_to(field, texts)) else longest
    listed = f" (texts here: {', '.join(texts[:8])})" if len(texts) > 1 else ""
    return f"if it is called {named}: {{option:field}} {named}{listed}"


def _document_of(
    record: Any,
    field: str,
    where: str,
    position: int,
    *,
    is_escaped: bool = False,
    is_valid: bool = False,
) -> Document:
    """Return the document of a JSON object; `is_escaped` if bytes not UTF-8 are surrogates,
    `is_valid` if its strings are certain to have no surrogate.
    """
    text = field_of(record, field)
    if not isinstance(text, str):
        what = f'no "{field}" field that is a string'
        hint = _fields_hint(record, field)
        return bad_document("no text field", what, where, position, hint)
    if not is_valid and (found := _lone_surrogate(text)):
        if is_escaped and all("\udc80" <= each <= "\udcff" for each in _SURROGATE.findall(text)):
            return reject_escaped_bytes(Document(text, where, position))
        what = (
            f'"{field}" has a lone surrogate (\\u{ord(found[0]):04x}) at character '
            f"{found.start()}: it is not valid Unicode"
        )
        return bad_document("lone surrogate", what, where, position)
    url = record.get("url")
    url = url if isinstance(url, str) and (is_valid or not _lone_surrogate(url)) else ""
    return Document(text, where, position, url)


def _lone_surrogate(text: str) -> re.Match[str] | None:
    """Return the first lone surrogate. Encoding a text finds out many times faster if it has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _SURROGATE.search(text)
    return None


def _fastest_json() -> tuple[Callable[[bytes], Any], bool]:
    """Return the function that parses JSON, and True if it refuses lone surrogates."""
    try:
        import orjson

        return orjson.loads, True
    except ImportError:
        return json.loads, False


def _fault(error: json.JSONDecodeError) -> str:
    """Return what is wrong with a JSON text, and what to change if that is a common slip."""
    fault = json_fault(error.doc, error.pos, is_named_so=True)
    return f"{error.msg}: {fault}" if fault else error.msg


def _standard_json(line: bytes, position: int, where: str) -> Any:
    """Parse a line that orjson refused with `json`; return a bad document if it refuses, too.

    `json` accepts NaN and Infinity, and its errors give the column.
    """
    text = decode_document(without_newline(line), position, where)
    if text.error_kind:
        return text
    try:
        return json.loads(text.text)
    except json.JSONDecodeError as error:
        what = f"not valid JSON at column {error.colno}: {_fault(error)}"
    except ValueError:
        what = f"not readable JSON: {long_number()}"
    except RecursionError:
        what = "not readable JSON: nested too deeply"
    return bad_document("not valid JSON", what, where, position)
