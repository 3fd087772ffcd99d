"""What is decided about a document by itself, in this order: extraction, Wikipedia, links,
language, heuristics, quality.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from gptcli.corpus.documents import Document
from gptcli.corpus.extract import plain_text
from gptcli.corpus.quality import Classifier, keeps
from gptcli.corpus.recipe import Clean, Links, Source
from gptcli.corpus.streams import ending, opened
from gptcli.errors import InputError, install_hint
from gptcli.files import parse_json

Stage = Callable[[Document], str]  # why the document is dropped, or ""


def stages_of(source: Source, seed: int, classifier: Classifier | None) -> list[Stage]:
    """The stages that `source` names; `classifier` None leaves quality out."""
    stages: list[Stage] = [lambda document: _extract(document, source)]
    if source.exclude_wikipedia:
        stages.append(lambda document: "wikipedia" if _is_wikipedia(document.url) else "")
    if source.links is not None:
        linked = read_links(source.links)
        stages.append(lambda document: "" if plain_url(document.url) in linked else "not linked")
    clean = source.clean
    if clean is not None:
        stages.append(lambda document: check(document.text, clean))
    if classifier is not None:
        stages.append(
            lambda document: (
                "" if keeps(classifier.score(document.text), document.text, seed) else "quality"
            )
        )
    return stages


def _extract(document: Document, source: Source) -> str:
    if document.html is not None or source.html:
        document.text = plain_text(
            document.html if document.html is not None else document.text, source.extractor
        )
        document.html = None
        return "" if document.text.strip() else "no content"
    return "" if document.text.strip() else "blank"


def _is_wikipedia(url: str) -> bool:
    host = (urlsplit(url).hostname or "") if "//" in url else ""
    return host == "wikipedia.org" or host.endswith(".wikipedia.org")


def plain_url(url: str) -> str:
    """A URL as links are compared: without scheme, fragment and a slash at the end."""
    return url.split("://", 1)[-1].split("#", 1)[0].rstrip("/").lower()


def read_links(links: Links) -> set[str]:
    """The URLs of links with karma enough. Raises InputError where a file lacks a column or a karma
    is no number.
    """
    found = set()
    for path in links.files:
        for number, row in enumerate(_rows(path), 1):
            try:
                if float(row["karma"]) >= links.min_karma:
                    found.add(plain_url(str(row["url"])))
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    "a link has a url and a karma that is a number", where=f"{path}, link {number}"
                ) from None
    return found


def _rows(path: str) -> Any:

    with opened(path) as stream:
        if ending(path)[0] == ".jsonl":
            yield from (
                parse_json(line, f"{path}:{number}")
                for number, line in enumerate(stream, 1)
                if line.strip()
            )
        else:
            yield from csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline=""))


def check(text: str, clean: Clean) -> str:
    """Which heuristic a text fails, or ""."""
    words = text.split()
    if len(words) < clean.min_words:
        return "too few words"
    if len(words) > clean.max_words:
        return "too many words"
    ordinary = (
        sum(character.isalnum() or character.isspace() for character in text)
        if clean.max_symbols < 1
        else len(text)
    )
    if len(text) - ordinary > clean.max_symbols * len(text):
        return "symbols"
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) - len(set(lines)) > clean.max_repeated_lines * len(lines):
        return "repeated lines"
    if clean.language and _language(text) != clean.language:
        return "language"
    return ""


def _language(text: str) -> str:
    try:
        from resiliparse.parse.lang import detect_fast
    except ImportError:
        raise InputError(
            "telling languages needs the package resiliparse", hint=install_hint("resiliparse")
        ) from None
    return str(detect_fast(text)[0])
