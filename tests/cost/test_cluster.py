"""Tests of a cluster's speed, and of what hours imply."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.cost.cluster import (
    MAX_GPUS,
    affordable,
    goodput_of,
    gpus_needed,
    implied_cluster,
    make_cluster,
)
from gptcli.cost.cpu import cpu_device
from gptcli.cost.estimate import Cluster, Estimate, price_training
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import Assumption, find_gpu
from gptcli.cost.layout import Layout
from gptcli.cost.planner import make_plan
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.scaling import CHINCHILLA
from gptcli.cost.step_time import uncertainty
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size

MODEL = ModelConfig.from_paper(find_size("1.3B"))
A100 = find_gpu("a100")
TINY = ModelConfig(n_layer=2, n_head=2, d_model=64, n_ctx=128)


def fleet_of(flops: float, count: int = 1) -> Cluster:
    return Cluster(None, count, Assumption("throughput", flops, "FLOP/s per GPU", "", ""), None)


def test_a_measured_speed_needs_no_goodput() -> None:
    cluster, plan = make_cluster(A100, 8, model=MODEL, mfu=0.5)
    assert (plan, cluster.goodput, cluster.uncertainty_factor) == (None, None, 1)
    assert cluster.flops == 156e12
    cluster, _ = make_cluster(A100, 8, model=MODEL, mfu=0.5, goodput=0.8)
    assert cluster.flops == pytest.approx(0.8 * 156e12)
    assert cluster.mfu == pytest.approx(0.5), "MFU is that of the time it trains"


def test_one_speed_model() -> None:
    """The published V100 speed is the article's alone: a model has the predicted one."""
    v100 = find_gpu("v100")
    cluster, plan = make_cluster(v100, 1, model=MODEL, sequences=512, published=True)
    assert (cluster.flops, plan, cluster.goodput) == (28e12, None, None)
    predicted, plan = make_cluster(v100, 1, model=MODEL, sequences=512)
    assert plan is not None
    named, _ = make_cluster(v100, 1, model=MODEL, sequences=512, plan=plan)
    assert predicted.throughput == named.throughput


def test_a_predicted_speed_is_the_plans() -> None:
    cluster, plan = make_cluster(A100, 8, model=MODEL, sequences=512, flops=1e20)
    assert plan is not None
    each = plan.tokens_per_second / 8
    assert cluster.throughput.value == pytest.approx(each * flops_per_token(MODEL, "6N"))
    assert cluster.goodput == goodput_of(A100, 1e20)
    assert cluster.uncertainty_factor > uncertainty(A100, "gpt"), "goodput may be wrong too"
    steady, _ = make_cluster(A100, 8, model=MODEL, sequences=512, goodput=0.9)
    assert steady.uncertainty_factor == uncertainty(A100, "gpt")
    assert cluster.trainer == "gpt"
    fsdp, _ = make_cluster(A100, 8, model=MODEL, sequences=512, trainer="fsdp")
    fused, _ = make_cluster(A100, 8, model=MODEL, sequences=512, trainer="fused")
    assert fsdp.uncertainty_factor < cluster.uncertainty_factor, "it was measured on A100"
    assert fsdp.flops < fused.flops


def test_idle_gpus_are_paid_for() -> None:
    few, plan = make_cluster(A100, 64, model=TINY, sequences=8)
    assert plan is not None
    assert plan.layout.processes < 64
    more, _ = make_cluster(A100, 640, model=TINY, sequences=8)
    assert 64 * few.throughput.value == pytest.approx(640 * more.throughput.value)
    assert "GPUs are idle" in more.throughput.source


def test_the_refusal_names_the_fewest_gpus() -> None:
    gpt3 = ModelConfig.from_paper(find_size("175B"))
    with pytest.raises(UsageError, match="no layout of 8 b200") as caught:
        make_cluster(find_gpu("b200"), 8, model=gpt3, sequences=1536)
    assert (caught.value.code, caught.value.field) == ("does_not_fit_in_memory", "gpus")
    least = int(str(caught.value.hint).split()[1])
    assert make_cluster(find_gpu("b200"), least, model=gpt3, sequences=1536)[1] is not None
    one, plan = make_cluster(find_gpu("b200"), None, model=gpt3, sequences=1536)
    assert plan is not None
    assert (one.count, plan.layout.processes) == (1, least)
    with pytest.raises(UsageError, match="no number of t4"):
        make_cluster(find_gpu("t4"), None, model=gpt3, sequences=1)


def test_goodput_falls_with_gpu_days() -> None:
    """A run of hours on one node loses little, Llama 3's months on 16,384 GPUs as much as printed;
    how the work is divided does not matter."""
    h100 = find_gpu("h100")
    assert goodput_of(h100, 8 * 3 * 3600 * 0.4 * 989.5e12).value == pytest.approx(0.95, abs=0.001)
    llama = goodput_of(h100, 3.8e25).value
    assert 0.73 < llama < 0.75
    values = [goodput_of(h100, 10.0**n).value for n in range(10, 30)]
    assert values == sorted(values, reverse=True)


