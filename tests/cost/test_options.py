"""HardwareOptions: options of GPUs and layout resolved to a cluster and a plan."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest

from gptcli.cost.cluster import MAX_GPUS
from gptcli.cost.flops import flops_per_token
from gptcli.cost.options import DEFAULT_GPU, LIMITS, HardwareOptions
from gptcli.cost.prices import Offer, published_offers
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.settings import NUMBERS

MODEL = ModelConfig.from_paper(find_size("1.3B"))
FLOPS = flops_per_token(MODEL, "6N") * 300e9


def test_default_gpu_is_the_one_with_most_offers() -> None:
    gpu = HardwareOptions().gpu_row
    assert gpu is not None
    assert gpu.name == DEFAULT_GPU == "h100"
    counts = Counter(name for offer in published_offers() for name in offer.gpus)
    assert counts["h100"] == max(counts.values())


def test_prices_are_for_gpus_with_a_name() -> None:
    own = (Offer(gpus=("h100",), dollars_per_hour=1.0),)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"price": 2.0}, "contradict"),
        ({"tflops": 20.0}, "by name"),
    ]
    for given, message in cases:
        with pytest.raises(UsageError, match=message) as caught:
            HardwareOptions(prices=own, **given)
        assert caught.value.field == "prices"
    cluster, _ = HardwareOptions(gpu="h100", gpus=8, prices=own).cluster(MODEL, FLOPS, 256)
    assert cluster.price is not None
    assert (cluster.price.value, cluster.offers) == (1.0, own)


def test_gpu_is_assumed_unless_named_or_described() -> None:
    assert HardwareOptions().is_default_gpu
    assert not HardwareOptions(gpu="h100").is_default_gpu
    assert not HardwareOptions(tflops=20).is_default_gpu
    assert HardwareOptions(tflops=20).gpu_row is None


def test_precision_follows_the_gpu() -> None:
    assert HardwareOptions(gpu="v100").matmul_precision == "fp16"
    assert HardwareOptions(gpu="a100").matmul_precision == "bf16"


def test_hours_and_gpus_determine_the_speed() -> None:
    cluster, _ = HardwareOptions(gpu="a100", gpus=64, hours=1000).cluster(MODEL, FLOPS, 512)
    assert cluster.count == 64
    assert cluster.flops == pytest.approx(FLOPS / (64 * 1000 * 3600))
    for name in ("tflops", "mfu", "goodput"):
        speed: dict[str, Any] = {name: 0.4}
        options = HardwareOptions(gpu="a100", gpus=64, hours=1000, **speed)
        with pytest.raises(UsageError, match=f"{name} sets it too"):
            options.cluster(MODEL, FLOPS, 512)
    with pytest.raises(UsageError, match="impossible: an MFU of"):
        HardwareOptions(gpu="a100", gpus=64, hours=1).cluster(MODEL, FLOPS, 512)


@pytest.mark.parametrize(
    "options", [{"gpu": "a100"}, {"gpu": "h100", "mfu": 0.4}, {"tflops": 100.0}, {"gpu": "v100"}]
)
def test_hours_and_speed_determine_the_number_of_gpus(options: dict[str, Any]) -> None:
    cluster, _ = HardwareOptions(**options, hours=100).cluster(MODEL, FLOPS, 512)
    assert FLOPS / cluster.flops / cluster.count / 3600 <= 100
    assert FLOPS / cluster.flops / (cluster.count - 8) / 3600 > 80, "hardly more than needed"


def test_hours_and_a_layout_determine_the_speed() -> None:
    cluster, plan = HardwareOptions(gpu="a100", layout="shard=64", hours=1000).cluster(
        MODEL, FLOPS, 512
    )
    assert plan is not None
    assert (cluster.count, plan.layout.shard) == (64, 64)
    assert cluster.flops == pytest.approx(FLOPS / (64 * 1000 * 3600))


def test_memory_describes_a_custom_gpu() -> None:
    cluster, _ = HardwareOptions(tflops=20, memory=48).cluster(None, 1e20)
    assert cluster.memory_bytes == 48 * 10**9
    assert HardwareOptions(tflops=20).cluster(None, 1e20)[0].memory_bytes is None
    assert HardwareOptions(gpu="a100").cluster(None, 1e20)[0].memory_bytes == 80 * 10**9
    with pytest.raises(UsageError, match="is the memory of a custom GPU"):
        HardwareOptions(gpu="a100", memory=48)


def test_batch_of_a_layout_is_the_papers_in_whole_rounds() -> None:
    _, plan = HardwareOptions(gpu="a100", layout="shard=8", micro_batch=3).cluster(
        MODEL, FLOPS, 512
    )
    assert plan is not None
    assert (plan.work.micro_batch, plan.work.micro_batches) == (3, 22), (
        "512 sequences: 8 ranks, 3 at a time"
    )


def test_layout_and_number_of_gpus_must_agree() -> None:
    with pytest.raises(UsageError, match="needs 8 GPUs, but gpus is 4"):
        HardwareOptions(gpu="a100", gpus=4, layout="shard=8").cluster(MODEL, FLOPS, 512)


@pytest.mark.parametrize(
    "options",
    [{"micro_batch": 2}, {"recompute": "full"}, {"precision": "fp8"}, {"trainer": "megatron"}],
    ids=str,
)
@pytest.mark.parametrize("gpus", [None, 8])
def test_a_step_needs_no_layout(options: dict[str, Any], gpus: int | None) -> None:
    _, plan = HardwareOptions(gpu="h100", gpus=gpus, **options).cluster(MODEL, FLOPS, 512)
    assert plan is not None
    for name in options.keys() - {"trainer"}:
        assert getattr(plan.work, name) == options[name]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"tflops": math.inf}, "tflops"),
        ({"gpus": 0}, "gpus"),
        ({"gpus": 10**9}, "gpus"),
        ({"price": math.nan}, "price"),
        ({"hours": 1e300}, "hours"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"trainer": "none"}, "trainer"),
        ({"gpu": ""}, "gpu"),
    ],
)
def test_numbers_without_meaning_are_refused(options: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError) as caught:
        HardwareOptions(**options)
    assert caught.value.field == field


def test_more_replicas_than_sequences_are_refused_as_by_the_trainer() -> None:
    options = HardwareOptions(gpu="h100", layout="dp=4096")
    with pytest.raises(UsageError, match="reads 4,096 sequences at a time, but a batch is 512"):
        options.cluster(MODEL, FLOPS, 512)


def test_a_limit_is_the_same_on_the_command_line_and_in_python() -> None:
    assert {name: (NUMBERS[name].low, NUMBERS[name].high) for name in LIMITS} == LIMITS
    assert LIMITS["gpus"] == (1, MAX_GPUS)
