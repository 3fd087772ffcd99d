"""Print what the demo made, how well it predicts, and what to try next from where the user is.

Usage: python closing.py OUT FROM
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).absolute().parents[2]


def closing(out: Path, start: Path, gpt: str) -> str:
    """Compose the lines: `out` holds the demo's files, `start` is the folder the commands are
    for.
    """

    def path(place: Path) -> str:
        return shlex.quote(min(os.path.relpath(place, start), str(place), key=len))

    loss = json.loads((out / "eval.json").read_text(encoding="utf-8"))["losses"][0]
    nats, baseline, bits = loss["loss"], loss["unigram_entropy"], loss["bits_per_byte"]
    command = path(Path(gpt)) if Path(gpt).is_relative_to(ROOT) else "gpt"
    return f"""
── What was made, in {path(out)} ──
corpus.jsonl    Python's own documentation and source
tokenizer.json  a byte-level BPE
shards/         shuffled tokens with checksums; report.md shows them
run/            the model, which loads in transformers; report.html has curves, samples and scores
sample.txt      what it writes
eval.json       how well it predicts text that it was not trained on:
                loss {nats:.2f} nats a token, {bits:.2f} bits a byte; {baseline:.2f} nats ({bits * baseline / nats:.2f} bits)
                for one who knows only how frequent each token is

── What to try next ──
# more text
{command} sample {path(out / "run")} "def main(" --temperature 0.7
# what GPT-3 Medium would ask of this machine
{command} train --data {path(out / "shards")} --size 350M --dry-run
# what the largest one costs
{command} cost --size 175B"""


def main(out: str, start: str) -> None:
    """Print the lines for the files in `out`."""
    print(closing(Path(out).absolute(), Path(start).absolute(), shutil.which("gpt") or "gpt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
