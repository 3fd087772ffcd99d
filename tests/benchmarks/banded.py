"""A banded attention layer against a dense one: time and memory of forward and backward, each form in a process of its own.

"working memory" is what the process grew by beyond q, k, v, the output and their gradients, which every form has alike.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import time

import torch

from gptcli.model.attention import attend, causal_mask

T, BAND, HEADS, D_HEAD = 8192, 256, 12, 64  # one sequence of GPT-3's smallest width, four times its context
REPEATS = 2


def written_out(q_BHTD: torch.Tensor, k_BHTD: torch.Tensor, v_BHTD: torch.Tensor) -> torch.Tensor:
    """The formula as the papers have it, all scores in memory."""
    T = q_BHTD.shape[2]
    scores_BHTT = (q_BHTD @ k_BHTD.mT / math.sqrt(q_BHTD.shape[3])).masked_fill(~causal_mask(T, T, None, q_BHTD.device), -math.inf)
    return scores_BHTT.softmax(-1) @ v_BHTD


FORMS = {
    "dense, scores written out": written_out,
    "dense, torch's flash kernel": lambda q, k, v: attend(q, k, v),
    "banded, by blocks": lambda q, k, v: attend(q, k, v, band=BAND),
}


def measure(form: str, dtype: str) -> None:
    """Print seconds and peak bytes of one form, in this process."""
    attention = FORMS[form]
    q, k, v = (torch.randn(1, HEADS, T, D_HEAD, dtype=getattr(torch, dtype)).requires_grad_() for _ in range(3))
    dy = torch.randn_like(q)
    attention(*(x[:, :, :512] for x in (q, k, v))).backward(dy[:, :, :512])  # libraries set themselves up
    q.grad = k.grad = v.grad = None
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(1 if form.endswith("out") else REPEATS):
        begin = time.perf_counter()
        attention(q, k, v).backward(dy)
        times.append(time.perf_counter() - begin)
        q.grad = k.grad = v.grad = None
    print(min(times), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


def run() -> None:
    for dtype in ("float32", "bfloat16"):
        alike = 4 * HEADS * T * D_HEAD * getattr(torch, dtype).itemsize  # the output and three gradients; q, k and v are there before
        print(f"{dtype}: T {T}, band {BAND}, {HEADS} heads of {D_HEAD}, forward and backward")
        figures = {}
        for form in FORMS:
            code = f"from tests.benchmarks.banded import measure; measure({form!r}, {dtype!r})"
            seconds, grown = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
            figures[form] = float(seconds), float(grown)
            print(
                f"  {form:<28} {float(seconds):7.2f} s   {float(grown) / 1e6:8,.0f} MB, of it {(float(grown) - alike) / 1e6:8,.0f} working"
            )
        ours = figures["banded, by blocks"]
        for form in list(FORMS)[:2]:
            print(f"  banded / {form:<28} time {ours[0] / figures[form][0]:.2f}, memory {ours[1] / figures[form][1]:.2f}")
