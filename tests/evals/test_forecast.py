"""Tests that an item is shown as the model reads it, token by token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gptcli.evals.check import EvalOptions
from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.forecast import forecast_evaluation, show_items
from gptcli.evals.task import read_task
from gptcli.model.safetensors_io import save_model
from gptcli.model.source import find_model
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import Tokenizer

TASK = """title = "t"
source = "s"
files = {items = "items.jsonl"}
reader = "table"
kind = "choice"
prompt = "{q}:"
choices = "c"
gold = "g"
delimiter = "|"
"""


@pytest.fixture
def run(tmp_path: Path, model: GPT, tokenizer: Tokenizer) -> Path:
    save_model(tmp_path / "run", model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(tmp_path / "run" / "tokenizer.json")
    (tmp_path / "quiz.toml").write_text(TASK)
    rows = [{"q": f"q{n}", "c": ["self", "text"], "g": n % 2} for n in range(4)]
    (tmp_path / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "run"


def test_the_prompt_of_an_item_is_shown(run: Path, tokenizer: Tokenizer) -> None:
    task = read_task(run.parent / "quiz.toml")
    options = EvalOptions(fewshot=FewShotConfig(shots=1), limit=2)
    items = show_items(find_model(run), [task], run.parent, options)
    assert [item["index"] for item in items] == [0, 1]
    for number, item in enumerate(items):
        [context], [tokens] = item["contexts"], item["context_tokens"]
        assert tokens == tokenizer.encode(context)
        example, _, prompt = context.partition("|")
        assert prompt == f"q{number}:"
        assert example.endswith((": self", ": text"))
        assert item["continuations"] == [" self", " text"]
        assert item["gold"] == [number % 2]
        assert item["shots"] == 1


def test_a_forecast_counts_items_and_tokens(run: Path) -> None:
    task = read_task(run.parent / "quiz.toml")
    report = forecast_evaluation(find_model(run), [task], [], run.parent, EvalOptions(limit=3))
    assert [(one["name"], one["items"]) for one in report["work"]] == [("quiz", 3)]
    assert report["config"]["limit"] == 3
