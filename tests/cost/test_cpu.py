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
    HEAP,
    HEAP_OF_SEVERAL,
    LIBRARIES,
    SYNC_BYTES,
    TOKENIZER,
    cpu_device,
    cpu_memory,
    on_cpu,
    seconds_per_token,
)
from gptcli.cost.layout import Layout
from gptcli.cost.memory import RECOMPUTE, Recompute
from gptcli.cost.rank_memory import StepConfig, loss_memory, rank_memory
from gptcli.model import loss
from gptcli.model.config import ModelConfig
from gptcli.trainer import checkpoint
from tests.small_runs import make_shards

SMALL = ModelConfig(n_layer=4, n_head=4, d_model=256, n_ctx=256, vocab_size=5000)
WORK = on_cpu(StepConfig(micro_batch=8, precision="fp32"), SMALL, has_kernels=False)


def test_constants_are_the_trainers() -> None:
    assert WORK.piece == loss.PIECES["cpu"]
    assert SYNC_BYTES == checkpoint.SYNC_BYTES


def test_parts() -> None:
    found, tensors = cpu_memory(SMALL, Layout(), WORK), rank_memory(SMALL, Layout(), WORK)
    assert found.tensors == tensors.total
    assert 12 * SMALL.parameters < SYNC_BYTES
    assert found.checkpoint == 0
    assert found.heap == round(HEAP * (tensors.activations + tensors.logits + tensors.workspace))
    assert found.libraries == LIBRARIES + 5000 * TOKENIZER
    assert found.total == found.tensors + found.heap + found.libraries
    compiled = cpu_memory(SMALL, Layout(), WORK, compiled=True)
    assert compiled.total - found.total == COMPILER


def test_a_large_checkpoint_is_copied_beside_the_next_step() -> None:
    large = replace(SMALL, d_model=512)
    written = 12 * large.parameters
    assert written > SYNC_BYTES
    found = cpu_memory(large, Layout(), WORK)
    assert found.checkpoint == written + 4 * 5000 * 512
    averaged = cpu_memory(large, Layout(), WORK, average_bytes=4 * large.parameters)
    assert averaged.checkpoint - found.checkpoint == 4 * large.parameters
    assert averaged.tensors - found.tensors == 4 * large.parameters
    muon = cpu_memory(large, Layout(), WORK, fewer_moments=1000)
    assert found.total - muon.total == 2 * 4 * 1000


def test_gradients_of_several_micro_batches_divide_the_heap() -> None:
    """Copies of a checkpoint fill some of it, and what one micro-batch leaves stays."""
    work = replace(WORK, micro_batches=2)
    for config in (SMALL, replace(SMALL, d_model=512)):
        found, tensors = cpu_memory(config, Layout(), work), rank_memory(config, Layout(), work)
        temporary = tensors.activations + tensors.logits + tensors.workspace
        free = HEAP_OF_SEVERAL * temporary - found.checkpoint
        assert found.heap == round(max(HEAP * temporary, free))
        assert found.total > cpu_memory(config, Layout(), WORK).total


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


def test_copies_of_a_checkpoint_leave_a_block_too_small_for_the_loss() -> None:
    """A vocabulary whose logits are larger than the copies: what is left of their block is lost."""
    large = replace(SMALL, vocab_size=50_257)
    found, tensors = cpu_memory(large, Layout(), WORK), rank_memory(large, Layout(), WORK)
    assert 0 < found.checkpoint < tensors.logits
    assert found.heap == tensors.logits - found.checkpoint
    wide = replace(large, d_model=1024)
    assert cpu_memory(wide, Layout(), WORK).heap == 0


@given(st.sampled_from(RECOMPUTE), st.integers(1, 8), st.booleans())
@settings(max_examples=30)
def test_more_at_a_time_never_takes_less(kind: Recompute, size: int, has_kernels: bool) -> None:
    work = StepConfig(micro_batch=size, recompute=kind)
    less, more = (
        cpu_memory(SMALL, Layout(), on_cpu(step, SMALL, has_kernels=has_kernels)).total
        for step in (work, replace(work, micro_batch=size + 1))
    )
    assert less <= more


@pytest.mark.skipif(sys.platform != "linux", reason="memory of a process as Linux counts it")
def test_a_real_run_is_within_ten_percent(tmp_path: Path) -> None:
    """The peak that a run in a process of its own records."""
    shards = make_shards(tmp_path / "shards")
    shape = "--size gpt2 --n-layer 4 --n-head 4 --d-model 256 --n-ctx 256"
    recipe = "--tokens 4096 --batch-tokens 2048 --precision fp32 --compile off"
    command = [sys.executable, "-m", "gptcli", "train", *shape.split(), *recipe.split()]
    command += ["--data", str(shards), "-o", str(tmp_path / "run")]
    subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    peak = json.loads(lines[-1])["peak_memory"]
    found = cpu_memory(replace(SMALL, vocab_size=260), Layout(), WORK)
    assert peak == pytest.approx(found.total, rel=0.1)


def test_a_processor_is_a_device() -> None:
    gpu = cpu_device(1, 1e11, 2e10, 10**9, "Some Processor")
    assert (gpu.name, gpu.peak_flops, gpu.bandwidth) == ("cpu", 1e11, 2e10)
    assert gpu.source == "Some Processor, 1 core: a matrix product measured now"


def test_seconds_of_a_token() -> None:
    low, high = seconds_per_token(1e11, 1e9, 1000)
    assert low == pytest.approx(1e9 / 0.75e11 + 0.003 / 1000)
    assert high == pytest.approx(1e9 / 0.15e11 + 0.03 / 1000)
