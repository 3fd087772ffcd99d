"""Figures of `gpt cost --plot`: the papers' figures of compute, and those of an estimate.

Each function returns an SVG. None needs torch or numpy, so that the command starts quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cost.estimate import Estimate
from gptcli.cost.memory import RECOMPUTE, memory_by_part
from gptcli.cost.planner import Plan, make_plan
from gptcli.cost.scaling import (
    GPT3_RANGE,
    KAPLAN,
    LAWS,
    PF_DAY,
    Range,
    gpt3_loss,
    without_embeddings,
)
from gptcli.model.config import ModelConfig
from gptcli.numbers import amount, counted, figure, in_bytes, short
from gptcli.papers.models import GPT_1, MODELS, PUBLISHED_RUNS, TABLE_D1
from gptcli.runs.charts import Series, bar_chart, line_chart, stacked_bar_chart
from gptcli.runs.svg import Scale

if TYPE_CHECKING:
    from gptcli.cost.scaling_fit import FittedLaw, Prediction
    from gptcli.cost.scaling_forms import RunResult


CURVE_STEPS = 60  # line segments of a formula's curve
MAX_CURVE_LOSS = 6.0  # nats per token; the start of a learning curve above it is left out
# largest model of each family in Table D.1
LARGEST_MODELS = ("T5-11B", "BERT-Large", "RoBERTa-Large", "GPT-3 175B")
FAMILIES = ("BERT", "RoBERTa", "T5", "GPT-3")  # in the order of Figure 2.2


def compute_by_model() -> str:
    """Redraw Figure 2.2 of the GPT-3 paper: training compute of each model of Table D.1."""
    rows = [
        (
            row.name,
            row.pf_days,
            "GPT-3" if row.size else row.name.split("-")[0],
            figure(row.pf_days, 3),
        )
        for row in TABLE_D1
    ]
    # the figure's order; within a family, the table's
    rows.sort(key=lambda row: FAMILIES.index(row[2]))
    scale = Scale(
        "training PF-days, logarithmic",
        0.5,
        10_000,
        format=lambda value: f"{value:,.0f}" if value >= 1 else f"{value:g}",
    )
    return bar_chart(
        "Compute to train a language model",
        "GPT-3, Figure 2.2, redrawn from its Table D.1",
        rows,
        scale,
        ["One PF-day is 8.64e19 FLOP. 6 FLOPs per parameter and token, without attention; T5: 3."],
    )


def compute_by_year(estimate: Estimate) -> str:
    """Plot the training compute of published models by year, with a line for the estimate."""
    points = {
        row.name: (row.year, row.flops)
        for row in (GPT_1, *TABLE_D1)
        if row is GPT_1 or row.name in LARGEST_MODELS
    }
    points |= {run.name: (run.year, 6 * run.parameters * run.tokens) for run in PUBLISHED_RUNS}
    ordered = sorted(points.items(), key=lambda row: row[1])
    # space to the right for the last year's labels
    first, last = ordered[0][1][0] - 0.5, ordered[-1][1][0] + 0.9
    every = [flops for _, (_, flops) in ordered] + [estimate.flops]
    low = 10.0 ** math.floor(math.log10(min(every)))
    high = 10.0 ** math.ceil(math.log10(max(every)))
    published = Series(
        "published runs", [point for _, point in ordered], [name for name, _ in ordered]
    )
    level = Series(
        estimate.name,
        [(first, estimate.flops), (last, estimate.flops)],
        line=True,
        dots=False,
        dashed=True,
    )
    flop_scale = Scale(
        "FLOP to train, logarithmic",
        low,
        high,
        format=lambda flops: f"{flops:.0e}".replace("e+", "e"),
    )
    return line_chart(
        "Compute to train a language model, by year",
        f"{estimate.name}: {short(estimate.flops)} FLOP, {figure(estimate.pf_days)} PF-days",
        [published, level],
        Scale("year of the paper", first, last, log=False),
        flop_scale,
        ["6·N·D by published parameters and tokens; T5 3·N·D."],
    )


def loss_by_compute(flops: float) -> str:
    """Redraw Figure 3.1 of the GPT-3 paper: loss against training compute, size by size.

    Adds the paper's fit of the frontier, the published scaling laws at their best size, and a mark
    at `flops`.
    """
    exponent = math.log10(flops / PF_DAY)
    x = Scale(
        "training PF-days, logarithmic",
        10.0 ** min(-2, math.floor(exponent)),
        10.0 ** max(5, math.ceil(exponent)),
        format=lambda value: f"{value:g}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e"),
    )
    laws = [_law_curve(law.name, x, law.range, partial(_best_loss, law)) for law in LAWS]
    frontier = _law_curve("GPT-3's fit, 2.57·C^-0.048", x, GPT3_RANGE, gpt3_loss, dashed=True)
    drawn_laws = [one for one in (frontier, *laws) if one.points]
    max_loss = max(MAX_CURVE_LOSS, *(loss for one in drawn_laws for _, loss in one.points))
    series = [*_learning_curves(x, max_loss), *drawn_laws]
    in_range = GPT3_RANGE.holds_for(flops)
    if in_range:
        mark = (flops / PF_DAY, gpt3_loss(flops))
        series.append(Series("your budget", [mark], [f"{short(flops)} FLOP"]))
    lowest = min(loss for one in series for _, loss in one.points)
    notes = [
        "Thin: each size of Table 2.1 while it reads 300B tokens, by Kaplan et al.'s L(N, S);"
        " the paper prints no table of its curves.",
        "Each law is about its own text: compare sizes within one law, never laws with each other.",
        "Each law is drawn where its authors fitted or tested it.",
    ]
    if not in_range:
        notes.append(f"{short(flops)} FLOP is outside GPT-3's range: {GPT3_RANGE.compute}.")
    return line_chart(
        "Loss against compute",
        "GPT-3, Figure 3.1, redrawn: its fit of the frontier, and the published laws at their best"
        " size",
        series,
        x,
        Scale("loss, nats per token, logarithmic", lowest * 0.97, max_loss * 1.03),
        notes,
    )


def _best_loss(law: Any, flops: float) -> float:
    """Return the loss of the compute-optimal model by a law."""
    return law.optimum(flops).loss


def _law_curve(
    name: str, x: Scale, limits: Range, loss: Callable[[float], float], *, dashed: bool = False
) -> Series:
    """Return the curve of a law within its limits and the x axis; `loss` is a function of FLOP."""
    low, high = max(x.low, limits.pf_days[0]), min(x.high, limits.pf_days[1])
    points = [(c, loss(c * PF_DAY)) for c in _geometric(low, high)] if low < high else []
    return Series(name, points, line=True, dots=False, dashed=dashed)


def _learning_curves(x: Scale, max_loss: float) -> list[Series]:
    """Return a thin curve for each size of Table 2.1, by Kaplan et al.'s L(N, S)."""
    series = []
    for paper in (model for model in MODELS if model.paper == "GPT-3"):
        model = ModelConfig.from_paper(paper)
        size = without_embeddings(model)
        points = [
            (
                _pf_days(model.parameters, tokens),
                KAPLAN.learning(size, tokens, paper.batch_tokens),
            )
            for tokens in _geometric(1e9, 300e9)
        ]
        points = [(c, loss) for c, loss in points if c >= x.low and loss <= max_loss]
        labels = [""] * (len(points) - 1) + [paper.printed]
        series.append(Series(paper.printed, points, labels, line=True, dots=False, quiet=True))
    return series


