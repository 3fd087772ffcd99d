"""What answers are worth beside the accepted ones: by item, and over a whole set where a metric is
no mean.

METRICS         of one answer: the text that was written, or the choice that was taken, against the accepted ones; from 0 to 1
CORPUS_METRICS  of all answers at once, with a signature that says how it was counted
GROUP_METRICS   of multiple choice: the choices taken and the right ones, with the group of each item
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

from gptcli.errors import InputError, install_hint

Metric = Callable[[str, Sequence[str]], float]
CorpusMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], tuple[float, str]]
GroupMetric = Callable[[Sequence[int], Sequence[Sequence[int]], Sequence[str]], float]

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD's: small letters, no ASCII punctuation, no articles, single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """Whether the answer is one of the accepted ones, after SQuAD's normalisation."""
    return float(normalize_answer(prediction) in map(normalize_answer, answers))


def exact(prediction: str, answers: Sequence[str]) -> float:
    """Whether it is one of them to the letter, white space at its ends aside: sums and unscrambled
    words.
    """
    return float(prediction.strip() in (answer.strip() for answer in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """SQuAD's: the best overlap in words with an accepted answer, after normalisation; two that are
    empty agree.
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
    """CoQA's: with n accepted answers, the mean over each n - 1 of them, as people, who gave them,
    are scored against the others.
    """
    if len(answers) == 1:
        return f1(prediction, answers)
    scores = sorted(f1(prediction, [answer]) for answer in answers)
    # the best is left out once, and the second stands in
    return ((len(scores) - 1) * scores[-1] + scores[-2]) / len(scores)


def quac_f1(prediction: str, answers: Sequence[str]) -> float:
    """QuAC's: like CoQA's, but a question that most held for unanswerable asks for CANNOTANSWER,
    and any other does not.
    """
    unanswerable = sum(answer == "CANNOTANSWER" for answer in answers)
    given = [
        answer
        for answer in answers
        if (answer == "CANNOTANSWER")
        == (2 * unanswerable > len(answers) or unanswerable == len(answers))
    ]
    return coqa_f1(prediction, given)


def drop_f1(prediction: str, answers: Sequence[str]) -> float:
    """DROP's: bags of words for each span, spans paired for the best, no credit where the answer's
    numbers are missed.

    The spans of an answer are joined by ", ", as the reader joins them.
    """
    return max(_drop_f1(_bags(prediction), _bags(answer)) for answer in answers)


def drop_exact_match(prediction: str, answers: Sequence[str]) -> float:
    """DROP's: the same spans, after normalisation, in any order."""
    spans = [
        [_drop_normalised(span) for span in text.split(", ")] for text in (prediction, *answers)
    ]
    return float(
        any(set(spans[0]) == set(answer) and len(spans[0]) == len(answer) for answer in spans[1:])
    )


def _drop_normalised(span: str) -> str:
    """Numbers are numbers, with their point; other words without punctuation, articles and
    hyphens.
    """
    words = []
    for word in re.split(r"[ \-]", span.lower()):
        number = _number(word)
        words.append(
            number
            if number is not None
            else re.sub(r"\b(a|an|the)\b", " ", word.translate(_PUNCTUATION))
        )
    return " ".join(" ".join(words).split())


def _number(word: str) -> str | None:
    try:
        return str(
            float(word.strip(string.punctuation.replace("-", "").replace(".", "")).replace(",", ""))
        )
    except ValueError:
        return None


def _bags(text: str) -> list[set[str]]:
    return [set(_drop_normalised(span).split()) for span in text.split(", ")]


def _drop_f1(prediction: list[set[str]], answer: list[set[str]]) -> float:
    """The best one-to-one pairing of spans, as a share of the longer list."""
    fewer, more = sorted((prediction, answer), key=len)
    best = {0: 0.0}  # by the set of the fewer spans that are paired
    for span in more:
        found = dict(best)
        for paired, score in best.items():
            for number, other in enumerate(fewer):
                with_it = paired | 1 << number
                if with_it != paired:
                    pair = _bag_f1(span, other) if more is prediction else _bag_f1(other, span)
                    found[with_it] = max(found.get(with_it, 0.0), score + pair)
        best = found
    return max(best.values()) / len(more)


def _bag_f1(bag: set[str], gold: set[str]) -> float:
    numbers = {word for word in gold if _number(word) is not None}
    if numbers and not numbers & {word for word in bag if _number(word) is not None}:
        return 0.0
    if not bag or not gold:
        return float(bag == gold)
    return 2 * len(bag & gold) / (len(bag) + len(gold))


def wsc(prediction: str, answers: Sequence[str]) -> float:
    """SuperGLUE's WSC: whether the noun was named; where the noun is a wrong one, which `answers`
    says by ("", noun), whether it was not.

    Named is: all words of the one are words of the other.
    """
    noun = set(normalize_answer(answers[-1]).split())
    words = set(normalize_answer(prediction).split())
    named = bool(words) and (words <= noun or noun <= words)
    return float(named != (answers[0] == ""))


def contains(prediction: str, answers: Sequence[str]) -> float:
    """Whether one of the answers, or a word that begins with it, is in the text: a new word is
    used.
    """
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
    """A sentence a line, as rougeLsum counts them."""
    return re.sub(r"(?<=[.!?]) +(?=[A-Z\"'])", "\n", text.strip())


def first_sentences(text: str, count: int = 3) -> str:
    """The first three of a text that was drawn: GPT-2's summaries."""
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


def bleu(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[float, str]:
    """Corpus BLEU by sacrebleu, 0 to 100, and its signature. `references`: of each prediction.
    Raises InputError without sacrebleu.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise InputError(
            "BLEU needs the package sacrebleu", hint=install_hint("sacrebleu")
        ) from None
    most = max(map(len, references))
    columns: list[list[str | None]] = [
        [texts[n] if n < len(texts) else None for texts in references] for n in range(most)
    ]
    metric = BLEU()
    score = metric.corpus_score(list(predictions), columns)  # type: ignore[arg-type]  # None: fewer references than others have
    return float(score.score), str(metric.get_signature())


CORPUS_METRICS: dict[str, CorpusMetric] = {"bleu": bleu}


def f1a(predictions: Sequence[int], gold: Sequence[Sequence[int]], groups: Sequence[str]) -> float:
    """MultiRC's F1 over all options; choice 0 is "true"."""
    return _binary_f1(predictions, gold, 0)


def group_exact(
    predictions: Sequence[int], gold: Sequence[Sequence[int]], groups: Sequence[str]
) -> float:
    """The share of groups in which every item is right: MultiRC's exact match."""
    right: dict[str, list[bool]] = defaultdict(list)
    for choice, accepted, group in zip(predictions, gold, groups, strict=True):
        right[group].append(choice in accepted)
    return sum(map(all, right.values())) / len(right)


def macro_f1(
    predictions: Sequence[int], gold: Sequence[Sequence[int]], groups: Sequence[str]
) -> float:
    """The mean of each class's F1, over the classes that occur: CommitmentBank's."""
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
