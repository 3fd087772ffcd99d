"""Missing-word tasks in the formats that their data sets are published in."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.errors import InputError
from gptcli.evals.formats import READERS

SCHEMAS = """<collection>
<schema><text><txt1>\nThe trophy doesn't fit into the suitcase because</txt1><pron> it </pron><txt2> is too large. </txt2></text>
<answers><answer>The trophy </answer><answer>the suitcase</answer></answers><correctAnswer> A. </correctAnswer></schema>
<schema><text><txt1>Madonna fired her trainer because she slept with</txt1><pron>her</pron><txt2>boyfriend.</txt2></text>
<answers><answer>Madonna</answer><answer>The trainer</answer></answers><correctAnswer>A</correctAnswer></schema>
<schema><text><txt1>Ann saw Joan.</txt1><pron>She</pron><txt2>waved.</txt2></text>
<answers><answer>Ann</answer><answer>the Joan</answer></answers><correctAnswer>B</correctAnswer></schema>
</collection>"""


def test_lambada_is_read_in_both_forms(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "He said\\n\\nto Shane"}\n')
    (tmp_path / "a.txt").write_text("he said \n to shane\n")
    assert list(READERS["lambada"](tmp_path / "a.jsonl")) == [
        {
            "id": "a.jsonl:1",
            "text": "He said\n\nto Shane",
            "context": "He said\n\nto",
            "word": "Shane",
        }
    ]
    with pytest.raises(InputError, match="no last word") as caught:  # the line ends with a space
        list(READERS["lambada"](tmp_path / "a.txt"))
    assert str(caught.value.where).endswith("a.txt:1")


def test_cbt_is_read_as_running_text(tmp_path: Path) -> None:
    sentences = "".join(f"{number} It was n't so , ` he said ' .\n" for number in range(1, 21))
    question = "21 He saw the XXXXX , and ran .\tdog\t\tcat|dog|ogre\n\n"
    (tmp_path / "a.txt").write_text((sentences + question) * 2)
    first, second = READERS["cbt"](tmp_path / "a.txt")
    assert first["context"].startswith("It wasn't so, 'he said'. It wasn't")
    assert (first["before"], first["after"], first["choices"], first["gold"]) == (
        "He saw the ",
        ", and ran.",
        ["cat", "dog", "ogre"],
        1,
    )
    assert (first["id"], second["id"]) == ("a.txt:1", "a.txt:23")
    for broken, what in (
        (sentences.replace("\n7 ", "\n8 ") + question, "number '8' follows number 6"),
        (sentences + "\n" + question, "ends after 20 sentences"),
        (sentences, "20 sentences, but no question"),
        (sentences + question.replace("\tdog\t", "\tcow\t"), "choices that contain it"),
        (sentences + "21 He saw the XXXXX .\tdog\n", "choices that contain it"),
    ):
        (tmp_path / "a.txt").write_text(broken)
        with pytest.raises(InputError, match=what):
            list(READERS["cbt"](tmp_path / "a.txt"))


def test_winogrande_is_read(tmp_path: Path) -> None:
    item = {
        "qID": "q-1",
        "sentence": "Ann beat Joan as _ was fast.",
        "option1": "Ann",
        "option2": "Joan",
        "answer": "1",
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(item) + "\n")
    [row] = READERS["winogrande"](tmp_path / "a.jsonl")
    assert row["contexts"] == ["Ann beat Joan as Ann", "Ann beat Joan as Joan"]
    assert (row["target"], row["gold"], row["sentences"][1]) == (
        " was fast.",
        0,
        "Ann beat Joan as Joan was fast.",
    )
    (tmp_path / "a.jsonl").write_text(json.dumps({**item, "answer": ""}) + "\n")
    with pytest.raises(InputError, match="'answer' is ''"):
        list(READERS["winogrande"](tmp_path / "a.jsonl"))


def test_winograd_xml_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text(SCHEMAS)
    read = list(READERS["winograd"](tmp_path / "a.xml"))
    assert [row["contexts"][row["gold"]] + row["target"] for row in read] == [
        "The trophy doesn't fit into the suitcase because the trophy is too large.",
        "Madonna fired her trainer because she slept with Madonna's boyfriend.",
        "Ann saw Joan. The Joan waved.",
    ]
    assert (
        read[1]["sentences"][1]
        == "Madonna fired her trainer because she slept with the trainer's boyfriend."
    )
    (tmp_path / "a.xml").write_text(SCHEMAS.replace("<pron> it </pron>", ""))
    with pytest.raises(InputError, match="has no <pron>") as caught:
        list(READERS["winograd"](tmp_path / "a.xml"))
    assert "schema 1" in str(caught.value.where)
    (tmp_path / "a.xml").write_text(SCHEMAS.replace("Ann</answer>", " </answer>"))
    with pytest.raises(InputError, match="an answer is empty"):
        list(READERS["winograd"](tmp_path / "a.xml"))
    (tmp_path / "a.xml").write_text(SCHEMAS[:-9])
    with pytest.raises(InputError, match="not valid XML"):
        list(READERS["winograd"](tmp_path / "a.xml"))


@pytest.mark.real_data
def test_published_cloze_sets_are_read(real_data: Path) -> None:
    passages = list(READERS["lambada"](real_data / "lambada" / "lambada_test.jsonl"))
    assert len(passages) == 5153
    assert all(f"{row['context']} {row['word']}" == row["text"] for row in passages)
    assert len(list(READERS["winogrande"](real_data / "winogrande" / "val.jsonl"))) == 1267
    prepared = list(READERS["winograd"](real_data / "winograd" / "winograd_wsc.jsonl"))
    assert len(prepared) == 273
    published = list(
        READERS["winograd"](real_data / "hf-dummy/winograd_wsc-wsc273/dummy_data/WSCollection.xml")
    )
    keep = ("contexts", "target", "gold")
    assert [[row[key] for key in keep] for row in published] == [
        [row[key] for key in keep] for row in prepared[: len(published)]
    ]
    for kind in ("CN", "NE", "V", "P"):
        folder = real_data / f"hf-dummy/cbt-{kind}/dummy_data/CBTest.tgz/CBTest/data"
        for file in folder.glob("*.txt"):
            for row in READERS["cbt"](file):
                assert len(row["choices"]) == 10
                assert row["before"] + row["after"]


SCHEMA = (
    "<schema><text><txt1>{0} saw it because</txt1><pron>he</pron><txt2>ran.</txt2></text><answers>"
    "<answer>{0}</answer><answer>Bo</answer></answers><correctAnswer>A</correctAnswer></schema>"
)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "iso-8859-1", "windows-1252", "utf-16"])
def test_the_encoding_that_the_xml_declares_is_used(tmp_path: Path, encoding: str) -> None:
    declared = encoding.removesuffix("-sig")
    schema = SCHEMA.format("Zo\u00eb")
    text = f'<?xml version="1.0" encoding="{declared}"?><c>{schema}</c>'
    path = tmp_path / "WSCollection.xml"
    path.write_bytes(text.encode(encoding))
    [row] = READERS["winograd"](path)
    assert row["contexts"] == ["Zo\u00eb saw it because Zo\u00eb", "Zo\u00eb saw it because Bo"]


def test_the_273_schemas_of_the_papers_are_the_first_of_285(tmp_path: Path) -> None:
    path = tmp_path / "WSCollection.xml"
    path.write_text(f"<c>{''.join(SCHEMA.format(f'A{n}') for n in range(285))}</c>")
    read = list(READERS["winograd"](path))
    assert len(read) == 273
    assert read[-1]["contexts"][0] == "A272 saw it because A272"