def memory_of_model(estimate: Estimate) -> str:
    """Plot the memory of a model before activations, for training and for inference."""
    assert estimate.parameters is not None
    parts = memory_by_part(estimate.parameters, estimate.model)
    cache = parts.get("kv_cache_per_context", 0)
    training = {name: float(parts[name]) for name in ("parameters", "gradients", "optimizer")}
    fp32, bits16 = float(parts["inference_fp32"]), float(parts["inference_16bit"])
    rows = [
        ("to train, fp32", training),
        ("to run, fp32", {"parameters": fp32, "cache of a context": 2.0 * cache}),
        ("to run, 16 bits", {"parameters": bits16, "cache of a context": float(cache)}),
    ]
    return stacked_bar_chart(
        f"Memory of {estimate.name}",
        f"{counted(estimate.parameters, 'parameter')}, before activations",
        rows,
        _byte_scale(rows),
        limit=_cluster_limit(estimate, rows),
    )


def memory_of_rank(plan: Plan, model: ModelConfig, estimate: Estimate) -> str:
    """Plot the peak memory of one rank of the layout, for each recomputation policy."""
    gpu = estimate.cluster.gpu
    assert gpu is not None
    rows = []
    for kind in RECOMPUTE:
        memory = make_plan(model, plan.layout, replace(plan.work, recompute=kind), gpu).memory
        parts = {part: float(n_bytes) for part, n_bytes in asdict(memory).items()}
        rows.append((f"recompute {kind}", parts))
    return stacked_bar_chart(
        f"Memory of a rank: {estimate.name} on {plan.layout}",
        f"micro-batch {plan.work.micro_batch}, {plan.work.precision}, at its peak",
        rows,
        _byte_scale(rows, min_high=gpu.memory_bytes * 1.02),
        limit=(gpu.memory_bytes, f"{gpu.name}, {in_bytes(gpu.memory_bytes)}"),
    )


