"""Which choice is taken by each normaliser, and what is kept of an answer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gptcli.evals.grade import predict, record_answer
from gptcli.evals.item import Item
from gptcli.evals.requests import Request
from gptcli.evals.task import find_task
from gptcli.sampling.streaming import Completion


@pytest.mark.parametrize(
    ("rule", "taken"), [("sum", 0), ("token", 1), ("character", 2), ("unconditional", 3)]
)
def test_each_rule_takes_its_own(rule: str, taken: int) -> None:
    record = {
        "log_probs": [-2.0, -3.0, -4.0, -5.0],
        "tokens": [1, 4, 2, 1],  # -2, -0.75, -2, -5
        "characters": [2, 4, 40, 1],  # -1, -0.75, -0.1, -5
        "unconditional": [-1.0, -2.0, -3.0, -9.0],  # -1, -1, -1, +4
    }
    assert predict(record, rule) == taken


def test_the_first_of_equals_is_taken_and_an_empty_choice_divides_by_one() -> None:
    record = {"log_probs": [-2.0, -2.0], "tokens": [1, 1], "characters": [0, 0]}
    assert [predict(record, rule) for rule in ("sum", "token", "character")] == [0, 0, 0]


def test_an_answer_and_how_sure_it_was() -> None:
    question = Request(
        7,
        Item(id="x", prompt="p", answers=("the cat", "a dog")),
        [(np.array([1]), np.array([]))],
        [],
        2,
        False,
        9,
    )
    made = Completion(" Cat! It sat. It ran. ", [1, 2], [-0.5, -0.25], "stop", 0.0)
    task = find_task("squad_v2")
    record = record_answer(replace(task, sentences=1), question, made)
    assert (record["index"], record["shots"], record["prediction"], record["log_prob"]) == (
        7,
        2,
        "Cat!",
        -0.75,
    )
    assert (record["f1"], record["exact_match"]) == (1.0, 1.0)
    assert record_answer(task, question, made)["exact_match"] == 0.0
