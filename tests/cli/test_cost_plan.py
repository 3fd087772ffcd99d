from __future__ import annotations

import pytest

from gptcli.cli.cost_plan import print_plans, rank_rows, train_options
from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.planner import make_plan, plans
from gptcli.cost.rank_memory import StepConfig
from gptcli.model.config import ModelConfig, find_size

A100 = find_gpu("a100")
CONFIG = ModelConfig.from_paper(find_size("6.7B"))


def rows_of(layout: Layout, work: StepConfig) -> dict[str, tuple[str, str]]:
    return {
        name.strip(): (text, remark)
        for name, text, remark in rank_rows(make_plan(CONFIG, layout, work, A100), CONFIG, A100)
    }


def test_what_fits_says_by_how_much() -> None:
    rows = rows_of(Layout(shard=8, tp=2), StepConfig(micro_batch=4, micro_batches=32))
    assert rows["peak"] == ("28.3 GB", "fits a100 with 51.7 GB to spare")
    assert "nearest that fits" not in rows
    assert rows["Memory of a rank"][1] == "shard=8,tp=2"
    assert rows["run as"][1] == "micro-batch 4, recompute none"
    assert rows["step of 2.097M tokens"][1].endswith("%")


def test_what_does_not_fit_says_what_would() -> None:
    rows = rows_of(Layout(dp=8), StepConfig(micro_batch=4, micro_batches=32))
    assert "too much for a100 by" in rows["peak"][1]
    assert parse_layout(rows["nearest that fits"][1]).processes == 8


def test_where_nothing_fits_it_says_so() -> None:
    rows = rows_of(Layout(), StepConfig(micro_batch=1, micro_batches=1024))
    assert rows["nearest that fits"] == ("", "none on so many")


def test_without_a_gpu_there_is_no_verdict() -> None:
    plan = make_plan(CONFIG, Layout(shard=8), StepConfig(), A100)
    assert next(row for row in rank_rows(plan, CONFIG, None) if row[0] == "  peak")[2] == ""


@pytest.mark.parametrize(
    ("work", "options"),
    [
        (
            StepConfig(micro_batch=4, recompute="full"),
            "--layout dp=2,shard=4 --micro-batch 4 --recompute full",
        ),
        (
            StepConfig(precision="fp8"),
            "--layout dp=2,shard=4 --micro-batch 1 --recompute none --precision fp8",
        ),
    ],
)
def test_plans_as_gpt_train_takes_them(work: StepConfig, options: str) -> None:
    plan = make_plan(CONFIG, Layout(dp=2, shard=4), work, find_gpu("h100"))
    assert train_options(plan, "--size 6.7B") == f"gpt train --size 6.7B {options}"


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    found = plans(CONFIG, A100, 16, 1024, "bf16", most=5)
    print_plans("gpt3-6.7B", found, A100, "--size 6.7B", markdown=False)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:7]] == [str(plan.layout) for plan in found]
    assert lines[-1] == train_options(found[0], "--size 6.7B")
    for line, plan in zip(lines[2:7], found, strict=True):
        waits = plan.time.tensor + plan.time.shard + plan.time.replicas + plan.time.bubble
        assert f" {waits / plan.time.total:.0%} " in line
