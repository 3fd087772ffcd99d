"""Repeated lines, paragraphs, sentences and substrings: those that plain Python finds, the first
occurrence kept, the same for any workers, and before test items are counted.
"""

from __future__ import annotations

import dataclasses
import json
import re
import string
import unicodedata
from pathlib import Path

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.corpus import build as building
from gptcli.corpus import config, repeats
from gptcli.corpus.build import begin_build, finish_build
from gptcli.corpus.chunks import Tally, TextChunk, write_text_chunk
from gptcli.corpus.config import BuildConfig
from gptcli.corpus.dedup import document_signatures
from gptcli.corpus.recipe import DedupConfig, RepeatsConfig, RepeatUnit, SourceConfig
from gptcli.corpus.repeats import (
    find_repeats,
    normal_form,
    read_repeats,
    repeat_hashes,
    repeats_tasks,
    units,
    without_repeats,
)
from gptcli.errors import RunError
from gptcli.shards.manifest import Manifest
from gptcli.tokenizer.tokenizer import Tokenizer
from tests.corpus.test_damage import InProcess
from tests.corpus.test_text_out import rows_of

pieces = st.sampled_from(
    [
        "The river.",
        "A stone!",
        "a stone",
        "Is it 7?",
        "é",
        "  ",
        "\n",
        "\n\n",
        " ",
        "---",
        "x.y",
        '"So."',
    ]
)
documents = st.lists(st.lists(pieces, max_size=12).map("".join), min_size=1, max_size=6)


def without(folder: Path, texts: list[str], config: RepeatsConfig) -> list[str]:
    """Return the texts without repeats, two of them a chunk."""
    chunks = []
    for start in range(0, len(texts), 2):
        mine = texts[start : start + 2]
        numbers = list(range(10 * start, 10 * start + len(mine)))
        path = folder / f"text-{start:04}"
        found = repeat_hashes(mine, numbers, config)
        signatures = document_signatures(mine, None)
        write_text_chunk(path, numbers, mine, Tally(), signatures, repeats=found)
        chunks.append(TextChunk(path))
    paths = [find_repeats(task) for task in repeats_tasks(folder, 0, config, chunks, [])]
    left = []
    for chunk in chunks:
        ranges = read_repeats(paths, chunk.numbers)
        for number, text in zip(chunk.numbers.tolist(), chunk.texts(), strict=True):
            gone = ranges.get(number, [])
            left.append(without_repeats(text, gone, config) if gone else text)
    return left


def plain_form(text: str) -> str:
    """Return CCNet's normal form, written anew."""
    text = "".join("0" if each in string.digits else each for each in text.lower())
    text = unicodedata.normalize("NFD", text)
    kinds = [(unicodedata.category(each), each) for each in text]
    return " ".join("".join(each for kind, each in kinds if kind[0] not in "PM").split())


def by_hand(texts: list[str], unit: RepeatUnit, size: int) -> list[str]:
    """Return what is left of the texts, with a dictionary of all runs of units."""
    seen: set[tuple[str, ...]] = set()
    left = []
    for text in texts:
        if unit == "line":
            parts = [part for part in re.split(r"(?<=\n)", text) if part]
        elif unit == "paragraph":
            parts = [part for part in re.split(r"(?<=\n)(?=[^\n]*\S)", text) if part]
            merged: list[str] = []
            for part in parts:  # a paragraph goes on until a blank line
                before = merged[-1] if merged else ""
                if before.strip() and not re.search(r"\n[^\S\n]*\n", before):
                    merged[-1] += part
                else:
                    merged.append(part)
            parts = merged
        else:
            ends = regex.compile(r"(?<=\n)|(?<=[.!?][\"')]*)\s+(?=\S)", regex.V1)
            parts = [f"{part} " for part in ends.split(text) if part.strip()]
        wanted = [at for at, part in enumerate(parts) if part.strip()]
        forms = [plain_form(parts[at]) for at in wanted]
        gone: set[int] = set()
        for at in range(len(forms) - size + 1):
            run = tuple(forms[at : at + size])
            if run in seen:
                gone |= set(wanted[at : at + size])
            seen.add(run)
        left.append("".join(part for at, part in enumerate(parts) if at not in gone))
    return left


@settings(max_examples=150, deadline=None)
@given(documents, st.sampled_from(["line", "paragraph", "sentence"]), st.integers(1, 3))
def test_repeated_units_are_those_of_plain_python(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], unit: RepeatUnit, size: int
) -> None:
    folder = tmp_path_factory.mktemp("units")
    found = without(folder, texts, RepeatsConfig(unit=unit, size=size, min_words=0))
    expected = by_hand(texts, unit, size)
    # What is left has the same words; texts without any are left out as a whole.
    assert [text.split() for text in found] == [
        text.split() if found[at] or text == texts[at] else [] for at, text in enumerate(expected)
    ]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text("abé ", max_size=30), min_size=1, max_size=6), st.integers(1, 8))
