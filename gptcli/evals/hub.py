"""Download the data of tasks from the Hugging Face hub, as the Parquet files that it has of every set.

Each split becomes files in the folder of its task, under the names that `gptcli.evals.find_data`
looks for. What is there is not downloaded again.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from gptcli.errors import InputError, UsageError, install_hint
from gptcli.evals.find_data import has_data
from gptcli.evals.suites import Suite, suite_tasks
from gptcli.evals.task import Task
from gptcli.events import SILENT, Events
from gptcli.files import atomic_folder
from gptcli.text.compression import MissingPackageError

REVISION = "refs/convert/parquet"  # where the hub keeps each data set as CONFIG/SPLIT/0000.parquet


def hub_folder() -> Path:
    """Return the folder of downloaded data, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "gpt" / "data"


def download_tasks(
    tasks: Sequence[Task], suite: Suite | None = None, *, shots: bool, events: Events = SILENT
) -> Path:
    """Download the items, and with `shots` the examples, of tasks and of a suite's tasks.

    Returns the folder that contains a folder per task. Tasks of the suite that are not on the hub
    are left out. Raises UsageError if another task is not there, InputError if the hub cannot be
    reached.
    """
    if suite == "core":
        raise UsageError(
            "DCLM's evaluation bundle is not on the hub",
            field="data",
            code="not_on_hub",
            hint="name its folder with {option:data}",
        )
    for task in tasks:
        if not task.hub and not task.generated:
            raise UsageError(
                f"{task.name} is not on the hub",
                field="data",
                code="not_on_hub",
                hint=f"it is from {task.source}",
            )
    folder = hub_folder()
    for task in [*tasks, *([] if suite is None else suite_tasks(suite, shots=shots))]:
        if not task.hub or has_data(task, folder / task.name):
            continue
        events.warn(f"downloading {task.hub['dataset']} into {folder / task.name}")
        splits = [task.hub["items"]] + [task.hub["shots"]] * (shots and "shots" in task.hub)
        with atomic_folder(folder / task.name) as partial:
            for split in splits:
                _download_split(task, split, partial)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download_split(task: Task, split: str, folder: Path) -> None:
    try:
        from huggingface_hub import HfApi, hf_hub_download
    except ImportError:
        raise MissingPackageError(
            "downloading needs the package huggingface_hub", hint=install_hint("huggingface_hub")
        ) from None
    dataset, prefix = task.hub["dataset"], f"{task.hub.get('config', 'default')}/{split}/"
    try:
        files = HfApi().list_repo_files(dataset, repo_type="dataset", revision=REVISION)
        wanted = sorted(name for name in files if name.startswith(prefix))
        for number, name in enumerate(wanted):
            path = hf_hub_download(dataset, name, repo_type="dataset", revision=REVISION)
            shutil.copyfile(path, folder / f"{split}-{number:05d}-of-{len(wanted):05d}.parquet")
    except Exception as error:  # of any base, by the client's version: no network, no permission
        wanted, reason = [], str(error).strip().splitlines()[:1]
    else:
        reason = [f"it has no {prefix}"]
    if not wanted:
        raise InputError(
            f"{dataset} could not be downloaded from the hub: {''.join(reason)}",
            where=task.name,
            hint=f"where the hub can be reached: hf download {dataset} --repo-type dataset "
            f"--revision {REVISION} --include '{prefix}*' --local-dir DATA/{task.name}; then "
            "{option:data} DATA here",
        )
