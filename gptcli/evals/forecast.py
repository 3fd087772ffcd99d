"""Preview of an evaluation: the items and work of a dry run, and the prompts of single items."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gptcli.cost.flops import flops_per_token
from gptcli.evals.check import EvalOptions, check_task
from gptcli.evals.requests import show_request
from gptcli.evals.rolling import open_streams, resolve_stride, rolling_windows
from gptcli.evals.runner import task_requests
from gptcli.evals.task import Task
from gptcli.model.hf import read_model_config
from gptcli.model.source import ModelSource
from gptcli.tokenizer.load import load_tokenizer


def forecast_evaluation(
    source: ModelSource,
    tasks: Sequence[Task],
    texts: Sequence[Path],
    data: Path | None,
    options: EvalOptions,
) -> dict[str, Any]:
    """Return the report of a dry run: items and tokens of each text and task, FLOPs and memory.

    The items of a text are its windows. Memory is that of the weights in fp32, which are not read.
    Raises the errors that the evaluation would raise for its data.
    """
    folder = source.folder
    config, tokenizer = read_model_config(folder), load_tokenizer(folder)
    work: list[dict[str, Any]] = []
    for name, tokens in open_streams(folder, texts, data, tokenizer, tasks=bool(tasks)).items():
        step = resolve_stride(options.stride, config.n_ctx)
        windows = list(rolling_windows(len(tokens), config.n_ctx, step))[: options.limit]
        n_tokens = sum(stop - start - 1 for start, stop, _ in windows)
        work.append({"name": name, "items": len(windows), "tokens": n_tokens})
    for checked in [check_task(task, data, options) for task in tasks]:
        task = checked.task
        request_set = task_requests(checked, tokenizer, config.n_ctx, options)
        work.append(
            {
                "name": task.name,
                "items": len(request_set.requests),
                "tokens": sum(request.size for request in request_set.requests),
                "cut": sum(request.truncated for request in request_set.requests),
                "left_out": dict(request_set.skipped),
            }
        )
    # a forward pass has a third of a training step's FLOPs
    flops = flops_per_token(config, "causal") / 3 * sum(one["tokens"] for one in work)
    given = {
        **asdict(options.fewshot),
        "normalise": options.normalise,
        "limit": options.limit,
        "stride": options.stride,
    }
    return {
        "dry_run": True,
        "config": {"model": str(folder), "step": source.step, **given},
        "work": work,
        "flops": flops,
        "memory_bytes": 4 * config.parameters,
    }


def show_items(
    source: ModelSource, tasks: Sequence[Task], data: Path | None, options: EvalOptions
) -> list[dict[str, Any]]:
    """Return what a model would read for the first items of each task; no weights are read."""
    config, tokenizer = read_model_config(source.folder), load_tokenizer(source.folder)
    shown = []
    for checked in [check_task(task, data, options) for task in tasks]:
        request_set = task_requests(checked, tokenizer, config.n_ctx, options)
        shown += [
            {
                "task": checked.task.name,
                "index": request.index,
                "id": request.item.id,
                "shots": request.shots,
                "truncated": request.truncated,
                "gold": list(request.item.gold),
                **show_request(checked.task, request, tokenizer),
            }
            for request in request_set.requests
        ]
    return shown
