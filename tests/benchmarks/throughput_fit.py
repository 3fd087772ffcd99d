"""Fits the constants of gptcli/cost/throughput.toml to gptcli/cost/measured.csv, and again without
each source, which tells how well they predict runs that they never saw.

    python -m tests.benchmarks.throughput_fit            fit, print the errors, write both files
    python -m tests.benchmarks.throughput_fit --check    print the errors only

Least squares of the logarithm of predicted over published speed, over the logarithms of the
constants, held to a prior; by Gauss-Newton steps. A source counts as the square root of its rows,
and a row far off counts less (Huber).
"""

from __future__ import annotations

import math
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.cost.hardware import read_table
from gptcli.cost.scoreboard import MeasuredRun, log_error, measured_runs, with_values
from gptcli.cost.step_time import SHARED, constants_from

HERE = Path(__file__).parents[2] / "gptcli" / "cost"
# Orders of magnitude from the hardware's side, and how many e-folds the rows may move them:
# kernels reach 60 to 80 % of a data-centre GPU's peak, nearly all of a power-limited desktop one's;
# cuBLAS on GB200 reaches 56 % (2,820 of 5,000 TFLOP/s in fp8: Azure's AI benchmarking guide).
FAMILIES = {
    "ampere": (0.8, 0.4),
    "hopper": (0.7, 0.35),
    "blackwell": (0.56, 0.35),
    "ada": (0.9, 0.4),
}
PRIOR: dict[str, tuple[float, float]] = {
    "spread": (0.08, 0.7),
    "fp8": (1.9, 0.1),
    "cast": (70, 0.4),
    "latency": (2.5e-5, 0.4),
    "overlap": (0.3, 0.7),
    "weights": (0.7, 0.3),
    **{f"families.{name}.products": (row[0], 0.15) for name, row in FAMILIES.items()},
    **{f"families.{name}.attention": (row[1], 0.4) for name, row in FAMILIES.items()},
    "families.blackwell.power": (0.7, 0.4),
    "trainers.fsdp.path": (250, 0.5),
    "trainers.fsdp.head": (40, 0.7),
    "trainers.fsdp.launch": (1e-3, 0.7),
    "trainers.fsdp.step": (0.01, 0.7),
    "trainers.fsdp.exposed": (0.7, 0.7),
    "trainers.fsdp.tensor": (1.4, 0.2),
    "trainers.fused.products": (1.0, 0.1),
    "trainers.fused.attention": (1.2, 0.2),
    "trainers.fused.path": (135, 0.3),
    "trainers.fused.head": (20, 0.4),
    "trainers.fused.launch": (1e-4, 0.7),
    "trainers.fused.step": (0.005, 0.7),
    "trainers.fused.exposed": (0.5, 0.7),
    "trainers.megatron.products": (1.0, 0.1),
    "trainers.megatron.attention": (1.2, 0.2),
    "trainers.megatron.path": (135, 0.4),
    "trainers.megatron.head": (20, 0.4),
    "trainers.megatron.launch": (4e-4, 0.7),
    "trainers.megatron.step": (0.05, 0.7),
    "trainers.megatron.exposed": (0.3, 0.7),
    "trainers.megatron.tensor": (1.4, 0.2),
}
FIXED: dict[str, Any] = {  # what no row speaks of
    "trainers.fsdp.products": 1.0,
    "trainers.fsdp.attention": 1.0,
    "trainers.fused.tensor": 1.4,
}
# whole run over steady
GOODPUTS = {
    "PaLM's 30.4/45.7": 30.4 / 45.7,
    "MPT's 35.7/50.9": 35.7 / 50.9,
    "Llama 405B's 34.6/41": 34.6 / 41,
}
GOODPUT_URLS = (
    "https://arxiv.org/abs/2204.02311",
    "https://www.databricks.com/blog/mpt-7b",
    "https://arxiv.org/abs/2407.21783",
)
GOODPUT = round(statistics.geometric_mean(GOODPUTS.values()), 3)
EXTRAPOLATED = 1.5
URLS = ", ".join(row["url"] for row in read_table("measured.toml")["reference"])
NOISE = 0.06  # of a row: 6 %
HUBER = 2.0  # errors above that many times the noise count linearly


def skeleton() -> dict[str, Any]:
    """Return a table with every row that the names of the constants mention."""
    table: dict[str, Any] = {"families": {}, "trainers": {}}
    for name in (*PRIOR, *FIXED):
        if "." in name:
            group, row, _ = name.split(".")
            table[group].setdefault(row, {})
    return table


def completed(values: dict[str, float]) -> dict[str, Any]:
    """Return a whole table: families and trainers that were not measured follow from the others."""
    table = with_values(skeleton(), {**FIXED, **values})
    families, trainers = table["families"], table["trainers"]
    families["other"] = {
        key: round(statistics.geometric_mean(row[key] for row in families.values()), 4)
        for key in ("products", "attention")
    }
    # ours: bytes counted from the compiled kernels of a layer and of the chunked head; products
    # without fused epilogues, as Megatron's; FSDP and DDP as in other trainers; the rest as in
    # fused ones
    trainers["gpt"] = {**trainers["fused"], "path": 135.0, "head": 20.0}
    trainers["gpt"]["products"] = trainers["megatron"]["products"]
    trainers["gpt"]["tensor"] = 1.4
    trainers["gpt"]["exposed"] = trainers["fsdp"]["exposed"]
    return table


