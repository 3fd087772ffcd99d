"""`gpt cost --plot`: a picture for each question, redrawn from the tables and from what was
computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.cli.cost_svg import Scale, Series, bars, curves, stacks
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
from gptcli.errors import UsageError
from gptcli.files import atomic_write
from gptcli.model.config import ModelConfig
from gptcli.numbers import amount, figure, in_bytes, short
from gptcli.papers.compute import GPT_1, PUBLISHED_RUNS, TABLE_D1
from gptcli.papers.models import MODELS

if TYPE_CHECKING:
    from gptcli.cli.cost_laws import Predicted
    from gptcli.cost.lawfit import Fitted, Run

STEPS = 60  # points of a line
HIGHEST_LOSS = 6.0  # of a curve that is drawn
# of Table D.1: the largest of each family
BY_YEAR = ("T5-11B", "BERT-Large", "RoBERTa-Large", "GPT-3 175B")


def check_plot(path: Path) -> None:
    """Raises UsageError where the name is not that of an SVG."""
    if path.suffix.lower() != ".svg":
        raise UsageError(
            f"{path} is not the name of an SVG picture",
            where="--plot",
            hint="name it something.svg",
        )


def write_plot(path: Path, svg: str) -> None:
    with atomic_write(path, "w") as file:
        file.write(svg)


def compute_by_model() -> str:
    """GPT-3's Figure 2.2: what each model of Table D.1 took to train."""
    rows = [
        (
            row.name,
            row.pf_days,
            "GPT-3" if row.size else row.name.split("-")[0],
            figure(row.pf_days, 3),
        )
        for row in TABLE_D1
    ]
    order = {"BERT": 0, "RoBERTa": 1, "T5": 2, "GPT-3": 3}
    rows.sort(key=lambda row: order[row[2]])  # the figure's order; within a family, the table's
    scale = Scale("training PF-days, logarithmic", 0.5, 10_000, write=_plain)
    return bars(
        "Compute to train a language model", "GPT-3, Figure 2.2, redrawn from its Table D.1", rows, scale,
        ["One PF-day is 8.64e19 FLOP. 6 FLOPs a parameter and token, attention left out; T5: 3."],
    )  # fmt: skip


def compute_by_year(estimate: Estimate) -> str:
    """Published runs by their year, and where the estimate stands among them."""
    rows = {
        row.name: (row.year, row.flops)
        for row in (GPT_1, *TABLE_D1)
        if row is GPT_1 or row.name in BY_YEAR
    }
    rows |= {run.name: (run.year, 6 * run.parameters * run.tokens) for run in PUBLISHED_RUNS}
    ordered = sorted(rows.items(), key=lambda row: row[1])
    first, last = ordered[0][1][0] - 0.5, ordered[-1][1][0] + 0.9  # room for the last year's labels
    every = [flops for _, (_, flops) in ordered] + [estimate.flops]
    low, high = (
        10.0 ** rounded(math.log10(value))
        for rounded, value in ((math.floor, min(every)), (math.ceil, max(every)))
    )
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
    return curves(
        "Compute to train a language model, by year", f"{estimate.name}: {short(estimate.flops)} FLOP, {figure(estimate.pf_days)} PF-days",
        [published, level], Scale("year of the paper", first, last, log=False),
        Scale("FLOP to train, logarithmic", low, high, write=lambda flops: f"{flops:.0e}".replace("e+", "e")),
        ["6·N·D by published parameters and tokens; T5 3·N·D."],
    )  # fmt: skip


