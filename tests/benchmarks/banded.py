"""A banded attention layer against a dense one: time and memory of forward and backward, each form in a process of its own.

Memory is how far the process grows at most, pages that it really holds, from q, k and v to their gradients. The output and the three
gradients are in it, which every form has alike: "working" is without them.
"""

from __future__ import annotations

import ctypes
import gc
import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from gptcli.model.attention import attend, causal_mask

T, BAND, HEADS, D_HEAD = 8192, 256, 12, 64  # one sequence of GPT-3's smallest width, four times its context
REPEATS = 2
BANDED = "banded, by blocks"
WRITTEN_OUT = "dense, scores written out"
TRAINED = "dense, as trained: compiled"

Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def written_out(q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> torch.Tensor:
    """The formula as the papers have it, all scores in memory."""
    T = q_BHTD.shape[2]
    scores_BHTT = (q_BHTD @ k_BHTD.mT / math.sqrt(q_BHTD.shape[3])).masked_fill(~causal_mask(T, T, None, q_BHTD.device), -math.inf)
    return scores_BHTT.softmax(-1) @ v_BHTD


FORMS: dict[str, Callable[[], Attention]] = {
    WRITTEN_OUT: lambda: written_out,
    "dense, torch's flash kernel": lambda: lambda q, k, v: attend(q, k, v),
    TRAINED: lambda: torch.compile(lambda q, k, v: attend(q, k, v), dynamic=False),
    BANDED: lambda: lambda q, k, v: attend(q, k, v, band=BAND),
}


def held(which: str) -> int:
    """Bytes of memory that this process has ("VmRSS"), or has had at most ("VmHWM")."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measure(form: str, dtype: str) -> None:
    """Print seconds and peak bytes of one form, in this process."""
    attention = FORMS[form]()
    q, k, v = (torch.randn(1, HEADS, T, D_HEAD, dtype=getattr(torch, dtype)).requires_grad_() for _ in range(3))
    dy = torch.randn_like(q)
    few = 512 if form == WRITTEN_OUT else T
    attention(*(x[:, :, :few] for x in (q, k, v))).backward(dy[:, :, :few])  # libraries set themselves up, and compilers compile
    times, grown = [], []
    for _ in range(1 if form == WRITTEN_OUT else REPEATS):
        q.grad = k.grad = v.grad = None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts again
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts over
        before, begin = held("VmRSS"), time.perf_counter()
        attention(q, k, v).backward(dy)
        times.append(time.perf_counter() - begin)
        grown.append(held("VmHWM") - before)
    print(min(times), max(grown))


def run() -> None:
    for dtype in ("float32", "bfloat16"):
        alike = 4 * HEADS * T * D_HEAD * getattr(torch, dtype).itemsize  # q, k and v are there before
        print(f"{dtype}: T {T}, band {BAND}, {HEADS} heads of {D_HEAD}, forward and backward; MB of memory")
        figures = {}
        for form in FORMS:
            if form == TRAINED and dtype == "float32":
                continue  # the trainer's own backward pass is for bf16
            code = f"from tests.benchmarks.banded import measure; measure({form!r}, {dtype!r})"
            seconds, grown = map(
                float, subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
            )
            figures[form] = seconds, grown, grown - alike
            print(f"  {form:<28} {seconds:7.2f} s {grown / 1e6:8,.0f}, of it {(grown - alike) / 1e6:8,.1f} working", flush=True)
        for form in figures:
            if form != BANDED:
                time_share, share, working = (ours / its for ours, its in zip(figures[BANDED], figures[form], strict=True))
                print(f"  banded / {form:<28} time {time_share:.2f}, memory {share:.2f}, working {working:.2f}")
