from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.cost.cpu import (
    COMPILER,
    CONNECTIONS,
    HEAP,
    HEAP_OF_SEVERAL,
    HOLES_OF_SHARDS,
    LIBRARIES,
    MIN_GATHERED_BYTES,
    SHARDED_BYTES,
    TOKENIZER,
    cpu_device,
    cpu_memory,
    on_cpu,
    seconds_per_token,
)
from gptcli.cost.hardware import Precision
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.memory import RECOMPUTE, Recompute
from gptcli.cost.rank_memory import (
    ELEMENT_BYTES,
    StepConfig,
    layer_parameters,
    loss_memory,
    rank_memory,
)
from gptcli.model import loss
from gptcli.model.config import ModelConfig, find_size
from tests.small_runs import make_shards

SMALL = ModelConfig(n_layer=4, n_head=4, d_model=256, n_ctx=256, vocab_size=5000)
WORK = on_cpu(StepConfig(micro_batch=8, precision="fp32"), SMALL, has_kernels=False)


def test_constants_are_the_trainers() -> None:
    assert WORK.piece == loss.PIECES["cpu"]


def test_parts() -> None:
    found, tensors = cpu_memory(SMALL, Layout(), WORK), rank_memory(SMALL, Layout(), WORK)
    assert found.tensors == tensors.total
    assert found.checkpoint == 4 * 5000 * 256, "the largest matrix, for transformers"
    assert found.heap == round(HEAP * (tensors.activations + tensors.logits + tensors.workspace))
    assert found.libraries == LIBRARIES + 5000 * TOKENIZER
    assert found.total == found.tensors + found.checkpoint + found.heap + found.libraries
    compiled = cpu_memory(SMALL, Layout(), WORK, compiled=True)
    assert compiled.total - found.total == COMPILER


def test_averages_and_fewer_moments_are_tensors() -> None:
    found = cpu_memory(SMALL, Layout(), WORK)
    averaged = cpu_memory(SMALL, Layout(), WORK, average_bytes=4 * SMALL.parameters)
    assert averaged.total - found.total == 4 * SMALL.parameters
    muon = cpu_memory(SMALL, Layout(), WORK, fewer_moments=1000)
    assert found.total - muon.total == 4 * 1000


def test_gradients_of_several_micro_batches_divide_the_heap() -> None:
    work = replace(WORK, micro_batches=2)
    found, tensors = cpu_memory(SMALL, Layout(), work), rank_memory(SMALL, Layout(), work)
    temporary = tensors.activations + tensors.logits + tensors.workspace
    assert found.heap == round(HEAP_OF_SEVERAL * temporary)
    assert found.total > cpu_memory(SMALL, Layout(), WORK).total


@pytest.mark.parametrize(("precision", "freed"), [("fp32", 20), ("bf16", 12)])
def test_selective_recomputation_of_several_micro_batches_frees_what_is_lost(
    precision: Precision, freed: int
) -> None:
    """The outputs of two norms and of GELU, and the second stream, but for the outputs in full of two
    branches; bytes per token and width of every layer. A single micro-batch loses none of it.
    """
    for rounds, lost in ((1, 0), (2, freed * 8 * SMALL.n_ctx * SMALL.d_model * SMALL.n_layer)):
        step = StepConfig(
            micro_batch=8, micro_batches=rounds, precision=precision, recompute="selective"
        )
        work = on_cpu(step, SMALL, has_kernels=False)
        found, tensors = cpu_memory(SMALL, Layout(), work), rank_memory(SMALL, Layout(), work)
        temporary = tensors.activations + tensors.logits + tensors.workspace
        share = HEAP if rounds == 1 else HEAP_OF_SEVERAL
        assert found.heap == round(share * temporary + lost)


def test_several_processes_take_connections_and_holes_of_gathered_layers() -> None:
    alone = cpu_memory(SMALL, Layout(), WORK)
    for text, layout in ((text, parse_layout(text)) for text in ("dp=2", "tp=2", "shard=2")):
        found, tensors = cpu_memory(SMALL, layout, WORK), rank_memory(SMALL, layout, WORK)
        assert found.libraries == alone.libraries + CONNECTIONS
        temporary = tensors.activations + tensors.logits + tensors.workspace
        gathered = layer_parameters(SMALL) * ELEMENT_BYTES[WORK.precision]
        holes = SHARDED_BYTES + HOLES_OF_SHARDS * SMALL.n_layer * (gathered - MIN_GATHERED_BYTES)
        assert found.heap == round(HEAP * temporary + (holes if text == "shard=2" else 0))


