"""`gpt eval --dry-run`: items, tokens, FLOPs and memory, without reading the weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gptcli.cli.console import print_json
from gptcli.numbers import amount, in_bytes

if TYPE_CHECKING:
    from gptcli.evals.task import Task
    from gptcli.model.source import ModelSource


def print_forecast(
    source: ModelSource,
    tasks: list[Task],
    texts: list[Path],
    data: Path | None,
    fewshot: dict[str, Any],
    terms: dict[str, Any],
    *,
    as_json: bool,
) -> None:
    """Print items, tokens, truncated and skipped items of each text and task, FLOPs and memory.

    The items of a text are its windows, and memory is that of the weights in fp32. Raises the
    errors that the evaluation would raise for its data.
    """
    from gptcli.cost.flops import flops_per_token
    from gptcli.evals.fewshot import FewShotConfig
    from gptcli.evals.requests import build_task_requests
    from gptcli.evals.rolling import open_streams, resolve_stride, rolling_windows
    from gptcli.evals.task_data import find_data
    from gptcli.model.hf_config import read_model_config
    from gptcli.tokenizer.tokenizer import load_tokenizer

    folder = source.folder
    config, tokenizer = read_model_config(folder), load_tokenizer(folder)
    work: list[dict[str, Any]] = []
    for name, tokens in open_streams(folder, texts, data, tokenizer, tasks=bool(tasks)).items():
        spans = list(
            rolling_windows(
                len(tokens), config.n_ctx, resolve_stride(terms["stride"], config.n_ctx)
            )
        )[: terms["limit"]]
        work.append(
            {
                "name": name,
                "items": len(spans),
                "tokens": sum(stop - start - 1 for start, stop, _ in spans),
            }
        )
    for task in tasks:
        request_set = build_task_requests(
            task,
            tokenizer,
            config.n_ctx,
            find_data(task, data),
            data,
            FewShotConfig(**fewshot),
            limit=terms["limit"],
            stride=terms["stride"],
        )
        requests = request_set.requests
        cut = sum(request.truncated for request in requests)
        size = sum(request.size for request in requests)
        work.append(
            {
                "name": task.name,
                "items": len(requests),
                "tokens": size,
                "cut": cut,
                "left_out": dict(request_set.skipped),
            }
        )
    # a forward pass has a third of a training step's FLOPs
    flops = flops_per_token(config, "causal") / 3 * sum(one["tokens"] for one in work)
    report = {
        "dry_run": True,
        "config": {"model": str(folder), "step": source.step, **fewshot, **terms},
        "work": work,
        "flops": flops,
        "memory_bytes": 4 * config.parameters,
    }
    if as_json:
        print_json("eval", report)
        return
    if source.step is not None:
        print(f"weights: {source}")
    for one in work:
        remarks = [f"{one['cut']:,} cut to the context"] if one.get("cut") else []
        remarks += [
            f"{count:,} left out: {reason}" for reason, count in one.get("left_out", {}).items()
        ]
        print(
            "; ".join(
                [
                    f"{one['name']}: {one['items']:,} items, "
                    f"at most {amount(one['tokens'])} tokens read",
                    *remarks,
                ]
            )
        )
    print(
        f"work: at most {flops:.2e} FLOP; "
        f"memory: {in_bytes(4 * config.parameters)} of weights in fp32"
    )
