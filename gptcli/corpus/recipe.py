"""Recipe of a corpus: the tables `[sources.NAME]` and `[decontaminate]` of recipe.toml.

    [sources.crawl]
    inputs = ["crawl/*.warc.gz"]        files, folders, globs, URLs
    weight = 60                         share of the training mixture, relative to other sources
    exclude_wikipedia = true            drop pages of wikipedia.org, as WebText does
    links = {files = ["links.csv"], min_karma = 3}
    extractor = "trafilatura"           HTML to text; the default is "resiliparse"
    clean = {language = "en", min_words = 50}
    filters = ["gopher", "c4", "fineweb", "pii", "mine:keep"]
    quality = {positives = ["webtext"], negatives = ["crawl"]}
    dedup = {method = "lsh", url = true, against = ["webtext"]}
    repeats = {unit = "sentence"}       text that occurred before in the source is taken out
    decontaminate = true

    [decontaminate]
    files = ["eval/*.jsonl"]

A key that is absent has the default of its dataclass, and a filter that is absent is not applied.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from gptcli.corpus.documents import EXTRACTORS, Extractor, Reader
from gptcli.corpus.formats import DOCUMENT_KINDS, DocumentKind, find_format, find_reader
from gptcli.corpus.heuristics import filter_names, heuristic_filter
from gptcli.corpus.input_search import find_inputs
from gptcli.corpus.inputs import STDIN, fingerprints
from gptcli.errors import UsageError, nearest
from gptcli.papers.models import GPT3_MIXTURE
from gptcli.schema import read_table
from gptcli.settings import Number
from gptcli.shards.manifest import DEFAULT_SOURCE

ErrorRule = Literal["stop", "skip"]
ERROR_RULES: tuple[ErrorRule, ...] = get_args(ErrorRule)
DedupMethod = Literal["lsh", "paper", "url"]
RepeatUnit = Literal["line", "paragraph", "sentence", "substring"]
PAGES = ("warc", "html", "tar", "zip")
"""Formats with pages, whose text has to be extracted."""
REPEAT_UNITS: dict[RepeatUnit, int] = {"line": 1, "paragraph": 1, "sentence": 3, "substring": 200}
"""Parts of a text that are compared, with the number of them that is compared at once."""
Identifier = Literal["resiliparse", "fasttext"]
IDENTIFIERS: tuple[Identifier, ...] = get_args(Identifier)
DEDUP_METHODS: tuple[DedupMethod, ...] = get_args(DedupMethod)
LATER_KEYS = ("input_format", "eot_in_text", "filters", "bad_words", "repeats")
"""Keys of a source that records of earlier builds do not have."""
LATER_FIELDS: dict[str, dict[str, object]] = {
    "clean": {"identifier": "resiliparse", "min_language_score": 0.65},
    "dedup": {"url": False},
}
"""Keys of a source's tables that records of earlier builds do not have, with their defaults."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksConfig:
    """GPT-2's filter: keep a page only if people found it worth a link."""

    files: list[str]
    """CSV or JSON lines files with `url` and `karma`."""
    min_karma: int = 3
    """Minimum karma of a link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CleanConfig:
    """Heuristic filters; a document is counted under the first one that it fails."""

    language: str = ""
    """Two-letter code of the language to keep, or "" for every language."""
    identifier: Identifier = "resiliparse"
    """Library that identifies the language: "resiliparse", which is fast, or "fasttext", FineWeb's
    choice, with the model lid.176.ftz (2016, 176 languages).
    """
    min_language_score: float = 0.65
    """Minimum score of the language by fasttext, from 0 to 1; FineWeb's is 0.65."""
    min_words: int = 0
    """Minimum number of words."""
    max_words: int = 1_000_000
    """Maximum number of words."""
    max_symbols: float = 1.0
    """Maximum share of characters that are neither letters, digits nor whitespace."""
    max_repeated_lines: float = 1.0
    """Maximum share of lines that repeat another line of the document."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityConfig:
    """GPT-3's quality classifier (Appendix A): which sources it is trained on."""

    positives: list[str]
    """Names of sources of high quality."""
    negatives: list[str]
    """Names of unfiltered sources."""
    sample: int = 20_000
    """Number of documents of each kind to train on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DedupConfig:
    """Removal of near-duplicates. Of two similar documents of the source, the first is kept."""

    method: DedupMethod = "lsh"
    """"lsh" for word 5-grams in 14 bands of 8 hashes; "paper" for GPT-3's 10 hashes, all of which
    must be equal, and then the exact Jaccard similarity of the words; "url" for equal URLs alone.
    """
    url: bool = False
    """Remove documents of equal URLs, too."""
    within: bool = True
    """Remove duplicates within the source."""
    against: list[str] = field(default_factory=list)
    """Names of other sources whose documents are removed from this one."""
    threshold: float = 0.5
    """Minimum Jaccard similarity of duplicates, for the method "paper"."""

    @property
    def comparison(self) -> Comparison:
        """Return the key by which documents are compared."""
        return Comparison(self.method, self.url or self.method == "url")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepeatsConfig:
    """Removal of text that occurred before in the source; the first occurrence is kept."""

    unit: RepeatUnit = "line"
    """Part of a text: "line", "paragraph", "sentence", or "substring" for any bytes."""
    size: int = 0
    """Number of units that follow each other, or of bytes; 0 for 1 line, 1 paragraph, 3 sentences,
    200 bytes.
    """
    min_words: int = 1
    """Minimum number of words that must be left of a document."""

    @property
    def length(self) -> int:
        """Number of units, or of bytes, that are compared at once."""
        return self.size or REPEAT_UNITS[self.unit]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """Evaluation items that are removed from the sources with `decontaminate`."""

    files: list[str]
    """Files of items, as `find_inputs` returns them."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Key by which documents are compared to find duplicates."""

    method: DedupMethod
    """Method of DedupConfig."""
    by_url: bool
    """True if equal URLs make duplicates."""


