"""Evaluate a model: losses on text and scores on tasks, as the report that eval.json contains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gptcli import __version__
from gptcli.devices import check_apple_gpu
from gptcli.errors import GptError, UsageError, message_of
from gptcli.evals.check import EvalOptions, check_task
from gptcli.evals.core import Convention, CoreReport, evaluate_core
from gptcli.evals.fewshot import FewShotConfig
from gptcli.evals.find_data import find_data
from gptcli.evals.records import weights_sha256
from gptcli.evals.results import TaskResult
from gptcli.evals.rolling import (
    LossReport,
    evaluate_loss,
    open_streams,
    token_byte_lengths,
)
from gptcli.evals.runner import Processes, init_processes, local_device, run_task
from gptcli.evals.suites import Suite, SuitePlan, plan_suite
from gptcli.evals.task import Normaliser, Task, find_tasks
from gptcli.events import SILENT, Events
from gptcli.model.source import ModelSource
from gptcli.sampling.load import Loaded, PrecisionChoice, load
from gptcli.shards.manifest import read_manifest
from gptcli.tokenizer.load import load_tokenizer

MAX_CHECKPOINT_ITEMS = 1000  # of each task scored at a checkpoint, if no number is given


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Results of an evaluation."""

    model: str
    """Folder of the model, as given."""
    loaded: Loaded
    """Model that was evaluated."""
    losses: list[LossReport]
    """Loss on each text."""
    tasks: list[TaskResult]
    """One result per task and scoring rule."""
    items: list[dict[str, Any]]
    """Record of every item of every task, in order."""
    suite: Suite | None = None
    """Suite that the tasks are of."""
    left_out: list[str] = field(default_factory=list)
    """Names of tasks of the suite without data."""
    core: CoreReport | None = None
    """Scores of the suite CORE."""

    def report(self) -> dict[str, Any]:
        """Return the report that `gpt eval -o` writes and `gpt eval --json` prints."""
        source, model = self.loaded.source, self.loaded.model
        return {
            "version": __version__,
            "model": self.model,
            "step": source.step,
            "checkpoint": None if source.checkpoint is None else str(source.checkpoint),
            "parameters": model.config.parameters,
            "tokenizer_sha256": self.loaded.tokenizer.sha256,
            "device": self.loaded.device.type,
            "precision": self.loaded.precision,
            "losses": [asdict(loss) for loss in self.losses],
            "tasks": [result.as_dict() for result in self.tasks],
            **({} if self.suite is None else self._suite()),
        }

    def _suite(self) -> dict[str, Any]:
        if self.core is None:
            return {"suite": self.suite, "left_out": self.left_out}
        return {
            "suite": self.suite,
            "left_out": self.core.missing,
            "core": {
                "convention": self.core.convention,
                "core": self.core.core,
                "mean_centred": self.core.mean,
                "tasks": [asdict(score) for score in self.core.tasks],
            },
        }


def evaluate(
    model: str | Path | Loaded,
    *,
    tasks: Iterable[str | Path] = (),
    text: Iterable[str | Path] = (),
    data: str | Path | None = None,
    suite: Suite | None = None,
    convention: Convention = "nanochat",
    shots: int | Literal["paper"] = 0,
    shots_seed: int = 0,
    limit: int | None = None,
    stride: int | None = None,
    normalise: Normaliser | None = None,
    batch_size: int | None = None,
    against: str | Path | None = None,
    checkpoint: int | None = None,
    device: str = "auto",
    precision: PrecisionChoice = "fp32",
    events: Events = SILENT,
) -> dict[str, Any]:
    """Evaluate a model on texts and tasks, and return the report that eval.json contains.

    `model` is a folder, or a model that `gptcli.load_model` returned. `tasks` are names of tasks or
    paths of task files, and `data` the folder or file of their data; without tasks and texts, the
    loss is measured on the validation shards of the run, or of `data`. `suite` is a paper's tasks,
    those of which `data` has the files; CORE's prompts are by `convention`. The other arguments are
    the options of `gpt eval`. Raises UsageError, InputError or RunError.
    """
    options = EvalOptions(
        fewshot=FewShotConfig(shots=0 if shots == "paper" else shots, seed=shots_seed),
        paper_shots=shots == "paper",
        normalise=normalise,
        limit=limit,
        stride=stride,
        batch_size=batch_size,
        against=None if against is None else Path(against),
    )
    data = None if data is None else Path(data)
    found = find_tasks([str(task) for task in tasks])
    plan = plan_suite(suite, data, options) if suite is not None else None
    if plan is not None:
        found, options = [*found, *plan.tasks], plan.options
    for task in found:
        check_task(task, data, options)
    if not isinstance(model, Loaded):
        model = load(
            Path(model), checkpoint=checkpoint, device=device, precision=precision, events=events
        )
    evaluation = run_evaluation(
        str(model.source.folder),
        model,
        found,
        [Path(path) for path in text],
        data,
        options,
        suite=plan,
        convention=convention,
        events=events,
    )
    return evaluation.report()


