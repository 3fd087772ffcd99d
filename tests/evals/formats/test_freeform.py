"""Free-form tasks in the formats that their data sets are published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError
from gptcli.evals.formats import READERS, Row
from gptcli.evals.formats.freeform import descriptions
from gptcli.evals.synthetic import generate_rows

TRIVIA_QA = "hf-dummy/trivia_qa-unfiltered.nocontext/dummy_data"


def rows(name: str, path: Path, value: Any) -> list[Row]:
    path.write_text(json.dumps(value), encoding="utf-8")
    return list(READERS[name](path))


def test_squad_is_read_with_and_without_answers(tmp_path: Path) -> None:
    answered = {
        "id": "1",
        "question": "Where?",
        "answers": [{"text": "here", "answer_start": 0}, {"text": "here"}, {"text": "in here"}],
    }
    open_ = {"id": "2", "question": "When?", "answers": [], "is_impossible": True}
    file = {
        "version": "v2.0",
        "data": [{"title": "T", "paragraphs": [{"context": "C", "qas": [answered, open_]}]}],
    }
    first, second = rows("squad", tmp_path / "a.json", file)
    assert first == {
        "id": "1",
        "title": "T",
        "context": "C",
        "history": "",
        "question": "Where?",
        "answers": ["here", "in here"],
    }
    assert second["answers"] == ["N/A"]
    assert second["history"] == "Q: Where?\n\nA: here\n\n"
    del answered["id"]
    with pytest.raises(InputError, match="has no 'id'") as caught:
        rows("squad", tmp_path / "a.json", file)
    assert str(caught.value.where).endswith("a.json.data[0].paragraphs[0].qas[0]")


def test_quac_is_read_with_its_history(tmp_path: Path) -> None:
    turns = [
        {"id": "C_1_q#0", "question": "one?", "answers": [{"text": "yes"}, {"text": "oh yes"}]},
        {"id": "C_1_q#1", "question": "two?", "answers": [{"text": "CANNOTANSWER"}]},
    ]
    paragraph = {"context": "Text. CANNOTANSWER", "qas": turns}
    file = {"data": [{"title": "T", "section_title": "S", "paragraphs": [paragraph]}]}
    first, second = rows("quac", tmp_path / "a.json", file)
    assert (first["context"], first["history"], first["group"]) == ("Text.", "", "C_1")
    assert (second["history"], second["answers"]) == ("Q: one?\n\nA: yes\n\n", ["CANNOTANSWER"])


def test_coqa_is_read_in_both_forms(tmp_path: Path) -> None:
    def listed(*texts: str) -> list[dict[str, str]]:
        return [{"input_text": text} for text in texts]

    original = {
        "id": "s",
        "story": "Once.",
        "questions": listed("Who?", "Why?"),
        "answers": listed("he", "so"),
        "additional_answers": {"1": listed("him", "thus"), "0": listed("He", "because")},
    }
    read = rows("coqa", tmp_path / "a.json", {"version": "1.0", "data": [original]})
    assert [row["answers"] for row in read] == [["he", "He", "him"], ["so", "because", "thus"]]
    assert (read[1]["id"], read[1]["group"], read[1]["history"]) == (
        "s:2",
        "s",
        "Q: Who?\n\nA: he\n\n",
    )
    turns = [{"question": row["question"], "answers": row["answers"]} for row in read]
    assert rows("coqa", tmp_path / "a.jsonl", {"id": "s", "story": "Once.", "turns": turns}) == read
    with pytest.raises(InputError, match="2 questions, but another number of answers"):
        rows("coqa", tmp_path / "a.json", {"data": [{**original, "answers": listed("he")}]})


def test_drop_is_read_with_numbers_dates_and_spans(tmp_path: Path) -> None:
    none = {"day": "", "month": "", "year": ""}
    number = {"number": "3", "date": none, "spans": []}
    date = {"number": "", "date": {"day": "", "month": "May", "year": "1983"}, "spans": []}
    spans = {"number": "", "date": none, "spans": ["Ann", "Joan Lee"]}
    pairs = [
        {
            "query_id": "a",
            "question": "How many?",
            "answer": number,
            "validated_answers": [number, {**number, "number": "2"}],
        },
        {"query_id": "b", "question": "When?", "answer": date},
        {"query_id": "c", "question": "Who?", "answer": spans, "validated_answers": []},
    ]
    file = {"nfl_1": {"passage": " They played. ", "qa_pairs": pairs}}
    read = rows("drop", tmp_path / "a.json", file)
    assert [row["answers"] for row in read] == [["3", "2"], ["May 1983"], ["Ann, Joan Lee"]]
    assert read[0]["passage"] == "They played."
    pairs[0] = {"query_id": "a", "question": "How many?", "answer": {**number, "number": ""}}
    with pytest.raises(InputError, match="has no answer"):
        rows("drop", tmp_path / "a.json", file)
    pairs[0] = {
        "query_id": "a",
        "question": "How many?",
        "answer": number,
        "validated_answers": [3],
    }
    with pytest.raises(InputError, match="not a JSON object"):
        rows("drop", tmp_path / "a.json", file)


def test_closed_book_questions_are_read(tmp_path: Path) -> None:
    answer = {"Value": "Delhi", "Aliases": ["New Delhi", "Delhi"], "NormalizedValue": "delhi"}
    [row] = rows(
        "trivia_qa",
        tmp_path / "a.json",
        {"Data": [{"QuestionId": "q", "Question": "Where?", "Answer": answer}]},
    )
    assert row == {"id": "q", "question": "Where?", "answers": ["Delhi", "New Delhi"]}
    [row] = rows(
        "natural_questions",
        tmp_path / "a.jsonl",
        {"question": "who wrote it", "answer": ["Ann", "A. Lee"]},
    )
    assert row == {"id": "a.jsonl:1", "question": "Who wrote it?", "answers": ["Ann", "A. Lee"]}
    target = '(list (description "Lightning rod") (description Bifocals))'
    [row] = rows(
        "web_questions",
        tmp_path / "w.json",
        [{"url": "u", "utterance": "what?", "targetValue": target}],
    )
    assert row == {"id": "w.json:0", "question": "What?", "answers": ["Lightning rod", "Bifocals"]}
    with pytest.raises(InputError, match="contains no"):
        rows(
            "web_questions", tmp_path / "w.json", [{"utterance": "what?", "targetValue": "(list)"}]
        )


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "path", "count"),
    [
        ("coqa", "coqa/coqa_dev_500stories.jsonl", 7983),
        ("coqa", "hf-dummy/coqa-1.0.0/dummy_data/coqa-dev-v1.0.json", None),
        ("natural_questions", "nq_open/NQ-open.dev.jsonl", 3610),
        ("natural_questions", "hf-dummy/nq_open-nq_open/dummy_data/NQ-open.train.jsonl", 5),
        ("squad", "hf-dummy/squad_v2-squad_v2/dummy_data/dev-v2.0.json", None),
        ("squad", "hf-dummy/squad-plain_text/dummy_data/dev-v1.1.json", 1),
        ("quac", "hf-dummy/quac-plain_text/dummy_data/val_v0.2.json", None),
        ("drop", "hf-dummy/drop-0.1.0/dummy_data/drop_dataset/drop_dataset_dev.json", None),
        (
            "trivia_qa",
            f"{TRIVIA_QA}/triviaqa-unfiltered.tar.gz/triviaqa-unfiltered/unfiltered-web-dev.json",
            None,
        ),
        (
            "trivia_qa",
            "hf-dummy/trivia_qa-rc.wikipedia/dummy_data/triviaqa-rc.tar.gz/qa/wikipedia-dev.json",
            None,
        ),
        ("web_questions", "hf-dummy/web_questions-1.0.0/dummy_data/blobtrain", 2),
    ],
)
def test_published_question_answering_sets_are_read(
    real_data: Path, name: str, path: str, count: int | None
) -> None:
    read = list(READERS[name](real_data / path))
    assert read
    assert count is None or len(read) == count
    assert len({row["id"] for row in read}) == len(read)
    assert all(row["question"] and row["answers"] and all(row["answers"]) for row in read)


def test_translations_are_read_from_sgml_and_lines(tmp_path: Path) -> None:
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
    with pytest.raises(InputError, match=r"1 sentences, but newstest2014\.en has 2"):
        list(READERS["parallel"](tmp_path / "newstest2014.en"))
    (tmp_path / "newstest2014.fr").unlink()
    with pytest.raises(InputError, match="no file with the same sentences"):
        list(READERS["parallel"](tmp_path / "newstest2014.en"))


def test_summaries_are_read_from_stories_and_lines(tmp_path: Path) -> None:
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


def test_synthetic_samples_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"context": "\\n\\nQ: What is 98 plus 45?\\n\\nA:", "completion": " 143"}\n'
    )
    assert list(READERS["synthetic"](tmp_path / "a.jsonl")) == [
        {"id": "a.jsonl:1", "prompt": "Q: What is 98 plus 45?\n\nA:", "answer": "143"}
    ]


@pytest.mark.real_data
def test_released_samples_and_summaries_are_read(real_data: Path) -> None:
    for file in sorted((real_data / "gpt3-synthetic").glob("*_*n.jsonl")):
        read = list(READERS["synthetic"](file))
        made = list(generate_rows(file.stem, seed=0))
        assert len(read) == len(made) == 2000
        assert (
            read[0]["prompt"].split()[:3] == made[0]["prompt"].split()[:3] == ["Q:", "What", "is"]
        )
    assert len(list(READERS["summaries"](real_data / "cnndm-from-record" / "cnndm_64.jsonl"))) == 64


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ('(list (description "Jazz") (description Blues))', ["Jazz", "Blues"]),
        ('(list (description "\\"Weird Al\\" Yankovic"))', ['"Weird Al" Yankovic']),
        ('(list (description "Heathcliff "Cliff" Huxtable") (description Bo))',
         ['Heathcliff "Cliff" Huxtable', "Bo"]),
        ('(list (description "Saturn (planet)") (description Mars (god)))',
         ["Saturn (planet)", "Mars (god)"]),
        ("(list (description \"It's\") (description 12))", ["It's", "12"]),
    ],
)  # fmt: skip
def test_descriptions_of_web_questions(text: str, answers: list[str]) -> None:
    assert descriptions(text, "a") == answers


@pytest.mark.parametrize("text", ["(list)", "", '(list (description ""))', "(list (description a"])
def test_descriptions_that_cannot_be_read_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="'targetValue'"):
        descriptions(text, "a")
