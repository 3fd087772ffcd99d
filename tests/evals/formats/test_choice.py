"""Multiple-choice tasks in the formats that their data sets are published in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import InputError
from gptcli.evals.formats import READERS, Row


def rows(name: str, path: Path, *content: Any) -> list[Row]:
    """Write text, or values as JSON lines, and read the file as `name`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    [first, *_] = content
    values = first if isinstance(first, list) else content
    text = first if isinstance(first, str) else "".join(json.dumps(one) + "\n" for one in values)
    path.write_text(text, encoding="utf-8")
    return list(READERS[name](path))


def test_arc_is_read_in_both_forms(tmp_path: Path) -> None:
    original = {
        "id": "M_1",
        "question": {
            "stem": "Why?",
            "choices": [{"text": "so", "label": "1"}, {"text": "thus", "label": "2"}],
        },
        "answerKey": "2",
    }
    prepared = {
        "id": "M_1",
        "query": "Question: Why?\nAnswer:",
        "choices": ["so", "thus"],
        "gold": 1,
    }
    expected = [{"id": "M_1", "question": "Why?", "choices": ["so", "thus"], "gold": 1}]
    assert (
        rows("arc", tmp_path / "a.jsonl", [original])
        == rows("arc", tmp_path / "b.jsonl", [prepared])
        == expected
    )
    with pytest.raises(InputError, match="'3' is not one of 1, 2"):
        rows("arc", tmp_path / "a.jsonl", [{**original, "answerKey": "3"}])


def test_hellaswag_is_read_in_both_forms(tmp_path: Path) -> None:
    original = {
        "ind": 4,
        "activity_label": "Roof",
        "ctx_a": "A man sits.",
        "ctx_b": "he",
        "label": 3,
        "endings": ["is [a] up.", "b", "c", "starts. [title] Then [step] go."],
    }
    [row] = rows("hellaswag", tmp_path / "a.jsonl", [original])
    assert row["context"] == "Roof: A man sits. He"
    assert row["choices"] == ["is up.", "b", "c", "starts.. Then go."]
    assert row["gold"] == 3
    two = "Roof: A man. he\n3\na\nb\nc\nd\nSki: You\n0\ne\nf\ng\nh\n"
    read = rows("hellaswag", tmp_path / "a.txt", two)
    assert [(row["id"], row["gold"], row["choices"][0]) for row in read] == [
        ("a.txt:1", 3, "a"),
        ("a.txt:7", 0, "e"),
    ]
    with pytest.raises(InputError, match="the file ends after 2 of an item's six lines"):
        rows("hellaswag", tmp_path / "a.txt", two + "Roof: A\n1\n")
    with pytest.raises(InputError, match="the correct ending is 'x'"):
        rows("hellaswag", tmp_path / "a.txt", two.replace("\n3\n", "\nx\n"))


def test_story_cloze_is_read(tmp_path: Path) -> None:
    head = "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2"
    table = f'{head},AnswerRightEnding\ns-1,One.,"Two, too.",Three.,Four.,Five.,Six.,2\n'
    expected = [
        {
            "id": "s-1",
            "context": "One. Two, too. Three. Four.",
            "choices": ["Five.", "Six."],
            "gold": 1,
        }
    ]
    assert rows("story_cloze", tmp_path / "a.csv", table) == expected
    with pytest.raises(InputError, match="'AnswerRightEnding' is '3'"):
        rows("story_cloze", tmp_path / "a.csv", table.replace(",2\n", ",3\n"))


def test_piqa_is_read_with_its_labels(tmp_path: Path) -> None:
    (tmp_path / "dev-labels.lst").write_text("1\n0\n")
    items = [{"id": "x", "goal": "how", "sol1": "so", "sol2": "thus"}] * 2
    assert [row["gold"] for row in rows("piqa", tmp_path / "dev.jsonl", items)] == [1, 0]
    (tmp_path / "dev-labels.lst").write_text("1\n")
    with pytest.raises(InputError, match="1 labels for 2 items"):
        rows("piqa", tmp_path / "dev.jsonl", items)
    (tmp_path / "dev-labels.lst").write_text("1\n2\n")
    with pytest.raises(InputError, match="the label is '2', not 0 or 1"):
        rows("piqa", tmp_path / "dev.jsonl", items)
    (tmp_path / "dev-labels.lst").write_text("1 \n0\x1d\n")
    assert [row["gold"] for row in rows("piqa", tmp_path / "dev.jsonl", items)] == [1, 0], (
        "what separates information is white space, too"
    )


