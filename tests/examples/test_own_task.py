"""The task of examples/own-task is read as its page says, and the table of examples/gpt2-eval."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gptcli.evals.task import read_task
from gptcli.evals.task_data import format_example, read_items

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_task_of_the_example_is_read() -> None:
    folder = EXAMPLES / "own-task"
    task = read_task(folder / "capitals.toml")
    items = read_items(task, folder / "capitals.csv")
    assert [format_example(task, item) for item in items[:2]] == [
        "The capital of France is Paris",
        "The capital of Japan is Tokyo",
    ]
    assert len(items) == 8


def test_the_table_sets_scores_beside_the_papers(tmp_path: Path) -> None:
    report = {
        "model": "gpt2",
        "parameters": 124_439_808,
        "precision": "fp32",
        "tasks": [
            {
                "task": "lambada",
                "scoring": "last_word",
                "metrics": ["accuracy"],
                "accuracy": 32.5,
                "accuracy_stderr": 0.65,
                "paper": [{"metric": "accuracy", "score": 45.99, "model": "gpt2"}],
            }
        ],
    }
    (tmp_path / "eval.json").write_text(json.dumps(report))
    done = subprocess.run(
        [sys.executable, EXAMPLES / "gpt2-eval" / "table.py", tmp_path / "eval.json"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=True,
    )
    assert "| lambada | last_word | accuracy | 32.50 ±0.65 | 45.99 (gpt2) | 32.6" in done.stdout
