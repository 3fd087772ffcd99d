"""Scores equal those of the data sets' own scripts, read a second time from their published rules.

Predictions are synthetic: answers with words added, left out, changed in case, number and
punctuation, on the edges where the scripts differ from one another.
"""

from __future__ import annotations

import random
import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations

import pytest

from gptcli.evals.metrics import METRICS, Spans, f1a, group_exact

N = 20_000
WORDS = [
    "the",
    "a",
    "an",
    "The",
    "cat",
    "cats",
    "dog-house",
    "dog",
    "5",
    "5%",
    "5.0",
    "05",
    "1,000",
    "1000",
    "3.5%",
    "3.5",
    "-3",
    "10:30",
    "1/2",
    "$2",
    ".",
    ",",
    "U.S.",
    "US",
    "N/A",
    "it's",
    "yes",
    "no",
    "CANNOTANSWER",
    "nan",
    "inf",
    "1e3",
    "½",
]


def words_of(drawing: random.Random, most: int = 4) -> str:
    return " ".join(drawing.choice(WORDS) for _ in range(drawing.randrange(1, most + 1)))


def changed(drawing: random.Random, text: str) -> str:
    words = text.split(" ")
    for _ in range(drawing.randrange(3)):
        place = drawing.randrange(len(words) + 1)
        kind = drawing.randrange(4)
        if kind == 0:
            words.insert(place, drawing.choice(WORDS))
        elif words and kind == 1:
            words.pop(min(place, len(words) - 1))
        elif words:
            place = min(place, len(words) - 1)
            words[place] = words[place].upper() if kind == 2 else words[place] + "."
    return " ".join(words)


# SQuAD's normalisation and the three forms of F1


def squad_normal(text: str) -> str:
    text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def word_f1(prediction: str, answer: str, *, empty_equal: bool) -> float:
    one, other = squad_normal(prediction).split(), squad_normal(answer).split()
    if empty_equal and (not one or not other):
        return float(one == other)
    same = sum((Counter(one) & Counter(other)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(one), same / len(other)
    return 2 * precision * recall / (precision + recall)


def squad(prediction: str, answers: Sequence[str]) -> float:
    return max(word_f1(prediction, answer, empty_equal=True) for answer in answers)


def coqa(prediction: str, answers: Sequence[str]) -> float:
    if len(answers) == 1:
        return squad(prediction, answers)
    parts = [squad(prediction, [*answers[:n], *answers[n + 1 :]]) for n in range(len(answers))]
    return sum(parts) / len(parts)


def quac(prediction: str, answers: Sequence[str]) -> float | None:
    """By scorer.py: ties count as unanswerable, items of little agreement are left out."""
    cannot = sum(answer == "CANNOTANSWER" for answer in answers)
    if cannot >= len(answers) - cannot:
        accepted = ["CANNOTANSWER"]
    else:
        accepted = [answer for answer in answers if answer != "CANNOTANSWER"]

    def overlap(one: str, other: str) -> float:
        if other == "CANNOTANSWER":
            return float(one == "CANNOTANSWER")
        return word_f1(one, other, empty_equal=False)

    if len(accepted) == 1:
        return overlap(prediction, accepted[0])
    human = total = 0.0
    for n, one in enumerate(accepted):
        rest = [*accepted[:n], *accepted[n + 1 :]]
        human += max(word_f1(one, other, empty_equal=False) for other in rest)
        total += max(overlap(prediction, other) for other in rest)
    return None if human / len(accepted) < 0.4 else total / len(accepted)


# DROP


def is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def drop_normal(text: str) -> str:
    parts = []
    for token in re.split(" |-", text):
        part = token.lower()
        if not is_number(part):
            part = "".join(letter for letter in part if letter not in set(string.punctuation))
        if is_number(part):
            part = str(float(part))
        part = " ".join(re.sub(r"\b(a|an|the)\b", " ", part).split())
        if part.strip():
            parts.append(part)
    return " ".join(parts).strip()


def drop(predicted: Sequence[str], gold: Sequence[str]) -> tuple[float, float]:
    one, other = [drop_normal(span) for span in predicted], [drop_normal(span) for span in gold]
    exact = float(set(one) == set(other) and len(one) == len(other))
    bags = [set(span.split()) for span in one], [set(span.split()) for span in other]

    def score(bag: set[str], answer: set[str]) -> float:
        numbers = {word for word in answer if is_number(word)}
        if numbers and not numbers & {word for word in bag if is_number(word)}:
            return 0.0
        same = len(bag & answer)
        precision = same / len(bag) if bag else 1.0
        recall = same / len(answer) if answer else 1.0
        return 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)

    size = max(map(len, bags))
    padded = [[*map(frozenset, some), *[None] * (size - len(some))] for some in bags]
    best = max(
        sum(
            score(set(bag), set(answer))
            for bag, answer in zip(order, padded[1], strict=True)
            if bag is not None and answer is not None
        )
        for order in permutations(padded[0])
    )
    return exact, best / size


def test_drop_equals_its_script() -> None:
    drawing = random.Random(1)
    for _ in range(N // 4):
        golds = []
        for _ in range(drawing.randrange(1, 3)):
            spans = [words_of(drawing, 3) for _ in range(drawing.choice((1, 1, 1, 2, 3)))]
            golds.append([span.replace(", ", " ").strip(", ") or "x" for span in spans])
        source = drawing.choice(golds)
        predicted = [changed(drawing, span).replace(", ", " ").strip(", ") for span in source]
        several = all(len(gold) > 1 for gold in golds)
        if several and drawing.random() < 0.3:
            predicted = predicted[::-1]
        text = ", ".join(predicted)
        parts = text.split(", ")
        expected = [drop(parts if len(gold) > 1 else [text], gold) for gold in golds]
        answers = [Spans(gold) for gold in golds]
        found = METRICS["drop_exact_match"](text, answers), METRICS["drop_f1"](text, answers)
        best = (max(e for e, _ in expected), max(f for _, f in expected))
        assert found == pytest.approx(best, abs=1e-12), (text, golds)


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("5", "5%", (1.0, 1.0)),
        ("10:30", "1030", (1.0, 1.0)),
        ("1/2", "12", (1.0, 1.0)),
        ("3.50", "3.5", (1.0, 1.0)),
        ("1,000", "1000.0", (1.0, 1.0)),
        ("5.5%", "55", (1.0, 1.0)),
        ("6 yards", "5 yards", (0.0, 0.0)),
        ("dog house", "the dog-house", (1.0, 1.0)),
    ],
)
def test_drop_on_numbers(prediction: str, answer: str, expected: tuple[float, float]) -> None:
    assert drop([prediction], [answer]) == expected
    scored = [METRICS[name](prediction, [answer]) for name in ("drop_exact_match", "drop_f1")]
    assert tuple(scored) == expected


