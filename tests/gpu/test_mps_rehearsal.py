"""Training and decoding keep to an Apple GPU, and to what it has, on one that is not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch

from tests.gpu.conftest import ROOT
from tests.waiting import HANG_S


@pytest.mark.skipif(
    sys.platform != "linux" or shutil.which("g++") is None,
    reason="builds the device that is not there with g++",
)
@pytest.mark.skipif(torch.backends.mps.is_built(), reason="this PyTorch has mps itself")
def test_training_stays_on_the_gpu_and_tokens_are_drawn_on_the_cpu() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu.mps_rehearsal"],
        cwd=ROOT, capture_output=True, text=True, timeout=HANG_S, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert len(report) == 9
    for name, devices in report.items():
        assert set(devices) == {"cpu" if name.startswith("decode") else "mps"}, name