def test_repeated_substrings_are_those_of_plain_python(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], size: int
) -> None:
    pytest.importorskip("pydivsufsort")
    folder = tmp_path_factory.mktemp("substrings")
    found = without(folder, texts, RepeatsConfig(unit="substring", size=size, min_words=0))
    seen: set[bytes] = set()
    for text, left in zip(texts, found, strict=True):
        data = text.encode()
        gone: set[int] = set()
        for at in range(len(data) - size + 1):
            window = data[at : at + size]
            if window in seen:
                gone |= set(range(at, at + size))
            seen.add(window)
        expected = "".join(
            character
            for at, character in enumerate(text)
            if not gone.issuperset(range(len(text[:at].encode()), len(text[: at + 1].encode())))
        )
        assert left == (expected if expected.split() or not gone else "")


def test_the_normal_form_is_ccnets() -> None:
    assert normal_form("  The 12 Cafés, «now»:\tÀ-la!") == "the 00 cafes now ala"
    assert normal_form("  The 12 Cafés, «now»:\tÀ-la!") == plain_form(
        "  The 12 Cafés, «now»:\tÀ-la!"
    )


def test_a_long_line_of_blanks_or_marks_takes_no_time() -> None:
    for text in (" " * 300_000, "." * 300_000, ". " * 100_000, "\n" * 300_000):
        for unit in ("line", "paragraph", "sentence"):
            assert len(units(text, unit)) <= 100_000


def test_a_suffix_array_that_does_not_fit_is_refused() -> None:
    with pytest.raises(RunError, match=r'needs .* of memory.*\n.*unit = "line"'):
        repeats.check_memory(1 << 50)


def spelt(number: int) -> str:
    """Return a number in letters: digits are alike in the normal form."""
    return "".join("abcdefghij"[int(digit)] for digit in str(number))


TEST_ITEM = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron"


def built(build: BuildConfig, out: Path, readers: int) -> tuple[Manifest, bytes]:
    InProcess.readers = readers
    begin_build(build, out, resume=False, force=False)
    manifest = finish_build(build, out, workers=readers)
    assert build.text_out is not None
    return manifest, build.text_out.read_bytes()


@pytest.mark.parametrize("unit", ["line", "sentence", "substring"])
def test_repeats_go_after_duplicates_and_before_test_items_are_counted(
    tmp_path: Path, byte_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, unit: RepeatUnit
) -> None:
    if unit == "substring":
        pytest.importorskip("pydivsufsort")
    monkeypatch.setattr(config, "CHUNK_CHARACTERS", (1500, 1500))
    monkeypatch.setattr(building, "open_pool", lambda _, count, state: InProcess(count, state))
    notice = "This notice of the site stands below every page. It says the same. It is of no use."
    texts = []
    for number in range(30):
        words = " ".join(f"{spelt(number)}of{spelt(each)}" for each in range(50))
        texts.append(f"{words}.\n{notice}\n{words[::-1]}.")
    texts[12] = texts[4]  # a duplicate
    # A page with the duplicate's own line stays as it is: the duplicate is gone.
    texts[4] = texts[12] = "\n".join([*texts[4].split("\n")[:2], "A line of one page. Two. Three."])
    for number in (0, 20):
        texts[number] += f"\n{TEST_ITEM}."
    rows = [{"text": text, "url": f"http://a/{at}"} for at, text in enumerate(texts)]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "eval.txt").write_text(TEST_ITEM)
    size = {"line": 1, "sentence": 3, "substring": 40}[unit]
    source = SourceConfig(
        inputs=[str(tmp_path / "a.jsonl")],
        dedup=DedupConfig(url=True),
        repeats=RepeatsConfig(unit=unit, size=size),
        decontaminate=True,
    )
    build = BuildConfig(
        sources=[source],
        tokenizer=byte_tokenizer,
        val_fraction=0.0,
        evaluation=(str(tmp_path / "eval.txt"),),
    )
    results = [
        built(
            dataclasses.replace(build, text_out=tmp_path / f"{n}.jsonl", text_dropped=True),
            tmp_path / f"out{n}",
            n,
        )
        for n in (1, 2, 4)
    ]
    assert results[0] == results[1] == results[2]
    manifest = results[0][0].sources[0]
    assert manifest.dropped == {"duplicate": 1}
    assert manifest.documents_in == 30 == manifest.documents_kept + 1
    assert manifest.changed["repeats"] == 28  # all but the first page and the duplicate
    kept = [row["text"] for row in rows_of(tmp_path / "1.jsonl") if row["kept"]]
    assert sum(notice in text for text in kept) == 1
    lines = [text.split(".\n")[0] for text in [*texts[:12], *texts[13:]]]
    # Bytes before the notice may be alike, too.
    assert all(text.startswith(line[:-9]) for text, line in zip(kept, lines, strict=True))
    assert not any("epsilon zeta eta theta iota" in text for text in kept)
    assert "repeats changed the text of 28 documents" in (tmp_path / "out1/report.md").read_text()
