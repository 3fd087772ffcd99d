"""A recipe turns a crawl into shards: planted documents are dropped, each document is counted once, and
the bytes depend on neither workers nor crashes.
"""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import pytest

from gptcli.corpus import build as building
from gptcli.corpus import config, coordinator
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.recipe import (
    CleanConfig,
    DedupConfig,
    RepeatsConfig,
    SourceConfig,
    preset_weights,
    read_sources,
)
from gptcli.errors import InputError, UsageError
from gptcli.files import sha256
from gptcli.shards.folder import verify_shards
from gptcli.shards.format import document_lengths, open_shard
from gptcli.shards.manifest import Manifest
from gptcli.tokenizer.tokenizer import Tokenizer

ITEM = "which of these seven rivers runs north past the old stone bridge before it meets the sea"
MENU = "<nav><ul><li><a href='/'>Home</a></li><li><a href='/shop'>Shop now</a></li></ul></nav>"


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (60_000, 60_000))


def topics() -> list[str]:
    """Return topics of Python's reference, each once, the longest first.

    One changed word in a long text makes a near-duplicate for certain.
    """
    from pydoc_data.topics import topics as found

    texts = [re.sub(r"[^\w\s.,]", " ", text) for _, text in sorted(found.items())]
    different = {frozenset(text.split()): text for text in texts if 30 < len(text.split()) < 1500}
    return sorted(different.values(), key=len, reverse=True)[:60]


def page(text: str) -> bytes:
    body = "".join(f"<p>{paragraph}</p>" for paragraph in text.split("\n\n"))
    return f"<html><body>{MENU}<main><article>{body}</article></main><footer>Copyright</footer></body></html>".encode()


def warc(pages: list[tuple[str, bytes]]) -> bytes:
    records = []
    for url, html in pages:
        payload = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + html
        head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype=response\r\n"
        records.append(
            f"{head}Content-Length: {len(payload)}\r\n\r\n".encode() + payload + b"\r\n\r\n"
        )
    return b"".join(records)


@pytest.fixture
def crawl(tmp_path: Path) -> Path:
    """Write a crawl of 60 topics and 36 planted pages, and books of 10 of the topics.

    Planted are 20 duplicates, half of them exact, 5 pages of Wikipedia, 3 with an evaluation item and
    8 of noise.
    """
    pytest.importorskip("fastwarc")
    chance = random.Random(0)
    texts = topics()
    pages = [(f"http://docs.example/{number}", text) for number, text in enumerate(texts)]
    for number in range(20):
        words = texts[number].split(" ")
        if number >= 10:
            words[chance.randrange(len(words))] = "changed"
        pages.append((f"http://mirror.example/{number}", " ".join(words)))
    pages += [
        (f"https://en.wikipedia.org/wiki/{number}", f"about {number} " * 60) for number in range(5)
    ]
    for number in range(3):
        filler = [
            " ".join("".join(chance.choices("abcdefgh", k=5)) for _ in range(150)) for _ in range(2)
        ]
        pages.append((f"http://planted.example/{number}", f"{filler[0]} {ITEM} {filler[1]}"))
    pages += [(f"http://noise.example/{number}", "buy now") for number in range(8)]
    chance.shuffle(pages)
    (tmp_path / "crawl.warc").write_bytes(warc([(url, page(text)) for url, text in pages]))
    (tmp_path / "books.jsonl").write_text(
        "".join(json.dumps({"text": text.strip()}) + "\n" for text in texts[30:40])
    )
    (tmp_path / "eval.jsonl").write_text(
        json.dumps({"question": ITEM, "answer": "the third"}) + "\n"
    )
    return tmp_path


def sources(folder: Path, **changes: object) -> list[SourceConfig]:
    crawl = {
        "inputs": [str(folder / "crawl.warc")],
        "weight": 3,
        "exclude_wikipedia": True,
        "clean": {"min_words": 20},
        "dedup": {"method": "lsh", "against": ["books"]},
        "decontaminate": True,
    }
    return read_sources(
        {"crawl": {**crawl, **changes}, "books": {"inputs": [str(folder / "books.jsonl")]}}
    )


def run(build: BuildConfig, out: Path, workers: int = 1, resume: bool = False) -> Manifest:
    assert begin_build(build, out, resume=resume, force=False)
    return finish_build(build, out, workers=workers)