def time_of_plans(name: str, plans: Sequence[Plan]) -> str:
    """Plot the parts of each plan's step time, in seconds per million tokens.

    Times are per token because plans differ in batch size.
    """
    rows = []
    for plan in plans:
        tokens = plan.tokens_per_second * plan.time.total
        parts = {part: 1e6 * seconds / tokens for part, seconds in plan.time._asdict().items()}
        rows.append((str(plan.layout), parts))
    scale = Scale(
        "seconds per million tokens",
        0,
        _max_total(rows),
        log=False,
        format=lambda value: f"{value:.3g}",
    )
    return stacked_bar_chart(
        f"{name} on {counted(plans[0].layout.processes, 'GPU')}",
        "parts of the step time by layout, fastest first",
        rows,
        scale,
    )


def fitted_law(
    fitted: FittedLaw, runs: Sequence[RunResult], predicted: Sequence[Prediction]
) -> str:
    """Plot a fitted scaling law, the runs it is fitted to, and its predictions for other runs."""
    sizes = [(run.parameters, run.tokens) for run in runs]
    sizes += [(one.parameters, one.tokens) for one in predicted]
    sizes.sort(key=lambda size: size[0] * size[1])
    line = [(_pf_days(*size), fitted.loss(*size)) for size in sizes]
    series = [
        Series(
            "runs it is fitted to",
            [(run.pf_days, run.loss) for run in runs],
            [Path(run.name).name for run in runs],
        ),
        Series("the law", line, line=True, dots=False, dashed=True),
    ]
    if predicted:
        points = [(_pf_days(one.parameters, one.tokens), one.loss) for one in predicted]
        series.append(Series("predicted", points, [f"predicted {y:.3f}" for _, y in points]))
    if measured := [
        (_pf_days(one.parameters, one.tokens), one.measured, Path(one.name).name)
        for one in predicted
        if one.measured is not None
    ]:
        labels = [f"{name}: {loss:.3f}" for _, loss, name in measured]
        series.append(Series("measured", [(c, loss) for c, loss, _ in measured], labels))
    losses = [loss for one in series for _, loss in one.points]
    x_title, y_title = "training PF-days, 6ND, logarithmic", "loss, nats per token, logarithmic"
    (low, _), (high, _) = line[0], line[-1]
    spans = [
        f"{amount(min(values))} to {amount(max(values))} {name}"
        for name, values in zip(("parameters", "tokens"), zip(*sizes, strict=True), strict=True)
    ]
    return line_chart(
        "Loss against compute, fitted to runs",
        f"{fitted.formula}; root mean square error {fitted.error:.2%}",
        series,
        Scale(x_title, low / 1.6, high * 1.6, format=lambda value: f"{value:.0e}"),
        Scale(y_title, min(losses) * 0.96, max(losses) * 1.04),
        [f"{', '.join(spans)}."],
    )


def _pf_days(parameters: float, tokens: float) -> float:
    return 6.0 * parameters * tokens / PF_DAY


def _cluster_limit(
    estimate: Estimate, rows: Sequence[tuple[str, dict[str, float]]]
) -> tuple[float, str] | None:
    """Return the memory of the cluster's GPUs and its label, if it is within the axis."""
    cluster = estimate.cluster
    if cluster.memory_bytes is None:
        return None
    total = float(cluster.memory_bytes * cluster.count)
    if total > _max_total(rows):
        return None
    name = "GPU" if cluster.gpu is None else cluster.gpu.name
    return total, f"{cluster.count:,} {name}: {in_bytes(round(total))}"


def _byte_scale(rows: Sequence[tuple[str, dict[str, float]]], min_high: float = 0) -> Scale:
    high = max(_max_total(rows), min_high)
    return Scale("bytes", 0, high, log=False, format=lambda value: in_bytes(round(value)))


def _max_total(rows: Sequence[tuple[str, dict[str, float]]]) -> float:
    return max(sum(parts.values()) for _, parts in rows)


def _geometric(low: float, high: float) -> list[float]:
    """Return CURVE_STEPS + 1 values from `low` to `high` in equal ratios."""
    return [low * (high / low) ** (i / CURVE_STEPS) for i in range(CURVE_STEPS + 1)]
