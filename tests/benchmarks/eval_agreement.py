"""Our tasks beside lm-evaluation-harness's own on the same local copies of seven sets: same
strings, right counts, log-likelihoods.

    LM_EVAL=path/to/python GPT_TEST_DATA=... [RUN=folder] [ITEMS=100] [SETS=lambada,boolq] python -m
    tests.benchmarks eval-agreement

Each side has its own definition of a task: ours is gptcli/evals/tasks/NAME.toml, theirs the YAML
that it comes with. It makes the prompts, encodes, batches and scores by itself. Where the
definitions differ, our file says so in its note; here such items are counted apart.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.formats import READERS
from gptcli.evals.formats.tables import table_rows
from gptcli.evals.requests import Request, build_task_requests
from gptcli.evals.task import TASKS_DIR, Task, find_task, read_task
from gptcli.model.hf import read_model_config
from gptcli.tokenizer.load import load_tokenizer
from tests.benchmarks.eval_harness import model_folder, ours, place, run_theirs

SETS = {  # our task: the local copy, and their definition
    "lambada": ("lambada/lambada_test.jsonl", "lambada/lambada_openai.yaml"),
    "hellaswag": ("hellaswag/hellaswag_val_full.txt.bz2", "hellaswag/hellaswag.yaml"),
    "arc_easy": ("arc/easy_test.jsonl", "arc/arc_easy.yaml"),
    "arc_challenge": ("arc/challenge_test.jsonl", "arc/arc_challenge.yaml"),
    "winogrande": ("winogrande/val.jsonl", "winogrande/default.yaml"),
    "boolq": ("boolq/val.jsonl", "super_glue/boolq/default.yaml"),
    "wikitext2": ("wikitext-2/test.txt", "wikitext/wikitext.yaml"),
}
PAGES = 2  # of WikiText
THEIRS = """
import json, pathlib, sys
import lm_eval, torch
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks._yaml_loader import load_yaml
asked = json.load(sys.stdin)
torch.set_num_threads(asked["threads"])
model = HFLM(pretrained=asked["folder"], device="cpu", dtype="float32", batch_size=8)
config = load_yaml(pathlib.Path(lm_eval.__file__).parent / "tasks" / asked["yaml"])
config = {key: value for key, value in config.items() if not key.endswith("_split")}
config |= {"test_split": "test", "dataset_path": "json", "dataset_name": None}
config["dataset_kwargs"] = {"data_files": {"test": asked["documents"]}}
done = lm_eval.simple_evaluate(model, tasks=[ConfigurableTask(config=config)], bootstrap_iters=0)
[samples], [results] = done["samples"].values(), done["results"].values()
cut = model._loglikelihood_tokens([(None, *pair) for pair in asked["cut"]]) if asked["cut"] else []
rolling = []
for model.softmax_dtype in (None, torch.float64) if asked["text"] else ():
    rolling += model.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (asked["text"],), 0)])
