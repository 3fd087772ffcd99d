"""Task scores and their speed beside lm-evaluation-harness with its transformers backend: same weights, same items, fp32, on a CPU.

    LM_EVAL=path/to/python GPT_TEST_DATA=... python -m tests.benchmarks eval-agreement eval-zero-shot eval-few-shot eval-shared-shots

LM_EVAL is the Python of an environment of its own that has lm_eval (measured with 0.4.13). It gets the very strings that our questions
consist of, and encodes, batches and scores them itself. Each side runs in a process of its own, so that its peak memory is its own; loading
the model is not timed. ITEMS changes how many items are measured. The model is random but for RUN=folder, which changes no speed.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gptcli.evals.questions import Question, ask
from gptcli.evals.runner import Options, run_task
from gptcli.evals.running import text_questions
from gptcli.evals.shots import Protocol
from gptcli.evals.task import Task, read_items, read_task
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.model.weights import load_model, save_model
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer

HEAD = 'title = "t"\nsource = "s"\nfiles = {items = "items.jsonl"}\nreader = "jsonl"\n'
CHOICE = HEAD + 'kind = "choice"\nprompt = "{query}"\nchoices = "choices"\ngold = "gold"\nnormalise = "sum"\n'
TASKS = {
    "lambada": HEAD + 'kind = "last_word"\nprompt = "{text}"\n',
    "hellaswag": CHOICE,
    "arc_easy": CHOICE,
    "arc_challenge": CHOICE,
    "boolq": CHOICE.replace('"choices"', '["no", "yes"]'),
    "winogrande": HEAD + 'kind = "partial"\ncontexts = "contexts"\ntarget = "{target}"\ngold = "gold"\nnormalise = "sum"\n',
    "wikitext2": HEAD + 'kind = "text"\ntarget = "{text}"\nmetric = ["perplexity"]\n',
}
THEIRS = """
import json, pathlib, re, sys, time
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
asked = json.load(sys.stdin)
torch.set_num_threads(asked["threads"])
model = HFLM(pretrained=asked["folder"], device="cpu", dtype="float32", batch_size=asked["batch"])
kind = "loglikelihood" if asked["pairs"] else "loglikelihood_rolling"
requests = [Instance(kind, {}, tuple(one), 0) for one in asked["pairs"] or [[text] for text in asked["texts"]]]
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", pathlib.Path("/proc/self/status").read_text())[1])
loaded, begin = peak(), time.perf_counter()
found = getattr(model, kind)(requests)
seconds, peak = time.perf_counter() - begin, peak()
found = [one if isinstance(one, tuple) else (one, False) for one in found]
print("\\n" + json.dumps({"found": found, "seconds": seconds, "loaded": loaded, "peak": peak}))
"""


def rows(name: str, data: Path) -> Iterator[dict[str, Any]]:
    """The items of a set as the fields of `TASKS`; prompts as lm-evaluation-harness has them."""
    if name == "hellaswag":
        lines = bz2.decompress((data / "hellaswag" / "hellaswag_val_full.txt.bz2").read_bytes()).decode().splitlines()
        for at in range(0, len(lines), 6):
            yield {"query": lines[at], "gold": int(lines[at + 1]), "choices": lines[at + 2 : at + 6]}
    elif name == "wikitext2":
        yield {"text": (data / "wikitext-2" / "test.txt").read_text(encoding="utf-8")}
    elif name == "winogrande":
        for row in read_lines(data / "winogrande" / "val.jsonl"):
            before, _, after = row["sentence"].partition("_")
            contexts = [before + row["option1"], before + row["option2"]]
            yield {"contexts": contexts, "target": " " + after.strip(), "gold": int(row["answer"]) - 1}
    else:
        path = {"lambada": "lambada/lambada_test", "arc_easy": "arc/easy_test", "arc_challenge": "arc/challenge_test", "boolq": "boolq/val"}
        yield from read_lines(data / f"{path[name]}.jsonl")


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())


def prepare(name: str, folder: Path, data: Path) -> Task:
    """The set's task and its items in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.toml").write_text(TASKS[name])
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(name, data)))
    return read_task(folder / f"{name}.toml")


