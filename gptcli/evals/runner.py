"""Run a task: score its requests in batches, longest first, and save the records of each batch.

Several processes share the work: each scores its part of the batches, and all get all records. They
are those of torchrun (`torchrun --nproc-per-node 8 -m gptcli eval ...`), each on its own GPU if
there are any.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gptcli.devices import device_type
from gptcli.evals.check import CheckedTask, EvalOptions, check_task
from gptcli.evals.contamination import contamination_report
from gptcli.evals.loglikelihood import (
    BATCH_TOKENS,
    LogLikelihoodScorer,
    batches,
    find_shared_prefix,
    stop_word_tokens,
)
from gptcli.evals.records import Record, Records, completion_record, score_record
from gptcli.evals.requests import (
    Request,
    RequestSet,
    build_task_requests,
    group,
    show_request,
)
from gptcli.evals.results import Conditions, TaskResult, compute_results
from gptcli.evals.task import Task
from gptcli.evals.task_data import GENERATED_SEED
from gptcli.events import SILENT, Events
from gptcli.model.transformer import GPT
from gptcli.runtime import launch_environment
from gptcli.sampling.generate import Completion, TextSequence, generate_sequences, sample_generator
from gptcli.sampling.params import SamplingParams
from gptcli.sampling.sampler import generate_by_beam_search
from gptcli.tokenizer.tokenizer import Tokenizer

GENERATED_DATA = f"generated, seed {GENERATED_SEED}"
OWN_SET = "the same set without the item"


@dataclass(frozen=True, slots=True)
class Processes:
    """Rank of this process and number of processes."""

    rank: int = 0
    """Rank of this process, from 0."""
    world: int = 1
    """Number of processes."""

    def gather(self, records: Records) -> Iterable[Record]:
        """Return the records of all processes, once all are done; none if there is only one."""
        if self.world == 1:
            return []
        parts: list[list[Record]] = [[] for _ in range(self.world)]
        dist.all_gather_object(parts, list(records.done.values()))
        return [record for part in parts for record in part]

    def all_equal(self, value: object) -> bool:
        """Return True if `value` is the same on all processes."""
        if self.world == 1:
            return True
        values: list[object] = [None] * self.world
        dist.all_gather_object(values, value)
        return all(other == value for other in values)

    def shut_down(self) -> None:
        """Leave the process group.

        Call it only after success: destroying a group that other processes still wait in hangs.
        """
        if self.world > 1:
            dist.barrier()
            dist.destroy_process_group()


SINGLE_PROCESS = Processes()


def init_processes() -> Processes:
    """Join the processes of this launch, waiting for all; alone if this is the only process.

    Raises UsageError if the launcher's environment variables are incomplete.
    """
    launch = launch_environment()
    if launch is None or launch.world_size == 1:
        return SINGLE_PROCESS
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // launch.local_world_size))
    dist.init_process_group("gloo", rank=launch.rank, world_size=launch.world_size)
    return Processes(launch.rank, launch.world_size)


def local_device() -> str:
    """Return this process's CUDA GPU, or "cpu" if there is none: processes share no Apple GPU."""
    launch = launch_environment()
    index = 0 if launch is None else launch.local_rank
    return f"cuda:{index}" if device_type() == "cuda" else "cpu"


def task_requests(
    checked: CheckedTask, tokenizer: Tokenizer, n_ctx: int, options: EvalOptions
) -> RequestSet:
    """Return the requests of a checked task for a context of `n_ctx` tokens."""
    return build_task_requests(
        checked.task,
        tokenizer,
        n_ctx,
        checked.path,
        checked.data,
        checked.fewshot,
        limit=options.limit,
        stride=options.stride,
    )


def run_task(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    data: Path | None,
    options: EvalOptions | None = None,
    *,
    checked: CheckedTask | None = None,
    processes: Processes = SINGLE_PROCESS,
    events: Events = SILENT,
) -> tuple[list[TaskResult], list[Record]]:
    """Return one result per scoring rule of the task, and one record per item.

    `data` is the task's file, or a folder that contains it; None for generated items; `checked` is
    what `check_task` returned, if it was called. Every process of `processes` calls this function
    and gets the same results. Raises InputError if the data is broken, UsageError if the options
    are not possible for the task, and RunError if the model's scores are not finite.
    """
    options = options or EvalOptions()
    checked = checked or check_task(task, data, options)
    task, fewshot = checked.task, checked.fewshot
    request_set = task_requests(checked, tokenizer, model.config.n_ctx, options)
    requests = request_set.requests
    records = Records(
        options.records,
        task.name,
        _fingerprint(checked, options, request_set, tokenizer),
        processes.rank,
    )
    unit = "windows" if task.kind == "text" else "items"
    done = 0
    for part in _parts(task, requests, shared=fewshot.shared):
        for count, batch in _score_batches(
            model, tokenizer, task, part, records, options.batch_size, processes, events
        ):
            records.add(batch)
            events.progress(task.name, done + count, len(requests), unit)
        done += len(part.requests)
    events.finish(task.name)
    all_records = records.finish(processes.gather(records))
    conditions = _conditions(checked, options, request_set)
    results = compute_results(
        task, all_records, conditions, model.config.parameters, request_set.units
    )
    if options.against is not None and processes.rank == 0:
        contamination = contamination_report(
            task, requests, all_records, options.against, tokenizer, events
        )
        results[0] = replace(results[0], contamination=contamination)
    if options.prompts:
        shown = {one.index: show_request(task, one, tokenizer) for one in requests}
        all_records = [{**record, **shown[record["index"]]} for record in all_records]
    return results, all_records


