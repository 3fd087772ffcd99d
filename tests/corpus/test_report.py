"""`report.md` says what went in, what was dropped and why, and what came out, and nothing in a text
becomes markup.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptcli.corpus.chunks import Tally
from gptcli.corpus.report import write_report
from gptcli.shards.format import token_dtype, write_shard
from gptcli.shards.manifest import Manifest, Shard, Source
from gptcli.tokenizer.tokenizer import Tokenizer

TEXT = "# not a heading\nsecond line"


@pytest.fixture
def manifest(tmp_path: Path, byte_tokenizer: Tokenizer) -> Manifest:
    """One document of training text of each of two sources, one of which has a name of Table
    2.2.
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
    counts = {
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
    facts = {
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


def test_the_funnel_and_the_mixture(
    tmp_path: Path, manifest: Manifest, byte_tokenizer: Tokenizer
) -> None:
    text = report(tmp_path, manifest, byte_tokenizer, ["a.jsonl"])
    assert "### wikipedia\n\n1 input:\n\n- `a.jsonl`\n" in text
    assert "| read | 4 |\n| dropped: blank | 1 |\n| dropped: quality | 2 |\n| kept | 1 |" in text
    assert (
        text.count(
            "1 of those kept lost text to decontamination; 2 more documents came of cutting."
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


def test_a_long_list_of_inputs_is_cut(
    tmp_path: Path, manifest: Manifest, byte_tokenizer: Tokenizer
) -> None:
    text = report(tmp_path, manifest, byte_tokenizer, [f"{number}.txt" for number in range(1200)])
    assert "1,200 inputs:" in text
    assert "- `9.txt`\n- and 1,190 more\n" in text
