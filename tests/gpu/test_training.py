"""Training on a GPU that is not there: what is compiled, how often, and what a step moves."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.extent import WHOLE
from tests.gpu.conftest import Rehearse, missing

MICRO_BATCH = 64
"""The automatic micro-batch of GPT-2 124M on an 80 GB GPU."""
STEPS: dict[str, dict[str, Any]] = {
    "dense": {"micro_batch": MICRO_BATCH, "resources": "^triton_red"},
    "banded": {"attention": "banded", "resources": "tem_fused_flex"},
    "banded in fp32": {"attention": "banded", "options": {"precision": "fp32"}},
    "documents": {"options": {"document_mask": True}},
    "selective": {"options": {"recompute": "selective"}},
    "shard=8": {"layout": "shard=8"},
    "dp=2,shard=4": {"layout": "dp=2,shard=4"},
    "dp=2,tp=2": {"layout": "dp=2,tp=2"},
    "fp8": {"options": {"precision": "fp8"}, "layout": "shard=8"},
}
if WHOLE:
    STEPS["fp16"] = {"options": {"precision": "fp16"}, "architecture": 80}
    STEPS |= {
        gpu: {"attention": "banded", "architecture": architecture, "resources": "tem_fused_flex"}
        for gpu, architecture in (("A100", 80), ("L40S", 89), ("B200", 100))
    }
WIDTHS = [(90, 768), (90, 5140), *([(80, 768), (89, 1280), (100, 2048)] if WHOLE else [])]
"""Architectures and d_model of the kernels of our own."""
MOST_SPILLED = {80: 512, 89: 512, 90: 64, 100: 1024}
"""Bytes of registers that a thread may spill: FlexAttention's, tuned for Hopper by torch."""
SHARED_MEMORY = {80: 166_912, 89: 101_376, 90: 232_448, 100: 232_448}


def names_of(report: dict[str, Any]) -> dict[str, list[int]]:
    names: dict[str, list[int]] = report["step"]["names"]
    return names


@pytest.fixture(scope="module")
def step(rehearse: Rehearse) -> Rehearse:
    def take(name: str) -> dict[str, Any]:
        if name == "fp8" and importlib.util.find_spec("torchao") is None:
            pytest.skip("torchao is not installed (the extras fp8 and dev have it)")
        return rehearse("step", **STEPS[name])

    return take


@pytest.mark.parametrize("name", STEPS)
def test_a_step_is_compiled_once_and_without_breaks(step: Rehearse, name: str) -> None:
    """The warm-up has compiled all that a step, the next micro-batch and an evaluation run."""
    report = step(name)
    assert report["kernels"] > 5
    assert report["compiled_later"] == 0
    assert report["graph_breaks"] == 0


@pytest.mark.parametrize("name", STEPS)
def test_tensor_cores_can_read_every_operand(step: Rehearse, name: str) -> None:
    assert step(name)["misaligned"] == []


@pytest.mark.parametrize("name", [name for name, words in STEPS.items() if "resources" in words])
def test_kernels_fit_the_gpu(step: Rehearse, name: str) -> None:
    """Machine code by Triton's own ptxas: no spilled registers to speak of."""
    report, architecture = step(name), STEPS[name].get("architecture", 90)
    assert report["resources"]
    for kernel in report["resources"]:
        assert kernel["registers"] <= 255
        assert kernel["shared"] <= SHARED_MEMORY[architecture]
        assert kernel["spilled"] <= MOST_SPILLED[architecture], kernel


def test_fp32_attention_in_a_band_is_not_flex(step: Rehearse) -> None:
    """FlexAttention in fp32 spills 7 KB of registers a thread."""
    assert not [name for name in names_of(step("banded in fp32")) if "flex" in name]


def test_masks_are_computed_once_for_all_layers(step: Rehearse) -> None:
    """Nothing is sorted in a step of banded layers: the mask is kept from the warm-up."""
    assert not [name for name in names_of(step("banded")) if "sort" in name]
    # partial and full blocks, by query and by key: the one mask of both layers
    assert names_of(step("documents"))["sort"][0] == 4


def test_no_dense_mask_for_documents(step: Rehearse) -> None:
    names = names_of(step("documents"))
    assert [name for name in names if "flex_attention" in name]
    assert not [name for name in names if "efficient_attention" in name]


