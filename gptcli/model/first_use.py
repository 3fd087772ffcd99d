"""What a process does once, before its work."""

from __future__ import annotations

import ctypes
import sys

import torch

MANY = 1 << 17  # elements: enough for every thread to get a share
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h


def settle_math() -> None:
    """Call the CPU's vector functions once, by one thread and then by all.

    Where two threads of a process make its first call together, exp now and then comes out with
    other last bits (seen in 14 of 500 processes, a relative 1e-5, with MKL's vector math; in none
    of 330 after this). A run that was resumed would not be the whole run.
    """
    for function in (torch.exp, torch.log, torch.tanh, torch.erf, torch.sqrt, torch.sin, torch.cos):
        for dtype in (torch.float32, torch.float64):
            function(torch.ones(1, dtype=dtype))
            function(torch.ones(MANY, dtype=dtype))


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks for the next tensor. It would give each back to the
    system, and a CPU would spend a tenth of its time and more on getting zeroed pages again."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
