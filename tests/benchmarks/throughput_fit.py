"""Fits the constants of gptcli/cost/throughput.toml to one half of the measured speeds, and tells
how well they predict the other.

    python -m tests.benchmarks.throughput_fit MEASURED.csv > gptcli/cost/throughput.toml

The halves are drawn by a hash of what identifies a row, so that neither grows with a look at the
other.
"""

from __future__ import annotations

import csv
import hashlib
import math
import statistics
import sys
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from gptcli.cost.hardware import Gpu, find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.scaling_fit import nelder_mead
from gptcli.cost.step_time import Constants, tokens_per_second
from gptcli.model.config import ModelConfig

SHAPES = {  # llm-foundry's: layers, heads, width
    "125m": (12, 12, 768), "350m": (24, 16, 1024), "760m": (24, 12, 1536), "1b": (24, 16, 2048), "3b": (32, 20, 2560),
    "7b": (32, 32, 4096), "13b": (40, 40, 5120), "30b": (48, 56, 7168), "70b": (80, 64, 8192),
}  # fmt: skip
# orders of magnitude from the hardware's side; a constant that the rows do not speak of stays near
# it
PRIOR = Constants(
    products=0.8,
    attention=0.5,
    path=150,
    head=20,
    launch=1e-3,
    exposed=1,
    spread=0.05,
    hopper_products=0.8,
    hopper_attention=0.8,
    fp8=1.3,
)
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
HELD = 3e-4  # how strongly
KEY = ("model", "seq_len", "n_gpus", "gpu", "microbatch", "precision")


@dataclass(frozen=True)
class Measured:
    config: ModelConfig
    layout: Layout
    work: StepConfig
    gpu: Gpu
    speed: float
    """Tokens per second and GPU."""
    fitted_constants: bool
    """Error on the half that the constants are fitted to."""
    row: dict[str, str]


def read(path: Path) -> list[Measured]:
    with open(path, encoding="utf-8", newline="") as file:
        return [_measured(row) for row in csv.DictReader(file)]


def _measured(row: dict[str, str]) -> Measured:
    n_layer, n_head, d_model = SHAPES[row["model"]]
    digest = hashlib.sha256(",".join(row[name] for name in KEY).encode()).digest()
    return Measured(
        ModelConfig(
            n_layer=n_layer,
            n_head=n_head,
            d_model=d_model,
            n_ctx=int(row["seq_len"]),
            vocab_size=50368,
        ),
        Layout(shard=int(row["n_gpus"])),
        StepConfig(
            micro_batch=int(row["microbatch"]),
            micro_batches=int(row["grad_accum"]),
            precision="fp8" if "fp8" in row["precision"] else "bf16",
            recompute="full" if row["act_ckpt"] == "True" else "none",
            whole_logits=True,
        ),
        find_gpu(row["gpu"]),
        float(row["tok_per_s_gpu"]),
        digest[-1] % 2 == 0,
        row,
    )


def error(row: Measured, constants: Constants | None = None) -> float:
    """log(predicted / measured)."""
    return math.log(
        tokens_per_second(row.config, row.layout, row.work, row.gpu, constants) / row.speed
    )


def fit(rows: list[Measured]) -> Constants:
    """Least absolute errors of the logarithm, over the logarithms of the constants."""
    names, prior = (
        [field.name for field in fields(Constants)],
        [math.log(value) for value in asdict(PRIOR).values()],
    )

    def constants(point: list[float]) -> Constants:
        return Constants(**{name: math.exp(x) for name, x in zip(names, point, strict=True)})

    def loss(point: list[float]) -> float:
        made = constants(point)
        held = sum((x - y) ** 2 for x, y in zip(point, prior, strict=True))
        return statistics.fmean(abs(error(row, made)) for row in rows) + HELD * held

    return constants(nelder_mead(loss, prior, step=0.3, restarts=6))


def main(path: Path) -> None:
    rows = read(path)
    half, other = ([row for row in rows if row.fitted_constants is flag] for flag in (True, False))
    constants = fit(half)
    known = math.exp(quantile([abs(error(row, constants)) for row in half], 0.9))
    print(
        "# Constants of gptcli/cost/step_time.py, each explained there, fitted by tests/benchmarks/throughput_fit.py.\n"
    )
    print(
        f'source = "{len(half)} of {len(rows)} rows of MosaicML llm-foundry\'s training benchmarks, by hash: GPT models, FSDP, A100, H100"'
    )
    print('url = "https://github.com/mosaicml/llm-foundry/tree/main/scripts/train/benchmarking"')
    print('date = "2024"\n\n[constants]')
    for name, value in asdict(constants).items():
        print(f"{name} = {value:.4g}")
    print("\n[range]  # factors, either way")
    print(f"known = {known:.3g}  # nine in ten of the rows that are fitted to")
    print("other = 1.75  # an assumption that 18 of 20 published runs bear out")
    print(f"\n[goodput]\nvalue = {GOODPUT}")
    print(
        'source = "share of a run\'s time that its steps take: geometric mean of {}"'.format(
            ", ".join(GOODPUTS)
        )
    )
    print(f'url = "{", ".join(GOODPUT_URLS)}"\ndate = "2024-07"')
    for name, part in (("fitted", half), ("held out", other)):
        errors = [abs(math.expm1(error(row, constants))) for row in part]
        covered = statistics.fmean(abs(error(row, constants)) <= math.log(known) for row in part)
        text = f"{name}: {len(part)} rows, median error {statistics.median(errors):.1%}, in range {covered:.0%}, worst {max(errors):.0%}"
        print(text, file=sys.stderr)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[math.ceil(share * len(values)) - 1]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
