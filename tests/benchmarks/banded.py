"""A banded attention layer against a dense one: time and memory of forward and backward, each form
in a process of its own.

Memory is how far the process grows at most, pages that it really holds, from q, k and v to their
gradients. The output and the three gradients are in it, which every form has alike: "working" is
without them.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from gptcli.kernels.attention_kernel import available, packed_attend
from gptcli.model.attention import attention, causal_mask
from gptcli.openmp import SPIN_ENVIRONMENT, watch_spinning

# one sequence of GPT-3's smallest width, four times its context
T, BAND, HEADS, D_HEAD = 8192, 256, 12, 64
REPEATS = 2
BANDED = "banded, by blocks"
WRITTEN_OUT = "dense, scores written out"
KERNEL = "banded, our kernel"
# in bf16, q, k and v in one tensor as a layer has them
PACKED = {"dense, our kernel": T, KERNEL: BAND}

Attention = Callable[..., torch.Tensor]


def written_out(q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> torch.Tensor:
    """The formula as the papers have it, all scores in memory."""
    T = q_BHTD.shape[2]
    scores_BHTT = (q_BHTD @ k_BHTD.mT / math.sqrt(q_BHTD.shape[3])).masked_fill(
        ~causal_mask(T, T, None, q_BHTD.device), -math.inf
    )
    return scores_BHTT.softmax(-1) @ v_BHTD


def packed(band: int | None) -> Attention:
    return lambda qkv: packed_attend(qkv, band)[0].transpose(1, 2)


FORMS: dict[str, Callable[[], Attention]] = {
    WRITTEN_OUT: lambda: written_out,
    "dense, torch's flash kernel": lambda: lambda q, k, v: attention(q, k, v),
    BANDED: lambda: lambda q, k, v: attention(q, k, v, band=BAND),
    **{form: partial(packed, band) for form, band in PACKED.items()},
}


def held(which: str) -> int:
    """Bytes of memory that this process has ("VmRSS"), or has had at most ("VmHWM")."""
    found = re.search(rf"{which}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


def measure(form: str, dtype: str) -> None:
    """Print seconds and peak bytes of one form, in this process."""
    watch_spinning()
    attention = FORMS[form]()
    shapes = [(1, T, HEADS, 3, D_HEAD)] if form in PACKED else [(1, HEADS, T, D_HEAD)] * 3
    inputs = [torch.randn(shape, dtype=getattr(torch, dtype)).requires_grad_() for shape in shapes]
    dy = torch.randn(1, HEADS, T, D_HEAD, dtype=getattr(torch, dtype))
    few = 512 if form == WRITTEN_OUT else T
    # libraries set themselves up
    attention(*(x if form in PACKED else x[:, :, :few] for x in inputs)).backward(dy[:, :, :few])
    times, grown = [], []
    for _ in range(1 if form == WRITTEN_OUT else REPEATS):
        for x in inputs:
            x.grad = None
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back, so that it counts again
        Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts over
        before, begin = held("VmRSS"), time.perf_counter()
        attention(*inputs).backward(dy)
        times.append(time.perf_counter() - begin)
        grown.append(held("VmHWM") - before)
    print(min(times), max(grown))


def run() -> None:
    for dtype in ("float32", "bfloat16"):
        # q, k and v are there before
        alike = 4 * HEADS * T * D_HEAD * getattr(torch, dtype).itemsize
        print(
            f"{dtype}: T {T}, band {BAND}, {HEADS} heads of {D_HEAD}, forward and backward; MB of memory"
        )
        figures = {}
        for form in FORMS:
            if form in PACKED and dtype == "float32":
                continue
            if form in PACKED and not available():
                print(f"  {form:<28} not measured: it cannot be built here")
                continue
            code = f"from tests.benchmarks.banded import measure; measure({form!r}, {dtype!r})"
            seconds, grown = map(
                float,
                subprocess.run(
                    [sys.executable, "-c", code],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**SPIN_ENVIRONMENT, **os.environ},
                ).stdout.split(),
            )
            figures[form] = seconds, grown, grown - alike
            print(
                f"  {form:<28} {seconds:7.2f} s {grown / 1e6:8,.0f}, of it {(grown - alike) / 1e6:8,.1f} working",
                flush=True,
            )
        for banded in (BANDED, KERNEL):
            for form in figures:
                if banded in figures and form.startswith("dense"):
                    time_share, share, working = (
                        ours / its for ours, its in zip(figures[banded], figures[form], strict=True)
                    )
                    print(
                        f"  {banded} / {form:<28} time {time_share:.2f}, memory {share:.2f}, working {working:.2f}"
                    )
