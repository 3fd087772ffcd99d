"""Texts in pairs, and the test parts of enwik8 and text8."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from gptcli.errors import InputError
from gptcli.evals.formats import READERS
from gptcli.evals.synthetic import generate_rows


def test_translations_as_sgml_and_as_lines(tmp_path: Path) -> None:
    for role, language, texts in (
        ("src", "en", ("Q &amp; A", "two")),
        ("ref", "fr", ("Q et R", "deux")),
    ):
        segments = "".join(
            f'<seg id="{number}"> {text}\n</seg>\n' for number, text in enumerate(texts, 1)
        )
        (tmp_path / f"newstest2014-fren-{role}.{language}.sgm").write_text(f"<doc>{segments}</doc>")
        (tmp_path / f"newstest2014.{language}").write_text("".join(f"{text}\n" for text in texts))
    first, second = READERS["parallel"](tmp_path / "newstest2014-fren-src.en.sgm")
    assert first == {"id": "newstest2014-fren:1", "en": "Q & A", "fr": "Q et R"}
    assert list(READERS["parallel"](tmp_path / "newstest2014.fr"))[1] == {
        "id": "newstest2014:2",
        "fr": "deux",
        "en": "two",
    } | {"id": "newstest2014:2"}
    assert (second["en"], second["fr"]) == ("two", "deux")
    (tmp_path / "newstest2014.fr").write_text("un\n")
    with pytest.raises(InputError, match=r"1 sentences, beside 2 of newstest2014\.en"):
        list(READERS["parallel"](tmp_path / "newstest2014.en"))
    (tmp_path / "newstest2014.fr").unlink()
    with pytest.raises(InputError, match="no file beside it"):
        list(READERS["parallel"](tmp_path / "newstest2014.en"))


def test_summaries_as_stories_and_as_lines(tmp_path: Path) -> None:
    (tmp_path / "b.story").write_text(
        "A man\nsat.\n\n@highlight\n\nMan sits\n\n@highlight\n\nIt rains\n"
    )
    expected = {"id": "b", "article": "A man sat.", "summary": "Man sits\nIt rains"}
    assert (
        list(READERS["summaries"](tmp_path / "b.story"))
        == list(READERS["summaries"](tmp_path))
        == [expected]
    )
    for highlights in (["Man sits", "It rains"], "Man sits\nIt rains"):
        (tmp_path / "a.jsonl").write_text(
            json.dumps({"id": "b", "article": "A man sat.", "highlights": highlights}) + "\n"
        )
        assert list(READERS["summaries"](tmp_path / "a.jsonl")) == [expected]
    (tmp_path / "b.story").write_text("No highlights")
    with pytest.raises(InputError, match="not an article"):
        list(READERS["summaries"](tmp_path))


def test_synthetic_samples(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"context": "\\n\\nQ: What is 98 plus 45?\\n\\nA:", "completion": " 143"}\n'
    )
    assert list(READERS["synthetic"](tmp_path / "a.jsonl")) == [
        {"id": "a.jsonl:1", "prompt": "Q: What is 98 plus 45?\n\nA:", "answer": "143"}
    ]


def test_the_last_five_million_bytes(tmp_path: Path) -> None:
    # the cut divides é
    (tmp_path / "enwik8").write_bytes(b"x" * 94_999_999 + "é".encode() + b"y" * 4_999_999)
    [row] = READERS["enwik8"](tmp_path / "enwik8")
    assert row["text"] == "y" * 4_999_999
    (tmp_path / "enwik8").write_bytes("né".encode()[:-1])
    assert [row["text"] for row in READERS["enwik8"](tmp_path / "enwik8")] == ["n"]
    (tmp_path / "enwik8").write_bytes(b"abc\xffdef")
    with pytest.raises(InputError, match="not valid UTF-8 at byte 3"):
        list(READERS["enwik8"](tmp_path / "enwik8"))
    (tmp_path / "text8.gz").write_bytes(gzip.compress(b"abc"))
    assert [row["text"] for row in READERS["enwik8"](tmp_path / "text8.gz")] == ["abc"]


@pytest.mark.real_data
def test_the_real_files(real_data: Path) -> None:
    for file in sorted((real_data / "gpt3-synthetic").glob("*_*n.jsonl")):
        read = list(READERS["synthetic"](file))
        made = list(generate_rows(file.stem, seed=0))
        assert len(read) == len(made) == 2000
        assert (
            read[0]["prompt"].split()[:3] == made[0]["prompt"].split()[:3] == ["Q:", "What", "is"]
        )
    assert len(list(READERS["summaries"](real_data / "cnndm-from-record" / "cnndm_64.jsonl"))) == 64
    [row] = READERS["enwik8"](real_data / "hf-dummy/enwik8-enwik8-raw/dummy_data/enwik8.zip/enwik8")
    assert row["text"].startswith("==Max Stirner's Egoism==")
