"""Print the files that the demo wrote, the losses, and commands to try next.

Usage: python closing.py OUT FROM, where FROM is the folder that the commands are written for
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
    """Return the text for the demo's files in `out`, with commands to run in the folder `start`."""

    def path(place: Path) -> str:
        return shlex.quote(min(os.path.relpath(place, start), str(place), key=len))

    loss = json.loads((out / "eval.json").read_text(encoding="utf-8"))["losses"][0]
    nats, baseline, bits = loss["loss"], loss["unigram_entropy"], loss["bits_per_byte"]
    command = path(Path(gpt)) if Path(gpt).is_relative_to(ROOT) else "gpt"
    return f"""
── Files in {path(out)} ──
corpus.jsonl    Python's own documentation and source
tokenizer.json  a byte-level BPE
shards/         shuffled tokens with checksums; report.md shows them
run/            the model, which transformers can load; its report.html has
                curves, samples and scores
sample.txt      a text that the model generated
eval.json       the loss on text that the model was not trained on:
                {nats:.2f} nats per token, {bits:.2f} bits per byte; a model that knows
                only the frequency of each token has {baseline:.2f} nats ({bits * baseline / nats:.2f} bits)

── What to try next ──
# play with the model in the browser
{command} sample {path(out / "run")} --serve
# generate more text
{command} sample {path(out / "run")} "def main(" --temperature 0.7
# show the time and memory that GPT-3 Medium needs on this machine
{command} train --data {path(out / "shards")} --size 350M --dry-run
# estimate the cost of the largest model
{command} cost --size 175B"""


def main(out: str, start: str) -> None:
    """Print the text for the files in `out`."""
    print(closing(Path(out).absolute(), Path(start).absolute(), shutil.which("gpt") or "gpt"))


if __name__ == "__main__":
    main(*sys.argv[1:])
