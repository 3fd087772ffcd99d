"""Report of an estimate as rows of text: name, value and note; and tables.

`gpt cost` prints these. A name without indentation heads a section.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from gptcli.cost.cpu import FAMILY
from gptcli.cost.estimate import Cluster, Estimate
from gptcli.cost.flops import parameters_by_part
from gptcli.cost.hardware import Gpu, usual_precision
from gptcli.cost.inference import Serving, inference
from gptcli.cost.memory import memory_by_part, min_gpus
from gptcli.cost.planner import Plan, nearest_that_fits
from gptcli.cost.prices import price_ranges, spoken
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.scaling import RANGES, critical_batch_of, predicted_losses
from gptcli.errors import name_parameters
from gptcli.model.config import ModelConfig
from gptcli.numbers import (
    ENERGY,
    GPU_TIME,
    MASS,
    MIN_SHOWN,
    SPEED,
    TIME,
    amount,
    counted,
    dollars,
    duration,
    figure,
    gpu_unit,
    in_bytes,
    percent,
    scaled,
    short,
    unit_for,
)

Row = tuple[str, str, str]
Spell = Callable[[str], str]

LAW_NOTES = {
    "kaplan": "Kaplan et al. 2020",
    "kaplan-joint": "the same, constants of Table 2",
    "gpt3": "GPT-3, figure 3.1: by compute",
    "chinchilla": "Hoffmann et al. 2022, as printed",
    "chinchilla-refit": "Besiroglu et al. 2024",
}
MEMORY_ROWS = {  # part of the memory: its label and note
    "parameters": ("parameters", "fp32"),
    "gradients": ("gradients", "fp32"),
    "optimizer": ("optimizer", "Adam's two moments, fp32"),
    "training": ("total for training", ""),
    "inference_fp32": ("inference in fp32", ""),
    "inference_16bit": ("inference in 16 bits", ""),
    "kv_cache_per_token": ("KV cache per token", "16 bits"),
    "kv_cache_per_context": ("KV cache per context", "16 bits"),
}
RANK_NOTES = {  # part of a rank's memory: its note
    "parameters": "fp32",
    "optimizer": "Adam's two moments, fp32",
    "gradients": "fp32",
    "activations": "kept for the backward pass",
    "logits": "one chunk at a time",
    "copies": "weights, cast or gathered",
    "workspace": "of the layer in progress",
    "undivided": "weights and gradients, given room",
}


def estimate_title(estimate: Estimate) -> str:
    """Return the name of the model with its shape."""
    model = estimate.model
    if model is None:
        return estimate.name
    return (
        f"{estimate.name}: {counted(model.n_layer, 'layer')}, {counted(model.n_head, 'head')} "
        f"of {model.d_head}, "
        f"width {model.d_model}, context {model.n_ctx}, {model.attention}"
    )


def estimate_rows(
    estimate: Estimate, *, brief: bool, assumed: str = "", spell: Spell = str
) -> list[Row]:
    """Return the rows of an estimate; if `brief`, only FLOPs, time and money.

    `assumed` is the note on a GPU that the user did not name; `spell` spells parameter names.
    """
    model, tokens, parameters = estimate.model, estimate.tokens, estimate.parameters
    rows: list[Row] = []
    if tokens is None:
        rows += [("Compute", "", ""), ("  FLOP", short(estimate.flops), "")]
    elif model is None:
        rows += [("Parameters", f"{parameters:,}", "not a GPT")]
        rows += _training(estimate, tokens)
    elif brief:
        rows += _training(estimate, tokens)
    else:
        rows += _parameters(model) + _training(estimate, tokens) + _flops_by_convention(estimate)
    if estimate.pf_days >= MIN_SHOWN:
        rows += [("  PF-days", figure(estimate.pf_days), "")]
    rows += _time_and_money(estimate, assumed, spell)
    if not brief and parameters is not None:
        rows += [] if model is None or tokens is None else _losses(model, tokens)
        rows += _memory(parameters, model, estimate.cluster)
        rows += [] if model is None else _inference(model, estimate.cluster)
    return rows


def _parameters(model: ModelConfig) -> list[Row]:
    rows = [("Parameters", f"{model.parameters:,}", "")]
    for part, n in parameters_by_part(model).items():
        note = percent(n / model.parameters) if n else "tied to the embeddings"
        rows.append((f"  {part}", f"{n:,}", note))
    return rows


def _training(estimate: Estimate, tokens: int) -> list[Row]:
    assert estimate.parameters is not None
    each = round(estimate.flops / estimate.parameters / tokens)
    return [
        (f"Training on {counted(tokens, 'token', amount)}", "", ""),
        ("  tokens per parameter", figure(tokens / estimate.parameters), ""),
        (f"  FLOP, {each}ND", short(estimate.flops), "the papers' count; priced below"),
        *_batch(estimate),
    ]


def _batch(estimate: Estimate) -> list[Row]:
    if estimate.batch_tokens is None or estimate.model is None or estimate.tokens is None:
        return []
    limit = critical_batch_of(estimate.model, estimate.tokens)
    note = "tokens" if limit is None else f"tokens; critical batch {amount(limit)}"
    return [("  batch", amount(estimate.batch_tokens), note)]


def _flops_by_convention(estimate: Estimate) -> list[Row]:
    """Return the FLOPs by the conventions that include attention."""
    model, counts = estimate.model, estimate.flops_by_convention
    assert model is not None
    assert counts is not None
    attention = percent(1 - counts["6N"] / counts["palm"])
    band = f" with bands of {model.band}" if model.attention == "banded" else ""
    recomputed = short(counts["megatron-recompute"])
    return [
        ("  FLOP, PaLM", short(counts["palm"]), f"with all of attention, {attention}"),
        ("  FLOP, causal", short(counts["causal"]), f"as computed{band}"),
        ("  FLOP, Megatron", short(counts["megatron"]), f"{recomputed} with full recomputation"),
    ]


def _time_and_money(estimate: Estimate, assumed: str, spell: Spell) -> list[Row]:
    cluster, gpu, energy = estimate.cluster, estimate.cluster.gpu, estimate.energy
    name = "a custom GPU" if gpu is None else gpu.name
    rows = [(f"Time and money on {name}", "", assumed)]
    on_cpu = gpu is not None and gpu.family == FAMILY
    one = "CPU" if on_cpu else "GPU"
    mfu = "no GPU named, so no MFU"
    if gpu is not None and cluster.mfu is not None:
        peak = (
            f"{(cluster.peak or 0) / 1e12:.6g} {cluster.precision or usual_precision(gpu)}, dense"
        )
        if on_cpu:
            peak = f"{(cluster.peak or 0) / 1e9:.3g} in a {cluster.precision} product"
        mfu = f"{'' if on_cpu else 'MFU '}(6N) {percent(cluster.mfu)} of {peak}"
    size, unit = unit_for(cluster.throughput.value, SPEED)
    rows.append((f"  {unit}, sustained", figure(cluster.throughput.value / size), mfu))
    if cluster.goodput is not None:
        share = percent(cluster.goodput.value, 0)
        rows.append(("  goodput", share, "of the time is spent training"))
    if estimate.gpu_years >= MIN_SHOWN:
        rows.append((f"  {one}-years", figure(estimate.gpu_years), "of 365 days"))
    seconds, (size, unit) = estimate.gpu_hours * 3600, gpu_unit(estimate.gpu_hours)
    between = _range(estimate, seconds, lambda value: figure(value / size)).removeprefix(", ")
    price = name_parameters("unknown: set one with {option:price}", spell)
    if cluster.price is not None:
        price = f"{dollars(cluster.price.value)} an hour"
        price += _range(estimate, estimate.dollars, dollars)
    days = _in_days(estimate.days)
    rows += [
        (f"  {unit.replace('GPU', one)}", figure(seconds / size), between),
        ("  dollars", dollars(estimate.dollars), price),
        *_price_rows(estimate),
        *(_days_rows(estimate) or [(f"  on {cluster.count:,} {gpu_label(cluster)}", days, "")]),
    ]
    if energy is not None:
        co2 = f"{scaled(energy.co2_kg * 1000, MASS)} of CO2e"
        rows.append(("  energy", scaled(energy.kwh * 1000, ENERGY), co2))
    return rows


def _in_days(days: float) -> str:
    return f"{figure(days)} days" if days >= 10 else duration(days * 86400)


def _days_rows(estimate: Estimate) -> list[Row]:
    """Return the time on the fewest GPUs that hold the model, and on more."""
    name = gpu_label(estimate.cluster)
    return [
        (f"  on {gpus:,} {name}", _in_days(days), "" if number else "the fewest that hold it")
        for number, (gpus, days) in enumerate(estimate.days_by_gpus)
    ]


def _price_rows(estimate: Estimate) -> list[Row]:
    """Return the dollars at the lowest and highest price of each kind of offer, if they differ."""
    ranges = price_ranges(estimate.cluster.offers)
    if sum(price.offers for price in ranges) < 2:
        return []
    rows = []
    for price in ranges:
        total = between(estimate.gpu_hours * price.low, estimate.gpu_hours * price.high, dollars)
        each = between(price.low, price.high, dollars)
        offers = f"{price.offers} offers" if price.offers > 1 else "1 offer"
        rows.append((f"    {spoken(price.kind)}, an hour", each, f"{total}; {offers}"))
    return rows


def between(low: float, high: float, write: Callable[[float], str]) -> str:
    """Return a range, or one figure if both ends are written alike."""
    first, last = write(low), write(high)
    return first if first == last else f"{first} to {last}"


def _range(estimate: Estimate, value: float | None, write: Callable[[float], str]) -> str:
    low_high = estimate.between(value)
    if low_high is None or estimate.cluster.uncertainty_factor == 1:
        return ""
    return f", {write(low_high[0])} to {write(low_high[1])}"


def _losses(model: ModelConfig, tokens: int) -> list[Row]:
    rows: list[Row] = [("Predicted loss", "", "nats per token of each law's text")]
    for law, loss in predicted_losses(model, tokens).items():
        if loss is None:
            rows.append((f"  {law}", "outside", f"range {RANGES[law]}"))
        else:
            rows.append((f"  {law}", f"{loss:.3f}", LAW_NOTES[law]))
    return rows


def _memory(parameters: int, model: ModelConfig | None, cluster: Cluster) -> list[Row]:
    rows = [("Memory without activations", "", "")]
    for part, n_bytes in memory_by_part(parameters, model).items():
        label, note = MEMORY_ROWS[part]
        rows.append((f"  {label}", in_bytes(n_bytes), note or _fits(n_bytes, cluster)))
    return rows


def _fits(n_bytes: int, cluster: Cluster) -> str:
    """Return whether the cluster can hold `n_bytes`, divided evenly."""
    if cluster.memory_bytes is None:
        return ""
    needed = min_gpus(n_bytes, cluster.memory_bytes)
    gpus = f"{gpu_label(cluster)} of {in_bytes(cluster.memory_bytes)}"
    if needed <= cluster.count:
        return f"fits {cluster.count:,} {gpus}"
    return f"needs {needed:,} {gpus}"


def _inference(model: ModelConfig, cluster: Cluster) -> list[Row]:
    """Return the cost of inference in 16 bits, for one sequence of a full context."""
    run = inference(model, cluster.gpu)
    prefill = decode = ""
    if (
        run.gpus is not None
        and run.prefill_seconds is not None
        and run.tokens_per_second is not None
    ):
        gpus = f"{run.gpus:,} {gpu_label(cluster)}"
        prefill = f"{scaled(run.prefill_seconds, TIME[3:], 2)} or more on {gpus}"
        decode = f"at most {figure(run.tokens_per_second, 3)} tokens/s on {gpus}"
    return [
        ("Inference", "", f"{model.n_ctx:,}-token context, 16 bits"),
        ("  FLOP, prefill", short(run.prefill_flops), prefill),
        ("  FLOP per new token", short(run.decode_flops), "2N and attention"),
        ("  bytes per new token", in_bytes(run.decode_bytes), decode),
    ]


def serving_rows(run: Serving, gpu: Gpu) -> list[Row]:
    """Return the rows of a batch that is served."""
    price = "price unknown"
    if run.dollars_per_million is not None:
        price = f"{dollars(run.dollars_per_million)} per million tokens"
    on, of = f"on {run.gpus:,} {gpu.name}", ""
    if run.replicas > 1:
        of = ", of each replica"
        on += f", {run.replicas:,} replicas of {run.gpus // run.replicas:,}"
    return [
        ("Sequences", f"{run.batch:,}", f"of {run.prompt:,} + {counted(run.output, 'token')}"),
        ("  weights", in_bytes(run.weight_bytes), f"{run.precision}{of}"),
        ("  KV cache", in_bytes(run.cache_bytes), on),
        ("  first token after", scaled(run.first_token_seconds, TIME, 3), ""),
        ("  each further token", scaled(run.token_seconds, TIME, 3), ""),
        ("  tokens/s", figure(run.tokens_per_second, 3), price),
    ]


def gpu_label(cluster: Cluster) -> str:
    """Return the name of the cluster's GPU, or "GPU" for a custom one."""
    return "GPU" if cluster.gpu is None else cluster.gpu.name


