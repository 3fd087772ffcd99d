"""BLEU of whole test sets, by the three tokenisations that GPT-3's scores are published in.

bleu        sacrebleu's default, tok:13a
bleu_intl   sacrebleu with tok:intl, as in the "sb" rows of GPT-3's Table H.1
multi_bleu  multi-bleu.perl after XLM's tokenisation, as in Table 3.4: Moses's punctuation and words
            and, for Romanian, no diacritics
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gptcli.errors import install_hint
from gptcli.evals.stderr import bootstrap_stderr
from gptcli.text.compression import MissingPackageError

_TOKENISERS = {"bleu": "13a", "bleu_intl": "intl", "multi_bleu": "none"}
# Romanian as XLM writes it: the cedilla forms of s and t are the comma forms, then plain letters.
_ROMANIAN = str.maketrans("\u015e\u015f\u0162\u0163", "\u0218\u0219\u021a\u021b")
_PLAIN = str.maketrans("\u0218\u0219\u021a\u021b\u0102\u0103\u00c2\u00e2\u00ce\u00ee", "SsTtAaAaIi")


def check_bleu(name: str) -> None:
    """Raise MissingPackageError if a package that a BLEU metric needs is not installed."""
    if name == "multi_bleu":
        _moses("en")
    _metric(name)


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    language: str = "en",
    name: str = "bleu",
) -> tuple[float, str]:
    """Return corpus BLEU, 0 to 100, and its signature.

    `references` contains one list per prediction; `language` is theirs, "fr". Raises InputError if
    a package is not installed.
    """
    prepare = _preparation(name, language)
    max_references = max(map(len, references))
    columns: list[list[str | None]] = [
        [prepare(texts[n]) if n < len(texts) else None for texts in references]
        for n in range(max_references)
    ]
    metric = _metric(name)
    # None marks a prediction with fewer references than others.
    score = metric.corpus_score([prepare(text) for text in predictions], columns)
    signature = str(metric.get_signature())
    return float(
        score.score
    ), f"{signature}|moses.{language}" if name == "multi_bleu" else signature


def bleu_stderr(
    predictions: Sequence[str], references: Sequence[Sequence[str]], language: str, name: str
) -> float | None:
    """Return the standard error of corpus BLEU, by the bootstrap over sentences.

    BLEU is a function of the summed n-gram counts of the sentences.
    """
    prepare, metric = _preparation(name, language), _metric(name)
    sentences = [
        metric.corpus_score([prepare(text)], [[prepare(one)] for one in texts])
        for text, texts in zip(predictions, references, strict=True)
    ]
    statistics_NS = np.array(
        [[*one.counts, *one.totals, one.sys_len, one.ref_len] for one in sentences]
    )

    def score(sums: np.ndarray) -> float:
        counts, totals, (sys_len, ref_len) = (
            sums[:4].tolist(),
            sums[4:8].tolist(),
            sums[8:].tolist(),
        )
        found = metric.compute_bleu(
            counts, totals, sys_len, ref_len, smooth_method=metric.smooth_method
        )
        return float(found.score)

    return bootstrap_stderr(statistics_NS, score)


def _metric(name: str) -> Any:
    """Return sacrebleu's metric; multi-bleu.perl does not smooth."""
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise MissingPackageError(
            "BLEU needs the package sacrebleu", hint=install_hint("sacrebleu")
        ) from None
    smooth = "none" if name == "multi_bleu" else "exp"
    return BLEU(tokenize=_TOKENISERS[name], smooth_method=smooth, force=True)


def _preparation(name: str, language: str) -> Callable[[str], str]:
    """Return what is done to a sentence before its words are compared."""
    if name != "multi_bleu":
        return lambda text: text
    normalizer, tokenizer = _moses(language)

    def prepare(text: str) -> str:
        text = "".join(
            character
            for character in normalizer.normalize(normalizer.replace_unicode_punct(text))
            if unicodedata.category(character)[0] != "C"
        )
        if language == "ro":
            text = text.translate(_ROMANIAN).translate(_PLAIN)
        return re.sub(" +", " ", tokenizer.tokenize(text, return_str=True, escape=False)).strip()

    return prepare


def _moses(language: str) -> tuple[Any, Any]:
    try:
        from sacremoses import MosesPunctNormalizer, MosesTokenizer
    except ImportError:
        raise MissingPackageError(
            "multi_bleu needs the package sacremoses", hint=install_hint("sacremoses")
        ) from None
    return MosesPunctNormalizer(lang=language), MosesTokenizer(lang=language)
