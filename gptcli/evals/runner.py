"""Run a task: score its requests in batches, the longest first, and write the records of each batch
to disk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, UsageError
from gptcli.evals.answers import write_answers
from gptcli.evals.contamination import analyse, split_scores
from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.grade import record_answer, record_scores
from gptcli.evals.loglikelihood import (
    BATCH_TOKENS,
    LogLikelihoodScorer,
    batches,
    find_shared_prefix,
)
from gptcli.evals.loss import stride_of
from gptcli.evals.processes import ALONE, Processes
from gptcli.evals.records import Record, Records
from gptcli.evals.requests import Request, RequestSet, build_requests, group, whole_text
from gptcli.evals.result import Conditions, TaskResult, results_of, score_of
from gptcli.evals.running import text_requests
from gptcli.evals.stopwords import stop_tokens
from gptcli.evals.task import Task
from gptcli.evals.task_data import GENERATED_SEED, find_data, fingerprint, read_items
from gptcli.events import SILENT, Events
from gptcli.model.transformer import GPT
from gptcli.tokenizer.tokenizer import Tokenizer

GENERATED_DATA = f"generated, seed {GENERATED_SEED}"
OWN_SET = "the same set without the item"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How tasks are run; `batch_size` and `records` move no score."""

    fewshot: FewShotConfig = field(default_factory=FewShotConfig)
    normalise: str | None = None
    """Instead of the task's own normaliser."""
    limit: int | None = None
    """Only the first items, or windows of text."""
    stride: int | None = None
    """Of running text; n_ctx if None."""
    batch_size: int | None = None
    """Questions at once; as many as make BATCH_TOKENS if None."""
    records: Path | None = None
    """The folder where records are kept, and gone on with where some are there."""
    against: Path | None = None
    """A shard folder in which the items are looked for: scores are then said of clean and of dirty
    items too.
    """
    about: dict[str, Any] = field(default_factory=dict)
    """Of the model: its weights' fingerprint, its precision. Records of another are not gone on
    with.
    """


def run_task(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    data: Path | None,
    options: Options | None = None,
    *,
    processes: Processes = ALONE,
    events: Events = SILENT,
) -> tuple[list[TaskResult], list[Record]]:
    """One result a scoring rule of `task`, and a record an item; `data` is the task's file, or a
    folder that holds it; None asks generated items.

    Every process of `processes` calls it together and gets the same. Raises InputError where the
    data is broken, UsageError where the options cannot be met, RunError where the model's scores
    are not numbers.
    """
    options = options or Options()
    if options.normalise is not None and task.kind == "choice":
        if options.normalise == "unconditional" and not task.unconditional:
            raise UsageError(
                f"{task.name} has no unconditional prompt",
                field="normalise",
                code="no_unconditional_prompt",
            )
        task = replace(task, normalise=options.normalise)
    path = find_data(task, data)
    request_set, units, stride = requests_of(
        task, tokenizer, model.config.n_ctx, path, data, options
    )
    digest = fingerprint(task, path)
    records = Records(
        options.records,
        task.name,
        _work(task, options, stride, request_set, digest, tokenizer),
        processes.rank,
    )
    for number, made in _made(
        model, tokenizer, task, request_set.requests, records, options.batch_size, processes, events
    ):
        records.add(made)
        events.progress(
            task.name,
            number,
            len(request_set.requests),
            "windows" if task.kind == "text" else "items",
        )
    events.finish(task.name)
    kept = records.finish(processes.gather(records))
    conditions = _conditions(options.fewshot, request_set, path, digest, stride, task.note)
    results = results_of(task, kept, conditions, model.config.parameters, units)
    if options.against is not None and processes.rank == 0:
        found = _contamination(task, request_set.requests, kept, options.against, tokenizer, events)
        results[0] = replace(results[0], contamination=found)
    return results, kept


def requests_of(
    task: Task,
    tokenizer: Tokenizer,
    n_ctx: int,
    path: Path | None,
    data: Path | None,
    options: Options,
) -> tuple[RequestSet, dict[str, int], int | None]:
    """Return the requests for a model with this context, the units of its text, and the stride of
    its windows.

    Raises the errors of `run_task`.
    """
    if task.kind != "text":
        items = read_items(task, path, options.limit)
        request_set = build_requests(task, items, tokenizer, n_ctx, options.fewshot, path, data)
        if not request_set.requests:
            reasons = ", ".join(
                f"{count:,} {reason}" for reason, count in request_set.skipped.items()
            )
            raise InputError(f"no item can be asked: {reasons}", where=path)
        return request_set, {}, None
    if options.fewshot.shots:
        raise UsageError(
            f"{task.name} is running text: it takes no shots",
            field="shots",
            code="shots_on_text",
        )
    stride = stride_of(options.stride, n_ctx)
    requests, units = text_requests(task, read_items(task, path), tokenizer, n_ctx, stride)
    # units are then those that the scored tokens make on average
    if options.limit is not None and options.limit < len(requests):
        scored, total = (
            sum(len(one.pairs[0][1]) for one in some)
            for some in (requests[: options.limit], requests)
        )
        units = {name: max(1, round(count * scored / total)) for name, count in units.items()}
    return RequestSet(requests[: options.limit], {}, None), units, stride


