"""The cost article's figures, to its own half a percent, and the arithmetic between FLOPs and dollars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.assumptions import Assumption
from gptcli.cost.estimate import FLOPS_PER_PF_DAY, Estimate, Fleet, price_training
from gptcli.cost.hardware import find_gpu, hourly_price, throughput
from gptcli.model.config import ModelConfig, find_size


def fleet(gpu: str, count: int = 1, **said: float) -> Fleet:
    row = find_gpu(gpu)
    speed = throughput(row, **said)
    assert speed is not None
    return Fleet(row, count, speed, hourly_price(row))


def test_the_article_on_a_v100() -> None:
    """3.14e23 FLOP at 28 TFLOP/s: 355 GPU-years, and 355 x 8,760 x $1.50 = $4,664,700."""
    estimate = Estimate("GPT-3", 3.14e23, fleet("v100"))
    assert estimate.gpu_years == pytest.approx(355, rel=0.005)
    assert estimate.dollars == pytest.approx(4_664_700, rel=0.005)
    assert estimate.fleet.mfu == pytest.approx(28 / 125)


def test_the_article_on_an_rtx_8000() -> None:
    """The article prints 665 years; its own FLOPs give 663.8."""
    estimate = Estimate("GPT-3", 3.14e23, fleet("rtx8000"))
    assert estimate.gpu_years == pytest.approx(663.8, abs=0.05)
    assert estimate.gpu_years == pytest.approx(665, rel=0.005)
    assert estimate.dollars is None


def test_gpt3_from_its_own_size() -> None:
    estimate = price_training("gpt3", ModelConfig.from_paper(find_size("175B")), 300 * 10**9, fleet("v100"), tokens_source="Table 2.1")
    assert estimate.flops == pytest.approx(6 * 174_604_259_328 * 300 * 10**9, rel=1e-12)
    assert estimate.flops == pytest.approx(3.14e23, rel=0.005)
    assert estimate.pf_days == pytest.approx(3.64e3, rel=0.005)
    assert estimate.gpu_years == pytest.approx(355, rel=0.005)
    assert estimate.dollars == pytest.approx(4_664_700, rel=0.005)


def test_definitions() -> None:
    assert FLOPS_PER_PF_DAY == 8.64e19
    year = 365 * 24 * 3600 * 1e12
    estimate = Estimate("a year at 1 TFLOP/s", year, Fleet(None, 5, Assumption("throughput", 1e12, "FLOP/s per GPU", "", ""), None))
    assert (estimate.gpu_years, estimate.gpu_hours, estimate.days) == pytest.approx((1, 8760, 73))
    assert (estimate.fleet.mfu, estimate.dollars) == (None, None)


@given(st.floats(1e12, 1e27), st.floats(0.01, 1.0), st.integers(1, 100_000))
def test_money_does_not_depend_on_how_many_share_the_work(flops: float, mfu: float, count: int) -> None:
    one, many = (Estimate("x", flops, fleet("a100", n, mfu=mfu)) for n in (1, count))
    assert one.dollars == many.dollars
    assert one.days == pytest.approx(many.days * count)
    assert one.gpu_hours * 3600 * mfu * 312e12 == pytest.approx(flops)


def test_assumptions_carry_every_constant() -> None:
    estimate = price_training("gpt3", ModelConfig.from_paper(find_size("175B")), 300 * 10**9, fleet("v100"), tokens_source="Table 2.1")
    found = {assumption.name: assumption.value for assumption in estimate.assumptions}
    assert found == {
        "FLOPs": 6, "tokens": 300e9, "throughput": 28e12, "price": 1.5, "year": 8760, "PF-day": 8.64e19, "peak": 125e12,
        "GPU memory": 32e9, "training state": 16, "band": 256, "board power": 300, "server power": 1.1, "building power": 1.1,
        "emissions": 0.429,
    }  # fmt: skip
    assert all(assumption.source for assumption in estimate.assumptions)


def test_a_budget_knows_no_model() -> None:
    report = Estimate("3.14e23 FLOP", 3.14e23, fleet("v100")).as_dict()
    assert {name for name, value in report.items() if value is None} == {
        "model", "tokens", "parameters", "parameters_by_part", "flops_by_convention", "memory_bytes", "least_gpus",
        "goodput", "layout", "losses", "inference",
    }  # fmt: skip