def sizes_table(estimates: list[Estimate], unfit: dict[str, int] | None = None) -> list[list[str]]:
    """Return a table with a row per estimate of a training run, all on the same cluster.

    `unfit` has the fewest GPUs that hold those which do not fit the cluster.
    """
    least = min(estimate.gpu_hours for estimate in estimates)
    size, unit = unit_for(least * 3600, GPU_TIME, MIN_SHOWN)
    rows = [["size", "params", "tokens", "FLOP", "PF-days", unit, "dollars", "memory", "time"]]
    for estimate in estimates:
        report = estimate.as_dict()
        rows.append(
            [
                estimate.name,
                amount(report["parameters"]),
                amount(report["tokens"]),
                short(estimate.flops),
                _short_figure(estimate.pf_days),
                _short_figure(estimate.gpu_hours * 3600 / size),
                _short_dollars(estimate.dollars),
                in_bytes(report["memory_bytes"]["training"]),
                f"needs {unfit[estimate.name]:,}"
                if unfit and estimate.name in unfit
                else scaled(estimate.days * 86400, TIME, 3),
            ]
        )
    return rows


def _short_figure(value: float) -> str:
    return amount(float(f"{value:.3g}")) if value >= 1e6 else figure(value, 3)


def _short_dollars(value: float | None) -> str:
    """Return dollars for a column of them, without cents: $4.68M, $0.0852, <$0.001."""
    if value is None or not 0 < value < 1:
        return dollars(value)
    return f"<${MIN_SHOWN:g}" if value < MIN_SHOWN else f"${figure(value, 3)}"


