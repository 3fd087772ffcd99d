"""Recognition of a format by the first bytes of a file, decompressed."""

from __future__ import annotations

import json
import re
from typing import Literal, get_args

from gptcli.encodings import without_bom

FormatName = Literal["text", "jsonl", "json", "csv", "tsv", "parquet", "warc", "html", "tar", "zip"]
FORMATS: tuple[FormatName, ...] = get_args(FormatName)

DISGUISES = {
    "jsonl": "JSON lines",
    "json": "JSON",
    "html": "an HTML page",
    "parquet": "Parquet",
    "warc": "a WARC archive",
    "tar": "a tar archive",
    "zip": "a zip archive",
}
"""Formats that a file named as text may have, in words."""
_JSON_OBJECT = re.compile(rb'\s*\{\s*(?:"(?:[^"\\]|\\.)*"\s*:|\}\s*$)')
_JSON_ARRAY = re.compile(rb'\s*\[\s*(\{\s*["}]|"|\[|\]\s*$)')
_HTML = re.compile(
    rb"\s*(?:<!--.*?-->\s*|<\?xml[^>]*>\s*)*<(?:!doctype\s+html|html)\b", re.I | re.S
)


def recognize(head: bytes) -> FormatName:
    """Return the format that a file which begins with `head` looks like; "text" if none.

    CSV and TSV have no mark to recognize them by.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if re.match(rb"WARC/\d", head):
        return "warc"
    if head[257:262] == b"ustar":
        return "tar"
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    text = without_bom(head)
    if _HTML.match(text):
        return "html"
    if _JSON_OBJECT.match(text):
        lines = text.strip().split(b"\n")
        is_lines = len(lines) == 1 or any(map(_is_object, lines[:10]))
        return "jsonl" if is_lines else "json"
    if _JSON_ARRAY.match(text) and _begins_json(text):
        return "json"
    return "text"


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _begins_json(head: bytes) -> bool:
    """Return True if `head` is JSON, or the beginning of JSON."""
    text = head.decode("utf-8", "replace")
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        # The scanner stops at the end of what is there, or at the start of a string cut off there.
        end = len(text) - 16 if len(text) > 1 << 12 else len(text.rstrip())
        return error.pos >= end or error.msg.startswith("Unterminated string")
    except (ValueError, RecursionError):
        return False
    return True


def disguise(head: bytes) -> str:
    """Return what a file named as text really is, in words, or "" if it may be text."""
    if head.startswith(b"filedesc://"):
        return "an ARC archive, the format before WARC"
    found = recognize(head)
    if found == "json" and not _begins_json(without_bom(head)):
        return ""
    return DISGUISES.get(found, "")
