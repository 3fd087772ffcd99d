"""`gpt train --eval-task`: what `gpt eval` would say of the model, at every checkpoint, beside the
losses in metrics.jsonl.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gptcli.errors import GptError, UsageError, message_of

ITEMS = 1000  # of each task, where --eval-items does not say


def measurement(values: Mapping[str, Any]) -> Callable[[Any], dict[str, float]] | None:
    """What measures a model by the tasks of a run's values; None where there are none. Raises
    UsageError or InputError.
    """
    if "eval_task" not in values:
        return None
    from gptcli.evals.task import find_task
    from gptcli.evals.task_data import find_data

    data = Path(values["eval_data"]) if "eval_data" in values else None
    tasks = [find_task(name) for name in values["eval_task"]]
    if twice := len(tasks) - len({task.name for task in tasks}):
        raise UsageError(
            f"{twice + 1} tasks of one name", where="--eval-task", hint="name each task once"
        )
    for task in tasks:
        if data is None and not task.generated:
            raise UsageError(
                f"{task.name} needs its data",
                where="--eval-task",
                hint="--eval-data names the folder",
            )
        find_data(task, data)
    return partial(measure, tasks, data, values.get("eval_items", ITEMS), Path(values["data"]))


def measure(
    tasks: list[Any], data: Path | None, items: int, tokenizer: Path, model: Any
) -> dict[str, float]:
    """The figures of each task by its first scoring rule, as TASK_METRIC. A task that fails is told
    of, and the training goes on.
    """
    from gptcli.cli.console import ConsoleEvents
    from gptcli.evals.runner import EvalOptions, run_task
    from gptcli.tokenizer.tokenizer import load_tokenizer

    events = ConsoleEvents()
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
