"""HardwareOptions: options of GPUs and layout resolved to a cluster and a plan."""

from __future__ import annotations

from typing import Any

import pytest

from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import read_table
from gptcli.cost.options import (
    DEFAULT_GPU,
    OTHER_FAMILIES,
    HardwareOptions,
    all_targets,
    estimate_target,
    find_target,
    target_names,
)
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig, find_size
from gptcli.papers.models import MODELS, TABLE_D1

MODEL = ModelConfig.from_paper(find_size("1.3B"))
FLOPS = flops_per_token(MODEL, "6N") * 300e9


def test_default_gpu_is_the_one_with_the_most_recent_price() -> None:
    gpu = HardwareOptions().gpu_row
    assert gpu is not None
    assert gpu.name == DEFAULT_GPU == "h100"
    assert "h100" in max(read_table("prices.toml")["price"], key=lambda row: row["date"])["gpus"]


def test_gpu_is_assumed_unless_named_or_described() -> None:
    assert HardwareOptions().is_default_gpu
    assert not HardwareOptions(gpu="h100").is_default_gpu
    assert not HardwareOptions(tflops=20).is_default_gpu
    assert HardwareOptions(tflops=20).gpu_row is None


def test_precision_follows_the_gpu() -> None:
    assert HardwareOptions(gpu="v100").matmul_precision == "fp16"
    assert HardwareOptions(gpu="a100").matmul_precision == "bf16"


def test_hours_and_gpus_determine_the_speed() -> None:
    cluster, _ = HardwareOptions(gpu="a100", gpus=64, hours=1000).cluster(MODEL, FLOPS)
    assert cluster.count == 64
    assert cluster.flops == pytest.approx(FLOPS / (64 * 1000 * 3600))
    for name in ("tflops", "mfu", "goodput"):
        speed: dict[str, Any] = {name: 0.4}
        options = HardwareOptions(gpu="a100", gpus=64, hours=1000, **speed)
        with pytest.raises(UsageError, match=f"{name} sets it too"):
            options.cluster(MODEL, FLOPS)
    with pytest.raises(UsageError, match="impossible: an MFU of"):
        HardwareOptions(gpu="a100", gpus=64, hours=1).cluster(MODEL, FLOPS)


@pytest.mark.parametrize(
    "options", [{"gpu": "a100"}, {"gpu": "h100", "mfu": 0.4}, {"tflops": 100.0}, {"gpu": "v100"}]
)
def test_hours_and_speed_determine_the_number_of_gpus(options: dict[str, Any]) -> None:
    cluster, _ = HardwareOptions(**options, hours=100).cluster(MODEL, FLOPS)
    assert FLOPS / cluster.flops / cluster.count / 3600 <= 100
    assert FLOPS / cluster.flops / (cluster.count - 8) / 3600 > 80, "hardly more than needed"


def test_hours_and_a_layout_determine_the_speed() -> None:
    cluster, plan = HardwareOptions(gpu="a100", layout="shard=64", hours=1000).cluster(MODEL, FLOPS)
    assert plan is not None
    assert (cluster.count, plan.layout.shard) == (64, 64)
    assert cluster.flops == pytest.approx(FLOPS / (64 * 1000 * 3600))


def test_memory_describes_a_custom_gpu() -> None:
    cluster, _ = HardwareOptions(tflops=20, memory=48).cluster(None, 1e20)
    assert cluster.memory_bytes == 48 * 10**9
    assert HardwareOptions(tflops=20).cluster(None, 1e20)[0].memory_bytes is None
    assert HardwareOptions(gpu="a100").cluster(None, 1e20)[0].memory_bytes == 80 * 10**9
    with pytest.raises(UsageError, match="memory describes a custom GPU"):
        HardwareOptions(gpu="a100", memory=48)


def test_batch_of_a_layout_is_the_papers_in_whole_rounds() -> None:
    _, plan = HardwareOptions(gpu="a100", layout="shard=8", micro_batch=3).cluster(MODEL, FLOPS)
    assert plan is not None
    assert (plan.work.micro_batch, plan.work.micro_batches) == (3, 22), (
        "512 sequences: 8 ranks, 3 at a time"
    )


def test_layout_and_number_of_gpus_must_agree() -> None:
    with pytest.raises(UsageError, match="needs 8 GPUs, but gpus is 4"):
        HardwareOptions(gpu="a100", gpus=4, layout="shard=8").cluster(MODEL, FLOPS)


@pytest.mark.parametrize("name", ["micro_batch", "recompute", "precision"])
def test_layout_options_need_a_layout(name: str) -> None:
    value: Any = {"micro_batch": 4, "recompute": "full", "precision": "bf16"}[name]
    options = HardwareOptions(gpu="a100", **{name: value})
    with pytest.raises(UsageError, match=f"{name} needs a layout"):
        options.cluster(MODEL, FLOPS)


@pytest.mark.parametrize("row", TABLE_D1, ids=lambda row: row.name)
def test_estimates_agree_with_table_d1(row: Any) -> None:
    """Within 0.5 % of the printed values, from the size's name alone."""
    target = find_target(row.size or row.name)
    found = estimate_target(target, None, HardwareOptions(gpu="a100"))
    assert found.flops == pytest.approx(row.flops, rel=0.005)
    assert found.pf_days == pytest.approx(row.pf_days, rel=0.005)
    assert found.tokens == row.tokens
    assert found.parameters == pytest.approx(row.parameters, rel=0.005)


def test_estimate_of_gpt1_agrees_with_its_authors() -> None:
    found = estimate_target(find_target("gpt-1"), None, HardwareOptions())
    assert found.pf_days == pytest.approx(0.96, rel=0.005)
    assert (
        found.parameters == 12 * 12 * 768**2 + 13 * 12 * 768 + (40_478 + 512) * 768 == 116_534_784
    )


def test_every_model_of_the_papers_is_a_target_once() -> None:
    names = [target.name for target in all_targets()]
    assert names == [model.name for model in MODELS] + [row.name for row in OTHER_FAMILIES]
    assert len(names) == len(set(names))
    assert {row.name for row in OTHER_FAMILIES} >= {row.name for row in TABLE_D1 if not row.size}
    assert {"T5-11B", "BERT-Large", "175B"} <= set(target_names())


def test_names_match_whatever_their_case_and_hyphens() -> None:
    assert find_target("bert-LARGE").name == find_target("bertlarge").name == "BERT-Large"
    assert find_target("GPT2XL").name == "gpt2-xl"


def test_unknown_size_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(UsageError, match="unknown size 'T5-12B'") as caught:
        find_target("T5-12B")
    assert "T5-11B" in str(caught.value.hint)


def test_layouts_need_a_gpt_shape() -> None:
    options = HardwareOptions(gpu="a100", layout="shard=8")
    with pytest.raises(UsageError, match="is not a GPT"):
        estimate_target(find_target("T5-11B"), None, options)


def test_given_tokens_replace_the_usual_ones() -> None:
    found = estimate_target(find_target("T5-3B"), 2 * 10**9, HardwareOptions())
    assert found.flops == 3 * 3e9 * 2e9
    found = estimate_target(find_target("gpt2"), 2 * 10**9, HardwareOptions())
    assert found.tokens == 2 * 10**9
