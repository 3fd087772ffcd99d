"""Speed against the peers, as ratios in one run.

    make bench                              everything that can run here
    python -m tests.benchmarks              their names
    python -m tests.benchmarks startup      one of them
    python -m tests.benchmarks cuda --help  training on a CUDA GPU, with options of its own

Peers are measured from a clone of your own, or an environment: NANOGPT=path/to/nanoGPT,
LM_EVAL=path/to/python. Real text comes from GPT_TEST_DATA. Nothing is downloaded. Let the machine
be quiet; quote ratios, never one absolute time.
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import torch

from gptcli.kernels.build import instruction_set
from tests.benchmarks import (
    banded,
    busy,
    cuda,
    data,
    eval_agreement,
    eval_harness,
    kernels,
    sampling,
    serving,
    startup,
    steps,
    training,
)

BENCHMARKS = {
    "startup": startup.run,
    "shakespeare": training.shakespeare,
    "gpt2-124M": training.gpt2_124m,
    "gpt2-steps": steps.run,
    "kernels": kernels.run,
    "banded": banded.run,
    "busy": busy.run,
    "sampling": sampling.run,
    "int8-quality": sampling.quality,
    "serving": serving.run,
    "build-shards": data.build_shards,
    "build-memory": data.build_memory,
    "tokenize-encode": data.tokenize_encode,
    "bpe-training": data.bpe_training,
    "minhash": data.minhash,
    "eval-agreement": eval_agreement.agreement,
    "eval-zero-shot": eval_harness.zero_shot,
    "eval-few-shot": eval_harness.few_shot,
    "eval-shared-shots": eval_harness.shared_shots,
}


def machine() -> str:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = lines[0].split(":", 1)[1].strip() if lines else cpu
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    built_for = instruction_set() or "none, PyTorch runs"
    return f"{cpu}, {torch.get_num_threads()} cores, kernels: {built_for}, {gpu}, Python {platform.python_version()}, torch {torch.__version__}"


if __name__ == "__main__":
    print(f"machine: {machine()}")
    if sys.argv[1:2] == ["cuda"]:
        cuda.main(sys.argv[2:])
        sys.exit()
    names = sys.argv[1:]
    if not names or names[0] in ("-h", "--help"):
        print(f"{__doc__}\nBenchmarks: all, {', '.join(BENCHMARKS)}")
        sys.exit()
    if unknown := [name for name in names if name not in (*BENCHMARKS, "all")]:
        sys.exit(f"no benchmark {unknown[0]!r}: one of all, {', '.join(BENCHMARKS)}")
    for name in BENCHMARKS if "all" in names else names:
        print(f"\n== {name} ==", flush=True)
        BENCHMARKS[name]()
