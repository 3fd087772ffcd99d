"""Each stage drops what its rule says, and says why."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.corpus.clean import check, plain_url, read_links, stages_of
from gptcli.corpus.documents import Document
from gptcli.corpus.extract import plain_text
from gptcli.corpus.recipe import Clean, Links, Source
from gptcli.errors import InputError

PAGE = """<html><head><meta charset="{charset}"><title>T</title></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop</a></li></ul></nav>
<main><article><h1>Rivers</h1><p>{text}</p><p>Its valleys are long and quiet, and people live there.</p></article></main>
<footer>Copyright 2020 All rights reserved</footer></body></html>"""


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_extraction_keeps_the_text_and_drops_what_is_around_it(charset: str) -> None:
    pytest.importorskip("resiliparse")
    text = plain_text(
        PAGE.format(
            charset=charset,
            text="The river Žižka flows past Köln." if charset == "utf-8" else "Am Fluß Köln.",
        ).encode(charset)
    )
    assert ("Žižka" in text) == (charset == "utf-8")
    assert "Köln" in text
    assert "valleys are long" in text
    assert not [word for word in ("Home", "Shop", "Copyright", "<p>") if word in text]


def reasons(source: Source, *documents: Document) -> list[str]:
    stages = stages_of(source, 0, None)
    return [
        next((reason for stage in stages if (reason := stage(document))), "")
        for document in documents
    ]


def test_wikipedia_is_excluded() -> None:
    urls = [
        "https://en.wikipedia.org/wiki/A",
        "http://wikipedia.org",
        "https://notwikipedia.org/",
        "https://a.com/wikipedia.org",
        "",
    ]
    documents = [Document("text", "", url=url) for url in urls]
    assert (
        reasons(Source(inputs=[], exclude_wikipedia=True), *documents)
        == ["wikipedia"] * 2 + [""] * 3
    )
    assert reasons(Source(inputs=[]), *documents, Document(" ", "")) == [""] * 5 + ["blank"]


def test_links_with_karma_of_three(tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text("karma,url\n3,https://a.com/x/\n2,https://b.com\n")
    (tmp_path / "links.jsonl").write_text('{"url": "HTTP://C.com#top", "karma": 9}\n')
    links = Links(files=[str(tmp_path / "links.csv"), str(tmp_path / "links.jsonl")])
    assert read_links(links) == {"a.com/x", "c.com"}
    documents = [
        Document("text", "", url=url)
        for url in ("http://a.com/x#y", "https://b.com", "https://c.com/", "")
    ]
    assert reasons(Source(inputs=[], links=links), *documents) == [
        "",
        "not linked",
        "",
        "not linked",
    ]
    assert plain_url("a.com/") == plain_url("https://A.com#b")
    (tmp_path / "links.csv").write_text("karma,url\nmany,https://a.com/x/\n")
    with pytest.raises(InputError, match=r"links.csv, link 1: a link has a url and a karma"):
        read_links(links)


@pytest.mark.parametrize(
    ("text", "clean", "reason"),
    [
        ("one two three", Clean(min_words=3), ""),
        ("one two three", Clean(min_words=4), "too few words"),
        ("one two three", Clean(max_words=2), "too many words"),
        ("#### {} ab", Clean(max_symbols=0.5), "symbols"),
        ("a fine, short text.", Clean(max_symbols=0.2), ""),
        ("a\nb\nb\nb", Clean(max_repeated_lines=0.4), "repeated lines"),
        ("a\nb\nc\nb", Clean(max_repeated_lines=0.4), ""),
    ],
)
def test_heuristics(text: str, clean: Clean, reason: str) -> None:
    assert check(text, clean) == reason


def test_language() -> None:
    pytest.importorskip("resiliparse")
    english = (
        "The river is known for its long and quiet valleys, in which people have lived for many years. "
        * 3
    )
    german = (
        "Der Fluss ist bekannt für seine langen und stillen Täler, in denen seit vielen Jahren Menschen leben. "
        * 3
    )
    assert [check(text, Clean(language="en")) for text in (english, german)] == ["", "language"]
