"""A recipe: the sources of a corpus and what each goes through. The tables `[sources.NAME]` and
`[decontaminate]` of recipe.toml.

    [sources.crawl]
    inputs = ["crawl/*.warc.gz"]        files, folders, globs, URLs
    weight = 60                         of the training mixture, relative
    exclude_wikipedia = true            drop pages of wikipedia.org, as WebText does
    links = {files = ["links.csv"], min_karma = 3}
    extractor = "trafilatura"           pages to text; "resiliparse" unless it is named
    clean = {language = "en", min_words = 50}
    quality = {positives = ["webtext"], negatives = ["crawl"]}
    dedup = {method = "lsh", against = ["webtext"]}
    decontaminate = true

    [decontaminate]
    files = ["eval/*.jsonl"]

Whatever a table does not name keeps the default of its class here; a stage that is not named is not
run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any, get_args, get_type_hints

from gptcli.corpus.extract import EXTRACTORS
from gptcli.corpus.readers import DOCUMENTS, find_inputs, find_reader
from gptcli.corpus.streams import fingerprint
from gptcli.errors import UsageError, nearest
from gptcli.papers.mixture import GPT3_MIXTURE
from gptcli.shards.manifest import DEFAULT_SOURCE

ON_ERROR = ("stop", "skip")
METHODS = ("lsh", "paper")


@dataclass(frozen=True, slots=True, kw_only=True)
class Links:
    """GPT-2's rule: a page counts where people found it worth a link. The files are CSV or JSON
    lines with `url` and `karma`.
    """

    files: list[str]
    min_karma: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Clean:
    """Heuristics; each is one reason to drop a document."""

    language: str = ""
    """A two-letter code; "" takes every language."""
    min_words: int = 0
    max_words: int = 1_000_000
    max_symbols: float = 1.0
    """Largest share of characters that are neither letters, digits nor blanks."""
    max_repeated_lines: float = 1.0
    """Largest share of lines that stand in the document already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """GPT-3's classifier (Appendix A): which sources are good text, which are raw, and how many
    documents of each it learns from.
    """

    positives: list[str]
    negatives: list[str]
    sample: int = 20_000
    """Documents of each kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dedup:
    """Near-duplicates within the source, and of documents of other sources; the first stays, and
    the other sources' stay.
    """

    method: str = "lsh"
    """"lsh": word 5-grams, 14 bands of 8 hashes. "paper": GPT-3's 10 hashes all equal, then exact
    Jaccard of the words.
    """
    within: bool = True
    against: list[str] = field(default_factory=list)
    threshold: float = 0.5
    """The least Jaccard similarity of a duplicate; method "paper" only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One source of documents. Raises UsageError where a value is impossible."""

    name: str = DEFAULT_SOURCE
    inputs: list[str]
    weight: float = 1.0
    documents: str = "file"
    field: str = "text"
    """The column or field that holds the text."""
    on_error: str = "stop"
    """"stop" at what cannot be read, or "skip" it and count it."""
    html: bool = False
    """The texts are HTML pages (WARC responses always are)."""
    extractor: str = "resiliparse"
    """What makes text of pages: "resiliparse" or "trafilatura"."""
    exclude_wikipedia: bool = False
    links: Links | None = None
    clean: Clean | None = None
    quality: Quality | None = None
    dedup: Dedup | None = None
    decontaminate: bool = False

    def __post_init__(self) -> None:
        where = f"sources.{self.name}"
        if self.extractor not in EXTRACTORS:
            raise UsageError(
                f"unknown extractor {self.extractor!r}",
                where=where,
                hint=nearest(self.extractor, EXTRACTORS),
            )
        if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", self.name):
            raise UsageError(
                f"source name {self.name!r} is not of small letters, digits and _", where=where
            )
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"weight {self.weight} is not a positive number", where=where)
        for value, choices, option in (
            (self.documents, DOCUMENTS, "kind of document"),
            (self.on_error, ON_ERROR, "on_error"),
        ):
            if value not in choices:
                field = "documents" if choices is DOCUMENTS else "on_error"
                raise UsageError(
                    f"unknown {option} {value!r}",
                    field=field,
                    code="unknown_value",
                    hint=nearest(value, choices),
                )
        if self.dedup is not None and self.dedup.method not in METHODS:
            raise UsageError(
                f"unknown method {self.dedup.method!r}",
                where=f"{where}.dedup",
                hint=nearest(self.dedup.method, METHODS),
            )
        if self.dedup is not None and self.name in self.dedup.against:
            raise UsageError(
                "a source cannot be removed from itself",
                where=f"{where}.dedup",
                hint="within = true removes its duplicates",
            )
        for path in self.inputs:
            find_reader(path, self.documents)

    def record(self) -> dict[str, Any]:
        """All that its documents depend on."""
        return {
            **asdict(self),
            "inputs": {path: list(fingerprint(path)) for path in self.inputs if path != "-"},
        }


def read_sources(tables: object) -> list[Source]:
    """The `[sources.NAME]` tables, inputs found. Raises UsageError or InputError."""
    if not isinstance(tables, dict) or not tables:
        raise UsageError("sources are tables: [sources.NAME]")
    sources = []
    for name, table in tables.items():
        source = _read(
            Source, {"name": name, **table} if isinstance(table, dict) else table, f"sources.{name}"
        )
        sources.append(source)
    _check_names(sources)
    return sources


def _check_names(sources: list[Source]) -> None:
    names = [source.name for source in sources]
    after: dict[str, list[str]] = {
        source.name: source.dedup.against if source.dedup else [] for source in sources
    }
    for source in sources:
        quality = [*source.quality.positives, *source.quality.negatives] if source.quality else []
        for name in [*after[source.name], *quality]:
            if name not in names:
                raise UsageError(
                    f"there is no source {name!r}",
                    where=f"sources.{source.name}",
                    hint=nearest(name, names),
                )
        for name in after[source.name]:
            if source.name in after[name]:
                raise UsageError(
                    f"{source.name} and {name} are each removed from the other",
                    where="dedup",
                    hint="choose which one stays",
                )


def preset_weights(name: str, sources: list[str]) -> dict[str, float]:
    """The paper's weights by source name. Raises UsageError where a source is not one of the
    paper's.
    """
    if name != "gpt3":
        raise UsageError(f"unknown mixture {name!r}", where="mixture", hint="gpt3 is Table 2.2's")
    for source in sources:
        if source not in GPT3_MIXTURE:
            raise UsageError(
                f"{source!r} is no source of Table 2.2",
                where="mixture",
                hint=nearest(source, GPT3_MIXTURE),
            )
    return {source: GPT3_MIXTURE[source].weight for source in sources}


def _read(kind: type[Any], table: object, where: str) -> Any:
    """`table` as this dataclass, its keys and their types checked."""
    if not isinstance(table, Mapping):
        raise UsageError("is not a table", where=where)
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in hints:
            raise UsageError(f"unknown key {key!r}", where=where, hint=nearest(key, hints))
        wanted = next((part for part in get_args(hints[key]) if part is not type(None)), hints[key])
        origin = getattr(hints[key], "__origin__", None)
        if origin is list:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise UsageError(f"{key} is not a list of strings", where=where)
            values[key] = find_inputs(value) if key in ("inputs", "files") else value
        elif hasattr(wanted, "__dataclass_fields__"):
            values[key] = _read(wanted, value, f"{where}.{key}")
        else:
            if isinstance(value, bool) != (wanted is bool) or not isinstance(
                value, (int, float) if wanted is float else wanted
            ):
                raise UsageError(f"{key} is not of type {wanted.__name__}", where=where)
            values[key] = value
    if missing := [
        part.name
        for part in fields(kind)
        if part.default is MISSING and part.default_factory is MISSING and part.name not in values
    ]:
        raise UsageError(f"lacks {', '.join(missing)}", where=where)
    return kind(**values)


def read_decontaminate(table: object) -> list[str]:
    """The files of evaluation items in the `[decontaminate]` table."""
    if (
        not isinstance(table, dict)
        or set(table) != {"files"}
        or not isinstance(table["files"], list)
    ):
        raise UsageError('is a table like {files = ["eval/*.jsonl"]}', where="decontaminate")
    return find_inputs([str(name) for name in table["files"]])
