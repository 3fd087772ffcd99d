"""BLEU by each tokenisation, beside direct calls of the packages."""

from __future__ import annotations

import pytest
import sacrebleu

from gptcli.evals.bleu import bleu, bleu_stderr

PREDICTED = ["The cat - it sat, here.", "It's 5% of \u201call\u201d men.", "A dog ran home."]
REFERENCES = [["The cat sat here."], ['It\'s 5 % of "all" the men.'], ["A dog ran to its home."]]


@pytest.mark.parametrize(("name", "tokens"), [("bleu", "13a"), ("bleu_intl", "intl")])
def test_sacrebleu_with_its_tokenisation(name: str, tokens: str) -> None:
    value, signature = bleu(PREDICTED, REFERENCES, "en", name)
    columns = [[texts[0] for texts in REFERENCES]]
    assert value == pytest.approx(sacrebleu.corpus_bleu(PREDICTED, columns, tokenize=tokens).score)
    assert f"tok:{tokens}" in signature
    assert "smooth:exp" in signature


def test_multi_bleu_is_bleu_of_words_by_moses() -> None:
    moses = pytest.importorskip("sacremoses")
    value, signature = bleu(PREDICTED, REFERENCES, "en", "multi_bleu")
    normal, words = moses.MosesPunctNormalizer("en"), moses.MosesTokenizer("en")

    def tokens(text: str) -> str:
        text = normal.normalize(normal.replace_unicode_punct(text))
        return str(words.tokenize(text, return_str=True, escape=False))

    expected = sacrebleu.corpus_bleu(
        [tokens(text) for text in PREDICTED],
        [[tokens(texts[0]) for texts in REFERENCES]],
        tokenize="none",
        smooth_method="none",
        force=True,
    )
    assert value == pytest.approx(expected.score)
    assert signature.endswith("moses.en")
    assert bleu_stderr(PREDICTED, REFERENCES, "en", "multi_bleu") is not None


def test_romanian_loses_its_diacritics_as_in_xlm() -> None:
    pytest.importorskip("sacremoses")
    plain = ["in tara si asa este viata"]
    marked = [["\u00een \u021bar\u0103 \u015fi a\u0219a este via\u0163a"]]
    assert bleu(plain, marked, "ro", "multi_bleu")[0] == pytest.approx(100)
    assert bleu(plain, marked, "ro", "bleu_intl")[0] < 50