def test_a_layout_that_is_said_is_priced() -> None:
    plan = make_plan(MODEL, Layout(tp=8), StepConfig(micro_batch=1, micro_batches=512), A100)
    cluster, same = make_cluster(A100, 8, model=MODEL, sequences=512, plan=plan)
    assert same is plan
    fastest, _ = make_cluster(A100, 8, model=MODEL, sequences=512)
    assert cluster.flops < fastest.flops
    told, same = make_cluster(A100, 8, model=MODEL, sequences=512, plan=plan, tflops=100)
    assert (told.flops, same) == (100e12, plan)


def test_mfu_is_of_the_precisions_own_peak() -> None:
    h100 = find_gpu("h100")
    cluster, _ = make_cluster(h100, 8, model=MODEL, mfu=0.5, precision="fp8")
    assert cluster.flops == pytest.approx(0.5 * 1979e12)
    assert cluster.mfu == 0.5
    with pytest.raises(UsageError, match=r"its dense peak is 66\.9"):
        make_cluster(h100, 8, model=MODEL, tflops=100, precision="fp32")


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
    if flops / (1e14 * hours * 3600) > MAX_GPUS:
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


SIZES = ("125M", "1.3B", "13B")


def estimates(price: float | None = 2.0, gpus: int = 4) -> list[Estimate]:
    found = []
    for size in SIZES:
        model = ModelConfig.from_paper(find_size(size))
        cluster, _ = make_cluster(find_gpu("h200"), gpus, model=model, mfu=0.4, price=price)
        found.append(price_training(size, model, 10**9, cluster, tokens_source=""))
    return found


def test_money_buys_hours_whatever_their_number() -> None:
    for gpus in (1, 4):
        assert affordable(estimates(gpus=gpus), dollars=500, hours=None)[1] == 250


def test_hours_are_those_of_every_gpu() -> None:
    assert affordable(estimates(), dollars=None, hours=3)[1] == 12
    assert affordable(estimates(price=None), dollars=None, hours=3)[1] == 12


def test_one_model_alone() -> None:
    [one], gpu_hours = affordable(estimates()[:1], dollars=500, hours=None)
    assert (one.name, gpu_hours) == (estimates()[0].name, 250)


def test_the_scarcest_resource_counts() -> None:
    assert affordable(estimates(), dollars=500, hours=10)[1] == 40
    assert affordable(estimates(), dollars=50, hours=10)[1] == 25


def test_tokens_and_loss() -> None:
    found, gpu_hours = affordable(estimates(), dollars=500, hours=None)
    assert found[-1].loss is None, "13B on so few tokens: outside the law's range, and last"
    losses = [row.loss for row in found if row.loss is not None]
    assert losses == sorted(losses), "best first"
    assert {row.name for row in found} == set(SIZES)
    for row in found:
        parameters = find_size(row.name).parameters
        assert row.tokens == pytest.approx(gpu_hours * 3600 * 0.4 * 989.5e12 / (6 * parameters))
        assert row.loss == (CHINCHILLA.loss(parameters, row.tokens) if row.tokens >= 5e9 else None)


CPU = cpu_device(2, 1e12, 2e10, 24 * 10**9)


def test_a_processor_is_as_fast_as_the_trainer_forecasts() -> None:
    """124M parameters, steps of 512 sequences: the range of the trainer's own forecast."""
    model = ModelConfig.from_paper(find_size("gpt2-small"))
    cluster, plan = make_cluster(CPU, None, model=model, sequences=512, precision="bf16")
    assert plan is None
    tokens = 512 * model.n_ctx
    flops = flops_per_token(model, "causal")
    fast = tokens / (tokens * flops / 0.75e12 + 0.003)
    slow = tokens / (tokens * flops / 0.15e12 + 0.03)
    middle, factor = cluster.throughput.value, cluster.uncertainty_factor
    assert middle / factor == pytest.approx(slow * flops_per_token(model, "6N"))
    assert middle * factor == pytest.approx(fast * flops_per_token(model, "6N"))
    assert "15% to 75%" in cluster.throughput.source


def test_flops_alone_on_a_processor() -> None:
    cluster, _ = make_cluster(CPU, None, model=None)
    assert cluster.throughput.value == pytest.approx(math.sqrt(0.15 * 0.75) * 1e12)


def test_a_model_larger_than_this_machine_is_refused() -> None:
    large = ModelConfig.from_paper(find_size("13B"))
    with pytest.raises(UsageError, match="and this machine has 24 GB for it") as error:
        make_cluster(CPU, None, model=large, sequences=512)
    assert error.value.code == "does_not_fit_in_memory"