results = {key: value for key, value in results.items() if isinstance(value, float)}
print("\\n" + json.dumps({"samples": samples, "results": results, "cut": cut, "rolling": rolling}, default=str))
"""


def agreement() -> None:
    """Shows that counts and log-likelihoods are the same."""
    if (where := place()) is None:
        return
    data, scratch = where
    folder = model_folder(scratch, data, n_layer=4, n_head=4, d_model=128, n_ctx=1024)
    tokenizer, n_ctx = load_tokenizer(folder), read_model_config(folder).n_ctx
    limit = int(os.environ.get("ITEMS", "100"))
    for name in os.environ.get("SETS", ",".join(SETS)).split(","):
        task, mine, documents = prepare(name, data, scratch / name, limit)
        count = None if task.kind == "text" else limit
        requests = build_task_requests(
            task, tokenizer, n_ctx, mine, None, FewShotConfig(), limit=count
        ).requests
        made = ours(folder, scratch / name / f"{name}.toml", mine, {"limit": count})
        asked: dict[str, Any] = {
            "yaml": SETS[name][1],
            "documents": str(documents),
            "cut": [],
            "text": "",
        }
        # whole windows: of the last, shorter one, it would take more context than ours
        if task.kind == "text":
            asked["text"] = tokenizer.decode(
                [token for request in requests[:-1] for token in request.pairs[0][1].tolist()]
            )
        asked["cut"] = [
            [side.tolist() for side in pair]
            for request in requests
            if request.truncated
            for pair in request.pairs
        ]
        other = run_theirs(THEIRS, {"folder": str(folder), **asked})
        print(
            f"{name:>14}: {_text(made, other) if task.kind == 'text' else _items(requests, made['records'], other)}",
            flush=True,
        )


def prepare(name: str, data: Path, folder: Path, limit: int) -> tuple[Task, Path, Path]:
    """Our task, the file that it reads, and the same items as the documents that their task has
    from the hub.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, toml = data / SETS[name][0], (TASKS_DIR / f"{name}.toml").read_text(encoding="utf-8")
    if name == "boolq":  # the difference that its note names
        toml = toml.replace("question: {question}?\\nanswer:", "Question: {question}?\\nAnswer:")
    (folder / f"{name}.toml").write_text(toml, encoding="utf-8")
    rows = [
        row
        for row, _ in zip(
            _documents(name, path), range(PAGES if name == "wikitext2" else limit), strict=False
        )
    ]
    (folder / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if name == "hellaswag":
        path = folder / "documents.jsonl"
    if name == "wikitext2":
        path = folder / "test.txt"
        path.write_text("".join(row["page"] for row in rows), encoding="utf-8")
    return read_task(folder / f"{name}.toml"), path, folder / "documents.jsonl"


def _documents(name: str, path: Path) -> Iterator[dict[str, Any]]:
    if name in ("lambada", "winogrande"):
        yield from (row.value for row in table_rows(path))
    for row in () if name in ("lambada", "winogrande") else READERS[find_task(name).reader](path):
        if name == "hellaswag":
            activity, _, context = row["context"].partition(": ")
            yield {
                "activity_label": activity,
                "ctx_a": context,
                "ctx_b": "",
                "endings": row["choices"],
                "label": str(row["gold"]),
            }
        elif name == "boolq":
            yield {"passage": row["passage"], "question": row["question"], "label": 1 - row["gold"]}
        elif name == "wikitext2":
            yield from (
                {"page": page}
                for page in re.split(r"(?m)^(?= = [^=\n]+ = \n)", row["text"])
                if page.strip()
            )
        else:
            letters = list("ABCDE"[: len(row["choices"])])
            choices = {"text": row["choices"], "label": letters}
            yield {
                "question": row["question"],
                "choices": choices,
                "answerKey": letters[row["gold"]],
            }


def _items(
    requests: Sequence[Request], records: Sequence[dict[str, Any]], other: dict[str, Any]
) -> str:
    """Right counts of both sides by the rules that both have, and the largest difference of
    log-likelihoods; cut requests apart.
    """
    counts: dict[str, list[int]] = {}
    worst, worst_cut, cut, strings, at = 0.0, 0.0, 0, 0, 0
    for request, record, sample in zip(requests, records, other["samples"], strict=True):
        log_prob_K = np.array(
            [np.sum(one) for one in record["log_probs"]]
            if "gold" in record
            else [np.sum(record["log_probs"])]
        )
        if request.truncated:
            theirs = np.array([log_prob for log_prob, _ in other["cut"][at : at + len(log_prob_K)]])
            worst_cut, cut, at = (
                max(worst_cut, float(np.abs(theirs - log_prob_K).max())),
                cut + 1,
                at + len(log_prob_K),
            )
            continue
        found = {
            (before + after, after.strip()): one
            for (before, after), [one] in zip(sample["arguments"], sample["resps"], strict=True)
        }
        item = request.item
        asked = [(context, item.target) for context in item.contexts] or [
            (item.prompt, text) for text in item.choices or [item.target]
        ]
        matched = [found.get((before + after, after.strip())) for before, after in asked]
        if None in matched:
            strings += 1
            continue
        worst = max(
            worst,
            float(np.abs(np.array([float(one[0]) for one in matched if one]) - log_prob_K).max()),
        )
        if "gold" not in record:
            right = {"every token": all(record["likeliest"])}
        else:
            divisors = {"sum": 1, "character": np.array(record["characters"])}
            right = {
                rule: int((log_prob_K / divisor).argmax()) in record["gold"]
                for rule, divisor in divisors.items()
            }
        for rule, metric in zip(right, ("acc", "acc_norm"), strict=False):
            if metric in sample:
                counts.setdefault(rule, [0, 0])
                counts[rule][0] += right[rule]
                counts[rule][1] += int(float(sample[metric]))
    told = ", ".join(f"by {rule} {one} and {two}" for rule, (one, two) in counts.items())
    lines = [f"{len(requests) - cut - strings} items, right {told}, largest difference {worst:.1e}"]
    lines += [
        f"{cut} longer than the context, given to both with the same cut: largest difference {worst_cut:.1e}"
    ] * bool(cut)
    lines += [f"{strings} of other strings"] * bool(strings)
    return "; ".join(lines)


def _text(made: dict[str, Any], other: dict[str, Any]) -> str:
    """The same windows of the same text; then each side's own definition of the task."""
    *whole, last = made["records"]
    total, tokens = (
        sum(record["log_prob"] for record in whole),
        sum(record["tokens"] for record in whole),
    )
    own, exact = other["rolling"]
    same = f"{len(whole)} windows, {tokens} tokens: log-likelihood {total:.4f}; theirs {exact:.4f} with softmax in fp64, {own:.4f} in fp32"
    pages = sum(float(sample["resps"][0][0]) for sample in other["samples"])
    words = other["results"]["word_perplexity,none"]
    mine = made["result"]["perplexity"]
    return f"{same}; by each definition {total + last['log_prob']:.1f} and {pages:.1f}, perplexity {mine:.5g} a unit and {words:.5g} a word"
