"""Metrics: of single answers, and of whole sets for metrics that are not a mean.

METRICS         score of one answer, the generated text or the chosen option, against the accepted
                answers: 0 to 1, or None if the item does not count
CORPUS_METRICS  score of all answers together, with a signature of its settings
GROUP_METRICS   score of multiple choice with groups: predicted and correct choices and the group of
                each item
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from typing import Any

from gptcli.errors import InputError, install_hint
from gptcli.evals.bleu import bleu, check_bleu

Metric = Callable[[str, Sequence[str]], float | None]
CorpusMetric = Callable[[Sequence[str], Sequence[Sequence[str]], str], tuple[float, str]]
GroupMetric = Callable[[Sequence[int], Sequence[Sequence[int]], Sequence[str]], float]

CANNOT_ANSWER = "CANNOTANSWER"
QUAC_MIN_AGREEMENT = 0.4  # F1 between annotators, below which QuAC's script leaves an item out
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation, articles or extra spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction equals an accepted answer after SQuAD's normalisation, else 0."""
    return float(normalize_answer(prediction) in map(normalize_answer, answers))


def exact(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction is exactly an accepted answer, apart from outer white space."""
    return float(prediction.strip() in (answer.strip() for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """Return SQuAD's F1: the best word overlap with an accepted answer, after normalisation.

    An empty prediction matches an empty answer.
    """
    return max(
        _f1(normalize_answer(prediction).split(), normalize_answer(answer).split())
        for answer in answers
    )


def _f1(prediction: Sequence[str], answer: Sequence[str]) -> float:
    if not prediction or not answer:
        return float(prediction == answer)
    common = (Counter(prediction) & Counter(answer)).total()
    return 2 * common / (len(prediction) + len(answer))


def coqa_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return CoQA's F1: the mean of `f1` over every subset of n - 1 of the n accepted answers.

    Human answers are scored in the same way, each against the others.
    """
    return _leave_one_out([f1(prediction, [answer]) for answer in answers])


def quac_f1(prediction: str, answers: Sequence[str]) -> float | None:
    """Return QuAC's F1; None if the annotators agree too little for its script to count the item.

    It is the mean over every subset of n - 1 of the n accepted answers. If at least half of the
    annotators found the question unanswerable, only CANNOTANSWER is accepted; otherwise it is not.
    """
    unanswerable = sum(answer == CANNOT_ANSWER for answer in answers)
    accepted = (
        [CANNOT_ANSWER]
        if 2 * unanswerable >= len(answers)
        else [answer for answer in answers if answer != CANNOT_ANSWER]
    )
    if len(accepted) > 1:
        others = [
            max(_span_f1(one, other) for k, other in enumerate(accepted) if k != n)
            for n, one in enumerate(accepted)
        ]
        if sum(others) / len(others) < QUAC_MIN_AGREEMENT:
            return None
    return _leave_one_out([_span_f1(prediction, answer) for answer in accepted])


def _span_f1(prediction: str, answer: str) -> float:
    """Return the word overlap of two spans by QuAC's script, in which nothing equals no answer."""
    if answer == CANNOT_ANSWER:
        return float(prediction == CANNOT_ANSWER)
    words = normalize_answer(prediction).split(), normalize_answer(answer).split()
    return _f1(*words) if all(words) else 0.0


def _leave_one_out(scores: list[float]) -> float:
    """Return the mean maximum of the scores without each one of them in turn."""
    if len(scores) == 1:
        return scores[0]
    best = sorted(scores)
    # Only the subset without the best answer has the second best as its maximum.
    return ((len(best) - 1) * best[-1] + best[-2]) / len(best)


class Spans(str):
    """An answer of one or more spans; its text joins them by ", "."""

    __slots__ = ("spans",)
    spans: tuple[str, ...]
    """Spans."""

    def __new__(cls, spans: Iterable[str]) -> Spans:
        """Join the spans."""
        parts = tuple(spans)
        self = super().__new__(cls, ", ".join(parts))
        self.spans = parts
        return self


def _spans(text: str) -> tuple[str, ...]:
    return text.spans if isinstance(text, Spans) else tuple(text.split(", "))


def _drop_pairs(
    prediction: str, answers: Sequence[str]
) -> Iterable[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the spans of the prediction and of each accepted answer.

    Both are separated by ", ", unless the answer is known to be a single span.
    """
    for answer in answers:
        spans = _spans(answer)
        single = isinstance(answer, Spans) and len(spans) == 1
        yield (prediction,) if single else _spans(prediction), spans


def drop_f1(prediction: str, answers: Sequence[str]) -> float:
    """Return DROP's F1: bags of words of the spans, in the best one-to-one alignment.

    A span gets no credit if none of the numbers in the accepted span is in it. DROP's script rounds
    the F1 of each item to two decimals, which is not done here.
    """
    return max(_drop_f1(*map(_bags, pair)) for pair in _drop_pairs(prediction, answers))


def drop_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the spans equal those of an accepted answer in any order, normalised (DROP)."""
    return float(
        any(
            len(one) == len(other)
            and {*map(_drop_normalised, one)} == {*map(_drop_normalised, other)}
            for one, other in _drop_pairs(prediction, answers)
        )
    )


def _drop_normalised(span: str) -> str:
    """Return a span as DROP's script normalises it, word by word.

    Punctuation is removed from a word that is no number; what is then a number, as "5" of "5%" or
    "1030" of "10:30", gets the form of a decimal.
    """
    words = []
    for word in re.split(r"[ \-]", span.lower()):
        if not _is_number(word):
            word = word.translate(_PUNCTUATION)
        if _is_number(word):
            word = str(float(word))
        words.append(re.sub(r"\b(a|an|the)\b", " ", word))
    return " ".join(" ".join(words).split())


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _bags(spans: Iterable[str]) -> list[set[str]]:
    return [set(_drop_normalised(span).split()) for span in spans]


def _drop_f1(prediction: list[set[str]], answer: list[set[str]]) -> float:
    """Return the F1 of the best one-to-one alignment of spans, averaged over the longer list."""
    fewer, more = sorted((prediction, answer), key=len)
    best = {0: 0.0}  # score by the set of aligned spans of the shorter list, as bits
    for span in more:
        extended = dict(best)
        for aligned, score in best.items():
            for number, other in enumerate(fewer):
                with_other = aligned | 1 << number
                if with_other != aligned:
                    pair = _bag_f1(span, other) if more is prediction else _bag_f1(other, span)
                    extended[with_other] = max(extended.get(with_other, 0.0), score + pair)
        best = extended
    return max(best.values()) / len(more)


def _bag_f1(bag: set[str], gold: set[str]) -> float:
    numbers = {word for word in gold if _is_number(word)}
    if numbers and not numbers & bag:
        return 0.0
    if not bag or not gold:
        return float(bag == gold)
    return 2 * len(bag & gold) / (len(bag) + len(gold))


def wsc(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the prediction names the noun (SuperGLUE's WSC).

    It names the noun if all words of one of them are words of the other. If the noun is the wrong
    one, which `answers` marks as ("", noun), return 1 if the prediction does not name it.
    """
    noun = set(normalize_answer(answers[-1]).split())
    words = set(normalize_answer(prediction).split())
    named = bool(words) and (words <= noun or noun <= words)
    return float(named != (answers[0] == ""))


def contains(prediction: str, answers: Sequence[str]) -> float:
    """Return 1 if the text contains an answer or a word that begins with it, else 0."""
    return float(
        any(
            re.search(rf"\b{re.escape(answer.strip())}", prediction, re.IGNORECASE)
            for answer in answers
        )
    )


def _rouge(kind: str) -> Metric:
    def rouge(prediction: str, answers: Sequence[str]) -> float:
        scorer = _rouge_scorer()
        return max(
            float(scorer.score(_sentences(answer), _sentences(prediction))[kind].fmeasure)
            for answer in answers
        )

    return rouge


@cache
def _rouge_scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise InputError(
            "ROUGE needs the package rouge-score", hint=install_hint("rouge-score")
        ) from None
    return RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)


def _sentences(text: str) -> str:
    """Return the text with a sentence per line, as rougeLsum expects."""
    return re.sub(r"(?<=[.!?]) +(?=[A-Z\"'])", "\n", text.strip())


def first_sentences(text: str, count: int = 3) -> str:
    """Return the first sentences of a text; GPT-2 keeps three of a sampled summary."""
    return " ".join(_sentences(" ".join(text.split())).split("\n")[:count])


METRICS: dict[str, Metric] = {
    "exact_match": exact_match,
    "exact": exact,
    "f1": f1,
    "coqa_f1": coqa_f1,
    "quac_f1": quac_f1,
    "drop_f1": drop_f1,
    "drop_exact_match": drop_exact_match,
    "wsc": wsc,
    "contains": contains,
    "rouge1": _rouge("rouge1"),
    "rouge2": _rouge("rouge2"),
    "rougeL": _rouge("rougeLsum"),
}


CORPUS_METRICS: dict[str, CorpusMetric] = {
    name: partial(bleu, name=name) for name in ("bleu", "bleu_intl", "multi_bleu")
}
"""Each takes the predictions, the references of each, and their language."""


def check_packages(metrics: Sequence[str]) -> tuple[list[str], str]:
    """Return the metrics whose packages are installed, and why another is left out.

    Raises InputError if the package of the first metric is not installed.
    """
    kept, reasons = [], []
    for name in metrics:
        try:
            if name in CORPUS_METRICS:
                check_bleu(name)
            elif name.startswith("rouge"):
                _rouge_scorer()
            kept.append(name)
        except InputError as error:
            if not kept:
                raise
            reasons.append(f"{name} is left out: {error.what}; {error.hint}.")
    return kept, " ".join(reasons)


def f1a(predictions: Sequence[int], gold: Sequence[Sequence[int]], groups: Sequence[str]) -> float:
    """Return MultiRC's F1 over all options, where choice 0 is "true"."""
    return _binary_f1(predictions, gold, 0)


def group_exact(
    predictions: Sequence[int], gold: Sequence[Sequence[int]], groups: Sequence[str]
) -> float:
    """Return the share of groups in which every item is correct (MultiRC's exact match)."""
    correct: dict[str, list[bool]] = defaultdict(list)
    for choice, accepted, group in zip(predictions, gold, groups, strict=True):
        correct[group].append(choice in accepted)
    return sum(map(all, correct.values())) / len(correct)


def macro_f1(
    predictions: Sequence[int], gold: Sequence[Sequence[int]], groups: Sequence[str]
) -> float:
    """Return the mean F1 over the classes that occur (CommitmentBank)."""
    classes = sorted({*predictions, *(one for accepted in gold for one in accepted)})
    return sum(_binary_f1(predictions, gold, one) for one in classes) / len(classes)


def _binary_f1(predictions: Iterable[int], gold: Iterable[Sequence[int]], positive: int) -> float:
    pairs = [
        (choice == positive, positive in accepted)
        for choice, accepted in zip(predictions, gold, strict=True)
    ]
    both, either = sum(a and b for a, b in pairs), sum(a + b for a, b in pairs)
    return 2 * both / either if either else 0.0


GROUP_METRICS: dict[str, GroupMetric] = {
    "f1a": f1a,
    "group_exact": group_exact,
    "macro_f1": macro_f1,
}
