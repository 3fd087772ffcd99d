"""The answers of `gpt cost`, a function for each question: figures from gptcli.cost, then a report,
JSON or a picture of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gptcli.cli.config import option
from gptcli.cli.console import print_json
from gptcli.cli.cost_laws import (
    fit_report,
    optimal_report,
    predict,
    print_affordable,
    print_fit,
    print_optimal,
    read_run,
)
from gptcli.cli.cost_options import ARTICLE_GPU, FLEET, LAYOUT, SHAPE, Terms, positive, whole
from gptcli.cli.cost_plan import print_plans, rank_rows, train_options
from gptcli.cli.cost_report import print_estimate, print_sizes
from gptcli.cli.cost_sheet import print_lines
from gptcli.cli.cost_subject import DEFAULT_SIZE, estimate, named, subject, subjects
from gptcli.cost.cluster import affordable, batch_sequences
from gptcli.cost.estimate import Estimate
from gptcli.cost.planner import plans
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.numbers import short

PLANS_SHOWN = 12
TRAIN_SHAPE = tuple(name for name in SHAPE if name != "vocab_size")


@dataclass(frozen=True, slots=True)
class Look:
    """How an answer is shown."""

    json: bool
    markdown: bool
    explain: bool
    plot: Path | None


def answer_model(said: dict[str, Any], look: Look) -> None:
    model, assumed = subject(said), ""
    if (
        "flops" in said
        and model == named(DEFAULT_SIZE)
        and not any(name in said for name in ("tokens", "hours", *FLEET, *LAYOUT))
    ):
        said, assumed = {**said, "gpu": ARTICLE_GPU}, "the cost article's, of 2020"
    terms = Terms(said)
    found = estimate(model, said.get("tokens"), terms)
    if look.plot is not None:
        from gptcli.cli import cost_plot as plot

        if "flops" in said:
            picture = plot.compute_by_year(found)
        elif "layout" in said and found.plan is not None and found.model is not None:
            picture = plot.memory_of_rank(found.plan, found.model, found)
        else:
            picture = plot.memory_of_model(found)
        plot.write_plot(look.plot, picture)
    if look.json:
        print_json("cost", found.as_dict())
        return
    rank = (
        rank_rows(found.plan, found.model, terms.gpu)
        if "layout" in said and found.plan and found.model
        else []
    )
    print_estimate(
        found,
        brief="flops" in said,
        explain=look.explain,
        markdown=look.markdown,
        rank=rank,
        assumed=assumed or terms.assumed,
    )


def answer_flops(said: dict[str, Any], look: Look) -> None:
    amount = positive("flops", said["flops"]) or 0.0
    terms = Terms(said)
    found = Estimate(f"{short(amount)} FLOP", amount, terms.cluster(None, amount)[0])
    if look.plot is not None:
        from gptcli.cli.cost_plot import compute_by_year, write_plot

        write_plot(look.plot, compute_by_year(found))
    if look.json:
        print_json("cost", found.as_dict())
    else:
        print_estimate(
            found,
            brief=True,
            explain=look.explain,
            markdown=look.markdown,
            rank=[],
            assumed=terms.assumed,
        )


def answer_table(said: dict[str, Any], look: Look) -> None:
    terms = Terms(said)
    every = [estimate(one, said.get("tokens"), terms) for one in subjects()]
    if look.plot is not None:
        from gptcli.cli.cost_plot import compute_by_model, write_plot

        write_plot(look.plot, compute_by_model())
    if look.json:
        print_json("cost", {"sizes": [found.as_dict() for found in every]})
    else:
        print_sizes(every, explain=look.explain, markdown=look.markdown, assumed=terms.assumed)


def answer_budget(said: dict[str, Any], look: Look) -> None:
    """What so many dollars or hours, or both, buy."""
    money, hours = (
        positive("budget", said.get("budget")),
        positive("hours", said.pop("hours", None)),
    )
    terms = Terms(said)
    every = [
        found
        for found in (estimate(one, None, terms) for one in subjects())
        if found.model is not None
    ]
    cluster = every[0].cluster
    if money is not None and cluster.price is None:
        raise UsageError(
            "nobody knows what an hour of this GPU costs",
            where="--budget",
            hint="say it with --price",
        )
    found, gpu_hours = affordable(every, dollars=money, hours=hours)
    if look.json:
        print_json("cost", {"gpu_hours": gpu_hours, "sizes": [asdict(row) for row in found]})
        return
    where = f"{cluster.count:,} {'GPU' if cluster.gpu is None else cluster.gpu.name}"
    print_affordable(
        found,
        gpu_hours,
        f"{where} ({terms.assumed})" if terms.assumed else where,
        markdown=look.markdown,
    )


def answer_plan(said: dict[str, Any], look: Look) -> None:
    terms, one = Terms(said), subject(said)
    if terms.gpu is None:
        raise UsageError("--plan needs a GPU", hint="name it with --gpu")
    model = one.model
    found = plans(
        model, terms.gpu, terms.count, batch_sequences(model), terms.precision, most=PLANS_SHOWN
    )
    if not found:
        raise UsageError(
            f"{one.name} fits no layout of {terms.count:,} {terms.gpu.name}",
            where="--plan",
            hint="more or larger GPUs, or a shorter --n-ctx",
        )
    words = _model_options(said, model)
    if look.plot is not None:
        from gptcli.cli.cost_plot import time_of_plans, write_plot

        write_plot(look.plot, time_of_plans(one.name, found))
    if look.json:
        listed = [plan.as_dict() | {"command": train_options(plan, words)} for plan in found]
        print_json(
            "cost", {"name": one.name, "gpu": terms.gpu.name, "gpus": terms.count, "plans": listed}
        )
    else:
        if terms.assumed:
            print_lines(f"{terms.gpu.name} {terms.assumed}", dim=True)
        print_plans(one.name, found, terms.gpu, words, markdown=look.markdown)


def _model_options(said: dict[str, Any], model: ModelConfig) -> str:
    """The model as `gpt train` takes it: a size with what is changed, or the whole shape. The
    vocabulary comes with its shards.
    """
    typed = {name: said[name] for name in TRAIN_SHAPE if name in said}
    if "runs" in said or (typed and "size" not in said):
        typed = {name: value for name, value in model.as_dict().items() if name in TRAIN_SHAPE}
    else:
        typed = {"size": said.get("size", DEFAULT_SIZE), **typed}
    return " ".join(f"{option(name)} {value}" for name, value in typed.items())


def answer_optimal(said: dict[str, Any], look: Look) -> None:
    flops = positive("optimal", said["optimal"]) or 0.0
    report = optimal_report(flops)
    if look.plot is not None:
        from gptcli.cli.cost_plot import loss_by_compute, write_plot

        write_plot(look.plot, loss_by_compute(flops))
    print_json("cost", report) if look.json else print_optimal(report, markdown=look.markdown)


def answer_fit(said: dict[str, Any], look: Look) -> None:
    from gptcli.cost.lawfit import fit_law

    runs = [read_run(path) for path in said.get("runs", [])]
    fitted, predicted = fit_law(runs), []
    if "predict" in said:
        one = read_run(said["predict"])
        predicted.append(predict(fitted, one.name, one.parameters, one.tokens, one.loss))
    shape = {name: value for name, value in said.items() if name in (*SHAPE, "size")}
    if shape:
        if "tokens" not in said:
            raise UsageError(
                "how long would that model train?", where="--fit", hint="say it with --tokens"
            )
        model = subject(shape)
        predicted.append(
            predict(
                fitted, model.name, model.model.parameters, whole("tokens", said["tokens"]), None
            )
        )
    elif "tokens" in said:
        raise UsageError(
            "--tokens of what model?", where="--fit", hint="name a --size or its shape too"
        )
    if look.plot is not None:
        from gptcli.cli.cost_plot import fitted_law, write_plot

        write_plot(look.plot, fitted_law(fitted, runs, predicted))
    if look.json:
        print_json("cost", fit_report(fitted, runs, predicted))
    else:
        print_fit(fitted, runs, predicted, markdown=look.markdown)


ANSWERS = {
    "model": answer_model, "flops": answer_flops, "table": answer_table, "budget": answer_budget, "hours": answer_budget,
    "plan": answer_plan, "optimal": answer_optimal, "fit": answer_fit,
}  # fmt: skip
