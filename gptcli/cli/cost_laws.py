"""Scaling laws on the terminal: the best size for so much compute, what a budget buys, and laws
fitted to runs of one's own.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli.cost_sheet import print_lines, print_table
from gptcli.cost.cluster import Affordable
from gptcli.cost.scaling import (
    CHINCHILLA,
    GPT3_RANGE,
    KAPLAN,
    LAWS,
    PF_DAY,
    critical_batch,
    gpt3_loss,
    kaplan_batch,
)
from gptcli.errors import InputError
from gptcli.files import read_text
from gptcli.model.hf_config import read_model_config
from gptcli.model.not_a_model import explain
from gptcli.numbers import amount, figure, gpu_time, short

if TYPE_CHECKING:
    from gptcli.cost.lawfit import Fitted, Run

METRICS = "metrics.jsonl"


def optimal_report(flops: float) -> dict[str, Any]:
    """The best size by each law, and the batch; None for what lies outside a law's range."""
    found = []
    for law in LAWS:
        row: dict[str, Any] = asdict(law.optimum(flops))
        row["tokens_per_parameter"] = row["tokens"] / row["parameters"]
        if not law.range.holds_for(flops):
            row |= dict.fromkeys(row.keys() - {"law"})
        low, high = (pf_days * PF_DAY for pf_days in law.range.pf_days)
        found.append(row | {"source": law.source, "date": law.date, "flops_range": [low, high]})
    loss = gpt3_loss(flops) if GPT3_RANGE.holds_for(flops) else None
    return {
        "flops": flops,
        "optimal": found,
        "gpt3_loss": loss,
        "best_batch_tokens": kaplan_batch(flops) if KAPLAN.range.holds_for(flops) else None,
        "critical_batch_tokens": None if loss is None else critical_batch(loss),
    }


def print_optimal(report: dict[str, Any], *, markdown: bool) -> None:
    print_lines(f"Compute-optimal models for {short(report['flops'])} FLOP, by 6ND")
    rows = [["law", "parameters", "tokens", "a parameter", "loss"]]
    for row in report["optimal"]:
        if row["loss"] is not None:
            each = figure(row["tokens_per_parameter"], 3)
            rows.append(
                [
                    row["law"],
                    amount(row["parameters"]),
                    amount(row["tokens"]),
                    each,
                    f"{row['loss']:.3f}",
                ]
            )
    if len(rows) > 1:
        print_table(rows, markdown=markdown)
    outside = {law.name: law.range for law in LAWS if not law.range.holds_for(report["flops"])}
    if report["gpt3_loss"] is None:
        outside["GPT-3's own fit"] = GPT3_RANGE
    else:
        critical = amount(report["critical_batch_tokens"])
        print_lines(
            f"GPT-3's own fit of the frontier: loss {report['gpt3_loss']:.3f}; critical batch there {critical} tokens"
        )
    if report["best_batch_tokens"] is not None:
        print_lines(f"batch: {amount(report['best_batch_tokens'])} tokens by Kaplan et al. 2020")
    for name, law_range in outside.items():
        print_lines(f"{name}: outside the law's range ({law_range.compute})")
    print_lines(
        "kaplan counts parameters without embeddings; losses are nats on each law's own text",
        dim=True,
    )


def print_affordable(
    found: list[Affordable], gpu_hours: float, cluster: str, *, markdown: bool
) -> None:
    print_lines(f"{gpu_time(gpu_hours)} on {cluster}, best first")
    rows = [["size", "tokens", "loss"]]
    rows += [
        [row.name, amount(row.tokens), "outside" if row.loss is None else f"{row.loss:.3f}"]
        for row in found
    ]
    print_table(rows, markdown=markdown)
    print_lines("loss: Chinchilla as printed, nats a token on its own text", dim=True)
    if any(row.loss is None for row in found):
        print_lines(f"outside: of the law's range ({CHINCHILLA.range})", dim=True)


