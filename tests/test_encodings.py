"""Text that is not UTF-8 is named by what it looks like, with the command that converts it."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.encodings import decode, guess, lost_bytes, utf16_without_mark
from gptcli.errors import InputError

GERMAN = "Der Fluß ist schön, und die Steine auch.\n" * 5


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (GERMAN.encode("utf-16"), "UTF-16"),
        (GERMAN.encode("utf-16-le"), "UTF-16LE"),
        (GERMAN.encode("utf-16-be"), "UTF-16BE"),
        (GERMAN.encode("utf-32"), "UTF-32"),
        (GERMAN.encode("latin-1"), "ISO-8859-1"),
        ("He said \u201cquite so\u201d \u2013 no.\n".encode("cp1252"), "WINDOWS-1252"),
    ],
)
def test_the_likely_encoding_and_how_to_convert_it(
    data: bytes, encoding: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        decode(data, "my text.txt")
    assert (
        f"it looks like {encoding}" in caught.value.what
        or f"the text looks like {encoding}" in caught.value.what
    )
    assert (
        caught.value.hint
        == f"convert it: iconv -f {encoding} -t UTF-8 'my text.txt' > 'my text.utf8.txt'"
    )
    assert data.decode(encoding).lstrip("\ufeff").encode().decode() in (
        GERMAN,
        "He said \u201cquite so\u201d \u2013 no.\n",
    )


@pytest.mark.parametrize(
    ("where", "hint"),
    [
        (
            "books.tar.gz, member a/b.txt",
            "unpack the archive, convert its file with iconv -f ISO-8859-1 -t UTF-8, and name the "
            "folder: books",
        ),
        (
            "my book.txt.gz",
            "convert it: gzip -dc 'my book.txt.gz' | iconv -f ISO-8859-1 -t UTF-8 > "
            "'my book.utf8.txt'",
        ),
        ("b.txt.xz:7", "convert it: xz -dc b.txt.xz | iconv -f ISO-8859-1 -t UTF-8 > b.utf8.txt"),
        ("stdin", "convert it: iconv -f ISO-8859-1 -t UTF-8"),
    ],
)
def test_the_conversion_can_be_done_where_the_text_is(where: str, hint: str) -> None:
    with pytest.raises(InputError) as caught:
        decode(GERMAN.encode("latin-1"), where)
    assert caught.value.hint == hint


def test_the_byte_is_that_of_the_file() -> None:
    with pytest.raises(
        InputError, match=r"a\.txt:21: not valid UTF-8 at byte 207: it looks like ISO-8859-1"
    ):
        decode("Der Fluß".encode("latin-1"), "a.txt:21", start=200)


@pytest.mark.parametrize("start", [b"PK\x03\x04", b"%PDF-", b"\x1f\x8b", b"\x89PNG", b"GGUF"])
def test_files_that_are_no_text(start: bytes) -> None:
    with pytest.raises(InputError, match=r"not valid UTF-8 at byte \d+: it looks like"):
        decode(start + b"\xff\xfe\x00\x9c", "a.txt")


@pytest.mark.parametrize(
    "data", ["吾輩は猫である".encode("shift_jis"), "Привет".encode("koi8-r"), bytes(range(256))]
)
def test_no_encoding_is_named_where_none_is_likely(data: bytes) -> None:
    assert guess(data) is None


@given(st.text())
def test_text_in_utf8_is_read_as_it_is(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    try:
        data.decode()
    except UnicodeDecodeError:
        return
    if utf16_without_mark(data) is None and not lost_bytes(data):
        assert decode(data, "a") == text.removeprefix("\ufeff")


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
def test_text_without_nul_never_passes_for_utf16(text: str) -> None:
    assert utf16_without_mark(text.encode()) is None


@given(st.binary(max_size=64))
def test_any_bytes_are_text_or_one_message(data: bytes) -> None:
    with contextlib.suppress(InputError):
        assert isinstance(decode(data, "a.txt"), str)


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b"a" + bytes(4) + b"b", "4 zero bytes from byte 8 on"),
        (b"river" + bytes(5000), "5,000 zero bytes from byte 12 on"),
        (bytes(64) + b"river" + bytes(64), "64 zero bytes from byte 7 on"),
        (b"\0", "1 zero byte from byte 7 on"),
        ("\N{SNOWMAN}" + "\0" * 7, "7 zero bytes from byte 10 on"),
    ],
)
def test_zeros_where_bytes_were_lost_are_found(data: bytes | str, place: str) -> None:
    assert lost_bytes(data, start=7) == f"{place}: what stood there is lost"
    with pytest.raises(InputError, match="zero byte"):
        decode(data if isinstance(data, bytes) else data.encode(), "a.txt")


@pytest.mark.parametrize("data", [b"", "", b"a\0b", b"\0\0\0a", "a\0\0\0", "a".encode("utf-32")])
def test_a_text_may_have_a_few_zeros(data: bytes | str) -> None:
    assert not lost_bytes(data)
