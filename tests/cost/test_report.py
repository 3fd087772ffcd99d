"""Reports of estimates: rows of ranks and layouts, and formulas with their numbers."""

from __future__ import annotations

from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.planner import make_plan, plans
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.report import plans_table, rank_rows
from gptcli.model.config import ModelConfig, find_size

A100 = find_gpu("a100")
CONFIG = ModelConfig.from_paper(find_size("6.7B"))


def rows_of(layout: Layout, step: StepConfig) -> dict[str, tuple[str, str]]:
    return {
        name.strip(): (value, note)
        for name, value, note in rank_rows(make_plan(CONFIG, layout, step, A100), CONFIG, A100)
    }


def test_rank_that_fits_shows_its_spare_memory() -> None:
    rows = rows_of(Layout(shard=8, tp=2), StepConfig(micro_batch=4, micro_batches=32))
    assert rows["peak"] == ("48.3 GB", "fits a100 with 31.7 GB to spare")
    assert "nearest that fits" not in rows
    assert rows["Memory per rank"][1] == "shard=8,tp=2"
    assert rows["run with"][1] == "micro-batch 4, recompute none"
    assert rows["step of 2.097M tokens"][1].endswith("%")


def test_rank_that_does_not_fit_shows_the_nearest_layout_that_does() -> None:
    rows = rows_of(Layout(dp=8), StepConfig(micro_batch=4, micro_batches=32))
    assert "exceeds a100 by" in rows["peak"][1]
    assert parse_layout(rows["nearest that fits"][1]).processes == 8


def test_rank_shows_that_no_layout_fits() -> None:
    rows = rows_of(Layout(), StepConfig(micro_batch=1, micro_batches=1024))
    assert rows["nearest that fits"] == ("", "none on this number of GPUs")


def test_rank_without_a_gpu_has_no_verdict() -> None:
    plan = make_plan(CONFIG, Layout(shard=8), StepConfig(), A100)
    assert next(row for row in rank_rows(plan, CONFIG, None) if row[0] == "  peak")[2] == ""


def test_stages_per_process_have_a_column_where_there_are_several() -> None:
    h100, config = find_gpu("h100"), ModelConfig.from_paper(find_size("175B"))
    found = plans(config, h100, 1024, 1536, "bf16", most=3, trainer="megatron")
    header, *rows = plans_table(found, 1024)
    assert [row[header.index("vp")] for row in rows] == [str(plan.interleave) for plan in found]
    assert any(plan.interleave > 1 for plan in found)
    assert "vp" not in plans_table(plans(CONFIG, A100, 16, 1024, "bf16", most=2))[0]
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    assert sum(widths) + 2 * len(widths) <= 80


def test_plans_table_shows_the_share_of_waiting() -> None:
    found = plans(CONFIG, A100, 16, 1024, "bf16", most=5)
    header, *rows = plans_table(found)
    assert [row[0] for row in rows] == [str(plan.layout) for plan in found]
    for row, plan in zip(rows, found, strict=True):
        waits = plan.time.tensor + plan.time.shard + plan.time.replicas + plan.time.bubble
        assert row[header.index("waits")] == f"{waits / plan.time.total:.0%}"
