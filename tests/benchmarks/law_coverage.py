"""Measures how often the 95 % intervals of a law's fit contain the truth.

    python -m tests.benchmarks.law_coverage            20, 30, 60 and 240 runs, six kinds of noise
    python -m tests.benchmarks.law_coverage 20 30 --draws 100 --noise equal small

Each draw is a set of runs as in Chinchilla's figure 4: sizes around the optimum of nine budgets, with
losses by the constants of Besiroglu et al. and noise of `NOISES`. The columns are the law's constants,
the loss of the law at 70B parameters on 1.4T tokens, and a further run inside the range of the others
with noise of its own. The coverage of 200 draws is known to 1.5 %.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable, Sequence

from gptcli.cost import scaling_fit
from gptcli.cost.scaling import REFIT
from gptcli.cost.scaling_fit import fit_law
from gptcli.cost.scaling_forms import RunResult

BUDGETS = [6e18 * 2.0**k for k in range(9)]  # FLOP
SIZES = (4e7, 1.6e10)
NOISE = 0.004  # standard deviation of log loss
CONSTANTS = ("E", "A", "B", "alpha", "beta")
COLUMNS = (*CONSTANTS, "70B", "further run")
HELD_OUT = 70 * 10**9, 1_400 * 10**9
RESAMPLES = 120

Noise = Callable[[random.Random, float, float], float]


def _share_of_largest(parameters: float) -> float:
    """Return 0 for the smallest size and 1 for the largest, by logarithms."""
    low, high = SIZES
    return math.log(parameters / low) / math.log(high / low)


NOISES: dict[str, Noise] = {
    "equal": lambda draw, n, d: draw.gauss(0, 1),
    "small": lambda draw, n, d: draw.gauss(0, 1) * 4 ** (1 - _share_of_largest(n)),
    "short": lambda draw, n, d: draw.gauss(0, 1) * (4 if d < 2e10 else 1),
    "outliers": lambda draw, n, d: draw.gauss(0, 1) * (8 if draw.random() < 0.07 else 1),
    "heavy": lambda draw, n, d: (
        draw.gauss(0, 1) / math.sqrt(sum(draw.gauss(0, 1) ** 2 for _ in range(3)))
    ),
    "skewed": lambda draw, n, d: draw.expovariate(1) - math.log(2),
}
"""By name: equal; four times as large for the smallest model; four times for short runs; eight times for
a few runs; Student's t of three degrees of freedom; an exponential with its median at 0.
"""


def drawn_run(draw: random.Random, noise: Noise) -> RunResult:
    """Return a run near the compute-optimal size of one of BUDGETS."""
    while True:
        flops = draw.choice(BUDGETS)
        n = REFIT.optimum(flops).parameters * math.exp(draw.gauss(0, 1))
        d = flops / 6 / n
        if SIZES[0] <= n <= SIZES[1] and d >= 5e8:
            break
    loss = REFIT.loss(n, d) * math.exp(NOISE * noise(draw, n, d))
    return RunResult(name="", parameters=round(n), tokens=round(d), loss=loss)


def coverage(runs: int, draws: int, noise: Noise, *, seed: int = 0) -> list[float]:
    """Return the share of `draws` whose intervals contain the truth, by COLUMNS."""
    hits = [0] * len(COLUMNS)
    for number in range(draws):
        draw = random.Random(f"{seed} {runs} {number}")
        law = fit_law([drawn_run(draw, noise) for _ in range(runs)], seed=number)
        truths = [getattr(REFIT, name) for name in CONSTANTS]
        intervals = [law.intervals[name] for name in CONSTANTS]
        truths.append(REFIT.loss(*HELD_OUT))
        intervals.append(law.law_interval(*HELD_OUT))
        more = drawn_run(draw, noise)
        truths.append(more.loss)
        intervals.append(law.loss_interval(more.parameters, more.tokens))
        for i, (truth, (low, high)) in enumerate(zip(truths, intervals, strict=True)):
            hits[i] += low <= truth <= high
    return [count / draws for count in hits]


def main(words: Sequence[str] | None = None) -> None:
    """Print a table of coverage."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="*", type=int, default=[20, 30, 60, 240])
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--noise", nargs="*", choices=NOISES, default=list(NOISES))
    given = parser.parse_args(words)
    scaling_fit.RESAMPLES = RESAMPLES
    print("runs noise     " + " ".join(f"{name:>11}" for name in COLUMNS))
    for runs in given.runs:
        for name in given.noise:
            begin = time.process_time()
            found = coverage(runs, given.draws, NOISES[name])
            print(
                f"{runs:4} {name:9} " + " ".join(f"{share:11.3f}" for share in found),
                f"  {time.process_time() - begin:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