SHARE, AT_LEAST_0 = Number(0, 1), Number(0, 10**15, whole=True)
READERS: dict[str, Callable[[Any], Any]] = {
    "inputs": lambda names: find_inputs(names),
    "files": lambda names: find_inputs(names),
    "weight": Number(0, 10**15, above=True),
    "min_words": AT_LEAST_0,
    "max_words": AT_LEAST_0,
    "max_symbols": SHARE,
    "min_language_score": SHARE,
    "max_repeated_lines": SHARE,
    "threshold": SHARE,
    "sample": Number(1, 10**15, whole=True),
    "size": Number(0, 10**6, whole=True),
}
"""Range of each number of a recipe, and how its file names are completed."""

_NO_FILTERS: Any = field(default_factory=list)  # SourceConfig has a `field` of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceConfig:
    """One source of documents. Raises UsageError if a value is invalid."""

    name: str = DEFAULT_SOURCE
    """Name of lower-case letters, digits and underscores."""
    inputs: list[str]
    """Input files, as `find_inputs` returns them."""
    weight: float = 1.0
    """Share of the training mixture, relative to the other sources."""
    documents: DocumentKind = "file"
    """Part of a text file that is one document."""
    field: str = "text"
    """Column or field of the text in tables and JSON; "a.b" is the field b of the object a."""
    input_format: str = "auto"
    """Format of every input, or "auto" for the one that its name or its first bytes say."""
    eot_in_text: bool = False
    """Divide texts and JSON lines into documents where they spell `<|endoftext|>`."""
    on_error: ErrorRule = "stop"
    """"stop" at a document that cannot be read, or "skip" and count it."""
    html: bool = False
    """Treat texts as HTML pages; responses in WARC files always are."""
    extractor: Extractor = "resiliparse"
    """HTML extractor."""
    exclude_wikipedia: bool = False
    """Drop pages of wikipedia.org."""
    links: LinksConfig | None = None
    """Keep only pages that are linked."""
    clean: CleanConfig | None = None
    """Heuristic filters."""
    filters: list[str] = _NO_FILTERS
    """Published rules, "gopher", "c4" and "fineweb", "pii" to mask personal information, functions
    of one's own, "module:function", or programs, "command:PROGRAM";
    in this order (`gptcli.corpus.heuristics`)."""
    bad_words: str = ""
    """File with a word or phrase a line; the filter "c4" drops pages that have one."""
    quality: QualityConfig | None = None
    """Quality classifier."""
    dedup: DedupConfig | None = None
    """Removal of near-duplicates."""
    repeats: RepeatsConfig | None = None
    """Removal of repeated lines, paragraphs, sentences or substrings."""
    decontaminate: bool = False
    """Remove overlaps with evaluation items."""

    def __post_init__(self) -> None:
        where = f"sources.{self.name}"
        if not re.fullmatch(r"[a-z0-9][a-z0-9_]*", self.name):
            raise UsageError(
                f"source name {self.name!r} has characters other than a-z, 0-9 and _", where=where
            )
        if not 0 < self.weight < float("inf"):
            raise UsageError(f"weight {self.weight} is not a positive number", where=where)
        _check_choice("extractor", self.extractor, EXTRACTORS, where)
        _check_choice("kind of document", self.documents, DOCUMENT_KINDS, "{option:documents}")
        _check_choice("on_error", self.on_error, ERROR_RULES, "{option:on_error}")
        for name in filter_names(self.filters):
            heuristic_filter(name, self.bad_words)
        if self.bad_words and "c4" not in self.filters:
            raise UsageError(
                "bad_words belongs to the filter c4", where=where, hint='filters = ["c4"]'
            )
        if self.dedup is not None:
            _check_choice("method", self.dedup.method, DEDUP_METHODS, f"{where}.dedup")
            if self.name in self.dedup.against:
                raise UsageError(
                    "a source cannot be deduplicated against itself",
                    where=f"{where}.dedup",
                    hint="within = true removes its duplicates",
                )
        if self.repeats is not None:
            units = tuple(REPEAT_UNITS)
            _check_choice("unit", self.repeats.unit, units, f"{where}.repeats")
        if self.clean is not None:
            _check_choice("identifier", self.clean.identifier, IDENTIFIERS, f"{where}.clean")
        for path in self.inputs:
            self.reader(path)

    @property
    def has_stages(self) -> bool:
        """True if documents are extracted, filtered or compared, which takes most of the time."""
        stages = (self.links, self.clean, self.quality, self.dedup, self.repeats)
        is_filtered = self.filters or self.exclude_wikipedia or self.decontaminate
        return bool(
            self.html
            or is_filtered
            or any(stage is not None for stage in stages)
            or any(find_format(path, self.input_format) in PAGES for path in self.inputs)
        )

    def reader(self, path: str) -> Reader:
        """Return the reader of an input. Raises InputError or UsageError like `find_reader`."""
        return find_reader(
            path, self.documents, self.field, self.input_format, eot_in_text=self.eot_in_text
        )

    def record(self) -> dict[str, Any]:
        """Return everything that the source's documents depend on, with fingerprints of inputs."""
        known = fingerprints([path for path in self.inputs if path != STDIN])
        record = {**asdict(self), "inputs": {path: list(stat) for path, stat in known.items()}}
        # Keys that older records lack are there only if they are not the default.
        for table, later in LATER_FIELDS.items():
            for name, default in later.items():
                if record[table] is not None and record[table][name] == default:
                    del record[table][name]
        for part in fields(self):
            default = [] if part.name == "filters" else part.default
            if part.name in LATER_KEYS and record[part.name] == default:
                del record[part.name]
        return record


