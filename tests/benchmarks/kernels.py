"""The C kernels by instruction set: processor time of each, one thread, in alternation.

SETS names instruction sets (all of this processor), KERNELS kernels (all), ROUNDS (5) rounds.
"""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from gptcli.kernels import attention_kernel, build, head_kernel, linear_kernel, norm_kernel
from gptcli.model.config import ModelConfig
from gptcli.model.kv_cache import KVCache
from gptcli.model.transformer import GPT
from gptcli.sampling.load import prepare_for_inference
from tests.benchmarks.steps import ask

C, T, VOCABULARY, HEADS = 768, 1024, 50257, 12
LEAST_S = 0.1
"""Processor seconds of a measurement: as many calls as that takes."""

Work = tuple[Callable[[], Any], float]
"""Call to measure, and its floating-point operations, 0 if its cost is another."""


def run() -> None:
    sets = os.environ.get("SETS", "").split() or build.instruction_sets()
    names = os.environ.get("KERNELS", "").split() or list(WORKS)
    code = "import sys; from tests.benchmarks.kernels import answer; answer(sys.argv[1])"
    print(f"{'ms, GFLOP/s':<24}" + "".join(f"{name:>18}" for name in sets))
    for name in names:
        with contextlib.ExitStack() as stack:
            children = [
                stack.enter_context(
                    subprocess.Popen(
                        [sys.executable, "-c", code, name],
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                        env={**os.environ, build.LIMIT: instructions, "OMP_NUM_THREADS": "1"},
                    )
                )
                for instructions in sets
            ]
            rounds = [
                [ask(child) for child in children]
                for _ in range(int(os.environ.get("ROUNDS", "5")))
            ]
            for child in children:
                child.communicate()
        flops = FLOPS.get(name, 0)
        row = ""
        for times in zip(*rounds, strict=True):
            seconds = statistics.median(times)
            rate = f"{flops / seconds / 1e9:7.1f}" if flops else " " * 7
            row += f"{seconds * 1e3:10.2f} {rate}"
        print(f"{name:<24}{row}", flush=True)


def answer(name: str) -> None:
    """Run a kernel for each line of standard input, and print the processor seconds of a call."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with torch.no_grad():
        call = WORKS[name]()
        call()
        for _ in sys.stdin:
            begin, calls = time.process_time(), 0
            while (spent := time.process_time() - begin) < LEAST_S:
                call()
                calls += 1
            print(spent / calls, flush=True)


def attention(dtype: torch.dtype, *, backward: bool) -> Callable[[], Any]:
    qkv = torch.randn(1, T, HEADS, 3, C // HEADS).to(dtype)
    y, log_sum = attention_kernel.run_forward(qkv, T)
    if not backward:
        return lambda: attention_kernel.run_forward(qkv, T)
    backward_op: Any = torch.ops.gptcli.packed_attend_backward
    return lambda: backward_op(y, qkv, y, log_sum, T)


def linear(which: str) -> Callable[[], Any]:
    x, w, b = torch.randn(T, C).bfloat16(), torch.randn(4 * C, C) / 28, torch.randn(4 * C)
    y = linear_kernel.run_forward(x, w, b)[0]
    calls: dict[str, Callable[[], Any]] = {
        "forward": lambda: linear_kernel.run_forward(x, w, b),
        "gelu": lambda: linear_kernel.run_forward(x, w, b, gelu=True),
        "backward": lambda: linear_kernel.run_backward(y, x, w),
    }
    return calls[which]


def head(*, backward: bool) -> Callable[[], Any]:
    x, w = torch.randn(T, C).bfloat16(), torch.randn(VOCABULARY, C) / 28
    target, dw = torch.randint(VOCABULARY, (T,)), torch.empty(VOCABULARY, C)

    def call() -> None:
        chunk = head_kernel.chunk(x, w, target, backward)
        if backward:
            counted = torch.ones(T, 1, dtype=torch.bool)
            chunk.gradients(chunk.log_sum_n1, chunk.target_logit_n1, counted, dw, False)

    return call


def norm(*, backward: bool) -> Callable[[], Any]:
    x, branch = torch.randn(4 * T, C), torch.randn(4 * T, C).bfloat16()
    gain, bias = torch.rand(C), torch.rand(C)
    sums, y, stats = norm_kernel.run_forward(x, branch, gain, bias, 1e-5)
    if not backward:
        return lambda: norm_kernel.run_forward(x, branch, gain, bias, 1e-5)
    return lambda: norm_kernel.run_backward(y, sums, x, branch, stats, gain)


def decode(precision: str, rows: int) -> Callable[[], Any]:
    config = ModelConfig(n_layer=12, n_head=HEADS, d_model=C, n_ctx=T)
    model = GPT(config).to(torch.float32 if precision == "fp32" else torch.bfloat16).eval()
    prepare_for_inference(model, "int8" if precision == "int8" else "none")
    from gptcli.kernels import decode_step

    step = decode_step(model)
    assert step is not None
    cache = KVCache(config, rows, torch.device("cpu"), model.wte.weight.dtype, 256)
    return lambda: step([7] * rows, cache, [100] * rows)


PRODUCT, HEAD = 2.0 * T * C * 4 * C, 2.0 * T * C * VOCABULARY
ATTENTION = 2.0 * T * T * C  # two products, half of each masked
WORKS: dict[str, Callable[[], Callable[[], Any]]] = {
    "attention": lambda: attention(torch.bfloat16, backward=False),
    "attention backward": lambda: attention(torch.bfloat16, backward=True),
    "attention fp32": lambda: attention(torch.float32, backward=False),
    "attention fp32 backward": lambda: attention(torch.float32, backward=True),
    "head": lambda: head(backward=False),
    "head with gradients": lambda: head(backward=True),
    "linear": lambda: linear("forward"),
    "linear and GELU": lambda: linear("gelu"),
    "linear backward": lambda: linear("backward"),
    "norm": lambda: norm(backward=False),
    "norm backward": lambda: norm(backward=True),
    **{
        f"decode {precision}, {rows}": partial(decode, precision, rows)
        for precision in ("fp32", "bf16", "int8")
        for rows in (1, 8)
    },
}
FLOPS = {
    **dict.fromkeys(("linear", "linear and GELU"), PRODUCT),
    "linear backward": 2 * PRODUCT,
    "head": HEAD,
    "head with gradients": 3 * HEAD,
    **dict.fromkeys(("attention", "attention fp32"), ATTENTION),
    **dict.fromkeys(("attention backward", "attention fp32 backward"), 2.5 * ATTENTION),
}
