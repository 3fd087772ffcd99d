"""Tokens until the validation loss of each recipe reaches a target, over the seeds of each.

    python tokens_to_target.py TARGET RUNS RUNS...

RUNS is a folder of `gpt train --seeds`. The first one is what the others are compared with.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from gptcli.runs.groups import difference, expanded, interval
from gptcli.runs.metrics import read_metrics


def tokens_to(run: Path, target: float) -> float:
    """Return the tokens at which a run's validation loss is `target`, between two measurements."""
    before: tuple[float, float] | None = None
    for line in read_metrics(run):
        loss = line.get("val_loss")
        if loss is None:
            continue
        if loss <= target:
            if before is None:
                return float(line["tokens"])
            tokens, was = before
            return tokens + (line["tokens"] - tokens) * (was - target) / (was - loss)
        before = line["tokens"], loss
    return math.inf


def main(target: float, folders: list[Path]) -> None:
    """Print a line for each recipe, and its speed-up over the first with its interval."""
    first: list[float] = []
    for folder in folders:
        found = [tokens_to(run, target) for run in expanded([folder])]
        missed = sum(math.isinf(tokens) for tokens in found)
        if missed:
            print(f"{folder.name}: {missed} of {len(found)} seeds do not reach {target}")
            continue
        logs = [math.log(tokens) for tokens in found]
        mean = interval(found)
        spread = "" if mean.half_width is None else f" ± {mean.half_width:,.0f}"
        text = f"{folder.name}: {mean.mean:,.0f}{spread} tokens to {target}, {len(found)} seeds"
        if first:
            gap = difference(first, logs)
            text += f"; {math.exp(gap.mean):.2f} x fewer"
            if gap.half_width is not None:
                low, high = (math.exp(gap.mean + sign * gap.half_width) for sign in (-1, 1))
                text += f" ({low:.2f} to {high:.2f})"
        first = first or logs
        print(text)


if __name__ == "__main__":
    main(float(sys.argv[1]), [Path(name) for name in sys.argv[2:]])
