"""Where a cluster's speed comes from, and what hours imply."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.assumptions import Assumption
from gptcli.cost.cluster import (
    MOST_GPUS,
    batch_sequences,
    gpus_needed,
    implied_cluster,
    make_cluster,
)
from gptcli.cost.estimate import Cluster, Estimate
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.planner import make_plan
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.throughput import fitted
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size

MODEL = ModelConfig.from_paper(find_size("1.3B"))
A100 = find_gpu("a100")


def fleet_of(flops: float, count: int = 1) -> Cluster:
    return Cluster(None, count, Assumption("throughput", flops, "FLOP/s per GPU", "", ""), None)


@pytest.mark.parametrize(
    ("size", "sequences"),
    [("125M", 256), ("350M", 256), ("1.3B", 512), ("6.7B", 1024), ("175B", 1536)],
)
def test_the_papers_batch(size: str, sequences: int) -> None:
    assert batch_sequences(ModelConfig.from_paper(find_size(size))) == sequences


def test_the_batch_of_the_nearest_size_by_ratio() -> None:
    assert batch_sequences(ModelConfig.from_paper(find_size("gpt2-xl"))) == 2**20 // 1024
    assert batch_sequences(ModelConfig(n_layer=1, n_head=1, d_model=8, n_ctx=2**20)) == 1, (
        "never none"
    )


def test_what_is_said_needs_no_goodput() -> None:
    cluster, plan = make_cluster(A100, 8, model=MODEL, mfu=0.5)
    assert (plan, cluster.goodput, cluster.uncertainty_factor) == (None, None, 1)
    assert cluster.flops == 156e12
    cluster, _ = make_cluster(A100, 8, model=MODEL, mfu=0.5, goodput=0.8)
    assert cluster.flops == pytest.approx(0.8 * 156e12)
    assert cluster.mfu == pytest.approx(0.5), "MFU is that of the time it trains"


def test_a_published_speed_stands_for_the_whole() -> None:
    cluster, plan = make_cluster(find_gpu("v100"), 1, model=MODEL)
    assert (cluster.flops, plan, cluster.goodput) == (28e12, None, None)


def test_a_predicted_speed_is_the_plans() -> None:
    cluster, plan = make_cluster(A100, 8, model=MODEL)
    assert plan is not None
    each = plan.tokens_per_second / plan.layout.processes
    assert cluster.throughput.value == pytest.approx(each * flops_per_token(MODEL, "6N"))
    assert cluster.goodput is not None
    assert cluster.goodput.value == 0.733
    assert cluster.uncertainty_factor == fitted()[1].other, "of the whole run nobody knows better"
    steady, _ = make_cluster(A100, 8, model=MODEL, goodput=0.9)
    assert steady.uncertainty_factor == fitted()[1].known


def test_a_layout_that_is_said_is_priced() -> None:
    plan = make_plan(MODEL, Layout(tp=8), StepConfig(micro_batch=1, micro_batches=512), A100)
    cluster, same = make_cluster(A100, 8, model=MODEL, plan=plan)
    assert same is plan
    fastest, _ = make_cluster(A100, 8, model=MODEL)
    assert cluster.flops < fastest.flops
    told, same = make_cluster(A100, 8, model=MODEL, plan=plan, tflops=100)
    assert (told.flops, same) == (100e12, plan)


def test_flops_of_no_model_take_the_median_of_published_runs() -> None:
    cluster, plan = make_cluster(A100, 8, model=None)
    assert cluster.flops == pytest.approx(0.32 * 312e12)
    assert (plan, cluster.uncertainty_factor) == (None, 1.8)


@pytest.mark.parametrize("goodput", [0.0, -0.5, 1.01])
def test_goodput_is_a_share(goodput: float) -> None:
    with pytest.raises(UsageError, match=r"goodput .* is impossible"):
        make_cluster(A100, 1, model=MODEL, goodput=goodput)


def test_hours_imply_a_speed() -> None:
    cluster = implied_cluster(A100, 8, 8 * 3600 * 2 * 100e12, 2, price=1.0)
    assert cluster.flops == pytest.approx(100e12)
    assert Estimate("x", 8 * 3600 * 2 * 100e12, cluster).days * 24 == pytest.approx(2)
    assert cluster.price is not None
    assert cluster.price.value == 1


def test_the_impossible_header() -> None:
    """A published script's header: GPT-3 125M on 300B tokens in 23.8 hours of 8 A100, an MFU of 105
    %.
    """
    flops = 6 * 125.2e6 * 299_999_690_752
    with pytest.raises(UsageError, match=r"impossible: an MFU of 105%"):
        implied_cluster(A100, 8, flops, 190.7 / 8)
    assert implied_cluster(A100, 8, flops, 47).mfu == pytest.approx(0.533, abs=0.001), (
        "as an earlier revision had it"
    )
    assert implied_cluster(None, 8, flops, 190.7 / 8).mfu is None, (
        "a GPU without a peak may be as fast as it likes"
    )


@given(st.floats(1e15, 1e24), st.floats(1, 1e4))
def test_so_many_are_enough_and_few_less_are_not(flops: float, hours: float) -> None:
    cluster = fleet_of(1e14)
    if flops / (1e14 * hours * 3600) > MOST_GPUS:
        with pytest.raises(UsageError, match="more than 1,000,000 GPUs"):
            gpus_needed(flops, hours, cluster)
        return
    count = gpus_needed(flops, hours, cluster)
    assert count >= 1
    assert count <= 8 or count % 8 == 0, "whole machines"
    assert count * hours * 3600 * 1e14 >= flops * (1 - 1e-12)
    less = count - (8 if count > 8 else 1)
    assert less * hours * 3600 * 1e14 < flops


def test_hours_count_goodput() -> None:
    slow = Cluster(None, 1, fleet_of(1e14).throughput, None, Assumption("goodput", 0.5, "", "", ""))
    assert gpus_needed(4 * 3600 * 1e14, 1, slow) == 8
    assert gpus_needed(4 * 3600 * 1e14, 1, fleet_of(1e14)) == 4
    assert math.isclose(slow.flops, 5e13)