def test_the_budget_of_a_step(step: Rehearse) -> None:
    """GPT-2 124M, by layer and for the rest, from two layers and none: bytes moved by all that is
    neither a product nor attention. A limit, like that of a file's size.
    """
    report = step("dense")
    moved = {name: size for name, (_, size) in names_of(report).items()}
    logits = 2 * MICRO_BATCH * 1024 * 50_304
    assert moved["triton_loss"] <= 2.01 * logits  # read, and their gradient written
    assert not [name for name in moved if "logsumexp" in name or "layer_norm_native" in name]
    # no sum of a layer is a pass of its own, nor is the rounding of its gradient
    assert names_of(report)["triton_norm"][0] == names_of(report)["triton_norm_backward"][0] == 5
    assert "triton_round_and_sum" not in moved
    assert report["step"]["bytes"]["other"] <= 29.2e9
    assert report["step"]["launches"]["other"] <= 260


@pytest.mark.parametrize(("architecture", "d_model"), WIDTHS)
def test_training_kernels_spill_nothing(
    rehearse: Rehearse, architecture: int, d_model: int
) -> None:
    report = rehearse("training_kernels", architecture=architecture, d_model=d_model)
    assert len(report["resources"]) == 8
    for kernel in report["resources"]:
        # d_model as wide as a program's registers: a few bytes
        assert kernel["spilled"] <= (0 if d_model < 4096 else 64), kernel
        assert kernel["registers"] * 32 * kernel["warps"] <= 65_536
        assert kernel["shared"] <= SHARED_MEMORY[architecture]


def test_layouts_reduce_gradients_in_few_collectives(step: Rehearse) -> None:
    for name in ("shard=8", "dp=2,shard=4"):
        assert step(name)["step"]["launches"]["collectives"] <= 24


def test_the_warm_up_leaves_shards(step: Rehearse) -> None:
    """Weights that are loaded into gathered parameters would be lost after the first step."""
    for name in ("shard=8", "dp=2,shard=4"):
        assert step(name)["gathered"] == []


def test_gradients_are_reduced_once_a_step_where_memory_allows(step: Rehearse) -> None:
    """And layers are gathered once in a pass: two micro-batches communicate as one does."""
    for name in ("shard=8", "dp=2,shard=4"):
        once, twice = (step(name)[part]["names"] for part in ("step", "two_micro_batches"))
        for collective in ("_reduce_scatter_base_", "_allgather_base_"):
            # both layers, and the rest of the model
            assert once[collective][0] == twice[collective][0] == 3


def test_replicas_of_slices_gather_and_scatter_nothing(step: Rehearse) -> None:
    """FSDP with one shard casts weights, and copies gradients once a step."""
    once, twice = (step("dp=2,tp=2")[part]["names"] for part in ("step", "two_micro_batches"))
    assert not {"_reduce_scatter_base_", "_allgather_base_"} & (once.keys() | twice.keys())
    assert once["chunk_cat"][0] == twice["chunk_cat"][0] == 3


def test_layers_in_fp8_are_gathered_in_fp8(step: Rehearse) -> None:
    """A byte a weight of both layers, each way: their products are those of fp8 too."""
    fp8, bf16 = step("fp8"), step("shard=8")
    assert names_of(fp8)["_scaled_mm"][0] == 2 * 4 * 3
    saved = names_of(bf16)["_allgather_base_"][1] - names_of(fp8)["_allgather_base_"][1]
    assert saved > 0.99 * 2 * 12 * 768**2


def test_ddp_does_not_split_compiled_blocks(rehearse: Rehearse) -> None:
    """One graph for the forward and backward pass of a block, whatever the size of a bucket."""
    assert rehearse("ddp")["graphs"] == 1


def test_fine_tuning_computes_in_bf16_and_updates_in_one_pass(rehearse: Rehearse) -> None:
    """The optimizer has two groups; attention is that of a GPU."""
    report = rehearse("finetune")
    assert report["item_bytes"] == [2]
    names = report["step"]["names"]
    assert names["_fused_adamw_"][0] == 2
    assert names["_scaled_dot_product_flash_attention"][0] == 2


def test_without_a_c_compiler_pytorch_computes_and_says_so(rehearse: Rehearse) -> None:
    report = rehearse("step", options={"compile": False}, has_compiler=False)
    (warning,) = report["warnings"]
    assert "they need gcc or clang" in warning
    assert "python3-dev" in warning
    assert not [name for name in names_of(report) if "triton" in name]
    # with one, the same step has kernels, and nothing to say
    report = rehearse("step", options={"compile": False})
    assert report["warnings"] == []
    assert "triton_loss" in names_of(report)


def test_a_machine_without_triton_says_so() -> None:
    assert missing() is None or isinstance(missing(), str)
