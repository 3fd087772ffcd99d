"""Learning-rate range test (Smith 2017): the learning rate grows until the loss does."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from gptcli import toml_json
from gptcli.distributed.context import RankContext
from gptcli.events import Events
from gptcli.files import atomic_write
from gptcli.model.source import (
    LR_RANGE,
    LR_RANGE_REPORT,
    initial_weights_folder,
    remove_initial_weights,
)
from gptcli.runs.curves import inline_chart
from gptcli.runs.page import configuration, definitions, document, gallery
from gptcli.shards.order import open_order
from gptcli.trainer.checkpoint import load_weights_, plain_named_parameters
from gptcli.trainer.config import Run
from gptcli.trainer.parallelize import build_train_step
from gptcli.trainer.schedule import Rates, Schedule
from gptcli.trainer.step import micro_batches
from gptcli.trainer.step_statistics import SpikeGuard

MIN_LR, MAX_LR = 1e-6, 1.0
LOSS_DECAY = 0.8  # of older losses in the smoothed loss
MAX_RISE_NATS = 1.0  # of the smoothed loss above its minimum; the sweep ends there
# At the minimum the loss is about to rise: the suggested rate is this many times smaller.
SUGGESTED_DIVISOR = 10

Point = dict[str, float]


def lr_range(run: Run, context: RankContext, events: Events) -> dict[str, Any]:
    """Sweep the learning rate over the run's tokens in full batches, and return the report.

    All ranks call it together. It writes the curve, and nothing of the model.
    """
    begin = time.perf_counter()
    schedule, n_ctx = Schedule(run.train, run.model.n_ctx), run.model.n_ctx
    order = open_order(
        run.data, "train", n_ctx, run.train.seed, mixture=run.train.mixture, verify=False
    )
    train_step = build_train_step(run, context, events)
    train_step.spike_guard = SpikeGuard(0.0)  # the sweep looks for the rise of the loss
    if run.init_from is not None:
        load_weights_(
            initial_weights_folder(run.out, run.init_from),
            plain_named_parameters(train_step.model),
            run.init_step,
        )
    steps = max(2, schedule.total_sequences // schedule.full_batch)
    points: list[Point] = []
    diverged = True
    for step in range(steps):
        lr = MIN_LR * (MAX_LR / MIN_LR) ** (step / (steps - 1))
        tokens = schedule.full_batch * n_ctx
        batches = micro_batches(
            order, step * schedule.full_batch, schedule.full_batch, run.train.micro_batch, context
        )
        result = train_step(batches, step=step + 1, batch_tokens=tokens, rates=Rates(lr))
        if result.skip_reason is not None:
            break
        points.append(smoothed(points, lr, result.loss))
        events.progress("lr range", step + 1, steps, "steps", lr=lr, loss=points[-1]["loss"])
        if points[-1]["smooth"] > min(point["smooth"] for point in points) + MAX_RISE_NATS:
            break
    else:
        diverged = False
    events.finish("lr range")
    lowest, suggested = suggest(points)
    if context.is_main:
        _write(run, points, lowest, suggested)
        remove_initial_weights(run.out)
    return {
        "out": str(run.out),
        "suggested_lr": suggested,
        "lowest_loss_lr": lowest,
        "steps": len(points),
        "diverged": diverged,
        "seconds": round(time.perf_counter() - begin, 3),
        "curve": [[point["lr"], point["loss"]] for point in points],
        "interrupted": False,
    }


def smoothed(before: list[Point], lr: float, loss: float) -> Point:
    """Return the point after `before`, with the loss and its exponentially weighted mean."""
    weights = [LOSS_DECAY**age for age in range(len(before) + 1)]
    losses = [loss, *(point["loss"] for point in reversed(before))]
    return {
        "lr": lr,
        "loss": loss,
        "smooth": sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights),
    }


def suggest(points: list[Point]) -> tuple[float | None, float | None]:
    """Return the learning rate of the lowest smoothed loss, and the suggested one.

    Both are None if no step had a finite loss.
    """
    if not points:
        return None, None
    lowest = min(points, key=lambda point: point["smooth"])["lr"]
    return lowest, lowest / SUGGESTED_DIVISOR


def _write(run: Run, points: list[Point], lowest: float | None, suggested: float | None) -> None:
    """Write the curve as JSONL, and a page with its chart."""
    out = Path(run.out)
    with atomic_write(out / LR_RANGE, "w") as file:
        file.writelines(toml_json.dumps(point, ascii_only=True) + "\n" for point in points)
    curves = {
        name: [(point["lr"], point[key]) for point in points]
        for name, key in (("loss", "loss"), ("smooth", "smooth"))
    }
    facts = {
        "suggested learning rate": _rate(suggested),
        "lowest smoothed loss at": _rate(lowest),
        "steps": f"{len(points):,}",
    }
    charts = (
        [inline_chart("Loss", curves, unit="nats per token", over="lr", log_x=True, tall=True)]
        if points
        else []
    )
    with atomic_write(out / LR_RANGE_REPORT, "w") as file:
        file.write(
            document(
                f"{run.name}: learning-rate range",
                definitions(facts),
                gallery(charts),
                configuration(run.resolved),
            )
        )


def _rate(value: float | None) -> str:
    return "none" if value is None else f"{value:.2g}"
