"""The reading is divided the same way for the same number of cuts, and workers are told what a
build is.
"""

from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import pytest

from gptcli.corpus import config, coordinator
from gptcli.corpus.config import Build
from gptcli.corpus.coordinator import WORK, context_of, spans_of
from gptcli.corpus.recipe import Dedup, Source
from gptcli.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def build(tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Build:
    """A source of a file of lines, and one of a compressed file."""
    monkeypatch.setattr(config, "UNIT_CHARACTERS", (100, 100))
    (tmp_path / "a.jsonl").write_text('{"text": "some text"}\n' * 50)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(bytes(range(256)) * 20, 0))
    named = {"plain": "a.jsonl", "packed": "b.jsonl.gz"}
    sources = [Source(name=name, inputs=[str(tmp_path / file)]) for name, file in named.items()]
    return Build(
        sources=[sources[0], dataclasses.replace(sources[1], dedup=Dedup())],
        tokenizer=byte_tokenizer,
    )


def test_what_workers_hold(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    context = context_of(build, tmp_path)
    assert (tmp_path / WORK).is_dir()
    assert (context.characters, context.methods, context.encoder_name) == (
        100,
        [None, "lsh"],
        "tokenizers",
    )
    assert [context.waits(source) for source in (0, 1)] == [False, True]
    monkeypatch.setattr(coordinator, "FAST_BYTES", 10)
    assert context_of(build, tmp_path).encoder_name == "auto"
    assert (
        context_of(dataclasses.replace(build, encoder="tiktoken"), tmp_path).encoder_name
        == "tiktoken"
    )


def test_lines_are_cut_by_bytes_and_packed_files_in_stripes(build: Build, tmp_path: Path) -> None:
    context = context_of(build, tmp_path)
    for cuts, stripes in ((1, 1), (3, 3), (50, 8)):
        spans = list(spans_of(context, cuts))
        assert [span.name for span in spans] == [span.name for span in spans_of(context, cuts)]
        lines = [span.cut for span in spans if span.source == 0]
        assert [cut.start for cut in lines] == list(range(0, 50 * 22, 100))
        assert [span.cut.stripe for span in spans if span.source == 1] == list(range(stripes))
