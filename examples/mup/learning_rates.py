"""Find the best learning rate at each width, with and without --mup.

Usage: python learning_rates.py, after `make out/shards/manifest.json`

The script runs `gpt train` briefly at three widths and at every rate of a sweep, and continues from
where it was stopped. It says each loss on stderr, prints a table of final validation losses and draws
out/learning_rates.svg.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from gptcli.runs.charts import Series, line_chart
from gptcli.runs.svg import Scale

WIDTHS, BASE, D_HEAD = (64, 128, 256), 64, 32
EXPONENTS = range(-11, -3)
RATES = [2.0**exponent for exponent in EXPONENTS]
KINDS = ("standard", "muP")
RECIPE = [
    "--n-layer",
    "2",
    "--n-ctx",
    "64",
    "--tokens",
    "300k",
    "--batch-tokens",
    "1024",
    "--warmup-tokens",
    "30k",
    "--weight-decay",
    "0",
]
COMMON = [
    "--layout",
    "dp=1",
    "--precision",
    "fp32",
    "--compile",
    "off",
    "--eval-every",
    "1k",
    "--eval-tokens",
    "30k",
    "--max-skipped",
    "1k",
]


def final_loss(kind: str, width: int, lr: float) -> float:
    """Return the final validation loss of a run, which is trained first unless it is finished."""
    if width == BASE:
        kind = "standard"  # at the base width both are the same model
    out = Path("out", f"{kind}-{width}-{lr:.6f}")
    if not (out / "model.safetensors").is_file():
        shape = ["--d-model", str(width), "--n-head", str(width // D_HEAD)]
        mup = ["--mup", str(BASE)] if kind == "muP" else []
        command = [
            sys.executable,
            "-m",
            "gptcli",
            "train",
            *shape,
            *RECIPE,
            *COMMON,
            *mup,
            "--lr",
            str(lr),
            "--data",
            "out/shards",
        ]
        subprocess.run(
            [*command, "--out", str(out), "--resume"],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    last = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return json.loads(last)["val_loss"]


def draw(table: dict[str, dict[int, list[float]]]) -> str:
    """Return a chart of the losses by learning rate; the best rate of each width is labelled."""
    series = []
    for kind, widths in table.items():
        for width, losses in widths.items():
            if width == BASE and kind != KINDS[0]:
                continue  # the same runs
            labels = [f"{loss:.3f}" if loss == min(losses) else "" for loss in losses]
            name = f"{width}, both" if width == BASE else f"{width}, {kind}"
            points = list(zip(RATES, losses, strict=True))
            series.append(Series(name, points, labels, line=True, dashed=kind != KINDS[0]))
    lowest = min(loss for one in series for _, loss in one.points)
    return line_chart(
        "Does the best learning rate hold as the model grows wider?",
        "final validation loss by d_model; the best rate of each is labelled",
        series,
        Scale(
            "learning rate, logarithmic",
            RATES[0] / 1.2,
            RATES[-1] * 1.2,
            format=lambda rate: f"{rate:g}",
        ),
        Scale("loss, nats per token", lowest - 0.1, lowest + 1.7, log=False),
    )


def main() -> None:
    """Train all runs, print the table of losses and draw it."""
    table: dict[str, dict[int, list[float]]] = {}
    print(
        f"{'d_model':<16}" + "".join(f"{f'2^{exponent}':>8}" for exponent in EXPONENTS) + "  best"
    )
    for kind in KINDS:
        for width in WIDTHS:
            losses = []
            for rate in RATES:
                losses.append(final_loss(kind, width, rate))
                done = f"{kind}, width {width}, rate {rate:.4g}: {losses[-1]:.3f}"
                print(done, file=sys.stderr, flush=True)
            table.setdefault(kind, {})[width] = losses
            best = RATES[losses.index(min(losses))]
            print(
                f"{kind:<9}{width:>7}"
                + "".join(f"{loss:>8.3f}" for loss in losses)
                + f"  {best:.2g}",
                flush=True,
            )
    Path("out/learning_rates.svg").write_text(draw(table), encoding="utf-8")


if __name__ == "__main__":
    main()
