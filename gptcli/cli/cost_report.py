"""Modes of `gpt cost`: resolve the model and the GPUs, estimate, and print the result."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from gptcli.cli.console import (
    Row,
    print_command,
    print_json,
    print_lines,
    print_rows,
    print_table,
)
from gptcli.cli.options import option
from gptcli.cost.cluster import Affordable, affordable, batch_sequences
from gptcli.cost.estimate import Estimate
from gptcli.cost.hardware import USER
from gptcli.cost.hardware_options import HARDWARE_FIELDS, LAYOUT_FIELDS, HardwareOptions
from gptcli.cost.planner import Plan, plans
from gptcli.cost.report import (
    estimate_rows,
    estimate_title,
    formulas,
    gpu_label,
    plans_table,
    rank_rows,
    sizes_table,
)
from gptcli.cost.scaling import CHINCHILLA, GPT3_RANGE, LAWS, RANGES, optimal_report
from gptcli.cost.step_time import uncertainty
from gptcli.cost.target import (
    DEFAULT_SIZE,
    Target,
    all_targets,
    bare_name,
    estimate_target,
    find_target,
    target_names,
)
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.model.hf import read_model_config
from gptcli.numbers import amount, figure, gpu_time, short
from gptcli.papers.training import GPT3_TRAINING

if TYPE_CHECKING:
    from gptcli.cost.scaling_fit import FittedLaw, Prediction, RunResult

ARTICLE_GPU = "v100"  # GPU of GPT-3's published estimate, with the speed and price of 2020
DEFAULT_N_CTX = 1024  # GPT-2's
MAX_PLANS = 12
SHAPE = ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "attention")
TRAIN_SHAPE = tuple(name for name in SHAPE if name != "vocab_size")  # the shards set the vocabulary


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Form of the report, and the file of its plot."""

    json: bool
    markdown: bool
    explain: bool
    plot: Path | None


def hardware_options(options: dict[str, Any]) -> HardwareOptions:
    """Return the options of GPUs and layout."""
    names = (*HARDWARE_FIELDS, *LAYOUT_FIELDS, "hours")
    return HardwareOptions(**{name: options[name] for name in names if name in options})


def requested_target(options: dict[str, Any]) -> Target:
    """Return the model that the options name: a size, a changed size, a custom shape or a run.

    Raises UsageError for an incomplete shape or two models, InputError for a broken run folder.
    """
    shape = {name: options[name] for name in SHAPE if name in options}
    size, runs = options.get("size"), options.get("runs", [])
    if runs:
        if len(runs) > 1 or size or shape:
            raise UsageError(
                "a run folder cannot be combined with another model",
                hint="name one run without --size or a shape; only --fit takes several runs",
            )
        from gptcli.runs.metrics import read_run_result

        tokens = read_run_result(runs[0]).tokens
        config = read_model_config(runs[0])
        return Target(str(runs[0]), config, tokens, "trained, by its metrics.jsonl")
    if size is None and shape:
        required = ("n_layer", "n_head", "d_model")
        if missing := [option(name) for name in required if name not in shape]:
            raise UsageError(
                f"a custom model also needs {' and '.join(missing)}",
                hint="or name a --size to start from, and change parts of it",
            )
        config = ModelConfig(**{"n_ctx": DEFAULT_N_CTX, **shape})
        return Target("custom", config, GPT3_TRAINING.tokens, "assumed: as many as GPT-3")
    target = find_target(size or DEFAULT_SIZE)
    if not shape:
        return target
    config = ModelConfig(**{**target.model.as_dict(), **shape})
    return Target(f"{target.name}, changed", config, target.tokens, target.source)