def _check_choice(name: str, value: str, choices: tuple[str, ...], where: str) -> None:
    if value not in choices:
        raise UsageError(f"unknown {name} {value!r}", where=where, hint=nearest(value, choices))


def read_sources(tables: object, where: str | Path = "recipe") -> list[SourceConfig]:
    """Return the sources of the `[sources.NAME]` tables in the file `where`, their inputs found.

    Raises UsageError if there are none, InputError if a table is invalid or an input is missing.
    """
    if not isinstance(tables, dict) or not tables:
        raise UsageError("sources must be tables: [sources.NAME]", where=where)
    sources = [
        read_table(
            SourceConfig,
            {"name": name, **table} if isinstance(table, dict) else table,
            where,
            key=f"sources.{name}",
            readers={**READERS, "inputs": partial(find_inputs, every_suffix=_is_asked(table))},
        )
        for name, table in tables.items()
    ]
    _check_references(sources)
    return sources


def _is_asked(table: object) -> bool:
    """Return True if the table of a source says the format of its inputs."""
    return isinstance(table, dict) and table.get("input_format", "auto") != "auto"


def sources_of(values: Mapping[str, Any], where: str | Path = "recipe") -> list[SourceConfig]:
    """Return the weighted sources of a build's `values`: those of its recipe, or its inputs.

    `where` is the recipe's file. Raises what `read_sources` and `preset_weights` raise.
    """
    if "sources" not in values:
        return [
            SourceConfig(
                inputs=find_inputs(values["inputs"], every_suffix=values["input_format"] != "auto"),
                documents=values["documents"],
                field=values["field"],
                input_format=values["input_format"],
                eot_in_text=values["eot_in_text"],
                on_error=values["on_error"],
            )
        ]
    sources = read_sources(values["sources"], where)
    if "mixture" in values:
        weights = preset_weights(values["mixture"], [source.name for source in sources])
        sources = [replace(source, weight=weights[source.name]) for source in sources]
    return sources


