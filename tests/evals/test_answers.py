"""Written answers: the stop string ends them, and what is drawn depends on the item alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptcli.evals.answers import write_answers
from gptcli.evals.item import Item
from gptcli.evals.requests import Request
from gptcli.evals.task import find_task
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import Tokenizer

TASK = replace(find_task("cnn_dailymail"), max_tokens=12)  # top-k 2


def test_a_draw_depends_on_the_items_place_and_not_on_its_batch(
    model: GPT, tokenizer: Tokenizer
) -> None:
    texts = ["the text", "def wrap(self", "naïve café", "the text"]
    questions = [
        Request(
            index,
            Item(id=str(index), prompt=text),
            [(np.array(tokenizer.encode(text)), np.array([]))],
            [],
            0,
            False,
            1,
        )
        for index, text in enumerate(texts)
    ]
    together = [made.tokens for made in write_answers(model, tokenizer, questions, TASK)]
    alone = [
        made.tokens
        for question in reversed(questions)
        for made in write_answers(model, tokenizer, [question], TASK)
    ]
    assert together == alone[::-1]
    assert together[0] != together[3]  # the same prompt at another place

    for task in (TASK, replace(TASK, top_k=0, beam=1), replace(TASK, top_k=0, beam=3)):
        [whole] = write_answers(model, tokenizer, questions[:1], replace(task, stop=[]))
        stop = whole.text[3:5]
        [stopped] = write_answers(model, tokenizer, questions[:1], replace(task, stop=[stop]))
        assert stop not in stopped.text
        assert task.beam > 1 or stopped.text == whole.text.partition(stop)[0]
