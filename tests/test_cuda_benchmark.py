"""The parts of `python -m tests.benchmarks cuda` that need no GPU, and the command itself at a tiny
size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PEER = """
import sys, torch
words = dict(word[2:].split("=") for word in sys.argv[1:])
assert sys.argv[0] == "train.py" and words["device"] == "cpu" and words["dataset"] == "bench_random", sys.argv
if int(words["batch_size"]) > 2:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")
for step in range(int(words["max_iters"]) + 1):
    print(f"iter {step}: loss 1.0, time {1000.0 if step < 4 else 100.0}ms, mfu 1%")
"""


@pytest.fixture
def cuda(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    from tests.benchmarks import cuda

    return cuda


def test_the_command_at_a_tiny_size_beside_a_peer(tmp_path):
    """The peer is a stand-in that runs out of memory above two sequences and takes 100 ms a step
    once settled.
    """
    peer = tmp_path / "peer"
    peer.mkdir()
    (peer / "train.py").write_text(PEER)
    words = [
        "cuda",
        "--device",
        "cpu",
        "--sizes",
        "tiny",
        "--steps",
        "6",
        "--out",
        str(tmp_path / "cuda.json"),
    ]
    env = {**os.environ, "NANOGPT": str(peer), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks", *words],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "cuda.json").read_text())
    assert all(row["right"] for row in report["correctness"]), report["correctness"]
    assert len(report["correctness"]) == 4
    assert [row["form"] for row in report["banded"]] == ["mask", "blocks"] * 2
    assert all(row["right"] for row in report["banded"]), report["banded"]
    (row,) = report["sizes"]
    assert "error" not in row
    assert row["gpt"]["tokens_per_second"] > 0
    assert row["gpt"]["mfu"] is None
    assert row["gpt"]["peak_memory"] > 1e8
    assert row["nanogpt"]["micro_batch"] == 2
    assert row["nanogpt"]["tokens_per_second"] == pytest.approx(512 / 0.1)
    assert row["ratio"] == pytest.approx(row["gpt"]["tokens_per_second"] / 5120)
    assert "x nanoGPT: target 1.2x" in done.stdout


def test_every_size_is_the_papers(cuda):
    counts = {name: size.model.parameters for name, size in cuda.SIZES.items() if name != "tiny"}
    assert counts == {
        "124M": 124_439_808, "350M": 355_871_744, "760M": 760_300_032, "1.3B": 1_315_723_264, "1558M": 1_557_611_200,
    }  # fmt: skip
    assert all(size.batch % size.model.n_ctx == 0 for size in cuda.SIZES.values())


def test_targets_are_told_met_or_missed(cuda):
    rows = [
        {"size": "124M", "gpt": {"tokens_per_second": 480e3, "mfu": 0.45}, "ratio": 1.1},
        {"size": "350M", "gpt": {"tokens_per_second": 1e5, "mfu": 0.51}},
        {"size": "760M", "error": "no"},
    ]
    assert cuda.verdicts({"device": "NVIDIA H200", "sizes": rows}) == [
        "124M: 480,000 tokens/s: target 475,000 met",
        "124M: 1.10x nanoGPT: target 1.2x MISSED",
        "350M: MFU 51.0%: target 50% met",
    ]
    assert "failed: no" in cuda.told(rows[2])


def test_mfu_is_flops_over_the_peak(cuda):
    model = cuda.SIZES["124M"].model
    rates = cuda.rates(model, 475_000, 989.5e12)
    assert rates["mfu"] == pytest.approx(
        (6 * 124_439_808 + 12 * 12 * 768 * 1024) * 475_000 / 989.5e12
    )
    assert rates["mfu_causal"] == pytest.approx(
        (6 * 124_439_808 + 6 * 12 * 768 * 1024) * 475_000 / 989.5e12
    )
    assert cuda.rates(model, 1.0, None)["mfu"] is None
