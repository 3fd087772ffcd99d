"""Predicted speeds and memory beside published and measured ones: every row of measured.csv and
measured_memory.csv, by source.

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
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from gptcli.cost.cpu import cpu_memory, on_cpu
from gptcli.cost.flops import Shape, layer_matrices
from gptcli.cost.hardware import Gpu, Precision, find_gpu, read_table
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.memory import Recompute
from gptcli.cost.planner import recipe_of
from gptcli.cost.rank_memory import StepConfig, megatron_stage, rank_memory
from gptcli.cost.step_time import (
    SYNC_BYTES,
    Overlap,
    Trainer,
    constants_from,
    step_time,
    uncertainty,
)
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
    sync_bytes: int
    """Bytes per parameter of the replicas' exchange, as the source says, or SYNC_BYTES."""
    tokens_per_second: float
    """Published, of each GPU."""
    memory_bytes: int | None
    """Published peak of the fullest process; None if unpublished."""

    def predicted(self, constants: Any = None) -> float:
        """Return the predicted tokens per second of each GPU."""
        seconds = step_time(
            self.config,
            self.layout,
            self.work,
            self.gpu,
            constants,
            trainer=self.trainer,
            interleave=self.interleave,
            overlap=self.overlap,
            sync_bytes=self.sync_bytes,
        ).total
        tokens = self.work.micro_batch * self.work.micro_batches * self.config.n_ctx
        return tokens / seconds / (self.layout.tp * self.layout.pp)

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


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """Peak bytes of a process, measured and predicted."""

    source: str
    run: str
    """Model, layout and step, in a few words."""
    bytes: int
    """Measured: allocated on a GPU, of the whole process on a CPU."""
    predicted: int

    @property
    def error(self) -> float:
        """Relative error of the prediction."""
        return self.predicted / self.bytes - 1


@cache
def measured_memory() -> tuple[MeasuredMemory, ...]:
    """Return every run whose memory was measured, with the prediction."""
    found = [
        MeasuredMemory(
            run.source,
            run.label,
            run.memory_bytes,
            rank_memory(run.config, run.layout, run.work, recipe_of(run.trainer)).total,
        )
        for run in measured_runs()
        if run.memory_bytes is not None
    ]
    path = Path(__file__).with_name("measured_memory.csv")
    with open(path, encoding="utf-8", newline="") as file:
        found += map(_memory, csv.DictReader(file))
    return tuple(found)


def _memory(row: dict[str, str]) -> MeasuredMemory:
    n: dict[str, Any] = {name: int(row[name]) for name in MEMORY_COLUMNS}
    config = ModelConfig(
        **{name: n[name] for name in ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size")},
        dropout=float(row["dropout"]),
    )
    layout = parse_layout(row["layout"])
    work = StepConfig(
        micro_batch=n["micro_batch"],
        micro_batches=n["micro_batches"],
        precision=cast(Precision, row["precision"]),
        recompute=cast(Recompute, row["recompute"]),
    )
    if row["device"] == "cpu":
        matrices = config.n_layer * layer_matrices(config)
        predicted = cpu_memory(
            config,
            layout,
            on_cpu(work, config, has_kernels=True),
            average_bytes=4 * config.parameters * (row["extra"] == "ema"),
            fewer_moments=matrices * (row["extra"] == "muon"),
            compiled=row["extra"] == "compiled",
        ).total
    else:  # Megatron-LM's own attention, of its last stage
        predicted = megatron_stage(
            config,
            layout,
            replace(work, fused=False),
            layout.pp - 1,
            sequence_parallel=row["extra"] != "no sequence parallelism",
        ).total
    words = [f"{n['n_layer']} x {n['d_model']}, T {n['n_ctx']}", str(layout), row["precision"]]
    words += [row[name] for name in ("recompute", "extra") if row[name] not in ("", "none")]
    words += ["dropout"] * (config.dropout > 0)
    return MeasuredMemory(row["source"], ", ".join(words), n["bytes"], predicted)


MEMORY_COLUMNS = (
    "n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "micro_batch", "micro_batches", "bytes"
)  # fmt: skip


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
        int(row["sync_bytes"] or SYNC_BYTES),
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
        "memory": [asdict(run) | {"error": run.error} for run in measured_memory()],
        "memory_sources": [asdict(score) for score in memory_scores()],
        "references": [
            *read_table("measured.toml")["reference"],
            *read_table("measured.toml")["memory_reference"],
        ],
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


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryScore:
    """Errors of the predicted memory for one source."""

    source: str
    runs: int
    median: float
    """Median of |predicted / measured - 1|."""
    worst: float
    above: float
    """Most that a measured peak is above the prediction, as a share of it; 0 if none is."""


def memory_scores() -> list[MemoryScore]:
    """Return the errors of the predicted memory by source, in the order of the tables."""
    found = []
    for source in dict.fromkeys(run.source for run in measured_memory()):
        rows = [run for run in measured_memory() if run.source == source]
        sizes = [abs(run.error) for run in rows]
        found.append(
            MemoryScore(
                source=source,
                runs=len(rows),
                median=statistics.median(sizes),
                worst=max(sizes),
                above=max(0.0, *(run.bytes / run.predicted - 1 for run in rows)),
            )
        )
    return found


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
