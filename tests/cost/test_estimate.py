"""The cost article's figures, to its own half a percent, and the arithmetic between FLOPs and
dollars.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.estimate import FLOPS_PER_PF_DAY, Cluster, Estimate, price_paper, price_training
from gptcli.cost.hardware import Assumption, find_gpu, throughput
from gptcli.cost.layout import Layout
from gptcli.cost.planner import make_plan
from gptcli.cost.prices import energy, hourly_price
from gptcli.cost.rank_memory import StepConfig
from gptcli.model.config import ModelConfig, find_size
from gptcli.papers.models import TABLE_D1, PaperCompute


def cluster(
    gpu: str, count: int = 1, *, tflops: float | None = None, mfu: float | None = None
) -> Cluster:
    row = find_gpu(gpu)
    speed = throughput(row, tflops, mfu)
    assert speed is not None
    return Cluster(row, count, speed, hourly_price(row))


def test_the_article_on_a_v100() -> None:
    """3.14e23 FLOP at 28 TFLOP/s: 355 GPU-years, and 355 x 8,760 x $1.50 = $4,664,700."""
    estimate = Estimate("GPT-3", 3.14e23, cluster("v100"))
    assert estimate.gpu_years == pytest.approx(355, rel=0.005)
    assert estimate.dollars == pytest.approx(4_664_700, rel=0.005)
    assert estimate.cluster.mfu == pytest.approx(28 / 125)


def test_the_article_on_an_rtx_8000() -> None:
    """The article prints 665 years; its own FLOPs give 663.8."""
    estimate = Estimate("GPT-3", 3.14e23, cluster("rtx8000"))
    assert estimate.gpu_years == pytest.approx(663.8, abs=0.05)
    assert estimate.gpu_years == pytest.approx(665, rel=0.005)
    assert estimate.dollars is None


def test_gpt3_from_its_own_size() -> None:
    estimate = price_training(
        "gpt3",
        ModelConfig.from_paper(find_size("175B")),
        300 * 10**9,
        cluster("v100"),
        tokens_source="Table 2.1",
    )
    assert estimate.flops == pytest.approx(6 * 174_604_259_328 * 300 * 10**9, rel=1e-12)
    assert estimate.flops == pytest.approx(3.14e23, rel=0.005)
    assert estimate.pf_days == pytest.approx(3.64e3, rel=0.005)
    assert estimate.gpu_years == pytest.approx(355, rel=0.005)
    assert estimate.dollars == pytest.approx(4_664_700, rel=0.005)


def test_definitions() -> None:
    assert FLOPS_PER_PF_DAY == 8.64e19
    year = 365 * 24 * 3600 * 1e12
    estimate = Estimate(
        "a year at 1 TFLOP/s",
        year,
        Cluster(None, 5, Assumption("throughput", 1e12, "FLOP/s per GPU", "", ""), None),
    )
    assert (estimate.gpu_years, estimate.gpu_hours, estimate.days) == pytest.approx((1, 8760, 73))
    assert (estimate.cluster.mfu, estimate.dollars) == (None, None)


@given(st.floats(1e12, 1e27), st.floats(0.01, 1.0), st.integers(1, 100_000))
def test_money_does_not_depend_on_how_many_share_the_work(
    flops: float, mfu: float, count: int
) -> None:
    one, many = (Estimate("x", flops, cluster("a100", n, mfu=mfu)) for n in (1, count))
    assert one.dollars == many.dollars
    assert one.days == pytest.approx(many.days * count)
    assert one.gpu_hours * 3600 * mfu * 312e12 == pytest.approx(flops)


def test_assumptions_carry_every_constant() -> None:
    estimate = price_training(
        "gpt3",
        ModelConfig.from_paper(find_size("175B")),
        300 * 10**9,
        cluster("v100"),
        tokens_source="Table 2.1",
    )
    found = {assumption.name: assumption.value for assumption in estimate.assumptions}
    assert found == {
        "FLOPs": 6, "tokens": 300e9, "throughput": 28e12, "price": 1.5, "year": 8760, "PF-day": 8.64e19, "peak": 125e12,
        "GPU memory": 32e9, "training state": 16, "band": 256, "board power": 300, "server power": 1.1, "building power": 1.1,
        "emissions": 0.429,
    }  # fmt: skip
    assert all(assumption.source for assumption in estimate.assumptions)


def test_a_budget_knows_no_model() -> None:
    report = Estimate("3.14e23 FLOP", 3.14e23, cluster("v100")).as_dict()
    assert {name for name, value in report.items() if value is None} == {
        "model", "tokens", "parameters", "parameters_by_part", "flops_by_convention", "memory_bytes", "least_gpus",
        "goodput", "layout", "losses", "loss_ranges", "inference", "batch_tokens", "critical_batch_tokens", "trainer",
        "speed_evidence",
    }  # fmt: skip


@pytest.mark.parametrize("row", TABLE_D1, ids=lambda row: row.name)
def test_other_families_as_table_d1_counts_them(row: PaperCompute) -> None:
    """Printed to three digits; T5 spends 3 FLOPs a parameter and token, and the report says why."""
    estimate = price_paper(row, round(row.tokens), cluster("v100"), tokens_source="Table D.1")
    assert estimate.pf_days == pytest.approx(row.pf_days, rel=0.01)
    assert estimate.flops == pytest.approx(row.flops, rel=0.01)
    assert (estimate.name, estimate.parameters, estimate.tokens, estimate.model) == (
        row.name,
        row.parameters,
        row.tokens,
        None,
    )
    assert [assumption.value for assumption in estimate.basis] == [
        row.flops_per_parameter,
        row.parameters,
        row.tokens,
    ]
    assert ("half of the tokens" in estimate.basis[0].source) == row.name.startswith("T5")


def test_a_report_by_hand() -> None:
    """GPT-2's 124,439,808 parameters on 10 billion tokens, 8 A100 of 100 TFLOP/s, 80 % of the time,
    at $2, within a half more.
    """
    model = ModelConfig.from_paper(find_size("gpt2"))
    gpu = find_gpu("a100")
    speed = throughput(gpu, tflops=100)
    assert speed is not None
    some = Cluster(
        gpu,
        8,
        speed,
        hourly_price(gpu, 2.0),
        Assumption("goodput", 0.8, "of the time", "", ""),
        uncertainty_factor=1.5,
    )
    plan = make_plan(model, Layout(shard=8), StepConfig(), gpu)
    estimate = price_training("gpt2", model, 10**10, some, tokens_source="the test", plan=plan)
    report = estimate.as_dict()
    hours = 6 * 124_439_808 * 1e10 / 0.8e14 / 3600
    assert report["gpu_hours"] == pytest.approx(hours)
    assert report["gpu_hours_range"] == pytest.approx([hours / 1.5, hours * 1.5])
    assert (report["dollars"], report["dollars_range"]) == (
        pytest.approx(2 * hours),
        pytest.approx([2 * hours / 1.5, 2 * hours * 1.5]),
    )
    assert (report["throughput_flops"], report["mfu"], report["goodput"]) == pytest.approx(
        (0.8e14, 100 / 312, 0.8)
    )
    assert (report["gpu"], report["gpus"], report["tokens"], report["parameters"]) == (
        "a100",
        8,
        10**10,
        124_439_808,
    )
    assert report["flops_by_convention"]["palm"] == pytest.approx(
        (6 * 124_439_808 + 12 * 12 * 768 * 1024) * 1e10
    )
    used = energy(gpu, hours)
    assert used is not None
    assert (report["energy_kwh"], report["co2_kg"]) == pytest.approx((used.kwh, used.co2_kg))
    laws = {"kaplan", "kaplan-joint", "gpt3", "chinchilla", "chinchilla-refit"}
    assert report["losses"].keys() == laws
    assert report["memory_bytes"]["training"] == 16 * 124_439_808
    assert report["least_gpus"] == {"training": 1, "inference_16bit": 1}
    assert report["layout"] == plan.as_dict()
    assert report["inference"]["gpus"] == 1
    assert report["model"] == model.as_dict()
    assert sum(report["parameters_by_part"].values()) == 124_439_808
    assert "goodput" in {assumption["name"] for assumption in report["assumptions"]}
    assert "band" not in {assumption["name"] for assumption in report["assumptions"]}, (
        "no layer is banded"
    )


def test_a_gpu_without_a_row() -> None:
    """Its memory is what was said, and all that hangs on its peak is unknown; GPT-3's state is 16
    bytes a parameter, on 48 GB each.
    """
    speed = Assumption("throughput", 28e12, "FLOP/s per GPU", "", "")
    unnamed = Cluster(None, 100, speed, None, described_memory=48 * 10**9)
    gpt3 = ModelConfig.from_paper(find_size("175B"))
    report = price_training("gpt3", gpt3, 300 * 10**9, unnamed, tokens_source="").as_dict()
    assert report["least_gpus"] == {"training": 59, "inference_16bit": 8}
    assert {name for name, value in report.items() if value is None} == {
        "gpu", "mfu", "goodput", "dollars", "dollars_range", "energy_kwh", "co2_kg", "layout", "batch_tokens", "trainer", "mfu_peak_flops",
        "mfu_convention", "speed_evidence",
    }  # fmt: skip
    blind = Cluster(None, 100, speed, None)
    assert (
        price_training("gpt3", gpt3, 300 * 10**9, blind, tokens_source="").as_dict()["least_gpus"]
        is None
    )
    other = price_paper(TABLE_D1[4], 10**12, cluster("v100"), tokens_source="").as_dict()
    assert (
        other["memory_bytes"]["training"],
        other["losses"],
        other["model"],
        other["flops_by_convention"],
    ) == (176e9, None, None, None)