def check_not_a_size(argument: str) -> None:
    """Raise UsageError for an argument that names a size instead of a run folder."""
    wanted = bare_name(argument)
    if size := next((name for name in target_names() if bare_name(name) == wanted), None):
        raise UsageError(
            "is a model size, not a run folder",
            where=argument,
            hint=f"gpt cost --size {shlex.quote(size)}",
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
    estimate = estimate_target(target, options.get("tokens"), hardware)
    plan, model = estimate.plan, estimate.model
    if output.plot is not None:
        from gptcli.runs import plots as plot

        if "flops" in options:
            picture = plot.compute_by_year(estimate)
        elif "layout" in options and plan is not None and model is not None:
            picture = plot.memory_of_rank(plan, model, estimate)
        else:
            picture = plot.memory_of_model(estimate)
        plot.write_plot(output.plot, picture)
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
    estimate = Estimate(f"{short(flops)} FLOP", flops, hardware.cluster(None, flops)[0])
    if output.plot is not None:
        from gptcli.runs.plots import compute_by_year, write_plot

        write_plot(output.plot, compute_by_year(estimate))
    if output.json:
        print_json("cost", estimate.as_dict())
    else:
        print_estimate(estimate, output, brief=True, assumed=_assumed(hardware))


def list_sizes(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the estimates of all sizes of the papers."""
    hardware, tokens = hardware_options(options), options.get("tokens")
    estimates = [estimate_target(target, tokens, hardware) for target in all_targets()]
    if output.plot is not None:
        from gptcli.runs.plots import compute_by_model, write_plot

        write_plot(output.plot, compute_by_model())
    if output.json:
        print_json("cost", {"sizes": [estimate.as_dict() for estimate in estimates]})
    else:
        print_sizes(estimates, output, assumed=_assumed(hardware))


def list_affordable(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the sizes that a budget of dollars, hours or both can train."""
    dollars, hours = options.get("budget"), options.get("hours")
    hardware = hardware_options({**options, "hours": None})
    targets = [target for target in all_targets() if isinstance(target.shape, ModelConfig)]
    estimates = [estimate_target(target, None, hardware) for target in targets]
    cluster = estimates[0].cluster
    if dollars is not None and cluster.price is None:
        raise UsageError(
            "the price of this GPU is unknown", where="--budget", hint="set it with --price"
        )
    sizes, gpu_hours = affordable(estimates, dollars=dollars, hours=hours)
    if output.json:
        print_json("cost", {"gpu_hours": gpu_hours, "sizes": [asdict(row) for row in sizes]})
        return
    gpus = f"{cluster.count:,} {gpu_label(cluster)}"
    if assumed := _assumed(hardware):
        gpus += f" ({assumed})"
    print_affordable(sizes, gpu_hours, gpus, markdown=output.markdown)


def list_plans(options: dict[str, Any], output: OutputOptions) -> None:
    """Print the layouts of a model that fit into memory, fastest first."""
    hardware, target = hardware_options(options), requested_target(options)
    gpu, gpus, model = hardware.gpu_row, hardware.gpus or 1, target.model
    assert gpu is not None, "only --tflops describes a custom GPU, and --plan does not take it"
    sequences = batch_sequences(model)
    ranked = plans(model, gpu, gpus, sequences, hardware.matmul_precision, most=MAX_PLANS)
    if not ranked:
        raise UsageError(
            f"no layout of {gpus:,} {gpu.name} has enough memory for {target.name}",
            where="--plan",
            hint="use more or larger GPUs, or a shorter --n-ctx",
        )
    if output.plot is not None:
        from gptcli.runs.plots import time_of_plans, write_plot

        write_plot(output.plot, time_of_plans(target.name, ranked))
    typed = _model_options(options, model)
    if output.json:
        listed = [plan.as_dict() | {"command": train_command(plan, typed)} for plan in ranked]
        report = {"name": target.name, "gpu": gpu.name, "gpus": gpus, "plans": listed}
        print_json("cost", report)
        return
    if assumed := _assumed(hardware):
        print_lines(f"{gpu.name} {assumed}", dim=True)
    factor = uncertainty(ranked[0].layout, gpu)
    print_lines(
        f"{target.name} on {gpus:,} {gpu.name}, fastest first; "
        f"times are accurate to a factor of {factor:g}"
    )
    print_table(plans_table(ranked), markdown=output.markdown)
    print_lines("waits: share of the step spent in collectives and pipeline bubbles")
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
        from gptcli.runs.plots import loss_by_compute, write_plot

        write_plot(output.plot, loss_by_compute(options["optimal"]))
    if output.json:
        print_json("cost", report)
    else:
        print_optimal(report, markdown=output.markdown)


def fit_runs(options: dict[str, Any], output: OutputOptions) -> None:
    """Fit a scaling law to runs, and print it with its predictions."""
    from gptcli.cost.scaling_fit import fit_law, fit_report
    from gptcli.runs.metrics import read_run_result

    runs = [read_run_result(path) for path in options.get("runs", [])]
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
        from gptcli.runs.plots import fitted_law, write_plot

        write_plot(output.plot, fitted_law(law, runs, predictions))
    if output.json:
        print_json("cost", fit_report(law, runs, predictions))
    else:
        print_fit(law, runs, predictions, markdown=output.markdown)


HANDLERS: dict[str, Callable[[dict[str, Any], OutputOptions], None]] = {
    "model": estimate_model,
    "flops": estimate_flops,
    "table": list_sizes,
    "budget": list_affordable,
    "hours": list_affordable,
    "plan": list_plans,
    "optimal": list_optimal,
    "fit": fit_runs,
}


def print_estimate(
    estimate: Estimate,
    output: OutputOptions,
    *,
    brief: bool,
    rank: list[Row] | None = None,
    assumed: str = "",
) -> None:
    """Print an estimate; if `brief`, only FLOPs, time and money.

    `rank` is the memory of a rank; `assumed` is the note on a GPU that the user did not name.
    """
    rows = [*estimate_rows(estimate, brief=brief, assumed=assumed, spell=option), *(rank or [])]
    print_rows(estimate_title(estimate), rows, markdown=output.markdown)
    print_sources(estimate, explain=output.explain)


def print_sizes(estimates: list[Estimate], output: OutputOptions, *, assumed: str = "") -> None:
    """Print a table of estimates, all on the same cluster."""
    gpu = gpu_label(estimates[0].cluster) + (f", {assumed}" if assumed else "")
    print_lines(f"{gpu}; FLOP by 6ND, of T5 by 3ND")
    print_table(sizes_table(estimates), markdown=output.markdown)
    print_sources(estimates[0], explain=output.explain)


def print_sources(estimate: Estimate, *, explain: bool) -> None:
    """Print the sources of the most important assumptions that the user did not set.

    With `explain`, print all formulas, and all assumptions with their sources.
    """
    if explain:
        typer.echo()
        for line in formulas(estimate):
            print_lines(line)
        typer.echo()
        for constant in estimate.assumptions:
            origin = ", ".join(part for part in (constant.date, constant.url) if part)
            line = f"{constant.name} = {constant.value:.6g} {constant.unit}: {constant.source}"
            print_lines(f"{line} ({origin})" if origin else line)
        for law, law_range in RANGES.items() if estimate.model is not None else ():
            print_lines(f"{law} holds for {law_range}: {law_range.source}")
        return
    important = [
        constant
        for constant in estimate.assumptions
        if constant.name in ("tokens", "throughput", "goodput", "price")
        and not constant.source.endswith(USER)
    ]
    if important:
        typer.echo()
    for constant in important:
        date = f" ({constant.date})" if constant.date else ""
        print_lines(f"{constant.name}: {constant.source}{date}", dim=True)


def print_optimal(report: dict[str, Any], *, markdown: bool) -> None:
    """Print the report of `optimal_report`."""
    flops = report["flops"]
    print_lines(f"Compute-optimal models for {short(flops)} FLOP, by 6ND")
    rows = [["law", "parameters", "tokens", "tokens/parameter", "loss"]]
    for row in report["optimal"]:
        if row["loss"] is not None:
            ratio = figure(row["tokens_per_parameter"], 3)
            sizes = [amount(row["parameters"]), amount(row["tokens"])]
            rows.append([row["law"], *sizes, ratio, f"{row['loss']:.3f}"])
    if len(rows) > 1:
        print_table(rows, markdown=markdown)
    outside = {law.name: law.range for law in LAWS if not law.range.holds_for(flops)}
    if report["gpt3_loss"] is None:
        outside["GPT-3's fit"] = GPT3_RANGE
    else:
        print_lines(
            f"GPT-3's fit of the compute frontier: loss {report['gpt3_loss']:.3f}, "
            f"critical batch {amount(report['critical_batch_tokens'])} tokens"
        )
    if report["best_batch_tokens"] is not None:
        print_lines(f"batch: {amount(report['best_batch_tokens'])} tokens by Kaplan et al. 2020")
    for name, law_range in outside.items():
        print_lines(f"{name}: outside the law's range ({law_range.compute})")
    print_lines(
        "kaplan counts parameters without embeddings; each law's loss is in nats per token of "
        "its own text",
        dim=True,
    )


def print_affordable(
    sizes: list[Affordable], gpu_hours: float, cluster: str, *, markdown: bool
) -> None:
    """Print the sizes that `gpu_hours` can train, with tokens and predicted loss."""
    print_lines(f"{gpu_time(gpu_hours)} on {cluster}, lowest loss first")
    rows = [["size", "tokens", "loss"]]
    for size in sizes:
        loss = "outside" if size.loss is None else f"{size.loss:.3f}"
        rows.append([size.name, amount(size.tokens), loss])
    print_table(rows, markdown=markdown)
    print_lines("loss: by Chinchilla as printed, in nats per token of its own text", dim=True)
    if any(size.loss is None for size in sizes):
        print_lines(f"outside: not in the law's range ({CHINCHILLA.range})", dim=True)


def print_fit(
    law: FittedLaw, runs: list[RunResult], predictions: list[Prediction], *, markdown: bool
) -> None:
    """Print a fitted law: its constants, its error on each run, and its predictions."""
    print_lines(
        f"{law.formula}, fitted to {len(runs)} runs; root mean square error {law.error:.2%}"
    )
    rows = [["", "value", "95 % from", "to"]]
    for name, value in law.values.items():
        low, high = law.intervals[name]
        rows.append([name, f"{value:.4g}", f"{low:.4g}", f"{high:.4g}"])
    print_table(rows, markdown=markdown)
    rows = [["run", "parameters", "tokens", "loss", "law", "error"]]
    for run in runs:
        predicted = law.loss(run.parameters, run.tokens)
        losses = [f"{run.loss:.4f}", f"{predicted:.4f}", f"{predicted / run.loss - 1:+.2%}"]
        rows.append([run.name, amount(run.parameters), amount(run.tokens), *losses])
    print_table(rows, markdown=markdown)
    for one in predictions:
        low, high = one.interval
        measured = ""
        if one.measured is not None:
            measured = f"; measured {one.measured:.4f}, error of the law {one.error:+.2%}"
        print_lines(
            f"{one.name}, not used in the fit: {amount(one.parameters)} parameters on "
            f"{amount(one.tokens)} tokens: predicted {one.loss:.4f}, "
            f"95 % from {low:.4f} to {high:.4f}{measured}"
        )
