"""`report.md` shows inputs, dropped documents and outputs, and no text becomes markup. The estimate of a
dry run is close to the build.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptcli.corpus import build as building
from gptcli.corpus import report as report_module
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.chunks import Tally
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.recipe import CleanConfig, DedupConfig, RepeatsConfig, SourceConfig
from gptcli.corpus.report import estimate_build, write_report
from gptcli.corpus.shuffle import write_shards
from gptcli.errors import InputError
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.manifest import Manifest, Shard, Source
from gptcli.tokenizer.tokenizer import Tokenizer, byte_alphabet

TEXT = "# not a heading\nsecond line"


@pytest.fixture
def manifest(tmp_path: Path, byte_tokenizer: Tokenizer) -> Manifest:
    """Return a manifest of two sources with one training document each.

    One of the sources is named as in Table 2.2.
    """
    shards = []
    for name in ("wikipedia", "mine"):
        tokens = np.array([256, *byte_tokenizer.encode(TEXT)])
        digest = write_shard(
            tmp_path / f"train-{name}-000000.bin",
            np.array([len(tokens)]),
            [tokens],
            token_dtype(257),
        )
        shards.append(
            Shard(
                file=f"train-{name}-000000.bin",
                split="train",
                tokens=len(tokens),
                documents=1,
                sha256=digest,
                source=name,
            )
        )
    counts: dict[str, Any] = {
        "documents_in": 4,
        "documents_kept": 1,
        "dropped": {"blank": 1, "quality": 2},
        "text_bytes": len(TEXT),
        "tokens": 28,
    }
    sources = [
        Source(name="wikipedia", weight=3.0, epochs=3.4, cut=1, pieces=2, **counts),
        Source(name="mine", weight=1.0, epochs=0.5, **counts),
    ]
    facts: dict[str, Any] = {
        "tokenizer_sha256": "ab" * 32,
        "vocab_size": 257,
        "eot_id": 256,
        "seed": 7,
        "val_fraction": 0.25,
        "split_rule": "by hash",
    }
    return Manifest(**facts, shards=shards, sources=sources)


def report(folder: Path, manifest: Manifest, tokenizer: Tokenizer, inputs: list[str]) -> str:
    tally = Tally()
    for number in range(3):
        tally.drop("quality", f"a.jsonl, at {number}", "spam  \n and more " + "x" * 300)
    write_report(
        folder,
        manifest,
        {source.name: inputs for source in manifest.sources},
        [tally for _ in manifest.sources],
        tokenizer,
    )
    return (folder / "report.md").read_text()


def test_the_report_counts_documents_and_shows_the_mixture(
    tmp_path: Path, manifest: Manifest, byte_tokenizer: Tokenizer
) -> None:
    text = report(tmp_path, manifest, byte_tokenizer, ["a.jsonl"])
    assert "### wikipedia\n\n1 input:\n\n- `a.jsonl`\n" in text
    assert (
        "| read | 4 | 100.0% | 4 | 100.0% |\n| dropped: blank | 1 | 25.0% | 3 | 75.0% |\n"
        "| dropped: quality | 2 | 50.0% | 1 | 25.0% |\n| kept | 1 | 25.0% | 1 | 25.0% |" in text
    )
    assert (
        text.count(
            "1 of the documents kept lost text to decontamination, which divided some and so added "
            "2 documents."
        )
        == 1
    )
    assert "27 bytes of text became 28 tokens" in text
    assert "| wikipedia | 28 | 75.0% | 3.4 | 3.4 |\n| mine | 28 | 25.0% | 0.5 | - |" in text
    assert "| train | 2 | 2 | 56 |\n| val | 0 | 0 | 0 |" in text
    assert "Seed 7.\nSplit: by hash; val_fraction is 0.25." in text


def test_samples_are_short_and_no_markup(
    tmp_path: Path, manifest: Manifest, byte_tokenizer: Tokenizer
) -> None:
    text = report(tmp_path, manifest, byte_tokenizer, ["a.jsonl"])
    assert "\n    a.jsonl, at 0: spam and more xxx" in text
    assert "at 2" not in text  # two samples of a reason
    assert (
        max(len(line) for line in text.splitlines() if ", at " in line)
        == len("    a.jsonl, at 0: ") + 100
    )
    assert "## train, document 1\n\n    # not a heading\n    second line\n" in text


def test_a_long_list_of_inputs_is_shortened(
    tmp_path: Path, manifest: Manifest, byte_tokenizer: Tokenizer
) -> None:
    text = report(tmp_path, manifest, byte_tokenizer, [f"{number}.txt" for number in range(1200)])
    assert "1,200 inputs:" in text
    assert "- `9.txt`\n- and 1,190 more\n" in text


# With merges, so that bytes per token differ from 1.
TOKENIZER = Tokenizer([*byte_alphabet(), "ab", "abc", "<|endoftext|>"], [("a", "b"), ("ab", "c")])


@pytest.fixture
def build(tmp_path: Path) -> BuildConfig:
    chance = random.Random(0)
    for number in range(12):
        words = chance.choices(["abc", "ab", "dog", "a"], k=20_000)
        (tmp_path / f"{number:02d}.txt").write_text(" ".join(words) + "\n")
    return BuildConfig(
        sources=[SourceConfig(inputs=[str(path) for path in sorted(tmp_path.glob("*.txt"))])],
        tokenizer=TOKENIZER,
        shard_tokens=100_000,
        val_fraction=0,
    )


def test_the_estimate_is_close_to_the_build(build: BuildConfig, tmp_path: Path) -> None:
    guess = estimate_build(build, workers=2)
    begin_build(build, tmp_path / "out", resume=False, force=False)
    manifest = finish_build(build, tmp_path / "out")
    tokens = manifest.tokens("train")
    assert guess.input_files == 12
    assert guess.input_bytes == manifest.sources[0].text_bytes
    assert guess.tokens == pytest.approx(tokens, rel=0.02)
    assert guess.bytes_per_token == pytest.approx(manifest.sources[0].text_bytes / tokens, rel=0.02)
    assert guess.shards in (len(manifest.shards) - 1, len(manifest.shards))
    assert guess.disk_bytes == pytest.approx(2 * tokens, rel=0.02)
    assert guess.memory_bytes == 2 * 2 * 100_000
    assert guess.seconds is not None
    assert guess.seconds > 0


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz", "a.parquet"])
def test_the_estimate_of_a_compressed_file_is_close_to_its_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(report_module, "PACKED_CHARACTERS", 1 << 20)
    random.seed(1)
    lines = ["".join(random.choices("abcdef", k=500)) for _ in range(8000)]
    path = tmp_path / name
    if name == "a.parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pytest.importorskip("pyarrow").table({"text": lines}), path)
    else:
        rows = [json.dumps({"text": line}) if "jsonl" in name else line for line in lines]
        path.write_bytes(gzip.compress("\n".join(rows).encode()))
    build = BuildConfig(sources=[SourceConfig(inputs=[str(path)])], tokenizer=TOKENIZER)
    guess = estimate_build(build, 1)
    tokens = sum(map(len, TOKENIZER.encode_batch(lines)))
    assert guess.tokens == pytest.approx(tokens, rel=0.2)
    assert guess.disk_bytes == pytest.approx(2 * tokens, rel=0.2)


def test_the_estimate_prices_what_passes_through_the_work_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """300 links to one file are read as files: the sample is eight of them."""
    chance = random.Random(0)
    rows = []
    for number in range(400):
        lines = [" ".join(chance.choices(["abc", "ab", "dog", "a"], k=12)) for _ in range(10)]
        rows.append(
            json.dumps({"text": "\n".join([str(number), *lines]), "url": f"http://a/{number}"})
        )
    (tmp_path / "a.jsonl").write_text("\n".join([*rows, *['{"text": "few words"}'] * 100]))
    source = SourceConfig(
        inputs=[str(tmp_path / "a.jsonl")],
        clean=CleanConfig(min_words=5),
        dedup=DedupConfig(url=True),
        repeats=RepeatsConfig(),
    )
    build = BuildConfig(sources=[source], tokenizer=TOKENIZER, val_fraction=0)
    guess = estimate_build(build, 1)
    work = []

    def measured(out: Path, folder: Path, *others: Any) -> Any:
        work.append(sum(path.stat().st_size for path in folder.iterdir() if path.is_file()))
        return write_shards(out, folder, *others)

    monkeypatch.setattr(building, "write_shards", measured)
    begin_build(build, tmp_path / "out", resume=False, force=False)
    manifest = finish_build(build, tmp_path / "out")
    assert guess.work_bytes == pytest.approx(work[0], rel=0.25)
    assert guess.tokens == pytest.approx(manifest.tokens("train"), rel=0.05)
    assert guess.cpu_seconds is not None
    assert guess.cpu_seconds > 0

    links = [tmp_path / f"{number}.jsonl" for number in range(300)]
    for link in links:
        link.symlink_to(tmp_path / "a.jsonl")
    crawl = dataclasses.replace(source, inputs=[str(link) for link in links])
    whole = estimate_build(dataclasses.replace(build, sources=[crawl]), 1)
    for name in ("tokens", "work_bytes", "shuffle_bytes"):
        assert getattr(whole, name) == pytest.approx(300 * getattr(guess, name), rel=0.01)


def test_the_estimate_of_standard_input_is_none() -> None:
    stdin = estimate_build(
        BuildConfig(sources=[SourceConfig(inputs=["-"])], tokenizer=TOKENIZER), 1
    )
    assert stdin.input_bytes is stdin.bytes_per_token is stdin.tokens is None


def test_a_broken_input_stops_the_estimate(build: BuildConfig, tmp_path: Path) -> None:
    (tmp_path / "00.txt").write_bytes(b"good\n\xff\n")
    with pytest.raises(InputError, match=r"00.txt:2: not valid UTF-8"):
        estimate_build(build, 1)