def read_run(path: Path) -> Run:
    """Read what a run came to: parameters from config.json, tokens and loss from metrics.jsonl. The
    loss is that of its last validation; if there was none, the running mean of its training loss.

    `path` is a run folder or its metrics.jsonl. Raises InputError.
    """
    from gptcli.cost.lawfit import Run  # which brings statistics and random
    from gptcli.runs.metrics import smoothed_loss

    if path.is_file() and path.suffix != ".jsonl":
        raise explain(path)
    metrics = path if path.is_file() else path / METRICS
    config = read_model_config(metrics.parent)
    last: dict[str, Any] = {}
    entries: list[dict[str, Any]] = []
    if not metrics.is_file():
        raise InputError(
            "no such run", where=metrics, hint="name run folders that gpt train has written"
        )
    for number, line in enumerate(read_text(metrics).splitlines(), 1):
        try:
            entry = json.loads(line)
            loss, tokens = float(entry.get("val_loss", entry["loss"])), int(entry["tokens"])
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            raise InputError(
                "not a line of metrics: it needs tokens and loss", where=f"{metrics}:{number}"
            ) from None
        entries.append(entry)
        if "val_loss" in entry or "val_loss" not in last:
            last = entry | {"reached": loss, "tokens": tokens}
    if last and "val_loss" not in last:
        last["reached"] = smoothed_loss(entries)
    if not last or not (0 < last["reached"] < float("inf") and last["tokens"] > 0):
        raise InputError("no step with a loss above zero", where=metrics)
    return Run(
        name=str(path), parameters=config.parameters, tokens=last["tokens"], loss=last["reached"]
    )


@dataclass(frozen=True, slots=True)
class Predicted:
    """What a law that was fitted to other runs says of one more."""

    name: str
    parameters: int
    tokens: int
    loss: float
    between: tuple[float, float]
    measured: float | None
    """None for a run that is not made yet."""

    @property
    def error(self) -> float | None:
        return None if self.measured is None else self.loss / self.measured - 1


def predict(
    fitted: Fitted, name: str, parameters: int, tokens: int, measured: float | None
) -> Predicted:
    return Predicted(
        name,
        parameters,
        tokens,
        fitted.loss(parameters, tokens),
        fitted.between(parameters, tokens),
        measured,
    )


def fit_report(fitted: Fitted, runs: list[Run], predicted: list[Predicted]) -> dict[str, Any]:
    return fitted.as_dict() | {
        "runs": [asdict(run) for run in runs],
        "predicted": [asdict(one) | {"error": one.error} for one in predicted],
    }


def print_fit(
    fitted: Fitted, runs: list[Run], predicted: list[Predicted], *, markdown: bool
) -> None:
    print_lines(
        f"{fitted.formula}, fitted to {len(runs)} runs; root mean square error {fitted.error:.2%}"
    )
    rows = [["", "value", "95 % from", "to"]]
    for name, value in fitted.values.items():
        low, high = fitted.intervals[name]
        rows.append([name, f"{value:.4g}", f"{low:.4g}", f"{high:.4g}"])
    print_table(rows, markdown=markdown)
    rows = [["run", "parameters", "tokens", "loss", "law", "error"]]
    for run in runs:
        law = fitted.loss(run.parameters, run.tokens)
        rows.append(
            [
                run.name,
                amount(run.parameters),
                amount(run.tokens),
                f"{run.loss:.4f}",
                f"{law:.4f}",
                f"{law / run.loss - 1:+.2%}",
            ]
        )
    print_table(rows, markdown=markdown)
    for one in predicted:
        low, high = one.between
        found = (
            ""
            if one.measured is None
            else f"; measured {one.measured:.4f}, so the law is {one.error:+.2%} off"
        )
        print_lines(
            f"{one.name}, not among them: {amount(one.parameters)} parameters on {amount(one.tokens)} tokens: "
            f"predicted {one.loss:.4f}, 95 % from {low:.4f} to {high:.4f}{found}"
        )
