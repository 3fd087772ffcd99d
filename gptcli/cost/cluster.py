"""Throughput of a cluster that trains a model, what it can afford, and how large it must be.

If no throughput is given, it is that of the fastest plan, by the step times of `step_time`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from gptcli.cost.cpu import (
    FAMILY,
    MICRO_BATCH_TOKENS,
    UTILISATION,
    cpu_memory,
    on_cpu,
    seconds_per_token,
)
from gptcli.cost.estimate import Cluster, Estimate
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import (
    USER,
    Assumption,
    Gpu,
    Precision,
    peak_flops,
    read_rows,
    read_table,
    throughput,
    typical_throughput,
    usual_precision,
)
from gptcli.cost.layout import Layout
from gptcli.cost.planner import Plan, fewest_gpus, plans
from gptcli.cost.prices import hourly_price
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.scaling import CHINCHILLA
from gptcli.cost.step_time import DEFAULT_TRAINER, NODE, Trainer, uncertainty
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.numbers import counted, in_bytes

MAX_GPUS = 1_000_000
# Interruptions of a GPU-day, and the shares of time that steps take without and with many: Llama 3
# (Grattafiori et al. 2024, Table 5), 419 in 54 days on 16,384 H100; throughput.toml has the latter.
INTERRUPTIONS = 419 / (54 * 16384)
MIN_GOODPUT = 1e-6
SMALL_RUN_GOODPUT = 0.95  # evaluations and checkpoints: an assumption
# e-folds by which goodput may be wrong, and how many more for each by which interruptions are expected
# to lower it; with the error of the speed, 15 of 20 published runs are inside the range of their
# GPU-hours. The others ran slower layouts than the best, or for longer than their tokens took.
GOODPUT_ERROR = 0.15
INTERRUPTED_ERROR = 1.25
TYPICAL_MFU = 0.4  # of the work by which the length of a run is judged


def goodput_of(gpu: Gpu, flops: float) -> Assumption:
    """Return the share of the time that steps take in a run of `flops`.

    It falls from SMALL_RUN_GOODPUT to that of published runs as interruptions become certain: their
    number grows with GPUs times days, which is the same work however it is divided.
    """
    table = read_table("throughput.toml")["goodput"]
    gpu_days = flops / (TYPICAL_MFU * gpu.peak_flops) / 86400
    expected = INTERRUPTIONS * gpu_days
    share = SMALL_RUN_GOODPUT - (SMALL_RUN_GOODPUT - table["value"]) * expected / (1 + expected)
    return Assumption(
        "goodput",
        share,
        "of the time",
        f"{SMALL_RUN_GOODPUT:.0%} (assumed) without interruptions, {table['value']:.0%} with many "
        f"({table['source']}); {f'{expected:.2g}' if expected >= 0.01 else 'hardly any'} expected here, "
        "at Llama 3's 419 in 54 days on 16,384 GPUs",
        table["date"],
        table["url"],
    )


def make_cluster(
    gpu: Gpu | None,
    count: int | None,
    *,
    model: ModelConfig | None,
    sequences: int = 0,
    flops: float = 0.0,
    plan: Plan | None = None,
    tflops: float | None = None,
    mfu: float | None = None,
    goodput: float | None = None,
    price: float | None = None,
    precision: Precision | None = None,
    trainer: Trainer = DEFAULT_TRAINER,
    published: bool = False,
) -> tuple[Cluster, Plan | None]:
    """Return a cluster whose throughput is given, or predicted for `model` by `plan` or by the best
    plan; and that plan.

    Without a model, or if `published`, it is what was published for the GPU. A `count` of None is
    one GPU at the speed of the fewest that hold the model. A predicted throughput comes with a
    goodput; otherwise goodput is 1 unless given. Raises UsageError.
    """
    if goodput is not None and not MIN_GOODPUT <= goodput <= 1:
        raise UsageError(
            f"goodput {goodput:g} is impossible: it is a share of time",
            field="goodput",
            code="out_of_range",
            hint=f"from {MIN_GOODPUT} to 1",
        )
    share = None if goodput is None else Assumption("goodput", goodput, "of the time", USER, "")
    if gpu is not None:
        precision = precision or usual_precision(gpu)
    peak = None if gpu is None else peak_flops(gpu, precision or usual_precision(gpu))
    speed = throughput(gpu, tflops, mfu, peak=peak, published=published or model is None)
    if speed is not None:
        cluster = Cluster(
            gpu, count or 1, speed, hourly_price(gpu, price), share, precision=precision
        )
        return cluster, plan
    assert gpu is not None  # throughput() has raised otherwise
    assert precision is not None
    if gpu.family == FAMILY:
        return cpu_cluster(gpu, precision, model, sequences, price=price, share=share), None
    if model is None:
        return Cluster(
            gpu,
            count or 1,
            typical_throughput(gpu),
            hourly_price(gpu, price),
            share,
            read_rows("hardware.toml", "default_mfu")[0]["within"],
            precision=precision,
        ), None
    if plan is None:
        plan = best_plan(model, gpu, count, sequences, precision, trainer)
    table = read_table("throughput.toml")
    busy = plan.layout.processes
    gpus = busy if count is None else count
    each = plan.tokens_per_second / gpus * flops_per_token(model, "6N")
    idle = f"; {gpus - busy:,} of {counted(gpus, 'GPU')} are idle" if gpus > busy else ""
    speed = Assumption(
        "throughput",
        each,
        "FLOP/s per GPU",
        f"predicted for {trainer} on {plan.layout}, {plan.work.precision}, from "
        f"{table['source']}{idle}",
        table["date"],
        table["url"],
    )
    factor = uncertainty(gpu, trainer)
    if share is None:
        share = goodput_of(gpu, flops)
        loose = GOODPUT_ERROR + INTERRUPTED_ERROR * math.log(SMALL_RUN_GOODPUT / share.value)
        factor = math.exp(math.hypot(math.log(factor), loose))
    return Cluster(
        gpu,
        count or 1,
        speed,
        hourly_price(gpu, price),
        share,
        factor,
        precision=precision,
        trainer=trainer,
    ), plan


def cpu_cluster(
    gpu: Gpu,
    precision: Precision,
    model: ModelConfig | None,
    sequences: int,
    *,
    price: float | None,
    share: Assumption | None,
) -> Cluster:
    """Return this machine's processor with the speed that the trainer forecasts for it before its
    first step; of FLOPs of an unknown model, that of their products alone.

    Raises UsageError if the model does not fit into its memory.
    """
    low, high = UTILISATION
    slow, fast = gpu.peak_flops * low, gpu.peak_flops * high
    if model is not None:
        check_cpu_memory(model, sequences, gpu)
        flops = flops_per_token(model, "6N")
        least, most = seconds_per_token(
            gpu.peak_flops, flops_per_token(model, "causal"), max(1, sequences) * model.n_ctx
        )
        slow, fast = flops / most, flops / least
    source = (
        f"{low:.0%} to {high:.0%} of {gpu.peak_flops / 1e12:.3g} TFLOP/s, of which the middle; "
        f"{gpu.source}"
    )
    speed = Assumption("throughput", math.sqrt(slow * fast), "FLOP/s per CPU", source, gpu.date)
    factor = math.sqrt(fast / slow)
    return Cluster(gpu, 1, speed, hourly_price(gpu, price), share, factor, precision=precision)


def check_cpu_memory(model: ModelConfig, sequences: int, gpu: Gpu) -> None:
    """Raise UsageError if a training process does not fit into the memory of this machine."""
    share = max(1, sequences)
    size = max(1, min(MICRO_BATCH_TOKENS // model.n_ctx, share))
    work = StepConfig(micro_batch=size, micro_batches=-(-share // size), precision="fp32")
    needs = cpu_memory(model, Layout(), on_cpu(work, model, has_kernels=False)).total
    if needs > gpu.memory_bytes:
        raise UsageError(
            f"training this model takes {in_bytes(needs)}, "
            f"and this machine has {in_bytes(gpu.memory_bytes)} for it",
            field="gpu",
            code="does_not_fit_in_memory",
            hint="use a smaller model, or name a {option:gpu}",
        )


def best_plan(
    model: ModelConfig,
    gpu: Gpu,
    count: int | None,
    sequences: int,
    precision: Precision,
    trainer: Trainer = DEFAULT_TRAINER,
) -> Plan:
    """Return the fastest plan on at most `count` GPUs, or on the fewest that hold the model.

    Raises UsageError, with what would fit, if the model does not fit.
    """
    if count is not None and (
        found := plans(model, gpu, count, sequences, precision, most=1, trainer=trainer)
    ):
        return found[0]
    least = fewest_gpus(model, gpu, sequences, precision, trainer)
    if least is None:
        raise UsageError(
            f"no number of {gpu.name} holds this model with a batch of "
            f"{counted(sequences, 'sequence')}",
            field="gpu",
            code="does_not_fit_in_memory",
            hint="use a GPU with more memory, a smaller model, or a larger {option:batch_tokens}",
        )
    processes = least[0].processes
    if count is not None:
        raise UsageError(
            f"no layout of {count:,} {gpu.name} has enough memory for this model",
            field="gpus",
            code="does_not_fit_in_memory",
            hint=f"{{option:gpus}} {processes} is the least that holds it; "
            "or use larger GPUs, or a smaller model",
        )
    return plans(model, gpu, processes, sequences, precision, most=1, trainer=trainer)[0]


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
    source = f"implied: {flops:.3g} FLOP by {counted(count, 'GPU')} in {hours:g} hours"
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
            f"{flops:.3g} FLOP in {hours:g} hours takes more than {counted(MAX_GPUS, 'GPU')}",
            field="hours",
            code="too_many_gpus",
            hint="give it more hours",
        )
    return whole_nodes(count)


def whole_nodes(count: float) -> int:
    """Return `count` GPUs rounded up, to whole nodes above one node."""
    whole = -int(-count // 1)
    return max(1, whole if whole <= NODE else NODE * -(-whole // NODE))


class Affordable(NamedTuple):
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
