"""Task scores' speed and memory beside lm-evaluation-harness with its transformers backend: same
weights, same items, fp32, on a CPU.

    LM_EVAL=path/to/python GPT_TEST_DATA=... python -m tests.benchmarks eval-zero-shot eval-few-shot
    eval-shared-shots

LM_EVAL is the Python of an environment of its own that has lm_eval (measured with 0.4.13). It gets
the very strings that our requests consist of, and encodes, batches and scores them itself. Each
side runs in a process of its own, so that its peak memory is its own; loading the model is not
timed. ITEMS changes how many items are measured. The model is random but for RUN=folder, which
changes no speed.
"""

from __future__ import annotations

import bz2
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptcli.evals.check import EvalOptions
from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.requests import build_task_requests
from gptcli.evals.runner import run_task
from gptcli.evals.task import TASKS_DIR, read_task
from gptcli.model.config import ModelConfig
from gptcli.model.safetensors_io import save_model
from gptcli.model.transformer import GPT
from gptcli.sampling.load import load
from gptcli.tokenizer.load import load_tokenizer

SHOTS_FROM = 500  # the last items of the set serve as the shots
THEIRS = """
import json, pathlib, re, sys, time
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
asked = json.load(sys.stdin)
torch.set_num_threads(asked["threads"])
model = HFLM(pretrained=asked["folder"], device="cpu", dtype="float32", batch_size=asked["batch"])
requests = [Instance("loglikelihood", {}, tuple(pair), 0) for pair in asked["pairs"]]
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
loaded, begin = peak(), time.perf_counter()
found = model.loglikelihood(requests)
seconds, peak = time.perf_counter() - begin, peak()
print("\\n" + json.dumps({"found": found, "seconds": seconds, "loaded": loaded, "peak": peak}))
"""


def run_theirs(program: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Return the output of a program in lm-evaluation-harness's environment; it reads `asked` and
    writes one line of JSON.
    """
    offline = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": tempfile.mkdtemp(),
        "TOKENIZERS_PARALLELISM": "false",
    }
    environment = {**os.environ, **offline, "PYTHONPATH": ""}
    request = json.dumps({"threads": torch.get_num_threads(), **asked})
    done = subprocess.run(
        [os.environ["LM_EVAL"], "-c", program],
        input=request,
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ours(folder: Path, task: Path, data: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Return the measurements of `run_task`, in a process of its own."""
    asked = json.dumps(
        {
            "folder": str(folder),
            "task": str(task),
            "data": str(data),
            "threads": torch.get_num_threads(),
            **options,
        }
    )
    done = subprocess.run([sys.executable, "-m", __name__, asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _ours(asked: dict[str, Any]) -> None:
    torch.set_num_threads(asked["threads"])
    loaded = load(Path(asked["folder"]), device="cpu", precision="fp32")
    options = EvalOptions(fewshot=FewShotConfig(**asked.get("fewshot", {})), limit=asked["limit"])
    peak_loaded, begin = peak_memory(), time.perf_counter()
    results, records = run_task(
        loaded.model, loaded.tokenizer, read_task(Path(asked["task"])), Path(asked["data"]), options
    )
    seconds, peak = time.perf_counter() - begin, peak_memory()
    found = {
        "records": records,
        "result": results[0].as_dict(),
        "seconds": seconds,
        "loaded": peak_loaded,
        "peak": peak,
    }
    print(json.dumps(found))


def peak_memory() -> int:
    """Return the peak memory of this process, in kB; getrusage counts its parent's too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def random_model(folder: Path, data: Path, **config: int) -> None:
    """A GPT-2 of random weights, large enough that its predictions differ, with GPT-2's
    vocabulary.
    """
    tokenizer = load_tokenizer(data / "gpt2-vocab")
    fields: dict[str, Any] = dict(config)
    model = GPT(ModelConfig(**fields))
    model.init_weights(0)
    model.wte.weight.data *= 4
    save_model(folder, model, model.config, eot_id=tokenizer.eot_id)
    tokenizer.save(folder / "tokenizer.json")


def place() -> tuple[Path, Path] | None:
    """The real data and a scratch folder; None where what is needed is not there."""
    if "LM_EVAL" not in os.environ or "GPT_TEST_DATA" not in os.environ:
        print("needs LM_EVAL, a Python with lm_eval, and GPT_TEST_DATA")
        return None
    return Path(os.environ["GPT_TEST_DATA"]), Path(tempfile.mkdtemp())


def model_folder(scratch: Path, data: Path, **config: int) -> Path:
    if "RUN" in os.environ:
        return Path(os.environ["RUN"])
    random_model(scratch / "model", data, **config)
    return scratch / "model"


def zero_shot() -> None:
    speed({}, items=60, batch=4)


def few_shot() -> None:
    speed({"shots": 20}, items=3, batch=1)


def shared_shots() -> None:
    speed({"shots": 20, "shared": True}, items=6, batch=1)


def speed(fewshot: dict[str, Any], items: int, batch: int) -> None:
    """HellaSwag on 124M parameters; contexts of 2,048 tokens, so that 20 shots fit."""
    if (where := place()) is None:
        return
    data, scratch = where
    folder = model_folder(scratch, data, n_layer=12, n_head=12, d_model=768, n_ctx=2048)
    tokenizer, limit = load_tokenizer(folder), int(os.environ.get("ITEMS", items))
    lines = (
        bz2.decompress((data / "hellaswag" / "hellaswag_val_full.txt.bz2").read_bytes())
        .decode()
        .splitlines(keepends=True)
    )
    (scratch / "hellaswag_val.txt").write_text("".join(lines[: 6 * limit]))  # six lines an item
    (scratch / "hellaswag_train.txt").write_text("".join(lines[-6 * SHOTS_FROM :]))
    toml = TASKS_DIR / "hellaswag.toml"
    requests = build_task_requests(
        read_task(toml),
        tokenizer,
        2048,
        scratch / "hellaswag_val.txt",
        scratch,
        FewShotConfig(**fewshot),
        limit=limit,
    ).requests
    made = ours(folder, toml, scratch, {"fewshot": fewshot, "limit": limit})
    pairs = [
        [tokenizer.decode(side.tolist()) for side in pair]
        for request in requests
        for pair in request.pairs
    ]
    other = run_theirs(THEIRS, {"folder": str(folder), "batch": batch, "pairs": pairs})
    print(
        f"{limit} items, K {made['result']['mean_shots']:.1f}: {made['seconds']:.1f} s, lm-evaluation-harness {other['seconds']:.1f} s: ",
        end="",
    )
    print(f"{other['seconds'] / made['seconds']:.2f} times as fast")
    mine = np.concatenate([record["log_probs"] for record in made["records"]])
    print(
        f"  log-likelihoods differ by {np.abs(mine - [log_prob for log_prob, _ in other['found']]).max():.1e} at most"
    )
    megabytes = [
        f"{side['peak'] / 1024:.0f} MB ({(side['peak'] - side['loaded']) / 1024:.0f} above the model's)"
        for side in (made, other)
    ]
    print(f"  peak memory {megabytes[0]} and {megabytes[1]}", flush=True)


if __name__ == "__main__":
    _ours(json.loads(sys.argv[1]))
