"""Metrics equal hand-computed scores and, where there are any, public libraries."""

from __future__ import annotations

import builtins
import random
import sys
from typing import Any

import pytest

from gptcli.errors import InputError
from gptcli.evals import metrics
from gptcli.evals.bleu import bleu
from gptcli.evals.metrics import (
    METRICS,
    coqa_f1,
    drop_exact_match,
    drop_f1,
    exact,
    exact_match,
    f1,
    f1a,
    first_sentences,
    group_exact,
    macro_f1,
    quac_f1,
    wsc,
)


def test_exact_match_accepts_aliases_after_normalisation() -> None:
    assert exact_match("The  Beatles!", ["Queen", "beatles"]) == 1
    assert exact_match("beatle", ["beatles"]) == 0
    assert exact(" 143 ", ["143"]) == 1
    assert exact("-7", ["7"]) == exact_match("-7", ["8"]) == 0


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("the cat sat", ["a cat sat"], 1),
        ("cat cat", ["cat sat"], 1 / 2),  # a word counts as often as it occurs in both
        ("a black cat sat", ["the cat"], 2 / 4),  # 1 of 3, 1 of 1
        ("dog", ["cat", "the dog ran"], 2 / 3),
        ("the", ["an"], 1),  # both are empty after normalisation
        ("", ["cat"], 0),
    ],
)
def test_f1_equals_hand_computed_squad_scores(
    prediction: str, answers: list[str], score: float
) -> None:
    assert f1(prediction, answers) == pytest.approx(score)


def test_coqa_f1_leaves_each_answer_out_in_turn() -> None:
    answers = ["white", "white cat", "black"]
    by_hand = (
        sum(
            max(f1("white", [other]) for number, other in enumerate(answers) if number != out)
            for out in range(3)
        )
        / 3
    )
    assert coqa_f1("white", answers) == pytest.approx(by_hand) == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert coqa_f1("white", ["white cat"]) == pytest.approx(2 / 3)


def test_quac_f1_follows_the_majority_on_unanswerable_questions() -> None:
    assert quac_f1("CANNOTANSWER", ["CANNOTANSWER", "CANNOTANSWER", "in May"]) == 1
    assert quac_f1("in May", ["CANNOTANSWER", "CANNOTANSWER", "in May"]) == 0
    # the mean over the two subsets that leave one accepted answer out
    assert quac_f1("in May", ["CANNOTANSWER", "in May", "May"]) == pytest.approx((1 + 2 / 3) / 2)
    # a tie counts as unanswerable, as in QuAC's script
    assert quac_f1("in May", ["CANNOTANSWER", "in May"]) == 0
    assert quac_f1("CANNOTANSWER", ["CANNOTANSWER", "in May"]) == 1
    # annotators who agree less than 0.4
    assert quac_f1("in May", ["in May", "she left", "no"]) is None


@pytest.mark.parametrize(
    ("prediction", "answers", "f1_score", "same"),
    [
        ("3", ["3"], 1, 1),
        ("3.0", ["3"], 1, 1),
        ("three", ["3"], 0, 0),
        ("12 yards", ["12"], 2 / 3, 0),
        ("12 yards", ["13 yards"], 0, 0),  # the other number: no credit for the yards
        ("1,200", ["1200"], 1, 1),
        ("Joan, Ann", ["Ann, Joan"], 1, 1),  # in any order
        ("Ann", ["Ann, Joan"], 1 / 2, 0),
        ("Ann Lee, Joan", ["Joan"], 1 / 2, 0),
        ("the Ann Lee", ["Ann", "Ann Lee"], 1, 1),
        ("-5", ["5"], 1, 1),  # a hyphen separates words, as in DROP's script
        ("38-yard", ["38 yard"], 1, 1),
    ],
)
def test_drop_metrics_equal_hand_computed_scores(
    prediction: str, answers: list[str], f1_score: float, same: float
) -> None:
    assert drop_f1(prediction, answers) == pytest.approx(f1_score)
    assert drop_exact_match(prediction, answers) == same


def test_drop_f1_uses_the_best_alignment_of_spans() -> None:
    """Compare with scipy's assignment on random bags, if it is installed."""
    optimize = pytest.importorskip("scipy.optimize")
    draw = random.Random(0)
    for _ in range(200):
        bags = [
            [
                {draw.choice("abcde") for _ in range(draw.randint(1, 3))}
                for _ in range(draw.randint(1, 5))
            ]
            for _ in range(2)
        ]
        table = [[-metrics._bag_f1(bag, gold) for bag in bags[0]] for gold in bags[1]]
        rows, columns = optimize.linear_sum_assignment(table)
        best = -sum(table[row][column] for row, column in zip(rows, columns, strict=True)) / max(
            map(len, bags)
        )
        assert metrics._drop_f1(*bags) == pytest.approx(best)