def _made(
    model: GPT,
    tokenizer: Tokenizer,
    task: Task,
    requests: Sequence[Request],
    records: Records,
    batch_size: int | None,
    processes: Processes,
    events: Events,
) -> Iterator[tuple[int, list[Record]]]:
    """Yield this process's batches: how many requests have been scored after each, and its
    records.
    """
    prefix = (
        find_shared_prefix(context for request in requests for context, _ in request.pairs)
        if task.kind != "freeform"
        else []
    )
    order = sorted(range(len(requests)), key=lambda number: (-requests[number].size, number))
    sizes = [requests[number].size - len(prefix) for number in order]
    plan = list(batches(sizes, batch_size, BATCH_TOKENS[model.wte.weight.device.type]))
    scorers: list[LogLikelihoodScorer] = []
    for turn, batch in enumerate(plan):
        some = [requests[order[place]] for place in batch]
        if turn % processes.world != processes.rank or records.has(
            request.index for request in some
        ):
            continue
        if task.kind == "freeform":
            answers = write_answers(model, tokenizer, some, task)
            yield (
                batch.stop,
                [
                    record_answer(task, request, made)
                    for request, made in zip(some, answers, strict=True)
                ],
            )
            continue
        if not scorers:  # only if something is left to score, for which the prefix is computed
            excluded = stop_tokens(tokenizer) if task.kind == "last_word" else []
            scorers = [
                LogLikelihoodScorer(model, prefix=prefix, excluded=excluded, events=events),
                LogLikelihoodScorer(model, events=events),
            ]
        scores = scorers[0].score([group(request.pairs) for request in some])
        alone = scorers[1].score(
            [group(request.unconditional) for request in some if request.unconditional]
        )
        again = iter(alone)
        unconditional = [next(again) if request.unconditional else [] for request in some]
        yield (
            batch.stop,
            [
                record_scores(task, *measured)
                for measured in zip(some, scores, unconditional, strict=True)
            ],
        )


def _contamination(
    task: Task,
    requests: Sequence[Request],
    records: Sequence[Record],
    shards: Path,
    tokenizer: Tokenizer,
    events: Events,
) -> dict[str, Any]:
    """Which items stand in the shards, and what the others are worth. Raises UsageError or
    InputError where that cannot be said.
    """
    if task.kind == "text":
        raise UsageError(
            f"{task.name} is running text: it has no items to look for",
            field="against",
            code="contamination_of_text",
        )
    found = analyse(
        ((request.item.id, whole_text(request.item)) for request in requests),
        shards,
        tokenizer,
        synthetic=bool(task.generated),
        events=events,
    )
    scores = {
        record["id"]: score for record in records if (score := score_of(task, record)) is not None
    }
    split = asdict(split_scores(scores, found.dirty)) if scores else {}
    percent = {name: None if value is None else 100 * value for name, value in split.items()}
    return {
        "shards": str(shards),
        "n": found.n,
        "items": found.items,
        "dirty_items": len(found.dirty),
        **percent,
    }


def _work(
    task: Task,
    options: Options,
    stride: int | None,
    request_set: RequestSet,
    data_sha256: str,
    tokenizer: Tokenizer,
) -> dict[str, Any]:
    """What decides the records of a task."""
    fewshot = options.fewshot
    return {
        **options.about,
        "tokenizer_sha256": tokenizer.sha256,
        "data_sha256": data_sha256,
        "shots_sha256": None if request_set.pool is None else request_set.pool.sha256,
        "definition": repr(replace(task, note="", paper={}, title="", source="")),
        "shots": [fewshot.shots, fewshot.seed, fewshot.shared] if fewshot.shots else 0,
        "limit": options.limit,
        "stride": stride,
        "batch_size": options.batch_size,
    }


def _conditions(
    fewshot: FewShotConfig,
    request_set: RequestSet,
    path: Path | None,
    digest: str,
    stride: int | None,
    note: str,
) -> Conditions:
    requests, pool = request_set.requests, request_set.pool
    return Conditions(
        shots=fewshot.shots,
        mean_shots=sum(request.shots for request in requests) / len(requests),
        shots_from=None if pool is None else OWN_SET if pool.is_evaluated else str(pool.path),
        shots_seed=None if pool is None else fewshot.seed,
        shared_shots=fewshot.shared,
        items=len(requests),
        skipped=request_set.skipped,
        truncated=sum(request.truncated for request in requests),
        stride=stride,
        data=GENERATED_DATA if path is None else str(path),
        data_sha256=digest,
        note=note,
    )
