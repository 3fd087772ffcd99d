"""Pages become text: what is written there, without what stands around it."""

from __future__ import annotations

import sys

import pytest

from gptcli.corpus.extract import EXTRACTORS, plain_text
from gptcli.errors import InputError

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
def test_the_article_stays_and_what_surrounds_it_goes(extractor: str, charset: str) -> None:
    text = plain_text(PAGE.format(charset=charset).encode(charset), extractor)
    assert text.count(SENTENCE.strip()) == 5
    assert "Größe: naïve." in text
    assert not [word for word in ("Shop now", "Copyright", "hidden", "<p>") if word in text]
    assert all(line.strip() for line in text.splitlines())
    assert plain_text(PAGE.format(charset=charset), extractor) == text  # decoded before


@pytest.mark.parametrize(
    "page", [b"", b"<html><body></body></html>", b"\xff\xfe\x00", b"<p>a\x00b</p>"]
)
def test_pages_without_an_article(extractor: str, page: bytes) -> None:
    text = plain_text(page, extractor)
    assert "\x00" not in text
    assert "<" not in text


@pytest.mark.parametrize("missing", ["resiliparse.parse.encoding", "trafilatura"])
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    pytest.importorskip("resiliparse")
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        InputError, match=f"needs the package (\\w+)\n.* pip install {missing.split('.')[0]}$"
    ):
        plain_text("<p>text</p>", "trafilatura")
