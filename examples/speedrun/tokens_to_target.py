"""Print a table of the tokens and the time until runs reached a validation loss.

    python tokens_to_target.py 5.0 out/paper out/muon ...

Each argument is a folder of `gpt train --seeds`; the first is compared with. The loss between two
measurements is taken to lie on a line. Times are those of the steps, without evaluations.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from gptcli.runs.groups import difference, expanded, interval
from gptcli.runs.metrics import read_metrics


def reached(run: Path, target: float) -> tuple[float, float] | None:
    """Return the tokens and seconds at which a run reached the target; None if it never did."""
    seconds, before = 0.0, None
    for line in read_metrics(run):
        seconds += line["batch_tokens"] / line["tokens_per_second"]
        if "val_loss" not in line:
            continue
        now = line["val_loss"], line["tokens"], seconds
        if now[0] <= target:
            if before is None:
                return now[1], now[2]
            share = (before[0] - target) / (before[0] - now[0])
            return tuple(a + share * (b - a) for a, b in zip(before[1:], now[1:], strict=True))
        before = now
    return None


def ratio(base: list[float], other: list[float]) -> str:
    """Return how many times more the mean of `base` is, with its 95 % interval (Welch, of logs)."""
    gap = difference([math.log(x) for x in base], [math.log(x) for x in other])
    if gap.half_width is None:
        return f"{math.exp(gap.mean):.2f}"
    low, high = (math.exp(gap.mean + sign * gap.half_width) for sign in (-1, 1))
    return f"{math.exp(gap.mean):.2f} ({low:.2f} to {high:.2f})"


def main() -> None:
    """Print the table."""
    target, folders = float(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    print(f"Tokens until the validation loss was {target}, with 95 % intervals:\n")
    print("| recipe | seeds | thousand tokens | fewer tokens | less time | final loss |")
    print("|---|---|---|---|---|---|")
    base: list[list[float]] = []
    for folder in folders:
        runs = expanded([folder])
        found = [reached(run, target) for run in runs]
        last = interval(
            [
                [line["val_loss"] for line in read_metrics(run) if "val_loss" in line][-1]
                for run in runs
            ]
        )
        if None in found:
            missed = found.count(None)
            print(f"| {folder.name} | {len(runs)} | {missed} never | | | {last} |")
            continue
        both = [list(values) for values in zip(*found, strict=True)]
        base = base or both
        tokens = interval([value / 1000 for value in both[0]])
        spread = "" if tokens.half_width is None else f" ± {tokens.half_width:.0f}"
        print(
            f"| {folder.name} | {len(runs)} | {tokens.mean:.0f}{spread} | {ratio(base[0], both[0])} × "
            f"| {ratio(base[1], both[1])} × | {last} |"
        )


if __name__ == "__main__":
    main()
