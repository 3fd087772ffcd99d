"""Objects of JSON files are documents, one at a time, and broken ones cost no other."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.corpus.documents import Document, FileRange
from gptcli.corpus.formats import find_reader, json_files, scan

values = st.text(st.characters(exclude_categories=["Cs"]))


def scanned(path: Path, field: str = "text") -> list[Document]:
    return list(scan(str(path), find_reader(str(path), "file", field, "json")))


@settings(max_examples=80, deadline=None)
@given(st.lists(values, max_size=6), st.sampled_from([None, 1]), st.integers(2, 60), st.booleans())
def test_arrays_give_back_any_texts(
    tmp_path_factory: pytest.TempPathFactory,
    texts: list[str],
    indent: int | None,
    block: int,
    is_array: bool,
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.json"
    rows = [{"id": [1, {"text": "inner"}], "text": text} for text in texts]
    whole = json.dumps(rows, indent=indent, ensure_ascii=bool(block % 2))
    if block % 3 == 0:  # two arrays, one after the other
        halves = (rows[: block % 5], rows[block % 5 :])
        whole = "\n".join(json.dumps(half, indent=indent) for half in halves)
    if not is_array:
        whole = "\n".join(json.dumps(row, indent=indent) for row in rows) or "\n"
    path.write_text(whole)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "JSON_CHARACTERS", block)
        found = scanned(path)
        parts = [
            list(
                scan(
                    str(path),
                    find_reader(str(path), "file", input_format="json"),
                    FileRange(stripe=n, stripes=2, block=1),
                )
            )
            for n in range(2)
        ]
    assert [document.text for document in found] == texts
    assert sorted(document.position for part in parts for document in part) == [*range(len(texts))]


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 9), st.integers(0, 30), st.sampled_from(['"', "}", "\\", "x", ","]))
def test_a_broken_object_is_counted_and_costs_no_other(
    tmp_path_factory: pytest.TempPathFactory, which: int, at: int, junk: str
) -> None:
    rows = [json.dumps({"text": f"these words are number {n}", "id": n}) for n in range(10)]
    rows[which] = rows[which][: at + 1] + junk + rows[which][at + 2 :]
    path = tmp_path_factory.mktemp("broken") / "a.json"
    path.write_text("[" + ",\n".join(rows) + "]")
    found = scanned(path)
    texts = [document.text for document in found if not document.error_kind]
    lost = [n for n in range(10) if f"these words are number {n}" not in texts]
    assert set(lost) <= {which, which + 1}
    assert not lost or len(found) >= 9


JUNK = [
    "junk",
    "5x",
    "}",
    "a b c",
    "\0\1",
    ";",
    "nope,",
    "{1}",
    '{"text" "x"}',
    "[",
    "{",
    "{[",
    "NUL,NUL",
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(values, st.sampled_from(["", "", *JUNK])), min_size=1, max_size=6),
    st.booleans(),
    st.booleans(),
    st.integers(2, 80),
)
def test_values_behind_garbage_are_read_and_each_garbage_is_counted(
    tmp_path_factory: pytest.TempPathFactory,
    parts: list[tuple[str, str]],
    is_object: bool,
    is_ascii: bool,
    block: int,
) -> None:
    rows = []
    for text, junk in parts:
        rows.append(json.dumps({"text": text} if is_object else text, ensure_ascii=is_ascii))
        rows += [junk] * bool(junk)
    path = tmp_path_factory.mktemp("junk") / "a.json"
    path.write_text("[" + ", ".join(rows) + "]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_files, "JSON_CHARACTERS", block)
        found = scanned(path)
    kept = [document.text for document in found if not document.error_kind]
    assert kept == [text for text, _ in parts]
    bad = sum(bool(document.error_kind) for document in found)
    assert bad >= sum(bool(junk) for _, junk in parts)


def test_an_array_that_is_cut_short_is_counted(tmp_path: Path) -> None:
    whole = json.dumps([{"text": "one"}, {"text": "two"}])
    for size in range(1, len(whole)):
        (tmp_path / "a.json").write_text(whole[:size])
        assert any(document.error_kind for document in scanned(tmp_path / "a.json")), size


def test_a_field_may_be_inside_an_object(tmp_path: Path) -> None:
    row = {"meta": {"body": "deep"}, "a.b": "dotted", "a": {"b": "inner"}}
    (tmp_path / "a.json").write_text(json.dumps([row]))
    assert [document.text for document in scanned(tmp_path / "a.json", "meta.body")] == ["deep"]
    assert [document.text for document in scanned(tmp_path / "a.json", "a.b")] == ["dotted"]
    (missing,) = scanned(tmp_path / "a.json", "meta.text")
    assert missing.error_kind == "no text field"


def test_an_array_of_texts_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'["one", "t\xffo", 3]')
    assert [(each.text, each.error_kind) for each in scanned(tmp_path / "a.json")] == [
        ("one", ""),
        ("", "not valid UTF-8"),
        ("", "no text field"),
    ]


@pytest.mark.parametrize(
    "content", ['[{"text": "a"}]]', '[{"text": "a"}] x]', '[{"text": "a"}]\0]']
)
def test_what_follows_an_array_is_counted_once(tmp_path: Path, content: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(content)
    documents = scan(str(path), find_reader(str(path), "file"))
    found = [document.text or document.error_kind for document in islice(documents, 9)]
    assert found[0] == "a"
    assert set(found[1:]) == {"not valid JSON"}
    assert len(found) < 4


@pytest.mark.parametrize("form", ['["%s", "b"]', '[{"text": "%s"}, {"text": "b"}]'])
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (rb"\ud800", "lone surrogate"),
        (rb"\ud800 \udc85", "lone surrogate"),
        (b"\xff", "not valid UTF-8"),
    ],
)
def test_a_text_that_is_not_unicode_is_counted(
    tmp_path: Path, form: str, text: bytes, kind: str
) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(form.encode() % text)
    found = [(document.text, document.error_kind) for document in scanned(path)]
    assert found == [("", kind), ("b", "")]


BEFORE = {
    "\ufeff": 0,
    "\ufeff\ufeff": 0,
    " \n\ufeff": 0,
    "// made by a program\n": 0,
    "# made by a program\n\n# twice\n": 0,
    "/* made by\n a program */ ": 0,
    "\ufeff// made by a program\n": 0,
    ")]}'\n": 1,
    "var data = ": 1,
    "/* made by": 1,
}


@pytest.mark.parametrize(("before", "counted"), BEFORE.items())
@pytest.mark.parametrize("form", ['[{"text": "a"}, {"text": "b"}]', '["a", "b"]', '[\n"a","b"]'])
def test_what_stands_before_an_array_costs_no_record(
    tmp_path: Path, before: str, counted: int, form: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text(before + form, encoding="utf-8")
    found = scanned(path)
    assert [each.text for each in found if not each.error_kind] == ["a", "b"]
    assert [each.error_kind for each in found if each.error_kind] == ["not valid JSON"] * counted


def test_a_comment_hides_no_value(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('#{"text": "a"}, {"text": "b"}]\n// [{"text": "c"}]\n', encoding="utf-8")
    assert any(each.error_kind for each in scanned(path))