def fit(rows: list[MeasuredRun], start: dict[str, float] | None = None) -> dict[str, float]:
    """Return the constants for some rows, by steps from `start` or from the centre of the prior."""
    names = list(PRIOR)
    centre = np.log([PRIOR[name][0] for name in names])
    width = np.array([PRIOR[name][1] for name in names])
    count = {
        source: sum(row.source == source for row in rows) for source in {r.source for r in rows}
    }
    weight = np.array([count[row.source] ** -0.25 for row in rows]) / NOISE
    used = [[i for i, row in enumerate(rows) if depends(row, name)] for name in names]

    def errors(x: np.ndarray[Any, Any], which: list[int]) -> np.ndarray[Any, Any]:
        table = completed(dict(zip(names, map(float, np.exp(x)), strict=True)))
        return np.array(
            [
                log_error(row, constants_from(table, row.trainer, row.gpu))
                for row in (rows[i] for i in which)
            ]
        )

    x = centre.copy() if start is None else np.log([start[name] for name in names])
    for _ in range(25):
        now = errors(x, list(range(len(rows))))
        slope = np.zeros((len(rows), len(names)))
        for column, which in enumerate(used):
            step = np.zeros(len(names))
            step[column] = 1e-3
            slope[which, column] = (errors(x + step, which) - now[which]) / 1e-3
        robust = weight * np.minimum(1, HUBER / np.maximum(HUBER, np.abs(now) / NOISE)) ** 0.5
        a = np.vstack([slope * robust[:, None], np.diag(1 / width)])
        b = np.concatenate([-now * robust, (centre - x) / width])
        step = np.linalg.lstsq(a, b, rcond=None)[0]
        x = x + np.clip(step, -0.5, 0.5)
        if np.abs(step).max() < 1e-3:
            break
    return {name: float(f"{value:.4g}") for name, value in zip(names, np.exp(x), strict=True)}


def depends(row: MeasuredRun, name: str) -> bool:
    """Return whether the predicted speed of a row depends on a constant."""
    group, _, rest = name.partition(".")
    owner = rest.partition(".")[0]
    return {"families": row.gpu.family, "trainers": row.trainer}.get(group, owner) == owner


def main() -> None:
    rows = list(measured_runs())
    best = fit(rows)
    table = completed(best)
    held = {}
    for source in dict.fromkeys(row.source for row in rows):
        held[source] = fit([row for row in rows if row.source != source], best)
    unseen: dict[str, list[float]] = {}
    for row in rows:
        other = completed(held[row.source])
        error = abs(log_error(row, constants_from(other, row.trainer, row.gpu)))
        unseen.setdefault(row.trainer, []).append(error)
        part = f"{row.source}, {row.label}"
        print(f"{part:90} {math.expm1(error):6.1%} unseen", file=sys.stderr)
    known = {name: math.exp(quantile(errors, 0.8)) for name, errors in unseen.items()}
    if "--check" in sys.argv:
        return
    families = {
        name: sorted({row.gpu.family for row in rows if row.trainer == name}) for name in known
    }
    (HERE / "throughput.toml").write_text(constants_toml(table, known, families))
    text = [
        "# Constants of throughput.toml without each source, by tests/benchmarks/throughput_fit.py.",
        "",
        'source = "gptcli/cost/measured.csv without the rows of each source"',
        f'url = "{URLS}"',
        'date = "2026-11"',
    ]
    for source, values in held.items():
        flat = flattened(completed(values))
        text += [
            "",
            f'[without."{source}"]',
            *(f'"{name}" = {value:g}' for name, value in flat.items()),
        ]
    (HERE / "held_out.toml").write_text("\n".join(text) + "\n")


def flattened(table: dict[str, Any]) -> dict[str, float]:
    """Return the values of a table by their dotted names."""
    found = {name: table[name] for name in SHARED}
    for group in ("families", "trainers"):
        for row, values in table[group].items():
            found |= {f"{group}.{row}.{key}": value for key, value in values.items()}
    return found


def constants_toml(
    table: dict[str, Any], known: dict[str, float], families: dict[str, list[str]]
) -> str:
    """Return throughput.toml."""
    lines = [
        "# Constants of gptcli/cost/step_time.py, each explained there, fitted to measured.csv by",
        "# tests/benchmarks/throughput_fit.py.",
        "",
        f'source = "{len(measured_runs())} published speeds, gptcli/cost/measured.csv"',
        f'url = "{URLS}"',
        'date = "2026-11"',
        *(f"{name} = {table[name]:g}" for name in SHARED),
        "# GPUs with a published speed",
        "gpus = ["
        + ", ".join(f'"{name}"' for name in sorted({run.gpu.name for run in measured_runs()}))
        + "]",
        "# factor, either way, for a trainer on GPUs that it was not measured on: an assumption",
        f"extrapolated = {EXTRAPOLATED}",
    ]
    for name, row in table["families"].items():
        lines += ["", f"[families.{name}]", *(f"{key} = {value:g}" for key, value in row.items())]
    for name, row in table["trainers"].items():
        lines += ["", f"[trainers.{name}]", *(f"{key} = {value:g}" for key, value in row.items())]
        if name in known:
            lines.append(
                f"known = {known[name]:.3g}  # holds eight of ten of its rows, each predicted unseen"
            )
        lines.append("families = [" + ", ".join(f'"{f}"' for f in families.get(name, ())) + "]")
    lines += [
        "",
        "[goodput]",
        f"value = {GOODPUT}",
        'source = "share of a run\'s time that its steps take: geometric mean of {}"'.format(
            ", ".join(GOODPUTS)
        ),
        f'url = "{", ".join(GOODPUT_URLS)}"',
        'date = "2024-07"',
    ]
    return "\n".join(lines) + "\n"


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


if __name__ == "__main__":
    main()