def loss_by_compute(flops: float) -> str:
    """GPT-3's Figure 3.1: the loss of each size as it learns, and the frontier that the paper fits;
    `flops` are marked on it.
    """
    exponent = math.log10(flops / PF_DAY)
    x = Scale(
        "training PF-days, logarithmic",
        10.0 ** min(-2, math.floor(exponent)),
        10.0 ** max(5, math.ceil(exponent)),
        write=_power,
    )

    def line(
        name: str, within: Range, loss: Callable[[float], float], *, dashed: bool = False
    ) -> Series:
        """A law where it holds."""
        low, high = max(x.low, within.pf_days[0]), min(x.high, within.pf_days[1])
        points = [(c, loss(c * PF_DAY)) for c in _steps(low, high)] if low < high else []
        return Series(name, points, line=True, dots=False, dashed=dashed)

    laws = [line(law.name, law.range, lambda c, law=law: law.optimum(c).loss) for law in LAWS]  # type: ignore[misc]
    frontier = line("GPT-3's fit, 2.57·C^-0.048", GPT3_RANGE, gpt3_loss, dashed=True)
    highest = max(HIGHEST_LOSS, *(loss for one in (frontier, *laws) for _, loss in one.points))
    series = []
    for paper in (model for model in MODELS if model.paper == "GPT-3"):
        model = ModelConfig.from_paper(paper)
        size = without_embeddings(model)
        points = [
            (_compute(model.parameters, tokens), KAPLAN.learning(size, tokens, paper.batch_tokens))
            for tokens in _steps(1e9, 300e9)
        ]
        points = [(c, loss) for c, loss in points if c >= x.low and loss <= highest]
        series.append(
            Series(
                paper.printed,
                points,
                [""] * (len(points) - 1) + [paper.printed],
                line=True,
                dots=False,
                quiet=True,
            )
        )
    series += [one for one in (frontier, *laws) if one.points]
    if GPT3_RANGE.holds_for(flops):
        series.append(
            Series("your budget", [(flops / PF_DAY, gpt3_loss(flops))], [f"{short(flops)} FLOP"])
        )
    losses = [loss for one in series for _, loss in one.points]
    notes = [
        "Thin: each size of Table 2.1 while it reads 300B tokens, by Kaplan et al.'s L(N, S); the paper prints no table of its curves.",
        "Every law is about its own text: compare sizes within one law, never laws with each other.",
        "Each is drawn where its authors fitted or tested it.",
        *(
            []
            if GPT3_RANGE.holds_for(flops)
            else [f"{short(flops)} FLOP lies outside GPT-3's: {GPT3_RANGE.compute}."]
        ),
    ]
    return curves(
        "Loss against compute", "GPT-3, Figure 3.1, redrawn: its fit of the frontier, and the published laws at their best size", series, x,
        Scale("loss, nats a token, logarithmic", min(losses) * 0.97, highest * 1.03), notes,
    )  # fmt: skip


def memory_of_model(estimate: Estimate) -> str:
    """What fills memory before activations: to train, and to run."""
    assert estimate.parameters is not None
    parts = memory_by_part(estimate.parameters, estimate.model)
    cache = parts.get("kv_cache_per_context", 0)
    rows = [
        (
            "to train, fp32",
            {name: float(parts[name]) for name in ("parameters", "gradients", "optimizer")},
        ),
        (
            "to run, fp32",
            {"parameters": float(parts["inference_fp32"]), "cache of a context": 2.0 * cache},
        ),
        (
            "to run, 16 bits",
            {"parameters": float(parts["inference_16bit"]), "cache of a context": float(cache)},
        ),
    ]
    return stacks(
        f"Memory of {estimate.name}",
        f"{estimate.parameters:,} parameters, before activations",
        rows,
        _bytes(rows, None),
        limit=_limit(estimate, rows),
    )


def memory_of_rank(plan: Plan, model: ModelConfig, estimate: Estimate) -> str:
    """A rank of the layout at its fullest moment, by each recomputation."""
    gpu = estimate.cluster.gpu
    assert gpu is not None
    rows = []
    for kind in RECOMPUTE:
        memory = make_plan(model, plan.layout, replace(plan.work, recompute=kind), gpu).memory
        rows.append(
            (
                f"recompute {kind}",
                {part: float(n_bytes) for part, n_bytes in asdict(memory).items()},
            )
        )
    return stacks(
        f"Memory of a rank: {estimate.name} on {plan.layout}",
        f"micro-batch {plan.work.micro_batch}, {plan.work.precision}, at its fullest moment", rows, _bytes(rows, gpu.memory_bytes),
        limit=(gpu.memory_bytes, f"{gpu.name}, {in_bytes(gpu.memory_bytes)}"),
    )  # fmt: skip