def test_wsc_requires_naming_the_noun_only_if_it_is_correct() -> None:
    assert wsc("mr. moncrieff", ["Mr. Moncrieff"]) == wsc("Moncrieff", ["Mr. Moncrieff"]) == 1
    assert wsc("Edward", ["Mr. Moncrieff"]) == wsc("", ["Mr. Moncrieff"]) == 0
    assert wsc("Edward", ["", "Mr. Moncrieff"]) == wsc("", ["", "Mr. Moncrieff"]) == 1
    assert wsc("Mr. Moncrieff", ["", "Mr. Moncrieff"]) == 0


def test_contains_accepts_inflected_words() -> None:
    assert METRICS["contains"]("We saw these very cute whatpus.", ["whatpu"]) == 1
    assert METRICS["contains"]("We saw cats.", ["whatpu"]) == 0


def test_group_metrics_equal_hand_computed_scores() -> None:
    predictions, gold, groups = (
        [0, 0, 1, 1, 0],
        [[0], [1], [1], [0], [0]],
        ["a", "a", "b", "c", "d"],
    )
    # 2 correct of 3 predicted and 3 gold
    assert f1a(predictions, gold, groups) == pytest.approx(2 * 2 / (3 + 3))
    assert group_exact(predictions, gold, groups) == 2 / 4  # b and d
    sklearn = pytest.importorskip("sklearn.metrics")
    draw = random.Random(0)
    for classes in (2, 3):
        said, right = ([draw.randrange(classes) for _ in range(50)] for _ in range(2))
        assert macro_f1(said, [[one] for one in right], []) == pytest.approx(
            sklearn.f1_score(right, said, average="macro")
        )
        if classes == 2:
            assert f1a(said, [[one] for one in right], []) == pytest.approx(
                sklearn.f1_score(right, said, pos_label=0)
            )


def test_macro_f1_equals_a_hand_computed_score() -> None:
    # class 0: 1 correct of 2 predicted, 1 gold: 2/3; class 1: 1 of 1, 2 gold: 2/3; class 2 does not
    # occur
    assert macro_f1([0, 0, 1], [[0], [1], [1]], []) == pytest.approx(2 / 3)


def test_bleu_equals_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    predictions = ["the cat sat on the mat .", "it is raining again today"]
    references = [["the cat sat on a mat .", "a cat was on the mat ."], ["it rains again today"]]
    score, signature = bleu(predictions, references)
    expected = sacrebleu.corpus_bleu(
        predictions, [[one[0] for one in references], ["a cat was on the mat .", None]]
    )
    assert score == pytest.approx(expected.score)
    assert 0 < score < 100
    assert signature.startswith("nrefs:var|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert bleu(["a b c d e"], [["a b c d e"]])[0] == pytest.approx(100)


def test_rouge_equals_hand_computed_scores_and_rouge_score() -> None:
    scorer = pytest.importorskip("rouge_score.rouge_scorer")
    answer, prediction = (
        "The cats were running.\nIt rained.",
        "A cat was running. It rained all day.",
    )
    theirs = scorer.RougeScorer(["rouge1", "rouge2", "rougeLsum"], use_stemmer=True)
    expected = theirs.score(answer, "A cat was running.\nIt rained all day.")
    for name, kind in (("rouge1", "rouge1"), ("rouge2", "rouge2"), ("rougeL", "rougeLsum")):
        assert METRICS[name](prediction, [answer]) == pytest.approx(expected[kind].fmeasure)
    # common stems: cat, run, it, rain; six in the answer, eight in the prediction
    assert METRICS["rouge1"](prediction, [answer]) == pytest.approx(2 * 4 / (6 + 8))


def test_first_sentences_splits_at_sentence_ends() -> None:
    assert first_sentences("One. Two is 2.5 high! Three?\nFour.") == "One. Two is 2.5 high! Three?"


@pytest.mark.parametrize(
    ("package", "run"),
    [
        ("sacrebleu", lambda: bleu(["a"], [["a"]])),
        ("rouge_score", lambda: METRICS["rouge1"]("a", ["a"])),
    ],
)
def test_a_missing_package_is_named_in_the_error(
    monkeypatch: pytest.MonkeyPatch, package: str, run: Any
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == package:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    metrics._rouge_scorer.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(InputError, match="needs the package") as caught:
        run()
    assert str(caught.value).endswith(f" install {package.replace('_', '-')}")
