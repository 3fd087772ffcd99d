"""Steps of GPT-2 124M, or of fewer layers of it, in alternation with nanoGPT's: processor time, one
core each, so that other work on the machine counts little.

GPT_KERNELS=avx2 (or avx512) limits PyTorch's libraries to the same instruction set. LAYERS (3), BATCH
(1) and ROUNDS (5) change what is measured; NANOGPT names a clone of nanoGPT.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from gptcli.runtime import has_fast_bf16

T, VOCABULARY = 1024, 50257
LIBRARIES = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE", "MKL_ENABLE_INSTRUCTIONS": "AVX512"},
}  # fmt: skip
OURS = "gpt"
NANOGPT = ("nanoGPT as it ships", "nanoGPT compiled")


def run() -> None:
    limit = os.environ.get("GPT_KERNELS", "")
    bf16 = limit not in LIBRARIES and has_fast_bf16()
    precision = os.environ.get("PRECISION", "bf16" if bf16 else "fp32")
    environment = {**os.environ, **LIBRARIES.get(limit, {}), "OMP_NUM_THREADS": "1"}
    environment["PRECISION"] = precision
    names = (OURS, *NANOGPT) if "NANOGPT" in os.environ else (OURS,)
    code = "import sys; from tests.benchmarks.steps import answer; answer(sys.argv[1])"
    with contextlib.ExitStack() as stack:
        children = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", code, name],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
                )
            )
            for name in names
        ]  # fmt: skip
        for child in children:
            ask(child)  # compiled, and all memory is there
        rounds = [
            [ask(child) for child in children] for _ in range(int(os.environ.get("ROUNDS", "5")))
        ]
        for child in children:
            child.communicate()
    tokens = int(os.environ.get("BATCH", "1")) * T
    for index, name in enumerate(names):
        seconds = statistics.median(times[index] for times in rounds)
        ratio = statistics.median(times[index] / times[0] for times in rounds)
        print(
            f"{name}, {precision if name != NANOGPT[0] else 'fp32'}: {seconds:.2f} s of processor time, "
            f"{tokens / seconds:.0f} tokens a second; its time / ours {ratio:.2f}"
        )


def ask(child: subprocess.Popen[str]) -> float:
    """Let a process take a step, and return its processor seconds."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write("\n")
    child.stdin.flush()
    return float(child.stdout.readline())


def answer(name: str) -> None:
    """Take a step for each line of standard input, and print its processor seconds."""
    torch.set_num_threads(1)
    layers, batch = int(os.environ.get("LAYERS", "3")), int(os.environ.get("BATCH", "1"))
    bf16 = os.environ["PRECISION"] == "bf16" and name != NANOGPT[0]
    with contextlib.redirect_stdout(sys.stderr):  # nanoGPT says what it builds
        if name == OURS:
            step = our_step(layers, batch, bf16)
        else:
            step = their_step(name, layers, batch, bf16)
        step()
    for _ in sys.stdin:
        before = sum(os.times()[:2])
        step()
        print(sum(os.times()[:2]) - before, flush=True)


def our_step(layers: int, batch: int, bf16: bool) -> Any:
    from gptcli.model.config import ModelConfig
    from gptcli.model.transformer import GPT
    from gptcli.runtime import disable_malloc_trim
    from gptcli.trainer.parallelize import apply_ac_and_compile, install_kernels

    disable_malloc_trim()
    model = GPT(ModelConfig(n_layer=layers, n_head=12, d_model=768, n_ctx=T))
    model.init_weights(0)
    settings: Any = SimpleNamespace(
        compile=True, recompute="none", precision="bf16" if bf16 else "fp32"
    )
    apply_ac_and_compile(model, settings, None)
    install_kernels(model, settings, None)
    return training_step(
        model,
        our_optimizer(model),
        batch,
        bf16,
        lambda *of: model(*of) / (batch * T),
        clip=our_clip,
    )


def our_optimizer(model: torch.nn.Module) -> torch.optim.Optimizer:
    from gptcli.trainer.optimizer import AdamW

    return AdamW(model.parameters(), lr=6e-4, betas=(0.9, 0.95), fused=True)


def our_clip(model: torch.nn.Module) -> None:
    from gptcli.distributed.context import RankContext
    from gptcli.trainer.optimizer import clip_gradients

    clip_gradients(model, 1.0, RankContext(torch.device("cpu")))


def their_clip(model: torch.nn.Module) -> None:
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)


def their_step(name: str, layers: int, batch: int, bf16: bool) -> Any:
    sys.path.insert(0, str(Path(os.environ["NANOGPT"]).resolve()))
    from model import GPT, GPTConfig

    model = GPT(GPTConfig(n_layer=layers, vocab_size=50304, block_size=T, dropout=0.0, bias=True))
    optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), "cpu")
    called = torch.compile(model) if name == NANOGPT[1] else model
    return training_step(model, optimizer, batch, bf16, lambda *of: called(*of)[1])


def training_step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: int,
    bf16: bool,
    loss_of: Any,
    length: int = T,
    vocabulary: int = VOCABULARY,
    clip: Callable[[torch.nn.Module], None] = their_clip,
) -> Any:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, vocabulary, (batch, length + 1), generator=generator)
    inputs, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(inputs, targets)
        loss.backward()
        clip(model)
        optimizer.step()
        optimizer.zero_grad()

    return step
