"""The kernel in Triton's interpreter equals fp32 products, and PyTorch computes everything else.

Triton reads TRITON_INTERPRET when it is imported, so the comparison runs in a process of its own:
this file as a program.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from gptcli.kernels import few_rows_triton
from gptcli.kernels.few_rows_triton import few_rows_linear, launch, outputs_per_program

SHAPES = [(1, 64, 40), (3, 33, 7), (8, 1500, 17)]


def compare() -> int:
    """Compare the kernel with fp64 at odd shapes; return the number of comparisons."""
    torch.manual_seed(0)
    done = 0
    for (R, K, N), dtype, int8, gelu, has_bias in itertools.product(
        SHAPES, (torch.float32, torch.bfloat16), *[(False, True)] * 3
    ):
        x, bias = torch.randn(R, K).to(dtype), torch.randn(N)
        weight, scale = torch.randn(N, K).to(dtype), None
        if int8:
            weight, scale = torch.randint(-127, 128, (N, K), dtype=torch.int8), torch.rand(N) / 99
        exact = x.double() @ weight.double().T * (1.0 if scale is None else scale.double())
        exact = exact + bias if has_bias else exact
        exact = F.gelu(exact, approximate="tanh") if gelu else exact
        y, _ = launch(x, weight, scale, bias if has_bias else None, gelu)
        assert y.dtype == dtype
        # as close as the result in the type of x, which the interpreter rounds towards zero
        rounding = 2**-7 if dtype == torch.bfloat16 else 1e-6
        assert (y - exact).abs().max() <= rounding * exact.abs().max(), (R, K, N, dtype, int8)
        done += 1
    return done


def test_products_equal_fp32() -> None:
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (the extra dev has it for Linux on x86-64)")
    done = subprocess.run(
        [sys.executable, "-m", "tests.kernels.test_few_rows_triton"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 8 * 2 * len(SHAPES)


def test_other_operands_go_to_pytorch() -> None:
    """Off the GPU there is no kernel, whatever the operands."""
    assert few_rows_linear(torch.ones(1, 8), torch.ones(4, 8), None, None, False) is None


@pytest.mark.parametrize("N", [1, 7, 768, 2304, 3072, 50_257])
def test_small_layers_have_enough_programs(N: int) -> None:
    size = outputs_per_program(N)
    assert size & (size - 1) == 0
    assert size == 2 or N // size >= few_rows_triton.MIN_PROGRAMS


if __name__ == "__main__":
    print(compare())
