"""Predicted speeds beside published ones: every row of measured.csv, by source.

A row is the steady speed of one configuration, as its source prints it or as it follows from what
the source prints. The constants of throughput.toml are fitted to these rows; the error of a source
is also told for constants that were fitted without it, which is what a reader may expect of a run
that nobody has measured yet.
"""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

from gptcli.cost.flops import Shape
from gptcli.cost.hardware import Gpu, Precision, find_gpu, read_table
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.memory import Recompute
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.step_time import Overlap, Trainer, constants_from, tokens_per_second, uncertainty
from gptcli.model.config import ModelConfig


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A configuration whose speed was published."""

    source: str
    trainer: Trainer
    model: str
    config: ModelConfig | Shape
    gpu: Gpu
    gpus: int
    layout: Layout
    work: StepConfig
    interleave: int
    """Stages per process."""
    overlap: Overlap
    """Collectives that are overlapped with products."""
    tokens_per_second: float
    """Published, of each GPU."""
    memory_bytes: int | None
    """Published peak of the fullest process; None if unpublished."""

    def predicted(self, constants: Any = None) -> float:
        """Return the predicted tokens per second of each GPU."""
        return tokens_per_second(
            self.config,
            self.layout,
            self.work,
            self.gpu,
            constants,
            trainer=self.trainer,
            interleave=self.interleave,
            overlap=self.overlap,
        )

    @property
    def label(self) -> str:
        """Model, context, GPUs, layout and precision, in a few words."""
        return (
            f"{self.model}, T {self.config.n_ctx}, {self.gpus:,} {self.gpu.name}, {self.layout}, "
            f"{self.work.precision}"
        )


@cache
def measured_runs() -> tuple[MeasuredRun, ...]:
    """Return every row of measured.csv."""
    path = Path(__file__).with_name("measured.csv")
    with open(path, encoding="utf-8", newline="") as file:
        return tuple(map(_run, csv.DictReader(file)))


def _run(row: dict[str, str]) -> MeasuredRun:
    n: dict[str, Any] = {name: int(row[name]) for name in SHAPE_COLUMNS}
    gated, tied = row["gated"] == "1", row["tied"] == "1"
    plain = not gated and tied and n["d_ff"] == 4 * n["d_model"] and n["n_kv_head"] == n["n_head"]
    config: ModelConfig | Shape
    if plain:
        config = ModelConfig(
            n_layer=n["n_layer"],
            n_head=n["n_head"],
            d_model=n["d_model"],
            n_ctx=n["n_ctx"],
            vocab_size=n["vocab_size"],
        )
    else:
        config = Shape(**n, gated=gated, tied=tied)
    return MeasuredRun(
        row["source"],
        cast(Trainer, row["trainer"]),
        row["model"],
        config,
        find_gpu(row["gpu"]),
        int(row["gpus"]),
        parse_layout(row["layout"]),
        StepConfig(
            micro_batch=int(row["micro_batch"]),
            micro_batches=int(row["micro_batches"]),
            precision=cast(Precision, row["precision"]),
            recompute=cast(Recompute, row["recompute"]),
            fused=row["attention"] == "fused",
            whole_logits=True,
        ),
        int(row["interleave"]),
        cast(Overlap, row["overlap"]),
        float(row["tokens_per_second"]),
        round(float(row["memory_gb"]) * 1e9) if row["memory_gb"] else None,
    )


SHAPE_COLUMNS = (
    "n_layer", "n_head", "n_kv_head", "d_model", "d_ff", "n_ctx", "vocab_size"
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceScore:
    """Errors of the predictions for one source."""

    source: str
    trainer: str
    gpus: tuple[str, ...]
    runs: int
    median: float
    """Median of |predicted / published - 1|."""
    worst: float
    in_range: float
    """Share of the runs inside the printed range."""
    unseen_median: float
    """The same with constants that were fitted without the source."""
    unseen_worst: float
    unseen_in_range: float


def log_error(run: MeasuredRun, constants: Any = None) -> float:
    """Return log(predicted / published)."""
    return math.log(run.predicted(constants) / run.tokens_per_second)


def unseen_error(run: MeasuredRun) -> float:
    """Return log(predicted / published) by constants that were fitted without the run's source."""
    values = read_table("held_out.toml")["without"][run.source]
    table = with_values(read_table("throughput.toml"), values)
    return log_error(run, constants_from(table, run.trainer, run.gpu))


def check_report() -> dict[str, Any]:
    """Return the report of `gpt cost --check`: the errors by source, every run, and the sources."""
    return {
        "sources": [asdict(score) for score in scores()],
        "runs": [
            {
                "source": run.source,
                "run": run.label,
                "trainer": run.trainer,
                "gpu": run.gpu.name,
                "gpus": run.gpus,
                "tokens_per_second": run.tokens_per_second,
                "predicted": run.predicted(),
                "error": math.expm1(log_error(run)),
                "unseen_error": math.expm1(unseen_error(run)),
                "range": uncertainty(run.gpu, run.trainer),
                "fitted": True,
            }
            for run in measured_runs()
        ],
        "references": read_table("measured.toml")["reference"],
    }


def scores(runs: Iterable[MeasuredRun] | None = None) -> list[SourceScore]:
    """Return the errors by source, in the order of the table, then of all sources together.

    The held-out errors are those of held_out.toml: the constants that the fit found without each
    source.
    """
    every = list(measured_runs() if runs is None else runs)

    def score(name: str, rows: list[MeasuredRun]) -> SourceScore:
        fitted, unseen = _errors(rows, log_error), _errors(rows, unseen_error)
        return SourceScore(
            source=name,
            trainer=", ".join(dict.fromkeys(run.trainer for run in rows)),
            gpus=tuple(dict.fromkeys(run.gpu.name for run in rows)),
            runs=len(rows),
            median=fitted[0],
            worst=fitted[1],
            in_range=fitted[2],
            unseen_median=unseen[0],
            unseen_worst=unseen[1],
            unseen_in_range=unseen[2],
        )

    sources = dict.fromkeys(run.source for run in every)
    found = [score(name, [run for run in every if run.source == name]) for name in sources]
    return [*found, score("all", every)]


def with_values(table: dict[str, Any], values: dict[str, float]) -> dict[str, Any]:
    """Return a table like throughput.toml with other values, such as {"families.ada.products": 1}."""
    changed: dict[str, Any] = {
        **table,
        "families": {name: {**row} for name, row in table["families"].items()},
        "trainers": {name: {**row} for name, row in table["trainers"].items()},
    }
    for name, value in values.items():
        if "." in name:
            group, row, key = name.split(".")
            changed[group][row][key] = value
        else:
            changed[name] = value
    return changed


def _errors(
    rows: list[MeasuredRun], error: Callable[[MeasuredRun], float]
) -> tuple[float, float, float]:
    """Return median, worst, and the share inside the range."""
    logs = [error(run) for run in rows]
    sizes = [abs(math.expm1(value)) for value in logs]
    inside = [
        abs(value) <= math.log(uncertainty(run.gpu, run.trainer)) + 1e-9
        for value, run in zip(logs, rows, strict=True)
    ]
    return statistics.median(sizes), max(sizes), statistics.fmean(inside)