def evaluation_of(values: Mapping[str, Any], where: str | Path = "recipe") -> tuple[str, ...]:
    """Return the files of evaluation items of a build's `values`; none without `decontaminate`."""
    return (
        tuple(read_decontaminate(values["decontaminate"], where))
        if "decontaminate" in values
        else ()
    )


def _check_references(sources: list[SourceConfig]) -> None:
    """Raise UsageError if a source refers to a missing one, or two are compared with each other."""
    names = [source.name for source in sources]
    against: dict[str, list[str]] = {
        source.name: source.dedup.against if source.dedup else [] for source in sources
    }
    for source in sources:
        quality = [*source.quality.positives, *source.quality.negatives] if source.quality else []
        for name in [*against[source.name], *quality]:
            if name not in names:
                raise UsageError(
                    f"there is no source {name!r}",
                    where=f"sources.{source.name}",
                    hint=nearest(name, names),
                )
        for name in against[source.name]:
            if source.name in against[name]:
                raise UsageError(
                    f"{source.name} and {name} are deduplicated against each other",
                    where="dedup",
                    hint="choose which of the two is kept",
                )


def preset_weights(name: str, sources: list[str]) -> dict[str, float]:
    """Return the weights of a paper's mixture by source name.

    Raises UsageError if there is no such mixture, or if a source is not part of it.
    """
    if name != "gpt3":
        raise UsageError(
            f"unknown mixture {name!r}", where="mixture", hint="gpt3 is that of GPT-3's Table 2.2"
        )
    for source in sources:
        if source not in GPT3_MIXTURE:
            raise UsageError(
                f"{source!r} is not a source of GPT-3's Table 2.2",
                where="mixture",
                hint=nearest(source, GPT3_MIXTURE),
            )
    return {source: GPT3_MIXTURE[source].weight for source in sources}


def read_decontaminate(table: object, where: str | Path = "recipe") -> list[str]:
    """Return the files of evaluation items that the `[decontaminate]` table names.

    Raises InputError if the table is invalid or a file is missing.
    """
    return read_table(EvaluationConfig, table, where, key="decontaminate", readers=READERS).files