def rank_rows(plan: Plan, config: ModelConfig, gpu: Gpu | None) -> list[Row]:
    """Return the peak memory of the layout's fullest rank, and whether it fits the GPU.

    If it does not, the rows name the nearest layout that does.
    """
    step, total = plan.work, plan.memory.total
    rows: list[Row] = [
        ("Memory per rank", "", str(plan.layout)),
        ("  run with", "", _step_options(step) + _interleaved(plan)),
    ]
    rows += [
        (f"  {part}", in_bytes(n_bytes), RANK_NOTES[part])
        for part, n_bytes in asdict(plan.memory).items()
    ]
    verdict = ""
    if gpu is not None:
        spare = gpu.memory_bytes - total
        verdict = (
            f"fits {gpu.name} with {in_bytes(spare)} to spare"
            if spare >= 0
            else f"exceeds {gpu.name} by {in_bytes(-spare)}"
        )
    rows.append(("  peak", in_bytes(total), verdict))
    if gpu is not None and total > gpu.memory_bytes:
        nearest = nearest_that_fits(config, plan.layout, step, gpu)
        if nearest is None:
            rows.append(("  nearest that fits", "", "none on this number of GPUs"))
        else:
            rows.append(("  nearest that fits", "", str(nearest[0])))
            rows.append(("    run with", "", _step_options(nearest[1])))
    batch = step.micro_batch * step.micro_batches * plan.layout.replicas * config.n_ctx
    part, seconds = max(plan.time._asdict().items(), key=lambda item: item[1])
    share = percent(seconds / plan.time.total, 0)
    speed = f"{amount(plan.tokens_per_second)} tokens/s; {part} {share}"
    rows.append((f"  step of {counted(batch, 'token', amount)}", _step_time(plan), speed))
    return rows


