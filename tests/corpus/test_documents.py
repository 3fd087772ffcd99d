"""A flawed document carries what is wrong with it, in few words to count by and in one message to
read.
"""

from __future__ import annotations

from gptcli.corpus.documents import Document, flawed


def test_a_flawed_document_says_what_and_where() -> None:
    document = flawed(
        "not valid JSON", "not valid JSON at column 3", "a.jsonl:7", 120, hint="mend it"
    )
    assert (document.text, document.flaw, document.position) == ("", "not valid JSON", 120)
    assert str(document.error) == "a.jsonl:7: not valid JSON at column 3\n  mend it"


def test_a_document_has_no_flaw_by_itself() -> None:
    document = Document("text", "a.txt")
    assert (document.flaw, document.error, document.html, document.url) == ("", None, None, "")
