"""Options of an evaluation, and the check of a task before anything is scored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gptcli.errors import UsageError
from gptcli.evals.contamination import contamination_of_text
from gptcli.evals.fewshot import FewShotConfig, FewShotPool
from gptcli.evals.find_data import find_data
from gptcli.evals.metrics import check_packages
from gptcli.evals.task import Normaliser, Task
from gptcli.evals.task_data import fingerprint, read_items


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalOptions:
    """Options of an evaluation; `batch_size` and `records` do not change scores."""

    fewshot: FewShotConfig = field(default_factory=FewShotConfig)
    """Few-shot examples."""
    paper_shots: bool = False
    """True if each task has the paper's number of few-shot examples instead."""
    folders: dict[str, Path] = field(default_factory=dict)
    """Folder or file of the data of some tasks, by their names."""
    suite: bool = False
    """True if the tasks are those of a suite: what a task of it cannot have is left out."""
    normalise: Normaliser | None = None
    """Normalisation of choices; the task's own if None."""
    limit: int | None = None
    """Maximum number of items, or of windows of text."""
    stride: int | None = None
    """Tokens from one window of text to the next; n_ctx if None."""
    batch_size: int | None = None
    """Requests in a batch; as many as make BATCH_TOKENS if None."""
    records: Path | None = None
    """Folder of records; records that it already contains are kept."""
    against: Path | None = None
    """Shard folder to search for the items; scores of clean and dirty items are then reported."""
    prompts: bool = False
    """True if the returned records contain the prompts and tokens of the items."""
    fingerprint: dict[str, Any] = field(default_factory=dict)
    """Facts that identify the model, such as the hash of its weights and its precision; records
    with other facts are refused.
    """

    def fewshot_of(self, task: Task) -> FewShotConfig:
        """Return the few-shot configuration of a task."""
        if not self.paper_shots:
            return self.fewshot
        return replace(self.fewshot, shots=task.shots)


@dataclass(frozen=True, slots=True)
class CheckedTask:
    """A task whose data, examples and options were found to be in order."""

    task: Task
    """Task, with the options' normalisation."""
    path: Path | None
    """File of its items; None if they are generated."""
    data: Path | None
    """Folder or file that the user named for its data."""
    fewshot: FewShotConfig
    """Its few-shot configuration."""
    data_sha256: str
    """SHA-256 of the data."""


def check_task(task: Task, data: Path | None, options: EvalOptions) -> CheckedTask:
    """Read a task's items and few-shot examples, and check that the options are possible for it.

    Raises UsageError if an option is not possible, InputError if the data is broken, is another
    task's or needs a package. No model is needed, so that every task of an evaluation can be
    checked before the first item is scored.
    """
    fewshot = options.fewshot_of(task)
    data = options.folders.get(task.name, data)
    if options.normalise is not None:
        if task.kind != "choice":
            raise UsageError(
                f"{task.name} has no choices to normalise",
                field="normalise",
                code="nothing_to_normalise",
                hint="leave it out, or evaluate this task separately",
            )
        if options.normalise == "unconditional" and not task.unconditional:
            raise UsageError(
                f"{task.name} has no unconditional prompt",
                field="normalise",
                code="no_unconditional_prompt",
            )
        task = replace(task, normalise=options.normalise)
    if task.kind == "text":
        if fewshot.shots:
            raise UsageError(
                f"{task.name} is running text and has no few-shot examples",
                field="shots",
                code="shots_on_text",
            )
        if options.against is not None:
            raise contamination_of_text(task)
    metric, missing = check_packages(task.metric)
    if missing:
        task = replace(task, metric=metric, note=f"{missing} {task.note}")
    path = find_data(task, data, generate=options.suite)
    read_items(task, path, options.limit)
    if fewshot.shots:
        FewShotPool(task, path, data, fewshot)
    return CheckedTask(task, path, data, fewshot, fingerprint(task, path))