def time_of_plans(name: str, found: Sequence[Plan]) -> str:
    """Where the step of each plan goes, a token of the batch: plans do not all read the same
    batch.
    """
    rows = []
    for plan in found:
        tokens = plan.tokens_per_second * plan.time.total
        rows.append(
            (
                str(plan.layout),
                {part: 1e6 * seconds / tokens for part, seconds in asdict(plan.time).items()},
            )
        )
    high = max(sum(parts.values()) for _, parts in rows)
    scale = Scale(
        "seconds a million tokens", 0, high, log=False, write=lambda value: f"{value:.3g}"
    )
    return stacks(
        f"{name} on {found[0].layout.processes:,} GPUs",
        "where the time goes, layout by layout, fastest first",
        rows,
        scale,
    )


def fitted_law(fitted: Fitted, runs: Sequence[Run], predicted: Sequence[Predicted]) -> str:
    """The runs, the law's word on each, and what it says of those that it was not fitted to."""
    sizes = [(run.parameters, run.tokens) for run in runs] + [
        (one.parameters, one.tokens) for one in predicted
    ]
    sizes.sort(key=lambda size: size[0] * size[1])
    line = [(_compute(*size), fitted.loss(*size)) for size in sizes]
    series = [
        Series(
            "runs it is fitted to",
            [(run.pf_days, run.loss) for run in runs],
            [Path(run.name).name for run in runs],
        ),
        Series("the law", line, line=True, dots=False, dashed=True),
    ]
    if predicted:
        places = [(_compute(one.parameters, one.tokens), one) for one in predicted]
        series.append(
            Series(
                "predicted",
                [(c, one.loss) for c, one in places],
                [f"predicted {one.loss:.3f}" for _, one in places],
            )
        )
        made = [
            (c, one.measured, Path(one.name).name) for c, one in places if one.measured is not None
        ]
        if made:
            series.append(
                Series(
                    "measured",
                    [(c, loss) for c, loss, _ in made],
                    [f"{name}: {loss:.3f}" for _, loss, name in made],
                )
            )
    losses = [loss for one in series for _, loss in one.points]
    (least, _), (most, _) = line[0], line[-1]
    parameters, tokens = ([size[i] for size in sizes] for i in (0, 1))
    span = [f"{amount(min(values))} to {amount(max(values))}" for values in (parameters, tokens)]
    return curves(
        "Loss against compute, runs of one's own", f"{fitted.formula}; root mean square error {fitted.error:.2%}", series,
        Scale("training PF-days, 6ND, logarithmic", least / 1.6, most * 1.6, write=lambda value: f"{value:.0e}"),
        Scale("loss, nats a token, logarithmic", min(losses) * 0.96, max(losses) * 1.04), [f"{span[0]} parameters, {span[1]} tokens."],
    )  # fmt: skip


def _compute(parameters: float, tokens: float) -> float:
    return 6.0 * parameters * tokens / PF_DAY


def _limit(
    estimate: Estimate, rows: Sequence[tuple[str, dict[str, float]]]
) -> tuple[float, str] | None:
    """What the GPUs hold, where the picture has room for it."""
    cluster = estimate.cluster
    if cluster.memory_bytes is None:
        return None
    holds = float(cluster.memory_bytes * cluster.count)
    name = "GPU" if cluster.gpu is None else cluster.gpu.name
    return (
        (holds, f"{cluster.count:,} {name}: {in_bytes(round(holds))}")
        if holds <= max(sum(parts.values()) for _, parts in rows)
        else None
    )


def _bytes(rows: Sequence[tuple[str, dict[str, float]]], limit: float | None) -> Scale:
    high = max(
        [sum(parts.values()) for _, parts in rows] + ([] if limit is None else [limit * 1.02])
    )
    return Scale("bytes", 0, high, log=False, write=lambda value: in_bytes(round(value)))


def _steps(low: float, high: float) -> list[float]:
    """From one to the other in equal ratios."""
    return [low * (high / low) ** (i / STEPS) for i in range(STEPS + 1)]


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _power(value: float) -> str:
    return f"{value:g}" if value < 1e4 else f"{value:.0e}".replace("e+0", "e")
