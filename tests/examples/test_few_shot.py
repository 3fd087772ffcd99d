"""examples/few-shot: evaluated problems are not in the training text, and its tasks are valid."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from gptcli.evals.task import find_task, read_task
from gptcli.evals.task_data import read_items

EXAMPLE = Path(__file__).parents[2] / "examples" / "few-shot"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("make_text", EXAMPLE / "make_text.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    vars(module)["DOCUMENTS"] = 400
    folder = tmp_path_factory.mktemp("few-shot")
    module.main(folder)
    return folder


def test_both_evaluation_sets_have_the_same_problems(made: Path) -> None:
    words = read_items(find_task("two_digit_addition"), made / "asked" / "two_digit_addition.jsonl")
    sign = read_items(read_task(EXAMPLE / "sign.toml"), made / "asked" / "sign.jsonl")
    assert len(words) == len(sign) == 2000
    assert [item.prompt.replace("plus", "#") for item in words] == [item.prompt for item in sign]
    assert [item.answers for item in words] == [item.answers for item in sign]


def test_training_text_contains_no_evaluated_pair(made: Path) -> None:
    asked = [
        re.findall(r"\d+", json.loads(line)["context"])
        for line in (made / "asked" / "sign.jsonl").read_text().splitlines()
    ]
    documents = [
        json.loads(line)["text"] for line in (made / "text.jsonl").read_text().splitlines()
    ]
    held_out = {frozenset(pair) for pair in asked}
    meanings = set()
    operations: dict[str, Callable[[int, int], int]] = {
        "sum": int.__add__,
        "larger": max,
        "smaller": min,
    }
    for number, text in enumerate(documents):
        shown = re.findall(r"Q: What is (\d+) (\S+) (\d+)\?\n\nA: (\d+)\n\n", text)
        assert len(shown) == 12
        fits = {
            name
            for name, operation in operations.items()
            if all(operation(int(a), int(b)) == int(answer) for a, _, b, answer in shown)
        }
        assert len(fits) == 1
        assert {sign for _, sign, _, _ in shown} == ({"plus"} if number % 2 == 0 else {"#"})
        assert number % 2 or fits == {"sum"}
        meanings |= fits
        for a, _, b, _ in shown:
            assert frozenset((a, b)) not in held_out
    assert meanings == {"sum", "larger", "smaller"}