@pytest.mark.parametrize(("name", "script"), [("f1", squad), ("coqa_f1", coqa), ("quac_f1", quac)])
def test_f1_equals_the_script_of_its_data_set(
    name: str, script: Callable[[str, Sequence[str]], float | None]
) -> None:
    drawing = random.Random(name)
    for _ in range(N // 4):
        answers = [words_of(drawing) for _ in range(drawing.randrange(1, 5))]
        if drawing.random() < 0.4:
            answers[0] = "CANNOTANSWER"
        if drawing.random() < 0.5:  # annotators who agree
            answers = [changed(drawing, answers[-1]) or "x" for _ in answers]
        prediction = changed(drawing, drawing.choice(answers)).strip()
        expected = script(prediction, answers)
        found = METRICS[name](prediction, answers)
        assert (found is None) == (expected is None), (prediction, answers)
        assert found == pytest.approx(expected, abs=1e-12), (prediction, answers)


def test_record_equals_its_script() -> None:
    drawing = random.Random(2)
    for _ in range(N // 4):
        answers = [words_of(drawing, 3) for _ in range(drawing.randrange(1, 4))]
        prediction = changed(drawing, drawing.choice(answers))
        exact = max(float(squad_normal(prediction) == squad_normal(one)) for one in answers)
        assert METRICS["exact_match"](prediction, answers) == exact
        if squad_normal(prediction) and all(map(squad_normal, answers)):
            best = max(word_f1(prediction, one, empty_equal=False) for one in answers)
            assert METRICS["f1"](prediction, answers) == pytest.approx(best, abs=1e-12)


def test_multirc_equals_its_script() -> None:
    drawing = random.Random(3)
    for _ in range(300):
        questions = {
            f"{n}": [(drawing.random() < 0.5, drawing.random() < 0.5) for _ in range(1 + n % 4)]
            for n in range(drawing.randrange(1, 9))
        }
        pairs = [(group, *pair) for group, options in questions.items() for pair in options]
        correct = sum(predicted and label for _, predicted, label in pairs)
        precision = correct / (sum(predicted for _, predicted, _ in pairs) or 1)
        recall = correct / (sum(label for *_, label in pairs) or 1)
        expected = 2 * precision * recall / (precision + recall) if correct else 0.0
        lists = (
            [int(not predicted) for _, predicted, _ in pairs],
            [[int(not label)] for *_, label in pairs],
            [group for group, *_ in pairs],
        )
        assert f1a(*lists) == pytest.approx(expected)
        whole = [all(one == other for one, other in options) for options in questions.values()]
        assert group_exact(*lists) == pytest.approx(sum(whole) / len(whole))
