"""Modes of `gpt cost`: resolve the model and the GPUs, estimate, and print the result."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptcli.cli.console import (
    print_command,
    print_json,
    print_lines,
    print_rows,
    print_table,
)
from gptcli.cli.cost_report import (
    OutputOptions,
    print_affordable,
    print_check,
    print_estimate,
    print_fit,
    print_optimal,
    print_sizes,
)
from gptcli.cli.options import option, refuse_repeated
from gptcli.cost.cluster import affordable
from gptcli.cost.cpu import NAME as CPU
from gptcli.cost.estimate import Estimate
from gptcli.cost.hardware import Precision
from gptcli.cost.inference import BANDWIDTH, PRODUCTS, serving
from gptcli.cost.options import (
    DEFAULT_GPU,
    DEFAULT_N_CTX,
    HARDWARE_FIELDS,
    LAYOUT_FIELDS,
    SHAPE,
    HardwareOptions,
    check_limit,
)
from gptcli.cost.planner import Plan, fewest_gpus, recipe_of
from gptcli.cost.prices import hourly_price, read_offers
from gptcli.cost.report import (
    gpu_label,
    plans_table,
    rank_rows,
    serving_rows,
)
from gptcli.cost.scaling import optimal_report
from gptcli.cost.step_time import uncertainty
from gptcli.cost.target import (
    DEFAULT_SIZE,
    Target,
    all_targets,
    bare_name,
    batch_of,
    estimate_target,
    find_target,
    llama_shape,
    target_names,
    with_days,
)
from gptcli.errors import InputError, UsageError, nearest
from gptcli.model.config import ModelConfig, size_hint, size_names
from gptcli.numbers import amount, counted, gpu_time, short
from gptcli.papers.models import GPT3_TRAINING

ARTICLE_GPU = "v100"  # GPU of GPT-3's published estimate, with the speed and price of 2020
MAX_PLANS = 12
FAMILIES = ("gpt", "llama")
LLAMA_REQUIRED = ("n_layer", "n_head", "d_model")
MAX_LAYERS = 100_000
TRAIN_SHAPE = tuple(name for name in SHAPE if name != "vocab_size")  # the shards set the vocabulary


def hardware_options(options: dict[str, Any]) -> HardwareOptions:
    """Return the options of GPUs and layout."""
    names = (*HARDWARE_FIELDS, *LAYOUT_FIELDS, "hours")
    given = {name: options[name] for name in names if name in options}
    if "prices" in options:
        given["prices"] = read_offers(options["prices"])
    if options.get("gpu", "").lower() == CPU:
        given |= _this_machine(options)
    return HardwareOptions(**given)


def _this_machine(options: dict[str, Any]) -> dict[str, Any]:
    """Return this machine's processor, and the precision that it was measured in.

    Raises UsageError for a mode that compares or divides GPUs.
    """
    for mode in ("plan", "table", "budget"):
        if mode in options:
            raise UsageError(
                f"{option(mode)} cannot be combined with {option('gpu')} cpu",
                hint="name a --size: --gpu cpu prices one model on this machine",
            )
    # PyTorch measures it: imported for this device alone
    from gptcli.runtime import has_fast_bf16
    from gptcli.trainer.machine import this_cpu

    usual = "bf16" if has_fast_bf16() else "fp32"
    precision = options.get("precision", usual)
    measured: Precision = "bf16" if precision == "bf16" else "fp32"
    return {"processor": this_cpu(measured), "precision": precision}


def requested_target(options: dict[str, Any]) -> Target:
    """Return the model that the options name: a size, a changed size, a custom shape or a run.

    Raises UsageError for an incomplete shape or two models, InputError for a broken run folder.
    """
    shape = {name: options[name] for name in SHAPE if name in options}
    size, runs = options.get("size"), options.get("runs", [])
    if (family := options.get("shape", "gpt")) not in FAMILIES:
        raise UsageError(
            f"unknown shape {family!r}", where=option("shape"), hint=nearest(family, FAMILIES)
        )
    if family == "llama":
        return _llama(options)
    for name in ("n_kv_head", "d_ff"):
        if name in options:
            raise UsageError(f"{option(name)} needs {option('shape')} llama")
    if runs:
        if len(runs) > 1:
            raise UsageError(
                f"{counted(len(runs), 'run')} at once",
                where=runs[1],
                hint=f"name one: gpt cost {shlex.quote(str(runs[0]))}; only --fit takes several",
            )
        if size is not None or shape:
            raise UsageError(
                "a run folder cannot be combined with another model",
                hint="name the run without --size and without a shape",
            )
        from gptcli.model.hf import read_model_config
        from gptcli.model.source import METRICS, find_model
        from gptcli.runs.metrics import read_batch_tokens, read_run_result

        run = runs[0]
        if run.exists() and run.suffix != ".jsonl" and not (run / METRICS).is_file():
            # a model of another program: how long it was trained is not known
            config = read_model_config(find_model(run).folder)
            tokens = GPT3_TRAINING.tokens
            return Target(str(run), config, tokens, "assumed: as many as GPT-3")
        tokens = read_run_result(runs[0]).tokens
        config = read_model_config(runs[0])
        source = "trained, by its metrics.jsonl"
        batch = read_batch_tokens(runs[0])
        return Target(str(runs[0]), config, tokens, source, batch_tokens=batch)
    if size is None and shape:
        required = ("n_layer", "n_head", "d_model")
        if missing := [option(name) for name in required if name not in shape]:
            raise UsageError(
                f"a custom model, without a size, also needs {', '.join(missing)}",
                hint="or name the --size to change: gpt cost --size "
                + " ".join([DEFAULT_SIZE, *(f"{option(name)} {shape[name]}" for name in shape)]),
            )
        config = _config({"n_ctx": DEFAULT_N_CTX, **shape})
        return Target("custom", config, GPT3_TRAINING.tokens, "assumed: as many as GPT-3")
    target = find_target(DEFAULT_SIZE if size is None else size)
    if not shape:
        return target
    config = _config({**target.model.as_dict(), **shape})
    name = f"{target.name}, changed"
    return Target(name, config, target.tokens, target.source, target.paper)


def _llama(options: dict[str, Any]) -> Target:
    """Return the Llama that the options describe. Raises UsageError for an incomplete one."""
    for name in ("size", "runs", "attention"):
        if name in options:
            words = "a run folder" if name == "runs" else option(name)
            raise UsageError(f"{option('shape')} llama cannot be combined with {words}")
    if missing := [option(name) for name in LLAMA_REQUIRED if name not in options]:
        raise UsageError(f"{option('shape')} llama also needs {' and '.join(missing)}")
    names = (*SHAPE, "n_kv_head", "d_ff")
    shape = llama_shape(**{name: options[name] for name in names if name in options})
    return Target("llama", shape, GPT3_TRAINING.tokens, "assumed: as many as GPT-3")


def _config(shape: dict[str, Any]) -> ModelConfig:
    """Return the architecture. Raises UsageError for one of more layers than can be priced."""
    config = ModelConfig(**shape)
    if config.n_layer > MAX_LAYERS:
        raise UsageError(
            f"{counted(config.n_layer, 'layer')} are more than {MAX_LAYERS:,}",
            where=option("n_layer"),
            hint="no such model can be priced",
        )
    return config


def check_not_a_size(argument: str) -> None:
    """Raise UsageError for an argument that names a size instead of a run folder."""
    wanted = bare_name(argument)
    if size := next((name for name in target_names() if bare_name(name) == wanted), None):
        raise UsageError(
            "is a model size, not a run folder",
            where=argument,
            hint=f"gpt cost --size {shlex.quote(size)}",
        )
    if re.fullmatch(r"\d+(\.\d+)?[MmBb]", argument) and not Path(argument).exists():
        raise UsageError(
            "is neither a run folder nor a size of the papers",
            where=argument,
            hint=size_hint(argument, size_names()),
        )


def estimate_model(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the estimate of one model."""
    target = requested_target(options)
    changed = ("tokens", "hours", *HARDWARE_FIELDS, *LAYOUT_FIELDS)
    is_article = (
        "flops" in options
        and target == find_target(DEFAULT_SIZE)
        and not any(name in options for name in changed)
    )
    hardware = hardware_options({**options, "gpu": ARTICLE_GPU} if is_article else options)
    assumed = "the cost article's, of 2020" if is_article else _assumed(hardware)
    # the article's question keeps the speed that it published; so does its GPU
    published = "flops" in options and "layout" not in options
    estimate = estimate_target(target, options.get("tokens"), hardware, published=published)
    if is_article:
        today = f"{ARTICLE_GPU} as of 2020; gpt cost --size 175B prices {DEFAULT_GPU} of today"
        estimate = replace(estimate, notes=(*estimate.notes, today))
    if not published:
        estimate = with_days(estimate, hardware)
    plan, model = estimate.plan, estimate.model
    if output.plot is not None:
        from gptcli.runs import cost_plots
        from gptcli.runs.plots import write_plot

        if "flops" in options:
            picture = cost_plots.compute_by_year(estimate)
        elif "layout" in options and plan is not None and model is not None:
            picture = cost_plots.memory_of_rank(plan, model, estimate)
        else:
            picture = cost_plots.memory_of_model(estimate)
        write_plot(output.plot, picture)
    if output.json:
        print_json("cost", estimate.as_dict())
        return
    rank = []
    if "layout" in options and plan is not None and model is not None:
        rank = rank_rows(plan, model, hardware.gpu_row)
    print_estimate(estimate, output, brief="flops" in options, rank=rank, assumed=assumed)


