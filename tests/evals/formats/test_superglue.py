"""SuperGLUE's tasks in their original format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError
from gptcli.evals.formats import READERS, Row


def rows(name: str, path: Path, *values: Any) -> list[Row]:
    path.write_text("".join(json.dumps(value) + "\n" for value in values), encoding="utf-8")
    return list(READERS[name](path))


def test_boolq_is_read_in_three_forms(tmp_path: Path) -> None:
    expected = {"id": "7", "passage": "Fuel -- It is.", "question": "is it so", "gold": 1}
    original = {"idx": 7, "passage": "Fuel -- It is.", "question": "is it so", "label": False}
    older = {"idx": 7, "passage": "Fuel -- It is.", "question": "is it so", "answer": False}
    prepared = {
        "idx": 7,
        "query": "Fuel -- It is.\nQuestion: is it so?\nAnswer:",
        "choices": ["yes", "no"],
        "gold": 1,
    }
    other_order = {**prepared, "choices": ["no", "yes"], "gold": 0}
    assert (
        rows("boolq", tmp_path / "a.jsonl", original, older, prepared, other_order)
        == [expected] * 4
    )
    for wrong in {"gold": 2}, {"gold": -1}, {"choices": ["so", "no"]}:
        with pytest.raises(InputError, match=r"a\.jsonl:1: the correct choice is number"):
            rows("boolq", tmp_path / "a.jsonl", {**prepared, **wrong})


def test_entailment_labels_are_read(tmp_path: Path) -> None:
    pairs = [
        {"premise": "p", "hypothesis": "h", "idx": 0, "label": label}
        for label in ("entailment", "contradiction", "neutral")
    ]
    assert [row["gold"] for row in rows("cb", tmp_path / "a.jsonl", *pairs)] == [0, 1, 2]
    assert (
        rows("rte", tmp_path / "a.jsonl", {**pairs[0], "label": "not_entailment"})[0]["gold"] == 1
    )
    with pytest.raises(
        InputError, match="'label' is 'neutral', not one of entailment, not_entailment"
    ):
        rows("rte", tmp_path / "a.jsonl", pairs[2])


def test_copa_is_read_as_sentence_continuations(tmp_path: Path) -> None:
    item = {
        "premise": "The man slept.",
        "choice1": "I saw.",
        "choice2": "The sun rose.",
        "question": "cause",
        "label": 1,
        "idx": 0,
    }
    [row] = rows("copa", tmp_path / "a.jsonl", item)
    assert (row["context"], row["choices"], row["gold"]) == (
        "The man slept because",
        ["I saw.", "the sun rose."],
        1,
    )
    assert (
        rows("copa", tmp_path / "a.jsonl", {**item, "question": "effect"})[0]["context"]
        == "The man slept so"
    )


def test_wic_is_read(tmp_path: Path) -> None:
    item = {
        "word": "class",
        "sentence1": "A class.",
        "sentence2": "Real class.",
        "idx": 3,
        "label": False,
        "start1": 2,
    }
    assert rows("wic", tmp_path / "a.jsonl", item) == [
        {"id": "3", "sentence1": "A class.", "sentence2": "Real class.", "word": "class", "gold": 1}
    ]


def test_wsc_puts_the_pronoun_in_asterisks(tmp_path: Path) -> None:
    target = {"span1_index": 0, "span1_text": "Mr. Lee", "span2_index": 4, "span2_text": "his"}
    item = {
        "text": "Mr. Lee visited Ann , his sister .",
        "target": {**target, "span2_index": 5},
        "idx": 0,
        "label": True,
    }
    [row] = rows("wsc", tmp_path / "a.jsonl", item)
    assert (row["passage"], row["pronoun"], row["answers"]) == (
        "Mr. Lee visited Ann, *his* sister.",
        "his",
        ["mr. lee"],
    )
    assert rows("wsc", tmp_path / "a.jsonl", {**item, "label": False})[0]["answers"] == [
        "",
        "mr. lee",
    ]
    with pytest.raises(InputError, match="'his' is not at word 2"):
        rows("wsc", tmp_path / "a.jsonl", {**item, "target": {**target, "span2_index": 2}})


def test_multirc_groups_the_options(tmp_path: Path) -> None:
    question = {
        "question": "Who?",
        "idx": 3,
        "answers": [{"text": "he", "idx": 10, "label": 1}, {"text": "she", "idx": 11, "label": 0}],
    }
    read = rows(
        "multirc",
        tmp_path / "a.jsonl",
        {"idx": 1, "passage": {"text": "P", "questions": [question]}},
    )
    assert [(row["id"], row["option"], row["gold"], row["group"]) for row in read] == [
        ("1/3/10", "he", 0, "1/3"),
        ("1/3/11", "she", 1, "1/3"),
    ]


def test_record_lists_each_entity_once(tmp_path: Path) -> None:
    text = "Ann met Lee. Ann left.\n@highlight\nLee stayed\n@highlight\nIt rained"
    passage = {
        "text": text,
        "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}, {"start": 13, "end": 15}],
    }
    query = {
        "query": "Then @placeholder went.",
        "idx": 5,
        "answers": [{"start": 13, "end": 15, "text": "Ann"}],
    }
    [row] = rows("record", tmp_path / "a.jsonl", {"idx": 2, "passage": passage, "qas": [query]})
    assert row["passage"] == "Ann met Lee. Ann left.\n\n- Lee stayed\n- It rained"
    assert (row["choices"], row["gold"], row["before"], row["after"]) == (
        ["Ann", "Lee"],
        [0],
        "Then ",
        " went.",
    )
    assert (row["id"], row["group"]) == ("2/5", "2")
    with pytest.raises(InputError, match="no @placeholder"):
        rows(
            "record",
            tmp_path / "a.jsonl",
            {"idx": 2, "passage": passage, "qas": [{**query, "query": "Then he went."}]},
        )


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "path", "count"),
    [
        ("boolq", "boolq/val.jsonl", 3270),
        ("cb", "superglue/CB/val.jsonl", 56),
        ("copa", "superglue/COPA/val.jsonl", 100),
        ("rte", "superglue/RTE/val.jsonl", 277),
        *(
            (name.lower(), f"hf-dummy/super_glue-boolq/dummy_data/{name}/val.jsonl", None)
            for name in ("BoolQ", "CB", "COPA", "RTE", "WiC", "WSC", "MultiRC", "ReCoRD")
        ),
    ],
)
def test_published_superglue_sets_are_read(
    real_data: Path, name: str, path: str, count: int | None
) -> None:
    read = list(READERS[name](real_data / path))
    assert read
    assert count is None or len(read) == count
    assert len({row["id"] for row in read}) == len(read)
