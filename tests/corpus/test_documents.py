"""A bad document has a short kind of error to count by and a full message to read; HTML pages become
text without navigation.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gptcli.corpus.documents import (
    EXTRACTORS,
    Document,
    Extractor,
    _may_be_deep,
    bad_document,
    extract_text,
    flattened,
    stopping,
)
from gptcli.errors import InputError
from tests.run_python import run_python


def test_a_bad_document_says_what_and_where() -> None:
    document = bad_document(
        "not valid JSON", "not valid JSON at column 3", "a.jsonl:7", 120, hint="mend it"
    )
    assert (document.text, document.error_kind, document.position) == ("", "not valid JSON", 120)
    assert str(document.error) == "a.jsonl:7: not valid JSON at column 3\n  mend it"


@pytest.mark.parametrize("hint", [None, "mend it", "or {option:on_error} skip"])
def test_an_error_that_ends_reading_says_once_how_to_go_on_without_it(hint: str | None) -> None:
    error = stopping(stopping(InputError("is damaged", where="a.tar", hint=hint)))
    assert error.message.count("{option:on_error} skip") == 1
    assert hint is None or error.message.startswith(f"a.tar is damaged\n  {hint}")


def test_a_document_has_no_error_by_default() -> None:
    document = Document("text", "a.txt")
    assert (document.error_kind, document.error, document.html, document.url) == (
        "",
        None,
        None,
        "",
    )


SENTENCE = (
    "The seventh of these bridges is the oldest, and was built of stone where the river is narrow. "
)
PAGE = f"""<html><head><title>Bridges</title><meta charset="{{charset}}"><script>var hidden = 1;</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop now</a></li></ul></nav>
<main><article><h1>Bridges</h1><p>{SENTENCE * 3}</p><p>{SENTENCE * 2}Größe: naïve.</p></article></main>
<footer>Copyright 2019 by nobody</footer></body></html>"""


@pytest.fixture(params=EXTRACTORS)
def extractor(request: pytest.FixtureRequest) -> str:
    pytest.importorskip(request.param)
    return str(request.param)


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_the_article_is_kept_without_what_surrounds_it(extractor: Extractor, charset: str) -> None:
    text = extract_text(PAGE.format(charset=charset).encode(charset), extractor)
    assert text.count(SENTENCE.strip()) == 5
    assert "Größe: naïve." in text
    assert not [word for word in ("Shop now", "Copyright", "hidden", "<p>") if word in text]
    assert all(line.strip() for line in text.splitlines())
    assert extract_text(PAGE.format(charset=charset), extractor) == text  # decoded before


@pytest.mark.parametrize(
    "page", [b"", b"<html><body></body></html>", b"\xff\xfe\x00", b"<p>a\x00b</p>"]
)
def test_pages_without_an_article_become_plain_text(extractor: Extractor, page: bytes) -> None:
    text = extract_text(page, extractor)
    assert "\x00" not in text
    assert "<" not in text


@pytest.mark.parametrize("missing", ["resiliparse.parse.encoding", "trafilatura"])
def test_a_missing_extractor_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    pytest.importorskip("resiliparse")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        InputError, match=f"needs the package (\\w+)\n.* pip install {missing.split('.')[0]}$"
    ):
        extract_text(b"<p>text</p>", "trafilatura")


def test_a_page_that_is_nested_without_end_is_flattened() -> None:
    pytest.importorskip("resiliparse")
    words = "Words of the page, and some more of them."
    deep = "<div>" * 50_000 + f"<p>{words}</p>" + "</div>" * 50_000
    assert flattened(deep).count("<div>") == 1000 == flattened(deep).count("</div>")
    assert extract_text(deep) == words
    flat = "<ul>" + "<li><p>one<br>" * 5000 + "</ul>" + "<div><b>two</b></div>" * 5000
    assert flattened(flat) == flat
    assert _may_be_deep(deep.encode())
    assert not _may_be_deep(b"<div><b>two</b></div>" * 5000)
    assert not _may_be_deep(b"</div>" * 5000 + b"<div>" * 1000 + b"<" * 5000)
    assert _may_be_deep(b"</div>" * 5000 + b"<div>" * 1001)
    assert flattened("<a" * 100_000 + "<div" * 100_000) == "<a" * 100_000 + "<div" * 100_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells the peak")
def test_a_long_page_takes_few_times_its_size(tmp_path: Path) -> None:
    """A record of 20 MB, in characters that Python keeps in two bytes: 5.5 times that were seen."""
    pytest.importorskip("resiliparse")
    paragraph = f"<p>{'wört 日本 plain text ' * 40}</p>\n".encode()
    page = b"<meta charset=utf-8><main>" + paragraph * (20_000_000 // len(paragraph))
    response = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + page
    path = tmp_path / "a.warc"
    path.write_bytes(
        b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\n"
        b"Content-Length: %d\r\n\r\n%s\r\n\r\n" % (len(response), response)
    )
    program = """if True:
        import sys
        from gptcli.corpus.formats import read_documents
        from gptcli.corpus.documents import extract_text

        def memory(name):
            with open("/proc/self/status") as file:
                return next(int(line.split()[1]) << 10 for line in file if line.startswith(name))

        extract_text(b"<p>text</p>" * 2000)
        before = memory("VmRSS")
        (text,) = [document.text for document in read_documents(sys.argv[1])]
        print(len(text), memory("VmHWM") - before)
    """
    characters, peak = map(int, run_python("-c", program, path, cwd=tmp_path, started=True).split())
    assert characters > 15_000_000
    assert peak < 7 * len(page)
