"""Print the scores of GPT-2's released weights beside the paper's, and others' reproductions.

Usage: python table.py eval.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

# Reproductions of the smallest model by others, by task, scoring rule and metric: value, what they
# did. Sources: transformers issue 483; lm-evaluation-harness issues 350 and 2159.
OTHERS = {
    ("lambada", "last_word", "accuracy"): "32.6, whole last word, without a filter",
    ("lambada", "last_token", "accuracy"): "46.7 to 46.9, last token of the word",
}
WHY = (
    "LAMBADA: the paper does not count stop words as predictions, by a list that is not published, and "
    "scores the last token rather than the whole word, as far as others' reproductions show.",
    "WikiText-2: the paper's stride and detokenizer are not published; a smaller stride (--stride) lowers "
    "the perplexity by points.",
    "CBT: the paper's detokenizer is not published.",
    "HellaSwag: GPT-2's paper has no score; GPT-3's smallest model, of the same size, has 33.7.",
)


def rows(report: dict[str, Any]) -> list[list[str]]:
    """Return a row per task, scoring rule and metric."""
    found = []
    for task in report["tasks"]:
        paper = {score["metric"]: score for score in task["paper"]}
        for metric in task["metrics"]:
            stderr = task[f"{metric}_stderr"]
            found.append(
                [
                    task["task"],
                    task["scoring"],
                    metric,
                    f"{task[metric]:.2f}" + ("" if stderr is None else f" ±{stderr:.2f}"),
                    f"{paper[metric]['score']:g} ({paper[metric]['model']})"
                    if metric in paper
                    else "",
                    OTHERS.get((task["task"], task["scoring"], metric), ""),
                ]
            )
    return found


def main() -> None:
    """Print the table of the report that the command line names."""
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(f"{report['model']}: {report['parameters']:,} parameters, {report['precision']}\n")
    print("| task | scoring | metric | here | paper | others, 124M |")
    print("|---|---|---|---:|---:|---|")
    for row in rows(report):
        print(f"| {' | '.join(row)} |")
    print()
    for reason in WHY:
        print(f"- {reason}")


if __name__ == "__main__":
    main()