def test_race_is_read_from_a_file_and_a_folder(tmp_path: Path) -> None:
    item = {
        "article": "It is.",
        "questions": ["Is _ ?", "Who?"],
        "options": [["a", "b", "c", "d"]] * 2,
        "answers": ["D", "A"],
    }
    file = tmp_path / "test" / "high" / "7.txt"
    read = rows("race", file, [item])
    assert [(row["id"], row["gold"], row["group"]) for row in read] == [
        ("7:0", 3, "7"),
        ("7:1", 0, "7"),
    ]
    assert list(READERS["race"](file.parent)) == read
    with pytest.raises(InputError, match="'E' is not one of A, B, C, D"):
        rows("race", file, [{**item, "answers": ["D", "E"]}])
    with pytest.raises(InputError, match="another number of options"):
        rows("race", file, [{**item, "answers": ["D"]}])


def test_anli_is_read(tmp_path: Path) -> None:
    items = [
        {"uid": str(n), "context": "p", "hypothesis": "h", "label": label}
        for n, label in enumerate("ecn")
    ]
    assert [row["gold"] for row in rows("anli", tmp_path / "a.jsonl", items)] == [0, 1, 2]


def test_anli_finds_its_round_in_the_tag_the_file_or_the_folder(tmp_path: Path) -> None:
    item = {"uid": "u", "premise": "p", "hypothesis": "h", "label": 0}
    for name, tag, expected in [
        ("R3/test.jsonl", None, "r3"),
        ("test_r2-00000-of-00001.jsonl", None, "r2"),
        ("R3/test_r1.jsonl", None, "r1"),
        ("R3/other.jsonl", "r2_dev", "r2"),
        ("data/r22.jsonl", None, None),
    ]:
        [row] = rows("anli", tmp_path / name, [{**item, "tag": tag}])
        assert row.get("round") == expected


def test_labels_that_name_no_single_choice_are_refused(tmp_path: Path) -> None:
    arc = {"id": "q", "question": "?", "answerKey": "B"}
    for labels, message in ([], "given, but no choices"), (["B", "B"], "that of several"):
        choices = {"label": labels, "text": ["so"] * len(labels)}
        with pytest.raises(InputError, match=rf"a\.jsonl:1: the answer 'B' is {message}"):
            rows("arc", tmp_path / "a.jsonl", [{**arc, "choices": choices}])
    scene = {"activity_label": "", "ctx_a": "", "ctx_b": "", "endings": ["a", "b", "c", "d"]}
    with pytest.raises(InputError, match="the correct ending is true"):
        rows("hellaswag", tmp_path / "a.jsonl", [{**scene, "label": True}])


def test_sat_analogies_are_read(tmp_path: Path) -> None:
    block = "# a comment\n\n190 FROM REAL SATs\nlull trust v:n\nbalk fortitude v:n\nbetray loyalty v:n\ncajole compliance v:n\n"
    file = block + "hinder destination v:n\nsoothe passion v:n\nc\n"
    [row] = rows("sat", tmp_path / "SAT.txt", file)
    assert (row["id"], row["a"], row["b"], row["gold"]) == ("SAT.txt:3", "lull", "trust", 2)
    assert row["choices"][2] == "cajole is to compliance"
    with pytest.raises(InputError, match="six pairs"):
        rows("sat", tmp_path / "SAT.txt", block + "c\n")


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "path", "count", "choices"),
    [
        ("arc", "arc/easy_test.jsonl", 2376, {3, 4, 5}),
        ("arc", "arc/challenge_test.jsonl", 1172, {3, 4, 5}),
        ("hellaswag", "hellaswag/hellaswag_val_full.txt.bz2", 10042, {4}),
        (
            "arc",
            "hf-dummy/ai2_arc-ARC-Easy/dummy_data/ARC-V1-Feb2018-2/ARC-Easy/ARC-Easy-Test.jsonl",
            None,
            {4},
        ),
        (
            "arc",
            "hf-dummy/openbookqa-main/dummy_data/OpenBookQA-V1-Sep2018/Data/Main/test.jsonl",
            2,
            {4},
        ),
        ("race", "hf-dummy/race-all/dummy_data/RACE/test/high", None, {4}),
        (
            "piqa",
            "hf-dummy/piqa-plain_text/dummy_data/physicaliqa-train-dev.zip/physicaliqa-train-dev/dev.jsonl",
            5,
            {2},
        ),
        (
            "story_cloze",
            "hf-dummy/story_cloze-2016/dummy_data/cloze_test_test__spring2016 - cloze_test_ALL_test.csv",
            None,
            {2},
        ),
        ("anli", "hf-dummy/anli-plain_text/dummy_data/anli_v0.1/R3/test.jsonl", None, None),
    ],
)
def test_published_multiple_choice_sets_are_read(
    real_data: Path, name: str, path: str, count: int | None, choices: set[int] | None
) -> None:
    read = list(READERS[name](real_data / path))
    assert read
    assert count is None or len(read) == count
    assert len({row["id"] for row in read}) == len(read)
    for row in read:
        assert choices is None or len(row["choices"]) in choices
        assert 0 <= row["gold"] < len(row.get("choices", "tfn"))