def questions_of(task: Task, folder: Path, tokenizer: Tokenizer, n_ctx: int, options: Options) -> list[Question]:
    items = read_items(task, folder / "items.jsonl", options.limit if task.kind != "text" else None)
    if task.kind == "text":
        return text_questions(task, items, tokenizer, n_ctx, n_ctx)[0][: options.limit]
    return ask(task, items, tokenizer, n_ctx, options.protocol, folder / "items.jsonl", folder).questions


def theirs(folder: Path, questions: list[Question], tokenizer: Tokenizer, kind: str, batch: int) -> dict[str, Any]:
    """What lm-evaluation-harness measures of the same strings; one entry of "found" for each pair."""
    pairs = [[tokenizer.decode(side.tolist()) for side in pair] for question in questions for pair in question.pairs]
    texts = []
    if kind == "text":  # one text of whole windows: of the last, shorter one, it would take more context than ours
        tokens = [token for question in questions for token in question.pairs[0][1].tolist()]
        pairs, texts = [], [tokenizer.decode(tokens)]
        assert tokenizer.encode(texts[0]) == tokens
    asked = {"folder": str(folder), "batch": batch, "threads": torch.get_num_threads(), "pairs": pairs, "texts": texts}
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
    done = subprocess.run(
        [os.environ["LM_EVAL"], "-c", THEIRS], input=json.dumps(asked), capture_output=True, text=True, env=environment
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def ours(folder: Path, task: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What `run_task` measures, in a process of its own."""
    asked = json.dumps({"folder": str(folder), "task": str(task), "threads": torch.get_num_threads(), **options})
    done = subprocess.run([sys.executable, "-m", __name__, asked], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _ours(asked: dict[str, Any]) -> None:
    torch.set_num_threads(asked["threads"])
    model, tokenizer = load_model(Path(asked["folder"])), load_tokenizer(asked["folder"])
    options = Options(protocol=Protocol(**asked["protocol"]), limit=asked["limit"], batch_size=asked.get("batch"))
    loaded, begin = peak_memory(), time.perf_counter()
    results, records = run_task(model, tokenizer, read_task(Path(asked["task"])), Path(asked["task"]).parent, options)
    seconds, peak = time.perf_counter() - begin, peak_memory()
    found = {"records": records, "result": results[0].as_dict(), "seconds": seconds, "loaded": loaded, "peak": peak}
    print(json.dumps(found))


def peak_memory() -> int:
    """Of this process, in kB; getrusage would count what its parent held too."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1])


def random_model(folder: Path, data: Path, **config: int) -> None:
    """A GPT-2 of random weights, large enough that its predictions differ, with GPT-2's vocabulary."""
    tokenizer = load_tokenizer(data / "gpt2-vocab")
    model = GPT(ModelConfig(**config))
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


def agreement() -> None:
    """Shows that counts and log-likelihoods are the same on seven sets."""
    if (where := place()) is None:
        return
    data, scratch = where
    folder = model_folder(scratch, data, n_layer=4, n_head=4, d_model=128, n_ctx=1024)
    tokenizer = load_tokenizer(folder)
    n_ctx = load_model(folder).config.n_ctx
    limit = int(os.environ.get("ITEMS", "100"))
    for name in os.environ.get("SETS", ",".join(TASKS)).split(","):
        task = prepare(name, scratch / name, data)
        options = Options(limit=min(limit, 8) if task.kind == "text" else limit)
        made = ours(folder, scratch / name / f"{name}.toml", {"protocol": {}, "limit": options.limit})
        questions = questions_of(task, scratch / name, tokenizer, n_ctx, options)
        other = theirs(folder, questions, tokenizer, task.kind, batch=8)
        print(f"{name:>14}: {compare(task, made['records'], other['found'])}", flush=True)


def compare(task: Task, records: list[dict[str, Any]], found: list[list[Any]]) -> str:
    """Correct counts of both sides, by the rules that both have, and the largest difference of log-likelihoods."""
    if task.kind == "text":
        total = sum(record["log_prob"] for record in records)
        return f"{len(records)} windows, log-likelihood {total:.4f} and {found[0][0]:.4f}"
    if task.kind == "last_word":
        mine, right = [sum(record["log_probs"]) for record in records], [all(record["likeliest"]) for record in records]
        worst = max(abs(one - other) for one, (other, _) in zip(mine, found, strict=True))
        return f"{len(records)} items, right {sum(right)} and {sum(greedy for _, greedy in found)}, largest difference {worst:.1e}"
    counts, worst, at = {"sum": [0, 0], "character": [0, 0]}, 0.0, 0
    for record in records:
        log_prob_K = np.array([log_prob for log_prob, _ in found[at : at + len(record["log_probs"])]])
        at += len(log_prob_K)
        worst = max(worst, float(np.abs(log_prob_K - record["log_probs"]).max()))
        for rule, divisor in (("sum", 1), ("character", np.array(record["characters"]))):
            counts[rule][0] += int((np.array(record["log_probs"]) / divisor).argmax()) in record["gold"]
            counts[rule][1] += int((log_prob_K / divisor).argmax()) in record["gold"]
    told = ", ".join(f"{rule} {one} and {other}" for rule, (one, other) in counts.items())
    return f"{len(records)} items, right by {told}, largest difference {worst:.1e}"


def zero_shot() -> None:
    speed({}, items=60, batch=4)


def few_shot() -> None:
    speed({"shots": 20}, items=3, batch=1)


def shared_shots() -> None:
    speed({"shots": 20, "shared": True}, items=6, batch=1)


def speed(protocol: dict[str, Any], items: int, batch: int) -> None:
    """HellaSwag on 124M parameters; contexts of 2,048 tokens, so that 20 shots fit."""
    if (where := place()) is None:
        return
    data, scratch = where
    folder = model_folder(scratch, data, n_layer=12, n_head=12, d_model=768, n_ctx=2048)
    tokenizer, limit = load_tokenizer(folder), int(os.environ.get("ITEMS", items))
    task = prepare("hellaswag", scratch / "hellaswag", data)
    lines = (scratch / "hellaswag" / "items.jsonl").read_text().splitlines(keepends=True)
    train = scratch / "hellaswag" / "train.jsonl"  # the last items serve as the shots
    train.write_text("".join(lines[-500:]))
    toml = scratch / "hellaswag" / "hellaswag.toml"
    toml.write_text(TASKS["hellaswag"].replace('"items.jsonl"', '"items.jsonl", shots = "train.jsonl"'))
    task = read_task(toml)
    options = Options(protocol=Protocol(**protocol), limit=limit)
    questions = questions_of(task, scratch / "hellaswag", tokenizer, 2048, options)
    made = ours(folder, toml, {"protocol": protocol, "limit": limit})
    other = theirs(folder, questions, tokenizer, task.kind, batch)
    print(
        f"{limit} items, K {made['result']['mean_shots']:.1f}: {made['seconds']:.1f} s, lm-evaluation-harness {other['seconds']:.1f} s: ",
        end="",
    )
    print(f"{other['seconds'] / made['seconds']:.2f} times as fast")
    print(f"  {compare(task, made['records'], other['found'])}")
    megabytes = [f"{side['peak'] / 1024:.0f} MB ({(side['peak'] - side['loaded']) / 1024:.0f} above the model's)" for side in (made, other)]
    print(f"  peak memory {megabytes[0]} and {megabytes[1]}", flush=True)


if __name__ == "__main__":
    _ours(json.loads(sys.argv[1]))
