"""Detokenizers give ordinary text and are inverted to the byte."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.text.detokenize import DETOKENIZERS, JOINER, detokenize_book

PIECES = [
    "word", "Mr.", "U.S.", "approx.", "1", "000", "s", "players", "@-@", "@,@", "@.@", ",", ".", ";", "?", "...", "(", ")", "[", "]", '"',
    "'", "'s", "n't", "does", "$", "%", "N", "<unk>", "=", "-", "a-b", "1,000", "don't", '5"', "x,", "",
    JOINER, f"a{JOINER}b", "\t", "é", "\u00a0",
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "tokenised", "text"),
    [
        ("wikitext", ' He had a guest @-@ role as " Craig " in 3 @.@ 5 % of 1 @,@ 000 ( the U.S. ) , for $ 5 . ',
         'He had a guest-role as "Craig" in 3.5% of 1,000 (the U.S.), for $5.'),
        ("wikitext", " Mr. Lee saw the players ' Teddy 's house ; no . 1 ? ",
         "Mr. Lee saw the players' Teddy's house; no. 1?"),
        ("wikitext", " = = Title = = ", "= = Title = ="),
        ("wikitext", " \n", "\n"),
        ("ptb", " it was n't the company 's $ N <unk> n.v. 's ", "it wasn't the company's $N <unk> n.v.'s"),
        ("1bw", "Mr. McCain , who shares the \" Al Capone \" approach , ca n't say that 's $ 7.3bn .",
         'Mr. McCain, who shares the "Al Capone" approach, can\'t say that\'s $7.3bn.'),
    ],
)  # fmt: skip
def test_detokenized_text_is_ordinary_text(name: str, tokenised: str, text: str) -> None:
    assert DETOKENIZERS[name].detokenize(tokenised) == text
    assert DETOKENIZERS[name].tokenize(text) == tokenised


@pytest.mark.parametrize("name", ["wikitext", "ptb", "1bw"])
@given(
    lines=st.lists(
        st.lists(st.sampled_from(PIECES), max_size=12).map(" ".join) | st.text(max_size=20),
        max_size=4,
    ),
    ends=st.booleans(),
    padded=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_tokenize_inverts_detokenize(name: str, lines: list[str], ends: bool, padded: bool) -> None:
    text = "\n".join(f" {line} " if padded else line for line in lines) + ("\n" if ends else "")
    assert DETOKENIZERS[name].tokenize(DETOKENIZERS[name].detokenize(text)) == text


def test_units_are_words_and_newlines_or_bytes_or_characters() -> None:
    text = " = Title = \n \n na\u00efve . \n"
    assert DETOKENIZERS["wikitext"].units(text) == 3 + 2 + 3
    assert DETOKENIZERS["bytes"].units(text) == len(text) + 1
    assert DETOKENIZERS["characters"].units(text) == len(text)
    assert DETOKENIZERS["bytes"].tokenize(DETOKENIZERS["bytes"].detokenize(text)) == text


def test_detokenize_book_gives_running_text() -> None:
    tokens = "`` I do n't , '' said he -LRB- the ogre 's son -RRB- ; ` so what ? '"
    assert detokenize_book(tokens) == "\"I don't,\" said he (the ogre's son); 'so what?'"


@pytest.mark.real_data
@pytest.mark.parametrize(("file", "units"), [("test.txt", 245_569), ("valid.txt", 217_646)])
def test_wikitext_2_is_restored_to_the_byte(real_data: Path, file: str, units: int) -> None:
    text = (real_data / "wikitext-2" / file).read_text(encoding="utf-8")
    wikitext = DETOKENIZERS["wikitext"]
    assert wikitext.units(text) == units
    plain = wikitext.detokenize(text)
    assert wikitext.tokenize(plain) == text
    for line in text.splitlines():
        assert wikitext.tokenize(wikitext.detokenize(f"{line}\n")) == f"{line}\n"
    assert plain.count(JOINER) < 20  # ordinary text, except for a few words
    assert " @-@ " not in plain


@pytest.mark.real_data
def test_other_published_files_are_restored_to_the_byte(real_data: Path) -> None:
    files = {
        "ptb": "hf-dummy/ptb*/dummy_data/*.txt",
        "1bw": "hf-dummy/lm1b*/dummy_data/*/*/news*",
        "wikitext": "hf-dummy/wikitext*/dummy_data/*/wiki*",
    }
    for name, pattern in files.items():
        found = list(real_data.glob(pattern))
        assert found
        for file in found:
            text = file.read_text(encoding="utf-8")
            assert DETOKENIZERS[name].tokenize(DETOKENIZERS[name].detokenize(text)) == text
