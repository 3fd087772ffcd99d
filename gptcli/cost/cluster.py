"""Throughput of a cluster that trains a model, what it can afford, and how large it must be.

If no throughput is given, it is that of the fastest plan, by the step times of `step_time`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptcli.cost.estimate import Cluster, Estimate
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import (
    USER,
    Assumption,
    Gpu,
    hourly_price,
    read_table,
    throughput,
    typical_throughput,
    usual_precision,
)
from gptcli.cost.planner import Plan, typical_plan
from gptcli.cost.scaling import CHINCHILLA
from gptcli.cost.step_time import NODE, uncertainty
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.papers.models import MODELS

MAX_GPUS = 1_000_000


def batch_sequences(model: ModelConfig) -> int:
    """Return the batch size, in sequences, of the GPT-3 model with the nearest parameter count."""
    papers = [paper for paper in MODELS if paper.paper == "GPT-3"]
    nearest = min(papers, key=lambda paper: abs(math.log(paper.parameters / model.parameters)))
    return max(1, nearest.batch_tokens // model.n_ctx)


def make_cluster(
    gpu: Gpu | None,
    count: int,
    *,
    model: ModelConfig | None,
    plan: Plan | None = None,
    tflops: float | None = None,
    mfu: float | None = None,
    goodput: float | None = None,
    price: float | None = None,
) -> tuple[Cluster, Plan | None]:
    """Return a cluster whose throughput is given, or published for its GPU, or predicted for
    `model` by `plan` or by the best plan; and that plan.

    A predicted throughput comes with a goodput; otherwise goodput is 1 unless given. Raises
    UsageError.
    """
    if goodput is not None and not 0 < goodput <= 1:
        raise UsageError(
            f"goodput {goodput:g} is impossible: it is a share of time",
            hint="above 0 and at most 1",
        )
    share = None if goodput is None else Assumption("goodput", goodput, "of the time", USER, "")
    speed = throughput(gpu, tflops, mfu)
    if speed is not None and (plan is None or speed.source.endswith(USER)):
        return Cluster(gpu, count, speed, hourly_price(gpu, price), share), plan
    assert gpu is not None  # throughput() has raised otherwise
    if plan is None and model is not None:
        plan = typical_plan(model, gpu, count, batch_sequences(model), usual_precision(gpu))
    if plan is None or model is None:
        return Cluster(
            gpu,
            count,
            typical_throughput(gpu),
            hourly_price(gpu, price),
            share,
            read_table("hardware.toml")["default_mfu"]["within"],
        ), None
    table = read_table("throughput.toml")
    each = plan.tokens_per_second / plan.layout.processes * flops_per_token(model, "6N")
    speed = Assumption(
        "throughput",
        each,
        "FLOP/s per GPU",
        f"predicted for {plan.layout}, {plan.work.precision}, from {table['source']}",
        table["date"],
        table["url"],
    )
    if share is None:
        share = Assumption(
            "goodput",
            table["goodput"]["value"],
            "of the time",
            table["goodput"]["source"],
            table["goodput"]["date"],
            table["goodput"]["url"],
        )
    # goodput of the whole run is the larger uncertainty
    factor = uncertainty(plan.layout, gpu) if goodput is not None else table["range"]["other"]
    return Cluster(gpu, count, speed, hourly_price(gpu, price), share, factor), plan


def implied_cluster(
    gpu: Gpu | None, count: int, flops: float, hours: float, *, price: float | None = None
) -> Cluster:
    """Return the cluster of `count` GPUs that computes `flops` in `hours`.

    Raises UsageError if that exceeds their peak: one of the figures is wrong.
    """
    each = flops / (count * hours * 3600)
    if gpu is not None and each > gpu.peak_flops:
        raise UsageError(
            f"{flops:.3g} FLOP in {hours:g} hours on {count:,} {gpu.name} is impossible: an MFU of {each / gpu.peak_flops:,.0%}, "
            f"{each / 1e12:.4g} TFLOP/s of a peak of {gpu.peak_flops / 1e12:g}",
            hint="more {option:hours}, more {option:gpus}, or fewer {option:tokens}",
        )
    source = f"implied: {flops:.3g} FLOP by {count:,} GPUs in {hours:g} hours"
    return Cluster(
        gpu,
        count,
        Assumption("throughput", each, "FLOP/s per GPU", source, ""),
        hourly_price(gpu, price),
    )


def gpus_needed(flops: float, hours: float, cluster: Cluster) -> int:
    """Return how many GPUs of the cluster's speed compute `flops` in `hours`, in whole nodes above
    one node.

    Raises UsageError if that exceeds MAX_GPUS.
    """
    count = flops / (cluster.flops * hours * 3600)
    if count > MAX_GPUS:
        raise UsageError(
            f"{flops:.3g} FLOP in {hours:g} hours takes more than {MAX_GPUS:,} GPUs",
            field="hours",
            code="too_many_gpus",
            hint="give it more hours",
        )
    return max(1, math.ceil(count) if count <= NODE else NODE * math.ceil(count / NODE))


@dataclass(frozen=True, slots=True)
class Affordable:
    """A model of GPT-3 and the tokens that a budget buys for it."""

    name: str
    tokens: float
    loss: float | None
    """Loss in nats per token by Chinchilla as printed, on that paper's text; None outside the range
    of that law.
    """


def affordable(
    estimates: list[Estimate], *, dollars: float | None, hours: float | None
) -> tuple[list[Affordable], float]:
    """Return what `dollars` and `hours` of the cluster buy for the model of each estimate, lowest
    loss first, models without a loss last; and the GPU-hours that they buy.

    All estimates have the same price and GPU count, and a price if `dollars` is given.
    """
    cluster = estimates[0].cluster
    limits = [] if hours is None else [hours * cluster.count]
    if dollars is not None and cluster.price is not None:
        limits.append(dollars / cluster.price.value)
    gpu_hours = min(limits)
    found = []
    for estimate in estimates:
        assert estimate.model is not None
        tokens = gpu_hours * 3600 * estimate.cluster.flops / flops_per_token(estimate.model, "6N")
        n = estimate.model.parameters
        found.append(
            Affordable(
                estimate.name,
                tokens,
                CHINCHILLA.loss(n, tokens) if CHINCHILLA.range.holds(n, tokens) else None,
            )
        )
    return sorted(found, key=lambda row: float("inf") if row.loss is None else row.loss), gpu_hours
