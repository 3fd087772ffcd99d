"""Rows of CSV and Parquet files are documents, and broken rows are counted."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.corpus.formats import find_reader, scan
from gptcli.errors import InputError
from tests.corpus.formats.scanning import error_kinds, scanned


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = ["one", None, "", "Grüße", *map(str, range(3000))]
    parquet.write_table(
        pyarrow.table({"text": texts, "id": [7] * len(texts)}),
        tmp_path / "a.parquet",
        row_group_size=1000,
    )
    rows = scanned(tmp_path / "a.parquet")
    assert [row.text for row in rows if not row.error_kind] == [
        text for text in texts if text is not None
    ]
    assert [row.position for row in rows] == list(range(len(texts)))
    assert [row.error_kind for row in rows[:3]] == ["", "no text field", ""]
    parquet.write_table(pyarrow.table({"words": texts}), tmp_path / "b.parquet")
    assert error_kinds(tmp_path / "b.parquet") == ["no text field"] * len(texts)
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "c.parquet").write_bytes(data[:-9])
    with pytest.raises(InputError, match=r"c.parquet: the file is damaged"):
        scanned(tmp_path / "c.parquet")


def test_csv_rows_are_documents(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        '\ufeffid,text,url\n1,"two\nlines, ""quoted""",http://a\n2,\n3,Grüße,\n4,caf'.encode()
        + b"\xe9,\n"
    )
    rows = scanned(tmp_path / "a.csv")
    assert [row.text for row in rows] == ['two\nlines, "quoted"', "", "Grüße", ""]
    assert [row.error_kind for row in rows] == ["", "no text field", "", "not valid UTF-8"]
    assert rows[0].url == "http://a"
    (tmp_path / "b.csv").write_text("a,b\n1,2\n")
    assert error_kinds(tmp_path / "b.csv") == ["no text field"]


def test_a_quote_that_is_never_closed_is_counted_and_swallows_nothing(tmp_path: Path) -> None:
    rows = [f'{n},"words {n}"' for n in range(29)]
    rows[1] = '1,"words 1'
    (tmp_path / "a.csv").write_text("id,text\n" + "\n".join(rows) + "\n")
    found = scanned(tmp_path / "a.csv")
    assert len(found) == 29
    assert [row.position for row in found if row.error_kind] == [1]
    assert found[1].where.endswith(":3")
    (tmp_path / "b.csv").write_text('id,text\n1,a\n2,"b\n3,c\n')
    (flaw,) = [row for row in scanned(tmp_path / "b.csv") if row.error_kind]
    assert "b.csv:3: not valid CSV: the quote is never closed" in str(flaw.error)


def test_a_quote_that_takes_in_rows_costs_none_of_them(tmp_path: Path) -> None:
    """The open quote of row 0 meets those of row 4, which makes one row of three columns."""
    path = tmp_path / "a.csv"
    path.write_text('id,text\n0," \n1,é\n2,\n3,é\n4,""",éé"\n')
    found = scanned(path)
    assert [row.text for row in found] == ["", "é", "", "é", '",éé']
    assert [row.where.rpartition(":")[2] for row in found] == ["2", "3", "4", "5", "6"]
    assert "a quote opens a row of 3 columns, but the header has 2" in str(found[0].error)
    path.write_text('id,"text\n0,a\n1,"b"\n')
    with pytest.raises(InputError, match="its header"):
        scanned(path)


def test_tsv_takes_a_quote_as_it_stands_where_it_opens_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text('id\ttext\n1\t"Hello, he said\n2\t"two\nlines"\n3\t5" x 7"\n')
    assert scanned(tmp_path / "a.tsv")[0].text == '"Hello, he said'
    assert scanned(tmp_path / "a.tsv")[-1].text == '5" x 7"'


def test_two_columns_of_one_name_are_counted(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = [pyarrow.array(["one", "two"])] * 2
    table = pyarrow.Table.from_arrays(columns, names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,text\none,one\ntwo,two\n")
    for name in ("a.parquet", "a.csv"):
        found = scanned(tmp_path / name)
        assert ["2 columns are called text" in str(row.error) for row in found] == [True, True]


def test_a_parquet_field_may_be_inside_a_struct(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"body": "one"}, {"body": None}, None]
    parquet.write_table(pyarrow.table({"meta": rows}), tmp_path / "a.parquet")
    path = str(tmp_path / "a.parquet")
    found = list(scan(path, find_reader(path, "file", "meta.body")))
    assert [(row.text, row.error_kind) for row in found] == [
        ("one", ""),
        ("", "no text field"),
        ("", "no text field"),
    ]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_compressed_parquet_file_is_read(tmp_path: Path, ending: str) -> None:
    import zstandard

    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    texts = [str(number) for number in range(3000)]
    parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", row_group_size=1000)
    compress: dict[str, Callable[[bytes], bytes]] = {
        ".gz": gzip.compress,
        ".zst": zstandard.compress,
    }
    data = compress[ending]((tmp_path / "a.parquet").read_bytes())
    path = tmp_path / f"b.parquet{ending}"
    path.write_bytes(data)
    assert [row.text for row in scanned(path)] == texts
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="cut short"):
        scanned(path)


def test_parquet_strings_that_are_not_utf8_are_counted(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    bad = pyarrow.array([b"one", b"\xff\xfe", b"two"]).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"text": bad}), tmp_path / "a.parquet")
    assert error_kinds(tmp_path / "a.parquet") == ["", "not valid UTF-8", ""]


def test_a_failing_disk_is_not_reported_as_a_damaged_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A damaged input ends a build for good; a failing disk must leave what was built."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"text": ["one"]}), tmp_path / "a.parquet")

    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(parquet, "ParquetFile", fail)
    with pytest.raises(OSError, match="Input/output") as caught:
        scanned(tmp_path / "a.parquet")
    assert not isinstance(caught.value, InputError)


def test_parquet_column_names_that_are_not_utf8_are_damage(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(
        pyarrow.table({"text": ["one"], "zzzz": ["two"]}),
        tmp_path / "a.parquet",
        store_schema=False,
    )
    data = (tmp_path / "a.parquet").read_bytes()
    (tmp_path / "a.parquet").write_bytes(data.replace(b"zzzz", b"\xff\xfezz"))
    with pytest.raises(InputError, match="the file is damaged"):
        scanned(tmp_path / "a.parquet")