def plans_table(plans: list[Plan], gpus: int | None = None) -> list[list[str]]:
    """Return a table with a row per layout, with the idle ones of `gpus` GPUs; with the pipeline
    stages per process (vp) if there are several.
    """
    header = ["layout", "vp", "idle", "micro", "recompute", "step", "waits", "memory", "tokens/s"]
    rows = [header]
    for plan in plans:
        idle = 0 if gpus is None else gpus - plan.layout.processes
        rows.append(
            [
                str(plan.layout),
                str(plan.interleave),
                str(idle) if idle else "",
                str(plan.work.micro_batch),
                plan.work.recompute,
                _step_time(plan),
                percent(plan.time.waits, 0),
                in_bytes(plan.memory.total),
                amount(plan.tokens_per_second),
            ]
        )
    if all(plan.interleave == 1 for plan in plans):
        rows = [[*row[:1], *row[2:]] for row in rows]
    return rows


def _step_options(step: StepConfig) -> str:
    return f"micro-batch {step.micro_batch}, recompute {step.recompute}"


def _interleaved(plan: Plan) -> str:
    return f", interleaved {plan.interleave}" if plan.interleave > 1 else ""


def _step_time(plan: Plan) -> str:
    seconds = plan.time.total
    return duration(seconds) if seconds >= 60 else scaled(seconds, TIME, 3)
