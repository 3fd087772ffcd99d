"""A small run, for tests of its record and of its pages, and how a test reads a page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from gptcli.runs.record import Record

RUN_TOML = '# gpt 0, python 3\n# parameters: 1,234\n\nsize = "gpt2"  # <b> & more\nlr = 0.5\ntokens = 64000\nout = "x"\n'
EVALUATION = {
    "schema": "gpt.eval/1", "model": "elsewhere/run",
    "losses": [{"name": "a <b>.txt", "tokens": 5000, "loss": 2.5, "loss_stderr": 0.01, "perplexity": 12.18, "bits_per_byte": None}],
    "tasks": [{
        "task": "lambada", "scoring": "last_word", "shots": 0, "items": 40, "accuracy": 25.0, "accuracy_stderr": 6.93,
        "perplexity": 17.28, "perplexity_stderr": None,
        "paper": [{"metric": "accuracy", "score": 45.99, "model": "gpt2", "source": "Table 3"}],
    }],
}  # fmt: skip


def lines(count: int, **more: object) -> list[dict[str, Any]]:
    """Return the first `count` lines of metrics.jsonl, with fields replaced or added by `more`."""
    rest: dict[str, Any] = {
        "grad_norm": 1.0,
        "batch_tokens": 64,
        "tokens_per_second": 32.0,
        "tflops": 0.1,
        "mfu": None,
        "mfu_causal": None,
    }
    rest |= {"noise_scale": None, "peak_memory": 3_200_000_000, **more}
    return [
        {"step": n, "tokens": 64 * n, "loss": 5 / n, "lr": 1e-4 * n, **rest}
        for n in range(1, count + 1)
    ]


def record(count: int, name: str = "run", resolved: str = RUN_TOML, **more: Any) -> Record:
    """Return the record of a run of `count` steps."""
    return Record(folder=Path("runs", name), resolved=resolved, lines=lines(count), **more)


def parsed(text: str) -> ElementTree.Element:
    """Return the elements of a page that opens offline."""
    assert not re.search(r"https?:|src=|url\(|@import|fetch\(|XMLHttp|import\(", text)
    return ElementTree.fromstring(text.removeprefix("<!doctype html>"))


def rows(root: ElementTree.Element) -> list[list[str]]:
    """Return the rows of the tables that are not below a chart."""
    return [
        ["".join(cell.itertext()).strip() for cell in row]
        for row in root.iterfind("body/div[@class='scroll']//tr")
    ]
