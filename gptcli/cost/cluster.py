"""How fast a cluster trains a model where nobody says: the plan that suits it best, by the speeds
of measured runs.
"""

from __future__ import annotations

import math

from gptcli.cost.assumptions import USER, Assumption
from gptcli.cost.estimate import Cluster
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import (
    Gpu,
    hourly_price,
    read_table,
    throughput,
    typical_throughput,
    usual_precision,
)
from gptcli.cost.planner import Plan, typical_plan
from gptcli.cost.throughput import NODE, uncertainty
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.papers.models import MODELS

MOST_GPUS = 1_000_000


def batch_sequences(model: ModelConfig) -> int:
    """The batch of GPT-3's nearest size, in sequences."""
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
    """A cluster with the speed that the user says, or that is published for its GPU, or that `plan`
    or the best plan predicts for `model`.

    Where the speed is predicted, goodput stands beside it; else it is 1 unless said. Raises
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
    assert gpu is not None  # throughput() has refused the rest
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
    # of the whole run, nobody knows better
    within = uncertainty(plan.layout, gpu) if goodput is not None else table["range"]["other"]
    return Cluster(gpu, count, speed, hourly_price(gpu, price), share, within), plan


def implied_cluster(
    gpu: Gpu | None, count: int, flops: float, hours: float, *, price: float | None = None
) -> Cluster:
    """`count` GPUs that do `flops` in so many hours. Raises UsageError where that is more than
    their peak: somebody's figures are wrong.
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
    """How many GPUs as fast as the cluster's do `flops` in so many hours, in whole machines where
    one machine is too few.

    Raises UsageError where no number of them would be a cluster.
    """
    count = flops / (cluster.flops * hours * 3600)
    if count > MOST_GPUS:
        raise UsageError(
            f"{flops:.3g} FLOP in {hours:g} hours takes more than {MOST_GPUS:,} GPUs",
            field="hours",
            code="too_many_gpus",
            hint="give it more hours",
        )
    return max(1, math.ceil(count) if count <= NODE else NODE * math.ceil(count / NODE))