@dataclass(frozen=True, slots=True)
class _Part:
    """Requests that are scored in batches of their own, and the tokens that all begin with."""

    requests: Sequence[Request]
    prefix: list[int]


def _parts(task: Task, requests: Sequence[Request], *, shared: bool) -> list[_Part]:
    """Return the requests as one part or, if a few cannot have all shared examples, as two."""
    if task.kind == "freeform":
        return [_Part(requests, [])]

    def prefix(some: Sequence[Request]) -> list[int]:
        return find_shared_prefix(context for request in some for context, _ in request.pairs)

    whole = _Part(requests, prefix(requests))
    most = max(request.shots for request in requests)
    full = [one for one in requests if one.shots == most and not one.truncated]
    if not shared or len(full) == len(requests):
        return [whole]
    first = _Part(full, prefix(full))
    if len(first.prefix) <= len(whole.prefix):
        return [whole]
    rest = [one for one in requests if one.shots < most or one.truncated]
    return [first, _Part(rest, prefix(rest))]


def _score_batches(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    part: _Part,
    records: Records,
    batch_size: int | None,
    processes: Processes,
    events: Events,
) -> Iterator[tuple[int, list[Record]]]:
    """Yield this process's batches: how many requests are done after each, and its records."""
    requests, prefix = part.requests, part.prefix
    order = sorted(range(len(requests)), key=lambda number: (-requests[number].size, number))
    sizes = [requests[number].size - len(prefix) for number in order]
    plan = list(batches(sizes, batch_size, BATCH_TOKENS[model.wte.weight.device.type]))
    scorer: LogLikelihoodScorer | None = None
    for number, span in enumerate(plan):
        batch = [requests[order[place]] for place in span]
        if number % processes.world != processes.rank:
            continue
        if records.contains_all(request.index for request in batch):
            continue
        if task.kind == "freeform":
            answers = generate_answers(model, tokenizer, batch, task)
            made = [
                completion_record(task, request, answer)
                for request, answer in zip(batch, answers, strict=True)
            ]
            yield span.stop, made
            continue
        if scorer is None:  # created late, because it computes the shared prefix
            excluded = stop_word_tokens(tokenizer) if task.kind == "last_word" else []
            scorer = LogLikelihoodScorer(model, prefix=prefix, excluded=excluded, events=events)
            unconditional_scorer = LogLikelihoodScorer(model, events=events)
        scores = scorer.score([group(request.pairs) for request in batch])
        unconditional = iter(
            unconditional_scorer.score(
                [group(request.unconditional) for request in batch if request.unconditional]
            )
        )
        made = [
            score_record(task, request, one, next(unconditional) if request.unconditional else [])
            for request, one in zip(batch, scores, strict=True)
        ]
        yield span.stop, made


def generate_answers(
    model: GPT, tokenizer: Tokenizer, requests: Sequence[Request], task: Task
) -> Iterator[Completion]:
    """Generate the answer to each free-form request, in order, without the stop string.

    An answer ends at a stop string, at end-of-text or at the task's maximum length. Random numbers
    depend on the item's index alone.
    """
    prompts = [request.pairs[0][0].tolist() for request in requests]
    if task.beam > 1 and not task.top_k:
        return (
            generate_by_beam_search(
                model,
                tokenizer,
                prompt,
                max_tokens=task.max_tokens,
                width=task.beam,
                stops=task.stop,
            )
            for prompt in prompts
        )
    params = SamplingParams(top_k=task.top_k) if task.top_k else SamplingParams(greedy=True)
    sequences = [
        TextSequence(
            tokenizer,
            prompt,
            max_tokens=task.max_tokens,
            stops=task.stop,
            generator=sample_generator(0, request.index),
        )
        for prompt, request in zip(prompts, requests, strict=True)
    ]
    for _ in generate_sequences(
        model, sequences, params, batch_size=len(sequences), log_probs=True, compiled=False
    ):
        pass
    return (sequence.completion() for sequence in sequences)


def _fingerprint(
    checked: CheckedTask, options: EvalOptions, request_set: RequestSet, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Return everything that determines the records of a task."""
    task, fewshot = checked.task, checked.fewshot
    return {
        **options.fingerprint,
        "tokenizer_sha256": tokenizer.sha256,
        "data_sha256": checked.data_sha256,
        "shots_sha256": None if request_set.pool is None else request_set.pool.sha256,
        "definition": repr(replace(task, note="", paper={}, title="", source="")),
        "shots": [fewshot.shots, fewshot.seed, fewshot.shared] if fewshot.shots else 0,
        "limit": options.limit,
        "stride": request_set.stride,
        "batch_size": options.batch_size,
    }


def _conditions(checked: CheckedTask, options: EvalOptions, request_set: RequestSet) -> Conditions:
    requests, pool, fewshot = request_set.requests, request_set.pool, checked.fewshot
    return Conditions(
        shots=fewshot.shots,
        mean_shots=sum(request.shots for request in requests) / len(requests),
        min_shots=min(request.shots for request in requests),
        own_shots=pool is not None and pool.is_evaluated,
        shots_from=None if pool is None else OWN_SET if pool.is_evaluated else str(pool.path),
        shots_seed=None if pool is None else fewshot.seed,
        shared_shots=fewshot.shared,
        limit=options.limit,
        items=len(requests),
        skipped=request_set.skipped,
        truncated=sum(request.truncated for request in requests),
        stride=request_set.stride,
        data=GENERATED_DATA if checked.path is None else str(checked.path),
        data_sha256=checked.data_sha256,
        note=checked.task.note,
    )
