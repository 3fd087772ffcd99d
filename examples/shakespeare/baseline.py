"""Draw the losses of this recipe beside nanoGPT's, on the same text.

Usage: python baseline.py RUN VAL.txt NANOGPT.log baseline.svg

RUN is a run of cpu.toml with all checkpoints (`--keep 100`), each of which is evaluated on VAL.txt,
the last tenth of the text. NANOGPT.log is what nanoGPT's train.py prints for the same recipe; its
losses are of random batches from the same tenth.
"""

from __future__ import annotations

import math
import re
import sys
from collections import Counter
from pathlib import Path

import gptcli
from gptcli.runs.charts import Series, line_chart
from gptcli.runs.svg import Scale

NANOGPT_LINE = re.compile(r"^step (\d+): train loss [\d.]+, val loss ([\d.]+)", re.MULTILINE)


def our_losses(run: Path, val: Path) -> list[tuple[float, float]]:
    """Return the loss of each checkpoint of `run` on the text `val`, by its step."""
    points = []
    for checkpoint in sorted((run / "checkpoints").glob("step-*")):
        step = int(checkpoint.name.removeprefix("step-"))
        report = gptcli.evaluate(run, text=[val], checkpoint=step, device="cpu")
        points.append((float(step), float(report["losses"][0]["loss"])))
    return points


def unigram_entropy(text: str) -> float:
    """Return the loss of a model that knows only how frequent each character is, in nats."""
    counts = Counter(text)
    return -sum(n / len(text) * math.log(n / len(text)) for n in counts.values())


def draw(ours: list[tuple[float, float]], theirs: list[tuple[float, float]], unigram: float) -> str:
    """Return the chart of both runs as an SVG."""
    last = max(step for step, _ in ours)
    series = [
        Series("gpt", ours, [""] * (len(ours) - 1) + [f"{ours[-1][1]:.3f}"], line=True),
        Series("nanoGPT", theirs, [""] * (len(theirs) - 1) + [f"{theirs[-1][1]:.3f}"], line=True),
        Series(
            f"knows only how frequent each letter is: {unigram:.2f}",
            [(0, unigram), (last, unigram)],
            line=True,
            dots=False,
            dashed=True,
        ),
    ]
    return line_chart(
        "Shakespeare, letter by letter, on a laptop's CPU",
        "validation loss on the last tenth of the text: 834,432 parameters, 2,000 steps",
        series,
        Scale("step", 0, last * 1.04, log=False),
        Scale("loss, nats per letter", 1.6, 3.6, log=False, format=lambda loss: f"{loss:.1f}"),
        ["gpt: all of the last tenth. nanoGPT: its own estimate, from random batches of it."],
    )


def main(run: str, val: str, log: str, out: str) -> None:
    """Evaluate the checkpoints, read nanoGPT's log, and write the chart to `out`."""
    found = NANOGPT_LINE.findall(Path(log).read_text(encoding="utf-8"))
    theirs = [(float(step), float(loss)) for step, loss in found if int(step) > 0]
    text = Path(val).read_text(encoding="utf-8")
    ours = our_losses(Path(run), Path(val))
    Path(out).write_text(draw(ours, theirs, unigram_entropy(text)), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
