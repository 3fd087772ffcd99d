"""Train nanoGPT, from a checkout, on the shards of this comparison, once for each seed.

    python nanogpt.py CHECKOUT out/shards out/nanogpt 3

It gets the paper's recipe of the Makefile: the same architecture, batch and kind of schedule, and the
same validation text, of which it draws windows at random. Its rate is the best of three that were
tried, and its run is longer, as it needs more tokens. Its log becomes metrics.jsonl, so that
`tokens_to_target.py` reads it as it does our runs.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from gptcli.shards.manifest import Split, read_manifest
from gptcli.shards.order import open_split

TOKENS, BATCH, N_CTX, LR, WARMUP_TOKENS, EVAL_EVERY = 700_000, 16, 128, 2.5e-3, 50_000, 20
EVAL_TOKENS = 8_000
STEPS = TOKENS // (BATCH * N_CTX)
OPTIONS = {
    "dataset": "shards", "device": "cpu", "compile": False, "n_layer": 4, "n_head": 4,
    "n_embd": 128, "block_size": N_CTX, "bias": True, "dropout": 0.0, "batch_size": BATCH,
    "gradient_accumulation_steps": 1, "learning_rate": LR, "min_lr": LR / 10, "max_iters": STEPS,
    "lr_decay_iters": STEPS, "warmup_iters": WARMUP_TOKENS // (BATCH * N_CTX), "weight_decay": 0.1,
    "eval_interval": EVAL_EVERY, "eval_iters": 8, "always_save_checkpoint": False,
}  # fmt: skip


def main() -> None:
    """Write data, run the seeds, and convert their logs."""
    checkout, shards, out, seeds = (
        Path(sys.argv[1]),
        Path(sys.argv[2]),
        Path(sys.argv[3]),
        sys.argv[4],
    )
    work = out / "checkout"
    shutil.rmtree(work, ignore_errors=True)
    (work / "data" / "shards").mkdir(parents=True)
    for name in ("model.py", "configurator.py"):
        shutil.copy(checkout / name, work)
    counts: dict[Split, int | None] = {"train": None, "val": EVAL_TOKENS + 1}
    for split, count in counts.items():
        tokens = open_split(shards, split)[:count].astype(np.uint16)
        tokens.tofile(work / "data" / "shards" / f"{split}.bin")
    with open(work / "data" / "shards" / "meta.pkl", "wb") as file:
        pickle.dump({"vocab_size": read_manifest(shards).vocab_size}, file)
    text = (checkout / "train.py").read_text(encoding="utf-8")
    words = [f"--{name}={value}" for name, value in OPTIONS.items()]
    threads = max(1, (os.cpu_count() or 1) // int(seeds))  # the seeds are trained side by side
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started = []
    for seed in range(int(seeds)):
        folder = out.resolve() / f"seed-{seed}"
        folder.mkdir(exist_ok=True)
        script = work / f"train_{seed}.py"
        script.write_text(text.replace("1337", str(1337 + seed)), encoding="utf-8")
        command = [sys.executable, script.name, *words, f"--out_dir={folder}"]
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            started.append((folder, subprocess.Popen(command, cwd=work, stdout=log, env=env)))
    for folder, process in started:
        if process.wait():
            sys.exit(f"nanoGPT failed in {folder}")
        lines = metrics((folder / "log.txt").read_text(encoding="utf-8"))
        (folder / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "seeds.json").write_text("{}\n", encoding="utf-8")


def metrics(log: str) -> list[str]:
    """Return a line of metrics for each step of nanoGPT's log, with the loss measured after it."""
    steps = re.findall(r"^iter (\d+): loss ([\d.]+), time ([\d.]+)ms", log, re.M)
    measured = dict(re.findall(r"^step (\d+): .*val loss ([\d.]+)", log, re.M))
    usual = statistics.median(float(milliseconds) for *_, milliseconds in steps)  # some evaluate
    lines = []
    for number, loss, _ in steps[:STEPS]:
        step, tokens = int(number) + 1, BATCH * N_CTX
        line = {
            "step": step,
            "tokens": step * tokens,
            "loss": float(loss),
            "batch_tokens": tokens,
            "tokens_per_second": tokens / (usual / 1000),
        }
        if (val := measured.get(str(step))) is not None:
            line["val_loss"] = float(val)
        lines.append(json.dumps(line) + "\n")
    return lines


if __name__ == "__main__":
    main()
