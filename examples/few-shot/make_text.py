"""Generate arithmetic problems for training and for testing.

Usage: python make_text.py OUTPUT_FOLDER

It writes these files:

asked/two_digit_addition.jsonl   GPT-3's task, generated with seed 0:
                                 "Q: What is 98 plus 45?\\n\\nA:" -> " 143"
asked/sign.jsonl                 the same problems with "#" in place of "plus"
words.txt                        text for the tokenizer, without digits, so that each digit stays
                                 a separate token
text.jsonl                       training documents of twelve solved problems each, which contain
                                 none of the test pairs, in either order

Half of the documents state addition in words. In the others "#" means the sum, the larger or the
smaller number, the same throughout a document, and only the earlier problems reveal which. Solved
examples give the same information, and the figure measures how much they help.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from random import Random

from gptcli.evals.synthetic import OPERATIONS, arithmetic, generate_rows

DOCUMENTS = 60_000
PROBLEMS = 12
HIDDEN: list[Callable[[int, int], int]] = [OPERATIONS["plus"], max, min]


def main(folder: Path) -> None:
    """Write the test problems, the tokenizer's text and the training documents to `folder`."""
    asked = list(generate_rows("two_digit_addition", seed=0))
    held_out = {tuple(map(int, re.findall(r"\d+", row["prompt"]))) for row in asked}
    pairs = [
        (a, b)
        for a in range(100)
        for b in range(100)
        if (a, b) not in held_out and (b, a) not in held_out
    ]
    (folder / "asked").mkdir(parents=True, exist_ok=True)
    for name, word in {"two_digit_addition": "plus", "sign": "#"}.items():
        rows = [
            {"context": row["prompt"].replace("plus", word), "completion": f" {row['answer']}"}
            for row in asked
        ]
        (folder / "asked" / f"{name}.jsonl").write_text(
            "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8"
        )
    (folder / "words.txt").write_text("Q: What is plus #?\n\nA:\n\n" * 100, encoding="utf-8")
    random = Random(1)
    with open(folder / "text.jsonl", "w", encoding="utf-8") as file:
        for number in range(DOCUMENTS):
            file.write(
                json.dumps({"text": document(random, pairs, in_words=number % 2 == 0)}) + "\n"
            )
    print(
        f"{len(asked):,} test problems; {len(pairs):,} other pairs for training, "
        f"in {DOCUMENTS:,} documents of {PROBLEMS} problems"
    )


def document(random: Random, pairs: list[tuple[int, int]], in_words: bool) -> str:
    """Return a document of solved problems, in words or with one hidden meaning of "#"."""
    word, operation = ("plus", OPERATIONS["plus"]) if in_words else ("#", random.choice(HIDDEN))
    solved = []
    for a, b in random.choices(pairs, k=PROBLEMS):
        prompt, answer = arithmetic(f"{a} {word} {b}", operation(a, b))
        solved.append(f"{prompt} {answer}")
    return "\n\n".join(solved) + "\n\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