@pytest.fixture
def build(crawl: Path, byte_tokenizer: Tokenizer) -> BuildConfig:
    return BuildConfig(
        sources=sources(crawl),
        tokenizer=byte_tokenizer,
        evaluation=(str(crawl / "eval.jsonl"),),
        val_fraction=0.05,
        shard_tokens=100_000,
    )


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): sha256(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def texts_of(folder: Path, manifest: Manifest, tokenizer: Tokenizer, source: str) -> list[str]:
    found = []
    for shard in manifest.shards:
        if shard.source == source:
            tokens, start = open_shard(folder / shard.file), 0
            for length in document_lengths(folder / shard.file).tolist():
                found.append(tokenizer.decode(tokens[start + 1 : start + length].tolist()))
                start += length
    return found


def test_planted_documents_are_dropped_for_their_reason(build: BuildConfig, tmp_path: Path) -> None:
    manifest = run(build, tmp_path / "out")
    crawled, books = manifest.sources
    assert (
        crawled.documents_in
        == 60 + 20 + 5 + 3 + 8
        == crawled.documents_kept + sum(crawled.dropped.values())
    )
    assert crawled.dropped == {"duplicate": 20 + 10, "too few words": 8, "wikipedia": 5}
    assert (crawled.cut, crawled.pieces) == (3, 3)
    assert (books.documents_in, books.documents_kept, books.dropped) == (10, 10, {})
    kept = texts_of(tmp_path / "out", manifest, build.tokenizer, "crawl")
    assert len(kept) == crawled.documents_kept + crawled.pieces
    assert not [
        text for text in kept if "Shop now" in text or "Copyright" in text or "seven rivers" in text
    ]
    assert {shard.file[: shard.file.rindex("-")] for shard in manifest.shards} <= {
        "train-crawl",
        "train-books",
        "val-crawl",
        "val-books",
    }
    assert manifest.shares() == {"crawl": 0.75, "books": 0.25}
    train = manifest.tokens("train")
    assert books.epochs == pytest.approx(0.25 * train / manifest.tokens("train", "books"))
    assert verify_shards(tmp_path / "out") == manifest
    report = (tmp_path / "out/report.md").read_text()
    assert "| dropped: duplicate | 30 |" in report
    assert "| crawl |" in report
    assert "3 of the documents kept lost text to decontamination" in report


def test_the_bytes_do_not_depend_on_workers_or_crashes(
    build: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(build, tmp_path / "one")
    expected = contents(tmp_path / "one")
    run(build, tmp_path / "two", workers=2)
    assert contents(tmp_path / "two") == expected
    places = [
        (coordinator, name)
        for name in ("_compare_documents", "find_duplicates", "finish_text_chunk")
    ]
    for where, stop in [*places, (building, "write_shards"), (building, "write_report")]:
        out = tmp_path / stop
        with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
            patch.setattr(where, stop, lambda *_: 1 // 0)
            run(build, out)
        run(build, out, resume=True)
        assert contents(out) == expected


def test_the_quality_filter_drops_documents(
    crawl: Path, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    chosen = sources(
        crawl,
        quality={"positives": ["books"], "negatives": ["crawl"]},
        dedup={"method": "paper"},
        decontaminate=False,
    )
    build = BuildConfig(sources=chosen, tokenizer=byte_tokenizer, val_fraction=0.0)
    manifest = run(build, tmp_path / "out")
    crawled = manifest.sources[0]
    assert crawled.documents_in == 96 == crawled.documents_kept + sum(crawled.dropped.values())
    assert crawled.dropped["quality"] > 10
    assert (tmp_path / "out/quality-crawl.npz").exists()


def test_broken_input_is_skipped_and_counted_when_asked(
    crawl: Path, byte_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    good = [json.dumps({"text": f"document {number}"}) for number in range(20)]
    (crawl / "bad.jsonl").write_text("\n".join([*good, "{", '{"no": "text"}', '{"text": " "}']))
    (crawl / "cut.jsonl.gz").write_bytes(b"\x1f\x8b")
    (crawl / "empty.txt").touch()
    paths = [str(crawl / name) for name in ("bad.jsonl", "cut.jsonl.gz", "empty.txt")]
    build = BuildConfig(
        sources=[SourceConfig(inputs=paths, on_error="skip")], tokenizer=byte_tokenizer
    )
    source = run(build, tmp_path / "out").sources[0]
    expected = {
        "blank": 1,
        "damaged file": 1,
        "empty file": 1,
        "no text field": 1,
        "not valid JSON": 1,
    }
    assert (source.documents_in, source.documents_kept, source.dropped) == (25, 20, expected)
    with pytest.raises(InputError, match=r"bad.jsonl:21: not valid JSON"):
        run(
            BuildConfig(sources=[SourceConfig(inputs=paths)], tokenizer=byte_tokenizer),
            tmp_path / "stopped",
        )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({}, "sources must be tables"),
        ({"a": 1}, "recipe: sources.a: is not a table"),
        ({"a": {}}, "sources.a: no 'inputs'"),
        ({"a": {"inputs": "x"}}, "sources.a.inputs: 'x' is not a list"),
        (
            {"a": {"inputs": ["."], "wieght": 1}},
            "sources.a: unknown key 'wieght'\n  did you mean weight",
        ),
        ({"a": {"inputs": ["."], "weight": "1"}}, "sources.a.weight: '1' is not a number"),
        ({"a": {"inputs": ["."], "weight": 0}}, "sources.a.weight: 0 is out of range"),
        (
            {"a": {"inputs": ["."], "dedup": {"method": "exact"}}},
            "sources.a.dedup.method: 'exact' is none of lsh, paper",
        ),
        (
            {"a": {"inputs": ["."], "dedup": {"against": ["b"]}}},
            "sources.a: there is no source 'b'",
        ),
        (
            {"a": {"inputs": ["."], "dedup": {"against": ["a"]}}},
            "a source cannot be deduplicated against itself",
        ),
        ({"A b": {"inputs": ["."]}}, "source name 'A b' has characters other than a-z"),
        (
            {"a": {"inputs": ["."], "clean": {"min_words": True}}},
            "sources.a.clean.min_words: true is not a number",
        ),
        ({"a": {"inputs": [""]}}, "sources.a.inputs[0]: is empty"),
        (
            {"a": {"inputs": ["."], "clean": {"max_symbols": 1.5}}},
            "sources.a.clean.max_symbols: 1.5 is out of range",
        ),
        (
            {"a": {"inputs": ["."], "on_error": "ignore"}},
            "sources.a.on_error: 'ignore' is none of stop, skip",
        ),
    ],
)
def test_an_invalid_recipe_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises((UsageError, InputError)) as caught:
        read_sources(table)
    assert message in str(caught.value)


def test_two_sources_cannot_be_deduplicated_against_each_other(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    table = {
        name: {"inputs": [str(tmp_path)], "dedup": {"against": [other]}}
        for name, other in ("ab", "ba")
    }
    with pytest.raises(UsageError, match="are deduplicated against each other"):
        read_sources(table)


def test_preset_weights_are_those_of_the_paper() -> None:
    assert preset_weights("gpt3", ["wikipedia", "common_crawl"]) == {
        "wikipedia": 3,
        "common_crawl": 60,
    }
    with pytest.raises(
        UsageError,
        match=r"'webtext' is not a source of GPT-3's Table 2\.2\n  did you mean webtext2",
    ):
        preset_weights("gpt3", ["webtext"])
    with pytest.raises(UsageError, match="unknown mixture 'gpt2'"):
        preset_weights("gpt2", [])


def test_decontamination_needs_evaluation_files(crawl: Path, byte_tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="crawl has decontaminate = true, but no evaluation files"):
        BuildConfig(sources=sources(crawl), tokenizer=byte_tokenizer)


def test_records_of_earlier_builds_are_those_of_defaults(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words")
    inputs = [str(tmp_path / "a.txt")]
    plain = SourceConfig(
        inputs=inputs, clean=CleanConfig(min_words=2), dedup=DedupConfig()
    ).record()
    assert not {"identifier", "min_language_score"} & plain["clean"].keys()
    assert "url" not in plain["dedup"]
    assert "repeats" not in plain
    newer = SourceConfig(
        inputs=inputs,
        clean=CleanConfig(identifier="fasttext"),
        dedup=DedupConfig(url=True),
        repeats=RepeatsConfig(),
    ).record()
    assert newer["clean"]["identifier"] == "fasttext"
    assert newer["dedup"]["url"] is True
    assert newer["repeats"]["unit"] == "line"


def test_unknown_units_and_identifiers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown unit 'lines'"):
        SourceConfig(inputs=[], repeats=RepeatsConfig(unit="lines"))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="unknown identifier 'cld3'"):
        SourceConfig(inputs=[], clean=CleanConfig(identifier="cld3"))  # type: ignore[arg-type]
