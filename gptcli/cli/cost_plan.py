"""Layouts as `gpt cost` shows them: the memory of a rank, and a list of plans to choose from."""

from __future__ import annotations

from dataclasses import asdict

from gptcli.cli.cost_sheet import Row, print_lines, print_paste, print_table
from gptcli.cost.hardware import Gpu
from gptcli.cost.planner import Plan, nearest_that_fits
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.step_time import uncertainty
from gptcli.model.config import ModelConfig
from gptcli.numbers import TIME, amount, duration, in_bytes, percent, scaled

REMARKS = {
    "parameters": "fp32", "optimizer": "Adam's two moments, fp32", "gradients": "fp32", "activations": "kept for the backward pass",
    "logits": "a chunk at a time", "copies": "weights, cast or gathered", "workspace": "of the layer at work",
}  # fmt: skip


def rank_rows(plan: Plan, config: ModelConfig, gpu: Gpu | None) -> list[Row]:
    """The memory of the layout's fullest rank at its fullest moment, whether it fits, by how much,
    and what would.
    """
    work, total = plan.work, plan.memory.total
    rows: list[Row] = [("Memory of a rank", "", str(plan.layout)), ("  run as", "", _way(work))]
    rows += [
        (f"  {part}", in_bytes(n_bytes), REMARKS[part])
        for part, n_bytes in asdict(plan.memory).items()
    ]
    verdict = ""
    if gpu is not None:
        left = gpu.memory_bytes - total
        verdict = (
            f"fits {gpu.name} with {in_bytes(left)} to spare"
            if left >= 0
            else f"too much for {gpu.name} by {in_bytes(-left)}"
        )
    rows.append(("  peak", in_bytes(total), verdict))
    if gpu is not None and total > gpu.memory_bytes:
        other = nearest_that_fits(config, plan.layout, work, gpu)
        if other is None:
            rows.append(("  nearest that fits", "", "none on so many"))
        else:
            rows += [("  nearest that fits", "", str(other[0])), ("    run as", "", _way(other[1]))]
    batch = work.micro_batch * work.micro_batches * plan.layout.replicas * config.n_ctx
    rows.append((f"  step of {amount(batch)} tokens", _step(plan), _speed(plan)))
    return rows


def train_options(plan: Plan, model: str) -> str:
    """The plan as `gpt train` takes it; `model` names the size, or its shape."""
    work = plan.work
    precision = "" if work.precision == "bf16" else f" --precision {work.precision}"
    return f"gpt train {model} --layout {plan.layout} --micro-batch {work.micro_batch} --recompute {work.recompute}{precision}"


def print_plans(name: str, found: list[Plan], gpu: Gpu, model: str, *, markdown: bool) -> None:
    """Fastest first, and the best as `gpt train` takes it."""
    print_lines(
        f"{name} on {found[0].layout.processes:,} {gpu.name}, fastest first; times within a factor of {uncertainty(found[0].layout, gpu):g}"
    )
    rows = [["layout", "micro", "recompute", "step", "waits", "memory", "tokens/s"]]
    for plan in found:
        rows.append([
            str(plan.layout), str(plan.work.micro_batch), plan.work.recompute, _step(plan), percent(plan.time.waits, 0),
            in_bytes(plan.memory.total), amount(plan.tokens_per_second),
        ])  # fmt: skip
    print_table(rows, markdown=markdown)
    print_lines("waits: for collectives and the pipeline")
    print_paste(train_options(found[0], model))


def _way(work: StepConfig) -> str:
    return f"micro-batch {work.micro_batch}, recompute {work.recompute}"


def _step(plan: Plan) -> str:
    return duration(plan.time.total) if plan.time.total >= 60 else scaled(plan.time.total, TIME, 3)


def _speed(plan: Plan) -> str:
    name, seconds = max(asdict(plan.time).items(), key=lambda part: part[1])
    return f"{amount(plan.tokens_per_second)} tokens/s; {name} take {percent(seconds / plan.time.total, 0)}"
