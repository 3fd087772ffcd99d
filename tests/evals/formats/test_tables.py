"""A table gives the same rows in whatever form it was saved, and the hub's exports the same items as
the original files.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from gptcli.errors import InputError
from gptcli.evals.find_data import find_data, find_examples
from gptcli.evals.formats import READERS, Row
from gptcli.evals.formats.tables import read_table, read_text, table_rows
from gptcli.evals.task import find_task
from gptcli.evals.task_data import read_items

ROWS: list[Row] = [
    {"q": "naïve?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "n": 3},
    {"q": "two, lines\nhere", "choices": {"text": ["c", "d"], "label": ["1", "2"]}, "n": 4},
]


def jsonl(rows: list[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: list[Row]) -> bytes:
    out = io.BytesIO()
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), out, row_group_size=1)
    return out.getvalue()


def arrow(rows: list[Row], *, stream: bool = False) -> bytes:
    out, table = io.BytesIO(), pa.Table.from_pylist(rows)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def table(rows: list[Row], *, delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {k: v if isinstance(v, str | int) else json.dumps(v) for k, v in row.items()}
        )
    return out.getvalue().encode()


FORMS: dict[str, Callable[[list[Row]], bytes]] = {
    "jsonl": jsonl,
    "bom": lambda rows: b"\xef\xbb\xbf" + jsonl(rows),
    "list": lambda rows: json.dumps(rows).encode(),
    "indented list": lambda rows: json.dumps(rows, indent=2).encode(),
    "data": lambda rows: json.dumps({"version": 1, "data": rows}).encode(),
    "indented data": lambda rows: json.dumps({"version": 1, "data": rows}, indent=1).encode(),
    "viewer": lambda rows: json.dumps(
        {"features": [], "rows": [{"row_idx": n, "row": row} for n, row in enumerate(rows)]}
    ).encode(),
    "parquet": parquet,
    "arrow": arrow,
    "stream": lambda rows: arrow(rows, stream=True),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.jsonl", "a.data"])
def test_the_form_is_recognised_by_its_content(tmp_path: Path, form: str, name: str) -> None:
    (tmp_path / name).write_bytes(FORMS[form](ROWS))
    assert [node.value for node in table_rows(tmp_path / name)] == ROWS


@pytest.mark.parametrize("delimiter", [",", "\t"])
def test_cells_that_are_lists_or_objects_are_read_as_such(tmp_path: Path, delimiter: str) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + table(ROWS, delimiter=delimiter))
    read = [node.value for node in table_rows(tmp_path / "a.txt")]
    assert read == [{**row, "n": str(row["n"])} for row in ROWS]


@pytest.mark.parametrize("form", ["parquet", "arrow", "stream", "jsonl", "list"])
def test_a_cut_file_is_an_error_and_never_fewer_rows(tmp_path: Path, form: str) -> None:
    whole = FORMS[form](ROWS * 40)
    path = tmp_path / "a.jsonl"
    for size in range(9, len(whole) - 9, max(1, len(whole) // 40)):
        path.write_bytes(whole[:size])
        try:
            read = list(table_rows(path))
        except InputError:
            continue
        assert form in ("jsonl", "stream"), size  # cut between two rows
        assert [node.value for node in read] == (ROWS * 40)[: len(read)]


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet", "arrow"])
def test_zeros_where_bytes_were_lost_are_an_error(tmp_path: Path, form: str) -> None:
    """Formats with no checksum show them in a text; Parquet's checksums of pages are verified."""
    rows: list[Row] = [{"q": f"{number} " + "river " * 50, "n": 1} for number in range(20)]
    if form == "parquet":
        out = io.BytesIO()
        options = {"compression": "none", "write_page_checksum": True, "use_dictionary": False}
        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), out, **options)
        data = out.getvalue()
    else:
        data = {"jsonl": jsonl, "csv": table, "arrow": arrow}[form](rows)
    path = tmp_path / f"a.{form}"
    path.write_bytes(data)
    assert list(table_rows(path))
    for at in range(data.index(b"3 river"), data.index(b"9 river"), 101):
        path.write_bytes(data[:at] + bytes(64) + data[at + 64 :])
        with pytest.raises(InputError):
            list(table_rows(path))
    for size in (5, 4000):
        path.write_bytes(bytes(size))
        with pytest.raises(InputError):
            list(table_rows(path))