def load_for_evaluation(
    folder: Path,
    processes: Processes,
    *,
    checkpoint: int | None,
    device: str,
    precision: PrecisionChoice,
    events: Events = SILENT,
) -> Loaded:
    """Load the model of a folder, the same checkpoint of it on every process."""
    if device == "auto" and processes.world > 1:
        device = local_device()
    if device == "mps":
        check_apple_gpu(processes=processes.world)
    while True:
        loaded = load(
            folder, checkpoint=checkpoint, device=device, precision=precision, events=events
        )
        if processes.all_equal(loaded.source.step):  # if not, a checkpoint was saved meanwhile
            return loaded


def run_evaluation(
    name: str,
    loaded: Loaded,
    tasks: Sequence[Task],
    texts: Sequence[Path],
    data: Path | None,
    options: EvalOptions,
    *,
    suite: SuitePlan | None = None,
    convention: Convention = "nanochat",
    processes: Processes | None = None,
    events: Events = SILENT,
) -> Evaluation:
    """Measure the losses and score the tasks; `name` is how the report calls the model.

    Every task is checked before the first item is scored. Records (`options.records`) are bound to
    the model's weights and precision.
    """
    processes = processes or Processes()
    checked = [check_task(task, data, options) for task in tasks]
    if options.against is not None:
        read_manifest(options.against)
    model, tokenizer, source = loaded.model, loaded.tokenizer, loaded.source
    lengths = token_byte_lengths(tokenizer)
    losses = [
        evaluate_loss(
            model,
            tokens,
            lengths,
            name=text,
            stride=options.stride,
            limit=options.limit,
            batch_size=options.batch_size,
            events=events,
        )
        for text, tokens in open_streams(
            source.folder, list(texts), data, tokenizer, tasks=bool(tasks) or suite is not None
        ).items()
    ]
    results: list[TaskResult] = []
    items: list[dict[str, Any]] = []
    for task, one in zip(tasks, checked, strict=True):
        found, records = run_task(
            model, tokenizer, task, data, options, checked=one, processes=processes, events=events
        )
        results += found
        items += [{"task": task.name, **record} for record in records]
    core = None
    if suite is not None and suite.suite == "core" and data is not None:
        core = evaluate_core(
            model,
            tokenizer,
            data,
            convention=convention,
            limit=options.limit,
            batch_size=options.batch_size,
            events=events,
        )
    return Evaluation(
        name,
        loaded,
        losses,
        results,
        items,
        None if suite is None else suite.suite,
        [] if suite is None else suite.left_out,
        core,
    )


def fingerprint_of(loaded: Loaded, *, weights: bool) -> dict[str, Any]:
    """Return the facts that bind records to a model: precision and, with `weights`, their hash."""
    facts: dict[str, Any] = {"precision": loaded.precision}
    return {**facts, **_weights(loaded.source)} if weights else facts


def _weights(source: ModelSource) -> dict[str, Any]:
    return {
        "model_sha256": weights_sha256(source),
        **({} if source.step is None else {"step": source.step}),
    }


def evaluate_folder(
    folder: Path,
    tasks: Sequence[Task],
    texts: Sequence[Path],
    data: Path | None,
    options: Callable[[Loaded], EvalOptions],
    *,
    suite: SuitePlan | None = None,
    convention: Convention = "nanochat",
    checkpoint: int | None,
    device: str,
    precision: PrecisionChoice,
    events: Events = SILENT,
) -> Evaluation:
    """Evaluate the model of a folder on every process of a launch, and return the same on each."""
    processes = init_processes()
    loaded = load_for_evaluation(
        folder,
        processes,
        checkpoint=checkpoint,
        device=device,
        precision=precision,
        events=events,
    )
    evaluation = run_evaluation(
        str(folder),
        loaded,
        tasks,
        texts,
        data,
        options(loaded),
        suite=suite,
        convention=convention,
        processes=processes,
        events=events,
    )
    processes.shut_down()
    return evaluation


def checkpoint_measure(
    names: Sequence[str],
    data: Path | None,
    tokenizer: Path,
    *,
    items: int = MAX_CHECKPOINT_ITEMS,
    events: Events = SILENT,
) -> Callable[[Any], dict[str, float]]:
    """Return a function that scores a GPT on tasks, for every checkpoint of a training run.

    `tokenizer` is the folder of the tokenizer. The function returns the metrics of each task's
    first scoring rule, named TASK_METRIC. Raises UsageError or InputError if a task or its data
    cannot be found.
    """
    tasks = find_tasks(names, field="eval_task")
    for task in tasks:
        if data is None and not task.generated:
            raise UsageError(
                f"{task.name} needs its data",
                field="eval_task",
                code="task_without_data",
                hint="name the folder with {option:eval_data}",
            )
        find_data(task, data)
    return partial(_measure, tasks, data, items, tokenizer, events)


def _measure(
    tasks: list[Task], data: Path | None, items: int, tokenizer: Path, events: Events, model: Any
) -> dict[str, float]:
    """Score the tasks; one that fails is reported, and training goes on."""
    found: dict[str, float] = {}
    for task in tasks:
        try:
            results, _ = run_task(
                model,
                load_tokenizer(tokenizer),
                task,
                data,
                EvalOptions(limit=items),
                events=events,
            )
        except GptError as error:
            events.warn(f"{task.name} was not scored: {message_of(error)}")
            continue
        found |= {
            f"{task.name}_{name}": figure.value for name, figure in results[0].metrics.items()
        }
    return found
