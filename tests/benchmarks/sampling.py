"""Tokens a second of decoding beside transformers' generate and the floor that the memory sets:
weights read once a token.

On a CPU: GPT-2 124M, batch 1 and 8. On a CUDA GPU: 124M, 350M and 1.3B, batch 1, 8 and 64. Weights
are random, which changes no speed. It runs in a process of its own, in the environment that `gpt
sample` sets. `quality` measures what int8 does to the perplexity of a trained model:
RUN=folder, text from GPT_TEST_DATA.
"""

from __future__ import annotations

import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gptcli.model.config import ModelConfig, find_size
from gptcli.model.transformer import GPT
from gptcli.openmp import SPIN_ENVIRONMENT, watch_spinning
from gptcli.sampling.generate import TokenSequence, generate_sequences
from gptcli.sampling.load import InferencePrecision, Quantize, prepare_for_inference
from gptcli.sampling.params import SamplingParams

NEW, PROMPT = 128, 16  # tokens
SIZES_GPU, BATCHES_GPU = ("124M", "350M", "1.3B"), (1, 8, 64)
GREEDY = SamplingParams(greedy=True)
# read when torch is loaded, by OpenMP's runtime and by torch
COMMAND_ENVIRONMENT = {**SPIN_ENVIRONMENT, "THP_MEM_ALLOC_ENABLE": "1"}


def run() -> None:
    code = "from tests.benchmarks.sampling import compare; compare()"
    subprocess.run(
        [sys.executable, "-c", code], check=True, env={**COMMAND_ENVIRONMENT, **os.environ}
    )


def compare() -> None:
    watch_spinning()
    batches: tuple[int, ...]
    if torch.cuda.is_available():
        device, sizes, batches = torch.device("cuda"), list(SIZES_GPU), BATCHES_GPU
    else:
        device, sizes, batches = torch.device("cpu"), ["124M"], (1, 8)
    for size in sizes:
        paper = find_size("gpt2" if size == "124M" else size)
        config = ModelConfig(
            n_layer=paper.n_layer, n_head=paper.n_head, d_model=paper.d_model, n_ctx=1024
        )
        for precision in ("bf16",) if device.type == "cuda" else ("bf16", "fp32"):
            measure(
                size,
                config,
                device,
                {"bf16": torch.bfloat16, "fp32": torch.float32}[precision],
                batches,
            )


def measure(
    size: str,
    config: ModelConfig,
    device: torch.device,
    dtype: torch.dtype,
    batches: tuple[int, ...],
) -> None:
    weights = sum(
        p.numel() for name, p in GPT_on_meta(config).named_parameters() if name != "wpe.weight"
    )
    size_bytes = weights * dtype.itemsize
    print(
        f"{size} {str(dtype).removeprefix('torch.')}: {size_bytes / 1e6:.0f} MB of weights a token"
    )
    ours, int8, theirs = (
        ours_of(config, device, dtype, "none"),
        ours_of(config, device, dtype, "int8"),
        theirs_of(config, device, dtype),
    )
    if dtype == torch.float32:
        batches = (1,)
    for batch in batches:
        before, plain, after = (
            read_bandwidth(device, size_bytes),
            rate(ours, batch, device),
            read_bandwidth(device, size_bytes),
        )
        floor, transformers = batch * max(before, after) / size_bytes, rate(theirs, batch, device)
        line = f"  batch {batch:>2}: {plain:7.1f} tokens/s, {plain / floor:.0%} of the floor at {max(before, after) / 1e9:.1f} GB/s"
        line += f"; transformers {transformers:7.1f}, ours / theirs {plain / transformers:.2f}"
        if dtype == torch.bfloat16:
            quantised = rate(int8, batch, device)
            line += f"; int8 {quantised:7.1f}, int8 / ours {quantised / plain:.2f}"
        print(line, flush=True)


def GPT_on_meta(config: ModelConfig) -> GPT:
    with torch.device("meta"):
        return GPT(config)


def read_bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second at which memory is read; on a GPU at least 1 GB of it, so that no cache holds
    it.

    Ones: untouched zeros are one page of memory, read again and again.
    """
    words = torch.ones(
        max(size, 10**9 if device.type == "cuda" else 0) // 8, dtype=torch.int64, device=device
    )
    return words.nbytes / min(timed(lambda: words.sum(), device) for _ in range(9))


def timed(work: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def ours_of(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, quantize: Quantize
) -> Callable[[int, int], None]:
    with torch.device(device):
        model = GPT(config).to(dtype).eval()
    prepare_for_inference(model, quantize)

    def work(batch: int, new: int) -> None:
        rows = [TokenSequence([7] * PROMPT, max_tokens=new) for _ in range(batch)]
        assert (
            len(
                list(
                    generate_sequences(model, rows, GREEDY, batch_size=batch, max_len=PROMPT + new)
                )
            )
            == batch
        )

    return work


def theirs_of(
    config: ModelConfig, device: torch.device, dtype: torch.dtype
) -> Callable[[int, int], None]:
    from transformers import GPT2Config, GPT2LMHeadModel

    made = GPT2Config(
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.d_model,
        n_positions=config.n_ctx,
    )
    with torch.device(device):
        model: Any = GPT2LMHeadModel(made)
        model.to(dtype).eval()

    def work(batch: int, new: int) -> None:
        idx_BT = torch.full((batch, PROMPT), 7, device=device)
        out = model.generate(
            idx_BT,
            attention_mask=torch.ones_like(idx_BT),
            max_new_tokens=new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert out.shape == (batch, PROMPT + new)

    return work


def rate(
    work: Callable[[int, int], None], batch: int, device: torch.device, runs: int = 2
) -> float:
    """Tokens a second of the whole generation, prompt included: the best of `runs`, after a warm-up
    (on a GPU, of the whole length).
    """
    work(batch, NEW if device.type == "cuda" else 4)
    return batch * NEW / min(timed(lambda: work(batch, NEW), device) for _ in range(runs))


def quality() -> None:
    """Perplexity of a trained model in bf16 and in int8 on the first windows of WikiText-2."""
    from gptcli.evals.loglikelihood import score
    from gptcli.sampling.load import load

    run, data = os.environ.get("RUN"), os.environ.get("GPT_TEST_DATA")
    if not run or not data:
        print(
            "skipped: set RUN to a trained run and GPT_TEST_DATA to a folder with wikitext-2/test.txt"
        )
        return
    losses = {}
    forms: list[tuple[str, InferencePrecision, Quantize]] = [
        ("fp32", "fp32", "none"),
        ("bf16", "bf16", "none"),
        ("int8", "bf16", "int8"),
    ]
    for name, precision, quantize in forms:
        loaded = load(Path(run), precision=precision, quantize=quantize)
        tokens = loaded.tokenizer.encode(
            Path(data, "wikitext-2", "test.txt").read_text(encoding="utf-8")[:200_000]
        )
        n_ctx = loaded.model.config.n_ctx
        windows = [
            tokens[start : start + n_ctx + 1] for start in range(0, len(tokens) - n_ctx, n_ctx)
        ]
        losses[name] = statistics.fmean(
            float(score(loaded.model, [window], [n_ctx])[0].log_probs.mean()) for window in windows
        )
        print(
            f"{name}: perplexity {math.exp(-losses[name]):.4f} over {len(windows)} windows of {n_ctx}",
            flush=True,
        )
    print(
        f"int8 / bf16: {math.expm1(losses['bf16'] - losses['int8']):+.3%}; int8 / fp32: {math.expm1(losses['fp32'] - losses['int8']):+.3%}"
    )
