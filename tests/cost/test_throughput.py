"""Predicted speeds against published measurements (peers' tables, under GPT_TEST_DATA's neighbour `cost`)."""

from __future__ import annotations

import csv
import math
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from gptcli.cost.fleet import batch_sequences
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import find_gpu, usual_precision
from gptcli.cost.layout import Layout
from gptcli.cost.plans import typical_plan
from gptcli.cost.rank import Work, rank_memory
from gptcli.cost.throughput import fitted, step_time, tokens_per_second, uncertainty
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from tests.benchmarks.throughput_fit import GOODPUT, Measured, error, quantile, read

A100 = find_gpu("a100")
CONFIG = ModelConfig.from_paper(find_size("1.3B"))
WORK = Work(micro_batch=4, micro_batches=8)


def table(real_data: Path, name: str) -> Path:
    path = real_data.parent / "cost" / name
    if not path.is_file():
        pytest.skip(f"no {path}")
    return path


@pytest.fixture
def measured(real_data: Path) -> list[Measured]:
    return read(table(real_data, "measured_throughput.csv"))


@pytest.mark.real_data
def test_held_out_speeds(measured: list[Measured]) -> None:
    """Constants see one half, by hash; of the other: median error at most 10 %, and the range holds at least 80 %."""
    held_out = [row for row in measured if not row.fitted]
    assert 40 <= len(held_out) <= 68
    assert statistics.median(abs(math.expm1(error(row))) for row in held_out) <= 0.05
    assert statistics.fmean(abs(error(row)) <= math.log(uncertainty(row.layout, row.gpu)) for row in held_out) >= 0.8


@pytest.mark.real_data
def test_the_range_is_that_of_the_fitted_half(measured: list[Measured]) -> None:
    spread = quantile([abs(error(row)) for row in measured if row.fitted], 0.9)
    assert fitted()[1].known == pytest.approx(math.exp(spread), rel=0.01)


@pytest.mark.real_data
def test_mfu_of_every_row(measured: list[Measured]) -> None:
    """(6N + 12·L·C·T)·tokens/s over the peak agrees with what is printed; with recomputation, the hardware's share is 4/3 of it."""
    errors = []
    for row in measured:
        assert row.config.parameters == int(row.row["n_params"])
        peak = (row.gpu.fp8_flops if row.work.precision == "fp8" else None) or row.gpu.peak_flops
        mfu = 100 * flops_per_token(row.config, "palm") * row.speed / peak
        errors.append(abs(mfu / float(row.row["mfu_pct"]) - 1))
        again = 4 / 3 if row.work.recompute == "full" else 1
        assert float(row.row["hfu_pct"]) == pytest.approx(again * float(row.row["mfu_pct"]), rel=0.001)
    assert len(errors) == 108
    assert statistics.median(errors) < 0.0005
    assert max(errors) < 0.005


@pytest.mark.real_data
def test_what_was_run_fits(measured: list[Measured]) -> None:
    """Every row ran on its GPUs; what differs by trainer apart (the logits, and the residual stream, fp32 in ours and bf16 in theirs where
    FSDP casts), its memory is within theirs."""
    for row in measured:
        work = replace(row.work, whole_logits=False)
        narrower = 2 * row.config.n_layer * work.micro_batch * row.config.n_ctx * row.config.d_model if row.layout.shard > 1 else 0
        assert rank_memory(row.config, row.layout, work).total - narrower <= 1.01 * row.gpu.memory_bytes, row.row


@pytest.mark.real_data
def test_published_runs(real_data: Path) -> None:
    """GPU-hours of runs that others published, from size, tokens, GPU and count: dense ones whose shape is known."""
    factors = []
    with open(table(real_data, "published_runs.csv"), encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["n_layer"]]
    for row in rows:
        d_model, n_ctx = int(row["d_model"]), int(row["seq_len"])
        n_head = d_model // (128 if d_model % 128 == 0 and d_model >= 2048 else 64)
        config = ModelConfig(n_layer=int(row["n_layer"]), n_head=n_head, d_model=d_model, n_ctx=n_ctx)
        gpu, count = find_gpu(row["hardware"]), int(row["n_gpu"] or 512)
        plan = typical_plan(config, gpu, count, batch_sequences(config), usual_precision(gpu))
        assert plan is not None
        each = plan.tokens_per_second / plan.layout.processes * config.parameters / float(row["params"])
        hours = float(row["tokens"]) / each / GOODPUT / 3600
        mfu = 6 * float(row["params"]) * float(row["tokens"]) / (float(row["gpu_hours"]) * 3600 * gpu.peak_flops)
        if row["id"].startswith("TRAP"):
            assert mfu > 1, "impossible, as the row says"
            continue
        assert mfu < 0.65
        factors.append(max(hours / float(row["gpu_hours"]), float(row["gpu_hours"]) / hours))
    assert len(factors) == 20
    assert statistics.median(factors) <= 1.35
    assert statistics.fmean(factor <= fitted()[1].other for factor in factors) >= 0.8


def test_parts_add_up_to_the_speed() -> None:
    time = step_time(CONFIG, Layout(shard=8), WORK, A100)
    assert time.total == pytest.approx(sum(asdict(time).values()))
    assert tokens_per_second(CONFIG, Layout(shard=8), WORK, A100) == pytest.approx(4 * 8 * 2048 / time.total)
    assert time.bubble == time.tensor == time.replicas == 0


def test_what_each_axis_costs() -> None:
    alone = step_time(CONFIG, Layout(), WORK, A100)
    assert step_time(CONFIG, Layout(dp=8), WORK, A100).replicas > 0
    slices = step_time(CONFIG, Layout(tp=4), WORK, A100)
    assert slices.products == pytest.approx(alone.products / 4)
    assert slices.tensor > 0
    stages = step_time(CONFIG, Layout(pp=4), WORK, A100)
    busy = stages.total - stages.bubble
    assert stages.bubble == pytest.approx(3 / 8 * busy, rel=0.02), "(pp - 1) of 8 micro-batches"
    near, far = (step_time(CONFIG, Layout(shard=n), WORK, A100).shard for n in (8, 64))
    assert far > near, "between machines"


def test_recomputation_costs_a_third_of_the_products() -> None:
    none, selective, full = (step_time(CONFIG, Layout(), replace(WORK, recompute=kind), A100) for kind in ("none", "selective", "full"))
    head = 6 * CONFIG.vocab_size * CONFIG.d_model
    layers = 72 * CONFIG.n_layer * CONFIG.d_model**2
    assert full.products / none.products == pytest.approx((layers * 4 / 3 + head) / (layers + head))
    assert none.products == selective.products
    assert none.total < selective.total < full.total


def test_no_bf16_on_a_v100_and_no_fp8_on_an_a100() -> None:
    with pytest.raises(UsageError, match="v100 has no bf16") as caught:
        step_time(CONFIG, Layout(), WORK, find_gpu("v100"))
    assert "fp16" in str(caught.value.hint)
    with pytest.raises(UsageError, match="a100 has no fp8"):
        step_time(CONFIG, Layout(), replace(WORK, precision="fp8"), A100)


def test_the_range_is_wider_where_nothing_was_measured() -> None:
    assert uncertainty(Layout(shard=8), A100) < uncertainty(Layout(tp=8), A100)
    assert uncertainty(Layout(shard=8), A100) < uncertainty(Layout(shard=8), find_gpu("v100"))
