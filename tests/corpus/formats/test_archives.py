"""Files inside tar and zip are read as files of their own would be, and what is left out is counted."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Literal

import pytest

from gptcli.corpus.documents import Document
from gptcli.corpus.formats import archives, find_format, find_reader, read_documents, scan
from gptcli.corpus.input_search import find_inputs
from gptcli.errors import InputError

FILES = {
    "a/one.txt": b"one",
    "a/two.jsonl": b'{"text": "two"}\n{"text": "three"}\nbroken\n',
    "b/three.csv": b"id,text\n1,four\n",
    "b/four.jsonl.gz": gzip.compress(b'{"text": "five"}\n'),
    "source.py": b"print('six')",
    "page": b"<!doctype html><html><body><p>seven</p></body></html>",
}
LEFT_OUT = {
    "picture.png": b"\x89PNG\r\n\x1a\n",
    ".hidden/a.txt": b"hidden",
    "inner.zip": b"PK\x05\x06" + bytes(18),
    "empty.txt": b"",
    "paper.pdf": b"%PDF-1.4",
}


def tar_of(files: dict[str, bytes], form: Literal[0, 1, 2] = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def zip_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return out.getvalue()


def scanned(path: Path, **settings: str) -> list[Document]:
    return list(scan(str(path), find_reader(str(path), "file", **settings)))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.tar.gz", "a.zip", "noname"])
def test_each_member_is_read_in_its_format(tmp_path: Path, name: str) -> None:
    data = (zip_of if name == "a.zip" else tar_of)(FILES | LEFT_OUT)
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if "gz" in name else data)
    found = scanned(path)
    assert [document.text for document in found if not document.error_kind] == [
        *("one", "two", "three", "four", "five", "print('six')", "")
    ]
    assert found[7].html is not None
    kinds = [document.error_kind for document in found if document.error_kind]
    assert kinds == ["not valid JSON", *["left out of an archive"] * len(LEFT_OUT)]
    assert [document.position for document in found] == list(range(len(found)))
    assert "member b/three.csv" in found[4].where
    assert "left out: a .pdf file" in str(found[-1].error)
    if name != "noname":
        assert find_inputs([str(tmp_path)]) == [str(path)]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names_of_every_form_of_tar(tmp_path: Path, form: Literal[0, 1, 2]) -> None:
    folder = "/".join(["folder"] * 12)
    names = [f"{folder}/a.txt", "é.txt"] + (
        [] if form == tarfile.USTAR_FORMAT else [f"{folder * 4}/{'b' * 90}.txt"]
    )
    (tmp_path / "a.tar").write_bytes(tar_of({name: name.encode() for name in names}, form))
    found = scanned(tmp_path / "a.tar")
    assert [document.text for document in found] == names
    assert [document.where.partition(", member ")[2] for document in found] == names


def test_links_are_counted_and_folders_are_not(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, kind in (("folder", tarfile.DIRTYPE), ("link", tarfile.SYMTYPE)):
            member = tarfile.TarInfo(name)
            member.type = kind
            archive.addfile(member)
    (one,) = scanned(tmp_path / "a.tar")
    assert "a link or a device" in str(one.error)
    with tarfile.open(tmp_path / "c.tar", "w", format=tarfile.GNU_FORMAT) as archive:
        member = tarfile.TarInfo("image.txt")
        member.type = tarfile.GNUTYPE_SPARSE
        archive.addfile(member)
    (one,) = scanned(tmp_path / "c.tar")
    assert "a file with holes" in str(one.error)
    (tmp_path / "b.tar").write_bytes(tar_of({}))
    (one,) = scanned(tmp_path / "b.tar")
    assert "the archive has no files" in str(one.error)


@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_the_map_of_a_file_with_holes_costs_no_member_after_it(tmp_path: Path, blocks: int) -> None:
    """GNU tar writes 21 holes to a block of its own if there are more than four (`tar -S`)."""
    member = tarfile.TarInfo("image.txt")
    member.type, member.size = tarfile.GNUTYPE_SPARSE, 5
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[482] = blocks > 0
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    maps = [bytes(504) + bytes([left > 1]) + bytes(7) for left in range(blocks, 0, -1)]
    rest = tar_of({"after.txt": b"a text"}, tarfile.GNU_FORMAT)
    data = b"".join([bytes(header), *maps, b"bytes" + bytes(507), rest])
    (tmp_path / "a.tar").write_bytes(data)
    holes, after = scanned(tmp_path / "a.tar")
    assert "a file with holes" in str(holes.error)
    assert after.text == "a text"


def test_a_format_that_is_asked_for_is_that_of_every_member(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(
        zip_of({"a.log": b'{"text": "one"}\n', "b": b'{"text": "two"}'})
    )
    found = scanned(tmp_path / "a.zip", input_format="zip")
    assert [document.text for document in found] == ["one", "two"]
    (tmp_path / "a.zip").write_bytes(zip_of({"a.log": b'{"a": 1}'}))
    reader = find_reader(str(tmp_path / "a.zip"), "file", input_format="zip")
    assert next(scan(str(tmp_path / "a.zip"), reader)).error_kind == "no text field"


def test_a_damaged_tar_costs_no_other_member(tmp_path: Path) -> None:
    """Whatever is flipped, removed or inserted: the members it does not touch are read."""
    files = {f"{number}.txt": f"{number} ".encode() * 300 for number in range(12)}
    data, path = tar_of(files), tmp_path / "a.tar"
    random = Random(1)
    for _ in range(150):
        at, size = random.randrange(len(data)), random.choice([1, 20, 600])
        how = random.choice(["flip", "remove", "insert"])
        middle = {"flip": random.randbytes(size), "remove": b"", "insert": random.randbytes(size)}
        skipped = 0 if how == "insert" else size
        path.write_bytes(data[:at] + middle[how] + data[at + skipped :])
        found = scanned(path)
        texts = {document.text for document in found if not document.error_kind}
        lost = [text for text in files.values() if text.decode() not in texts]
        bad = len(found) - len(files) + len(lost)
        assert len(lost) <= 3, (at, how, size)
        assert bad >= 0
        assert not lost or any(
            document.error_kind or document.text.encode() not in files.values()
            for document in found
        ), (at, how, size)


def test_a_tar_that_is_cut_short_is_counted(tmp_path: Path) -> None:
    files = {f"{number}.txt": f"{number} ".encode() * 300 for number in range(5)}
    data = tar_of(files)
    for stop in range(1, 5 * 1536, 97):
        (tmp_path / "a.tar").write_bytes(data[:stop])
        found = scanned(tmp_path / "a.tar", input_format="tar")
        assert found[-1].error_kind == "damaged member", stop
        whole = [document.text for document in found if not document.error_kind]
        assert whole == [text.decode() for text in list(files.values())[: len(whole)]], stop
        assert len(found) == len(whole) + 1, "counted once"


@pytest.mark.parametrize("stop", [40, 200, -30])
def test_a_compressed_tar_whose_stream_is_cut_short_is_counted(tmp_path: Path, stop: int) -> None:
    """The stream may end before the first header, or where another one is expected."""
    files = {f"{number}.txt": Random(number).randbytes(700).hex().encode() for number in range(5)}
    path = tmp_path / "a.tar.xz"
    path.write_bytes(lzma.compress(tar_of(files))[:stop])
    found = scanned(path)
    whole = [document.text for document in found if not document.error_kind]
    assert whole == [text.decode() for text in list(files.values())[: len(whole)]]
    assert [document.error_kind for document in found[len(whole) :]] == ["damaged member"]


@pytest.mark.parametrize("ending", [".gz", ".xz"])
def test_damage_of_a_compressed_tar_is_counted_once(tmp_path: Path, ending: str) -> None:
    """Wherever the stream is cut; where one of its parts is damaged, those behind it are read."""
    files = {f"{number}.txt": Random(number).randbytes(900).hex().encode() for number in range(6)}
    data = tar_of(files)
    compress: Callable[[bytes], bytes] = gzip.compress if ending == ".gz" else lzma.compress
    path = tmp_path / f"a.tar{ending}"
    whole = compress(data)
    for stop in range(60, len(whole), 41):
        path.write_bytes(whole[:stop])
        kinds = [document.error_kind for document in scanned(path)]
        assert kinds.count("damaged member") == 1, stop
        assert kinds[-1] == "damaged member", stop
    parts = [compress(data[start : start + 2000]) for start in range(0, len(data), 2000)]
    for number, part in enumerate(parts[:6]):
        at = len(part) // 2
        parts[number] = part[:at] + bytes([part[at] ^ 1]) + part[at + 1 :]
        path.write_bytes(b"".join(parts))
        parts[number] = part
        found = scanned(path)
        texts = [document.text for document in found if not document.error_kind]
        lost = [text for text in files.values() if text.decode() not in texts]
        assert len(lost) <= 2, number
        assert len(found) - len(texts) == 1, number


def test_a_damaged_member_of_a_zip_costs_no_other(tmp_path: Path) -> None:
    lines = {
        f"{name}.jsonl": "".join(
            json.dumps({"text": f"{name} {number} {Random(number).random()}"}) + "\n"
            for number in range(50)
        ).encode()
        for name in "abc"
    }
    data = zip_of(lines)
    at = data.index(b"b.jsonl") + 300
    (tmp_path / "a.zip").write_bytes(data[:at] + b"\xff\xff\xff" + data[at + 3 :])
    found = scanned(tmp_path / "a.zip")
    assert sum(document.text.startswith("a ") for document in found) == 50
    assert sum(document.text.startswith("c ") for document in found) == 50
    assert any(document.error_kind == "damaged member" for document in found)
    (tmp_path / "a.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="the archive is damaged"):
        scanned(tmp_path / "a.zip")


def test_a_zip_that_would_unpack_to_far_more_than_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "ALWAYS_ALLOWED_BYTES", 1 << 16)
    (tmp_path / "a.zip").write_bytes(zip_of({"a.txt": bytes(1 << 20)}))
    with pytest.raises(InputError, match="would unpack to 1,048,576 bytes"):
        list(read_documents(str(tmp_path / "a.zip")))


def test_archives_are_recognized_by_their_first_bytes(tmp_path: Path) -> None:
    for name, data in (("one", tar_of(FILES)), ("two", zip_of(FILES))):
        (tmp_path / name).write_bytes(data)
    assert find_format(str(tmp_path / "one")) == "tar"
    assert find_format(str(tmp_path / "two")) == "zip"


def test_lz4_is_read(tmp_path: Path) -> None:
    frame = pytest.importorskip("lz4.frame")
    data = frame.compress(b"one\n") + frame.compress(b"two\n", content_checksum=True)
    path = tmp_path / "a.txt.lz4"
    path.write_bytes(data)
    (one,) = scanned(path)
    assert one.text == "one\ntwo\n"
    path.write_bytes(data[:-5])
    with pytest.raises(InputError, match="cut short"):
        scanned(path)
    (tmp_path / "a.tar.lz4").write_bytes(frame.compress(tar_of(FILES)))
    assert scanned(tmp_path / "a.tar.lz4")[0].text == "one"


@pytest.mark.parametrize(
    "kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_a_member_without_content_takes_none_whatever_its_size(tmp_path: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("other")
    member.type, member.size, member.linkname = kind, 4096, "a.txt"
    path = tmp_path / "a.tar"
    path.write_bytes(member.tobuf() + tar_of({"a.txt": b"alpha"}))
    texts = [document.text for document in scanned(path) if document.error is None]
    assert texts == ["alpha"]
    assert {document.error_kind for document in scanned(path)} <= {"", "left out of an archive"}


def test_a_negative_size_in_a_tar_is_damage_that_costs_no_other_member(tmp_path: Path) -> None:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, headers in (("a.txt", {"size": "-5"}), ("b.txt", {})):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = 4, headers
            archive.addfile(member, io.BytesIO(b"text"))
    path = tmp_path / "a.tar"
    path.write_bytes(content.getvalue())
    found = [(document.text, document.error_kind) for document in scanned(path)]
    assert found == [("", "damaged member"), ("text", "")]


def test_a_link_in_a_zip_is_no_text(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link.txt")
    link.create_system, link.external_attr = 3, 0o120777 << 16
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "alpha")
        archive.writestr(link, "a.txt")
    found = [(document.text, document.error_kind) for document in scanned(path)]
    assert found == [("alpha", ""), ("", "left out of an archive")]


def test_zeros_between_the_files_of_a_tar_are_files_that_were_lost(tmp_path: Path) -> None:
    files = {f"{number}.txt": f"{number} ".encode() * 300 for number in range(39)}
    data, path = tar_of(files), tmp_path / "a.tar"
    size = 512 + 1024  # of a file with its header
    for first, count in ((0, 1), (3, 1), (3, 4), (3, 30), (37, 1)):
        start, stop = first * size, (first + count) * size
        path.write_bytes(data[:start] + bytes(stop - start) + data[stop:])
        found = scanned(path, input_format="tar")
        assert [document.error_kind for document in found if document.error_kind] == [
            "damaged member"
        ], (first, count)
        assert len(found) == len(files) - count + 1
    # Up to the end, they are padding, but no longer than a record may be.
    for count in (1, 30):
        start = (39 - count) * size
        path.write_bytes(data[:start] + bytes(len(data) - start))
        assert (scanned(path)[-1].error_kind == "damaged member") == (count == 30)


@pytest.mark.parametrize("blocking", [1, 20])
def test_tar_archives_in_a_row_are_read_as_one(tmp_path: Path, blocking: int) -> None:
    path, data = tmp_path / "a.tar", b""
    for number in range(9):
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            member = tarfile.TarInfo(f"{number}.txt")
            member.size = 700 * number + 5
            archive.addfile(member, io.BytesIO(b"a" * member.size))
            end = archive.offset
        data += out.getvalue() if blocking == 20 else out.getvalue()[: end + 1024]
    path.write_bytes(data)
    found = scanned(path)
    assert [document.error_kind for document in found] == [""] * 9
    # A record of another size fills the last one.
    path.write_bytes(data + bytes(-len(data) % (512 * 64)))
    assert [document.error_kind for document in scanned(path)] == [""] * 9


def test_files_before_those_of_a_zip_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    first, second = zip_of({"a.txt": b"one"}), zip_of({"b.txt": b"two"})
    for before, kinds in (
        (first, ["damaged member", ""]),
        (bytes(4096), ["damaged member", ""]),
        (b"#!/bin/sh\nexec unzip\n", [""]),
    ):
        path.write_bytes(before + second)
        found = scanned(path, input_format="zip")
        assert [document.error_kind for document in found] == kinds
        assert found[-1].text == "two"


def test_a_zip_whose_table_has_a_name_of_zeros_is_damaged(tmp_path: Path) -> None:
    data = zip_of({"a.txt": b"one", "b.txt": b"two"})
    at = data.rindex(b"b.txt")
    (tmp_path / "a.zip").write_bytes(data[:at] + bytes(5) + data[at + 5 :])
    found = scanned(tmp_path / "a.zip")
    assert [document.error_kind for document in found] == ["", "damaged member"]