def test_shards_of_a_papers_model_take_no_more_memory_than_replicas() -> None:
    for name in ("gpt2", "gpt2-medium", "gpt2-xl"):
        paper = find_size(name)
        config = ModelConfig(
            n_layer=paper.n_layer, n_head=paper.n_head, d_model=paper.d_model, n_ctx=1024
        )
        for precision in ("fp32", "bf16"):
            work = on_cpu(StepConfig(micro_batch=1, precision=precision), config, has_kernels=True)
            dp, shard = (
                cpu_memory(config, parse_layout(f"{axis}=2"), work).total
                for axis in ("dp", "shard")
            )
            assert shard <= dp


def test_replicas_keep_the_buckets_of_their_gradients() -> None:
    """Between steps too, where a single process has freed its gradients."""
    one, two = (rank_memory(SMALL, parse_layout(f"dp={n}"), WORK) for n in (1, 2))
    assert one.gradients == 0
    assert two.gradients == 4 * SMALL.parameters


def test_the_step_of_a_cpu() -> None:
    work = StepConfig(micro_batch=2)
    assert on_cpu(work, SMALL, has_kernels=True).head_kernel
    assert not on_cpu(replace(work, precision="fp32"), SMALL, has_kernels=True).head_kernel
    assert not on_cpu(work, replace(SMALL, dropout=0.1), has_kernels=True).fused
    kernel = on_cpu(work, SMALL, has_kernels=True)
    assert loss_memory(5000, 512, kernel, sliced=False) == 2 * 512 * 5000
    plain = on_cpu(work, SMALL, has_kernels=False)
    assert loss_memory(5000, 512, plain, sliced=False) == 512 * (2 * 5000 + 4 * 3200)
    assert loss_memory(5000, 512, WORK, sliced=False) == 4 * 512 * 5000


@given(st.sampled_from(RECOMPUTE), st.integers(1, 8), st.booleans())
@settings(max_examples=30)
def test_more_at_a_time_never_takes_less(kind: Recompute, size: int, has_kernels: bool) -> None:
    work = StepConfig(micro_batch=size, recompute=kind)
    less, more = (
        cpu_memory(SMALL, Layout(), on_cpu(step, SMALL, has_kernels=has_kernels)).total
        for step in (work, replace(work, micro_batch=size + 1))
    )
    assert less <= more


RUNS = {
    "fp32": "--tokens 4096 --precision fp32",
    "a checkpoint every step": "--tokens 6144 --precision bf16 --ema 0.99 --checkpoint-every 1",
    "micro-batches": "--tokens 6144 --precision fp32 --micro-batch 4 --optimizer muon "
    "--checkpoint-every 1 --eval-every 1 --eval-tokens 512",
}


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process as Linux counts it")
@pytest.mark.parametrize("recipe", RUNS.values(), ids=RUNS)
def test_a_real_run_is_within_ten_percent(recipe: str, tmp_path: Path) -> None:
    """The peak that a run in a process of its own records, by the forecast of its dry run; not more
    than 5 % above it.
    """
    shards = make_shards(tmp_path / "shards")
    shape = "--size gpt2 --n-layer 4 --n-head 4 --d-model 256 --n-ctx 256 --batch-tokens 2048"
    command = [sys.executable, "-m", "gptcli", "train", *shape.split(), *recipe.split()]
    command += ["--data", str(shards), "-o", str(tmp_path / "run"), "--compile", "off"]

    def run(*more: str) -> bytes:
        done = subprocess.run([*command, *more], check=True, capture_output=True, cwd=tmp_path)
        return done.stdout

    forecast = json.loads(run("--dry-run", "--json"))["memory_bytes"]
    run()
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    peak = json.loads(lines[-1])["peak_memory"]
    assert 0.9 * forecast < peak < 1.05 * forecast


def test_a_processor_is_a_device() -> None:
    gpu = cpu_device(1, 1e11, 2e10, 10**9, "Some Processor")
    assert (gpu.name, gpu.peak_flops, gpu.bandwidth) == ("cpu", 1e11, 2e10)
    assert gpu.source == "Some Processor, 1 core: a matrix product measured now"


def test_seconds_of_a_token() -> None:
    low, high = seconds_per_token(1e11, 1e9, 1000)
    assert low == pytest.approx(1e9 / 0.75e11 + 0.003 / 1000)
    assert high == pytest.approx(1e9 / 0.15e11 + 0.03 / 1000)