def test_a_table_of_several_files_is_read_from_its_first(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        (tmp_path / f"test-0000{number}-of-00002.parquet").write_bytes(parquet([row]))
    first = tmp_path / "test-00000-of-00002.parquet"
    assert [node.value for node in table_rows(first)] == ROWS
    (tmp_path / "test-00001-of-00002.parquet").unlink()
    with pytest.raises(InputError, match=r"test-00001-of-00002\.parquet is missing"):
        list(table_rows(first))


def test_a_column_named_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\nq,a,a\nwhy,so,no\n")
    with pytest.raises(InputError, match=r"a\.csv:2: its header names the column 'a' 2 times"):
        list(read_table(tmp_path / "a.csv"))


def test_a_row_knows_its_line_even_if_it_has_an_id(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": 7}\n\n{"id": 7}\n')
    places = [getattr(row, "where", "") for row in read_table(tmp_path / "a.jsonl")]
    assert [place.rpartition(":")[2] for place in places] == ["1", "3"]


def test_exported_running_text_is_that_of_the_file(tmp_path: Path) -> None:
    wikitext = " \n = Title = \n \n Some <unk> text . \n"
    rows = [{"text": line + "\n" if line.strip() else ""} for line in wikitext.splitlines()]
    (tmp_path / "test.parquet").write_bytes(parquet(rows))
    assert [row["text"] for row in read_text(tmp_path / "test.parquet")] == [wikitext]
    (tmp_path / "ptb.jsonl").write_bytes(jsonl([{"sentence": "no it was"}, {"sentence": "N"}]))
    assert [row["text"] for row in read_text(tmp_path / "ptb.jsonl")] == [" no it was \n N \n"]


LABELS = {"text": ["so", "no"], "label": ["A", "B"]}
# task: a row as the hub has it, and fields of the row that is read
EXPORTED: dict[str, tuple[Row, Row]] = {
    "arc_easy": (
        {"id": "M", "question": "Why?", "choices": LABELS, "answerKey": "B"},
        {"question": "Why?", "choices": ["so", "no"], "gold": 1},
    ),
    "openbookqa": (
        {"id": "7", "question_stem": "Why?", "choices": LABELS, "answerKey": "A"},
        {"question": "Why?", "choices": ["so", "no"], "gold": 0},
    ),
    "hellaswag": (
        {
            "ind": 4,
            "activity_label": "Roof",
            "ctx_a": "A man sits.",
            "ctx_b": "he",
            "ctx": "A man sits. he",
            "endings": ["a", "b", "c", "d"],
            "label": "3",
        },
        {"context": "Roof: A man sits. He", "gold": 3},
    ),
    "story_cloze": (
        {
            "story_id": "i",
            **{f"input_sentence_{n}": f"{n}." for n in range(1, 5)},
            "sentence_quiz1": "Yes.",
            "sentence_quiz2": "No.",
            "answer_right_ending": 2,
        },
        {"id": "i", "context": "1. 2. 3. 4.", "choices": ["Yes.", "No."], "gold": 1},
    ),
    "piqa": (
        {"goal": "To sit", "sol1": "sit", "sol2": "stand", "label": 1},
        {"goal": "To sit", "choices": ["sit", "stand"], "gold": 1},
    ),
    "race_h": (
        {
            "example_id": "high1.txt",
            "article": "A.",
            "question": "Q?",
            "options": ["a", "b", "c", "d"],
            "answer": "C",
        },
        {"article": "A.", "history": "", "gold": 2, "level": "high"},
    ),
    "anli_r1": (
        {"uid": "u", "premise": "P.", "hypothesis": "H.", "label": 1, "reason": ""},
        {"premise": "P.", "gold": 2},
    ),
    "winogrande": (
        {"sentence": "A saw B so _ ran.", "option1": "A", "option2": "B", "answer": "2"},
        {"contexts": ["A saw B so A", "A saw B so B"], "gold": 1},
    ),
    "winograd": (
        {
            "text": "The trophy fell because it was big.",
            "pronoun": "it",
            "pronoun_loc": 24,
            "options": ["The trophy", "The suitcase"],
            "label": 0,
        },
        {
            "contexts": [
                "The trophy fell because the trophy",
                "The trophy fell because the suitcase",
            ],
            "target": " was big.",
            "gold": 0,
        },
    ),
    "cbt_cn": (
        {
            "sentences": ["One day ."],
            "question": "The XXXXX ran .",
            "answer": "dog",
            "options": ["cat", "dog"],
        },
        {"before": "The ", "choices": ["cat", "dog"], "gold": 1},
    ),
    "boolq": (
        {"question": "is it", "passage": "It is.", "idx": 3, "label": 1},
        {"id": "3", "question": "is it", "gold": 0},
    ),
    "cb": ({"premise": "P.", "hypothesis": "h", "idx": 0, "label": 2}, {"gold": 2}),
    "rte": ({"premise": "P.", "hypothesis": "h", "idx": 0, "label": 1}, {"gold": 1}),
    "copa": (
        {
            "premise": "He slept.",
            "choice1": "I saw.",
            "choice2": "It was.",
            "question": "cause",
            "idx": 0,
            "label": 1,
        },
        {"context": "He slept because", "gold": 1},
    ),
    "wic": (
        {"word": "class", "sentence1": "A.", "sentence2": "B.", "idx": 0, "label": 0},
        {"word": "class", "gold": 1},
    ),
    "wsc": (
        {
            "text": "Lee visited Ann, his sister.",
            "span1_index": 0,
            "span1_text": "Lee",
            "span2_index": 2,
            "span2_text": "his",
            "idx": 0,
            "label": 1,
        },
        {"passage": "Lee visited Ann, *his* sister.", "answers": ["lee"], "label": True},
    ),
    "multirc": (
        {
            "paragraph": "P",
            "question": "Who?",
            "answer": "he",
            "idx": {"paragraph": 1, "question": 2, "answer": 3},
            "label": 1,
        },
        {"id": "1/2/3", "group": "1/2", "gold": 0, "key": "- [True] he"},
    ),
    "record": (
        {
            "passage": "Ann met Lee.\n@highlight\nLee stayed",
            "query": "Then @placeholder went.",
            "entities": ["Ann", "Lee"],
            "answers": ["Ann"],
            "idx": {"passage": 2, "query": 5},
        },
        {"id": "2/5", "passage": "Ann met Lee.\n\n- Lee stayed", "gold": [0], "group": "2"},
    ),
    "squad_v2": (
        {
            "id": "1",
            "title": "T",
            "context": "C",
            "question": "Where?",
            "answers": {"text": ["here"], "answer_start": [0]},
        },
        {"title": "T", "history": "", "answers": ["here"]},
    ),
    "quac": (
        {
            "dialogue_id": "C_1",
            "wikipedia_page_title": "T",
            "background": "",
            "section_title": "S",
            "context": "Text. CANNOTANSWER",
            "turn_ids": ["C_1_q#0"],
            "questions": ["one?"],
            "answers": {"texts": [["yes", "yes it is"]], "answer_starts": [[0, 0]]},
        },
        {"title": "T", "section": "S", "context": "Text.", "answers": ["yes", "yes it is"]},
    ),
    "coqa": (
        {
            "source": "wiki",
            "story": "Once.",
            "questions": ["Who?"],
            "answers": {"input_text": ["he"], "answer_start": [0], "answer_end": [2]},
        },
        {"story": "Once.", "question": "Who?", "answers": ["he"]},
    ),
    "drop": (
        {
            "section_id": "n",
            "query_id": "a",
            "passage": "They played.",
            "question": "How many?",
            "answers_spans": {"spans": ["3", "three"], "types": ["number", "span"]},
        },
        {"question": "How many?", "answers": ["3", "three"]},
    ),
    "trivia_qa": (
        {
            "question": "Where?",
            "question_id": "q",
            "answer": {"value": "Delhi", "aliases": ["New Delhi"], "type": "W"},
        },
        {"id": "q", "answers": ["Delhi", "New Delhi"]},
    ),
    "natural_questions": (
        {"question": "who wrote it", "answer": ["Ann"]},
        {"question": "Who wrote it?", "answers": ["Ann"]},
    ),
    "web_questions": (
        {"url": "u", "question": "what?", "answers": ["Rod", "Fork"]},
        {"question": "What?", "answers": ["Rod", "Fork"]},
    ),
    "wmt14_fr_en": (
        {"translation": {"en": "one", "fr": "un"}},
        {"en": "one", "fr": "un"},
    ),
    "cnn_dailymail": (
        {"article": "A.", "highlights": "One\nTwo", "id": "x"},
        {"id": "x", "article": "A.", "summary": "One\nTwo"},
    ),
    "lambada": ({"text": "it has a last word"}, {"text": "it has a last word"}),
}
NAMES = {  # names under which exports are found, for a split
    "jsonl": "{split}.jsonl",
    "parquet": "{split}-00000-of-00001.parquet",
    "arrow": "{split}/data-00000-of-00001.arrow",
    "stream": "set-{split}.arrow",
}


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_of_the_hub_is_found_and_read(tmp_path: Path, name: str, form: str) -> None:
    given, expected = EXPORTED[name]
    task = find_task(name)
    path = tmp_path / NAMES[form].format(split=task.hub["items"])
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(FORMS[form]([given]))
    found = find_data(task, tmp_path)
    assert found == path
    [row] = READERS[task.reader](path)
    assert {key: row[key] for key in expected} == expected
    assert len(read_items(task, found)) == 1
    if "shots" in task.hub:
        examples = tmp_path / NAMES[form].format(split=task.hub["shots"])
        examples.parent.mkdir(exist_ok=True)
        examples.write_bytes(FORMS[form]([given]))
        assert find_examples(task, found, tmp_path) == examples


def test_the_answered_questions_of_an_exported_article_are_in_front(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "example_id": f"middle{article}.txt",
            "article": f"A{article}.",
            "question": f"Q{number}?",
            "options": ["a", "b"],
            "answer": "B",
        }
        for article in (1, 2)
        for number in (1, 2)
    ]
    (tmp_path / "test.jsonl").write_bytes(jsonl(rows))
    read = list(READERS["race"](tmp_path / "test.jsonl"))
    assert [row["history"] for row in read] == ["", "Q: Q1?\n\nA: b\n\n"] * 2
    with pytest.raises(InputError, match="this is not the data of race_h"):
        read_items(find_task("race_h"), tmp_path / "test.jsonl")