def estimate_flops(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the time and money for a number of FLOPs."""
    flops, hardware = options["flops"], hardware_options(options)
    check_limit("flops", flops)
    estimate = Estimate(f"{short(flops)} FLOP", flops, hardware.cluster(None, flops)[0])
    if output.plot is not None:
        from gptcli.runs.cost_plots import compute_by_year
        from gptcli.runs.plots import write_plot

        write_plot(output.plot, compute_by_year(estimate))
    if output.json:
        print_json("cost", estimate.as_dict())
    else:
        print_estimate(estimate, output, brief=True, assumed=_assumed(hardware))


def list_sizes(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the estimates of all sizes of the papers."""
    hardware, tokens = hardware_options(options), options.get("tokens")
    estimates: list[Estimate] = []
    unfit: dict[str, int] = {}
    for target in all_targets():
        estimate, fits = _estimate_or_least(target, tokens, hardware)
        estimates.append(estimate)
        if not fits and estimate.plan is not None:
            unfit[target.name] = estimate.plan.layout.processes
    if output.plot is not None:
        from gptcli.runs.cost_plots import compute_by_model
        from gptcli.runs.plots import write_plot

        write_plot(output.plot, compute_by_model())
    if output.json:
        sizes = [estimate.as_dict() for estimate in estimates]
        print_json("cost", {"sizes": sizes, "least_gpus_of_unfit": unfit})
    else:
        print_sizes(estimates, output, assumed=_assumed(hardware), unfit=unfit)


def _estimate_or_least(
    target: Target, tokens: int | None, hardware: HardwareOptions
) -> tuple[Estimate, bool]:
    """Return the estimate on the GPUs named, or if they do not hold the model, on the fewest that
    do; and whether they hold it.
    """
    try:
        return estimate_target(target, tokens, hardware), True
    except UsageError as error:
        if error.code != "does_not_fit_in_memory":
            raise
        return estimate_target(target, tokens, replace(hardware, gpus=None)), False


def list_affordable(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the sizes that a budget of dollars, hours or both can train."""
    dollars, hours = options.get("budget"), options.get("hours")
    hardware = hardware_options({**options, "hours": None})
    targets = [target for target in all_targets() if isinstance(target.shape, ModelConfig)]
    tried = [(target.name, *_estimate_or_least(target, None, hardware)) for target in targets]
    estimates = [estimate for _, estimate, fits in tried if fits]
    unfit = [name for name, _, fits in tried if not fits]
    cluster = estimates[0].cluster
    if dollars is not None and cluster.price is None:
        raise UsageError(
            "the price of this GPU is unknown", where="--budget", hint="set it with --price"
        )
    bought, gpu_hours = affordable(estimates, dollars=dollars, hours=hours)
    step = {estimate.name: estimate.batch_tokens or 1 for estimate in estimates}
    sizes = [row for row in bought if row.tokens >= step[row.name]]
    under_one_step = [row.name for row in bought if row.tokens < step[row.name]]
    if not sizes:
        closest = max(bought, key=lambda row: row.tokens / step[row.name])
        takes = gpu_hours * step[closest.name] / closest.tokens
        raise UsageError(
            "buys less than one step of any size",
            where=option("hours" if dollars is None else "budget"),
            hint=f"a step of {closest.name} takes {gpu_time(takes)}",
        )
    if output.json:
        listed = [row._asdict() for row in sizes]
        report = {"gpu_hours": gpu_hours, "sizes": listed, "unfit": unfit}
        print_json("cost", report | {"under_one_step": under_one_step})
        return
    gpus = f"{cluster.count:,} {gpu_label(cluster)}"
    if assumed := _assumed(hardware):
        gpus += f" ({assumed})"
    print_affordable(
        sizes,
        gpu_hours,
        gpus,
        markdown=output.markdown,
        unfit=unfit,
        under_one_step=under_one_step,
    )


def list_plans(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the layouts of a model that fit into memory, fastest first."""
    hardware, target = hardware_options(options), requested_target(options)
    gpu, gpus, model = hardware.gpu_row, hardware.gpus or 1, target.model
    assert gpu is not None, "only --tflops describes a custom GPU, and --plan does not take it"
    batch, batch_source = batch_of(model, target.paper, hardware.batch_tokens, target.batch_tokens)
    sequences = batch // model.n_ctx
    ranked = hardware.plans(model, gpu, gpus, sequences, most=MAX_PLANS)
    if not ranked:
        least = fewest_gpus(model, gpu, sequences, hardware.matmul_precision, hardware.trainer_name)
        enough = (
            "" if least is None else f"--gpus {least[0].processes} is the least that holds it; "
        )
        raise UsageError(
            f"no layout of {gpus:,} {gpu.name} has enough memory for {target.name}",
            where="--plan",
            hint=f"{enough}use more or larger GPUs, or a shorter --n-ctx",
        )
    if output.plot is not None:
        from gptcli.runs.cost_plots import time_of_plans
        from gptcli.runs.plots import write_plot

        write_plot(output.plot, time_of_plans(target.name, ranked))
    typed = f"{_model_options(options, model)} --batch-tokens {batch}"
    # Megatron-LM needs less memory than `gpt train`
    is_ours = recipe_of(hardware.trainer_name) == "fp32"
    if output.json:
        listed = [
            plan.as_dict() | {"command": train_command(plan, typed) if is_ours else None}
            for plan in ranked
        ]
        report = {"name": target.name, "gpu": gpu.name, "gpus": gpus, "batch_tokens": batch}
        print_json("cost", report | {"trainer": hardware.trainer_name, "plans": listed})
        return
    if note := _assumed(hardware):
        print_lines(f"{gpu.name} {note}", dim=True)
    factor = uncertainty(gpu, hardware.trainer_name)
    print_lines(
        f"{target.name} on {gpus:,} {gpu.name}, fastest first; "
        f"times are accurate to a factor of {factor:g}"
    )
    print_lines(f"batch of {counted(batch, 'token', amount)}: {batch_source}", dim=True)
    print_table(plans_table(ranked, gpus), markdown=output.markdown)
    print_lines("waits: share of the step spent in collectives and pipeline bubbles")
    if any(plan.interleave > 1 for plan in ranked):
        print_lines("vp: pipeline stages per process (virtual pipeline size)")
    if is_ours:
        print_command(train_command(ranked[0], typed))


def _assumed(hardware: HardwareOptions) -> str:
    return "assumed: --gpu names another" if hardware.is_default_gpu else ""


def train_command(plan: Plan, model: str) -> str:
    """Return the plan as a `gpt train` command line; `model` is the size or shape as options."""
    step = plan.work
    precision = "" if step.precision == "bf16" else f" --precision {step.precision}"
    return (
        f"gpt train {model} --layout {plan.layout} --micro-batch {step.micro_batch} "
        f"--recompute {step.recompute}{precision}"
    )


def _model_options(options: dict[str, Any], model: ModelConfig) -> str:
    """Return the model as options of `gpt train`: a size and its changes, or the whole shape."""
    typed = {name: options[name] for name in TRAIN_SHAPE if name in options}
    if "runs" in options or (typed and "size" not in options):
        typed = {name: value for name, value in model.as_dict().items() if name in TRAIN_SHAPE}
    else:
        typed = {"size": options.get("size", DEFAULT_SIZE), **typed}
    return " ".join(f"{option(name)} {value}" for name, value in typed.items())


def list_optimal(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the compute-optimal model by each scaling law."""
    report = optimal_report(options["optimal"])
    if output.plot is not None:
        from gptcli.runs.cost_plots import loss_by_compute
        from gptcli.runs.plots import write_plot

        write_plot(output.plot, loss_by_compute(options["optimal"]))
    if output.json:
        print_json("cost", report)
    else:
        print_optimal(report, markdown=output.markdown)


def fit_runs(options: dict[str, Any], output: OutputOptions) -> None:
    """Fit a scaling law to runs, and print it with its predictions."""
    from gptcli.cost.run_table import SUFFIXES, read_run_table
    from gptcli.cost.scaling_fit import fit_law, fit_report
    from gptcli.cost.scaling_forms import RunResult
    from gptcli.runs.metrics import read_run_result

    refuse_repeated("run", options.get("runs", []), "--fit")
    runs: list[RunResult] = []
    for path in options.get("runs", []):
        is_table = path.suffix in SUFFIXES and not path.is_dir()
        if str(path) == "-" or (path.is_file() and not is_table):
            raise InputError(
                "is neither a run folder nor a table of runs",
                where=path,
                hint=f"a table is a file that ends in {' or '.join(SUFFIXES)}",
            )
        runs += read_run_table(path) if is_table else [read_run_result(path)]
    law, predictions = fit_law(runs), []
    if "predict" in options:
        run = read_run_result(options["predict"])
        predictions.append(law.predict(run.name, run.parameters, run.tokens, run.loss))
    shape = {name: value for name, value in options.items() if name in (*SHAPE, "size")}
    if shape and "tokens" not in options:
        raise UsageError(
            "the loss of a model depends on its training tokens",
            where="--fit",
            hint="set their number with --tokens",
        )
    if "tokens" in options and not shape:
        raise UsageError(
            "--tokens needs a model", where="--fit", hint="name a --size, or give a shape"
        )
    if shape:
        target = requested_target(shape)
        predictions.append(law.predict(target.name, target.model.parameters, options["tokens"]))
    if output.plot is not None:
        from gptcli.runs.cost_plots import fitted_law
        from gptcli.runs.plots import write_plot

        write_plot(output.plot, fitted_law(law, runs, predictions))
    if output.json:
        print_json("cost", fit_report(law, runs, predictions))
    else:
        print_fit(law, runs, predictions, markdown=output.markdown)


def serve_model(options: dict[str, Any], output: OutputOptions) -> None:
    """Print speed, memory and price of generating text with one model."""
    hardware, target = hardware_options(options), requested_target(options)
    gpu = hardware.gpu_row
    assert gpu is not None, "only --tflops describes a custom GPU, and --serve does not take it"
    price = hourly_price(gpu, hardware.price, hardware.prices)
    found = serving(
        target.model,
        gpu,
        precision=hardware.matmul_precision,
        batch=options["serve"],
        prompt=options.get("prompt_tokens"),
        output=options.get("output_tokens"),
        price=None if price is None else price.value,
    )
    if output.json:
        constants = {"bandwidth_share": BANDWIDTH, "products_share": PRODUCTS}
        report = {"name": target.name, "gpu": gpu.name, **found._asdict(), **constants}
        print_json("cost", report | {"price": None if price is None else price._asdict()})
        return
    if note := _assumed(hardware):
        print_lines(f"{gpu.name} {note}", dim=True)
    print_rows(f"{target.name} on {gpu.name}", serving_rows(found, gpu), markdown=output.markdown)


def check_predictions(options: dict[str, Any], output: OutputOptions) -> None:
    """Print predicted beside published speeds of every measured run, and the errors by source."""
    from gptcli.cost.scoreboard import check_report

    report = check_report()
    if output.json:
        print_json("cost", report)
    else:
        print_check(report, output)


HANDLERS: dict[str, Callable[[dict[str, Any], OutputOptions], None]] = {
    "model": estimate_model,
    "check": check_predictions,
    "serve": serve_model,
    "flops": estimate_flops,
    "table": list_sizes,
    "budget": list_affordable,
    "hours": list_affordable,
    "plan": list_plans,
    "optimal": list_optimal,
    "fit": fit_runs,
}
