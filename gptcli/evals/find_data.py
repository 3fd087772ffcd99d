"""Find the files of a task: the published ones, exports of the hub, and files of few-shot examples.

A file is looked for under its published names (the patterns of the task), then under the names that
splits have when they are exported: validation.jsonl, test-00000-of-00001.parquet,
validation/data-00000-of-00001.arrow.

`download_tasks` downloads data sets from the Hugging Face Hub, as the Parquet files that it has of
each: a file per split under such a name, in the folder of its task. Complete folders are kept.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from gptcli.errors import InputError, UsageError
from gptcli.evals.formats.files import content_suffix
from gptcli.evals.formats.tables import PART
from gptcli.evals.task import Task, find_task, task_names
from gptcli.events import SILENT, Events
from gptcli.files import atomic_folder
from gptcli.model.hub import HubFiles
from gptcli.numbers import counted

SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "tests"),
}
"""Names of a split in file names, by its name on the hub."""
REVISION = "refs/convert/parquet"  # where the Hub keeps each data set as CONFIG/SPLIT/0000.parquet
FOLDER_READERS = ("race", "summaries")  # which take a folder of files
TABLE_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


def find_data(task: Task, data: Path | None, *, generate: bool = False) -> Path | None:
    """Return the file with the task's items, or None if no `data` is given and they are generated.

    The file is `data` itself, or the one in that folder, or in its subfolder named after the task,
    that has a name of the task's. With `generate`, items are also generated if a folder does not
    contain them. Raises UsageError if `data` is needed and not given, InputError if there is no
    such file, or several, or if it is that of another task.
    """
    pattern = task.files["items"]
    shown = pattern.replace("|", " or ")
    if data is None and task.generated:
        return None
    if data is None:
        raise UsageError(
            f"the task {task.name} needs its data",
            hint=f"name a folder that contains {shown} with {{option:data}} FOLDER\n"
            f"{_source_hint(task)}",
        )
    if not data.exists():
        raise InputError("no such file or folder", where=data)
    if data.is_dir():
        found = _matching_files(task, data, "items")
        if not found and generate and task.generated:
            return None
        if len(found) != 1:
            names = f"{counted(len(found), 'file')} match" if found else "no file matches"
            raise InputError(
                f"{names} {shown}, the data of {task.name}",
                where=data,
                hint=f"name one of them with {{option:data}}: "
                f"{', '.join(str(file.relative_to(data)) for file in found)}"
                if found
                else _source_hint(task),
            )
        data = found[0]
    if (other := _other_task(task, data)) is not None:
        raise InputError(
            f"this is the data of {other}, not of {task.name}",
            where=data,
            hint=f"{{option:task}} {other}, or the data of {task.name}: {shown}",
        )
    return data


def _source_hint(task: Task) -> str:
    """Return where to get the data of a task."""
    if task.hub:
        return f"its source: {task.source}; {{option:data}} hf downloads it: {task.hub['dataset']}"
    return f"its source: {task.source}"


def has_data(task: Task, data: Path | None) -> bool:
    """Return True if the task's items are in `data`, or are generated because there is none."""
    if data is None:
        return task.generated != ""
    if not data.is_dir():
        return data.is_file()
    return bool(_matching_files(task, data, "items")) or task.generated != ""


def find_examples(task: Task, items: Path | None, data: Path | None) -> Path | None:
    """Return the file that few-shot examples are drawn from.

    It is the one that has a name of the task's examples, in `data` or next to the file `data`, or
    `items` if there is none. Raises UsageError if there are several.
    """
    if data is None:
        return items
    folder = data if data.is_dir() else data.parent
    found = [path for path in _matching_files(task, folder, "shots") if path != items]
    if len(found) > 1:
        raise UsageError(
            f"{counted(len(found), 'file')} could be the few-shot examples of {task.name}: "
            f"{', '.join(str(file.relative_to(folder)) for file in found)}",
            where=folder,
            hint="leave one of them in the folder",
        )
    return found[0] if found else items


def _matching_files(task: Task, folder: Path, role: str) -> list[Path]:
    """Return the files of a role, "items" or "shots", by the first name that any has.

    The folder itself comes before its subfolder named after the task, published names before those
    of exported splits.
    """
    folders = [place for place in (folder, folder / task.name) if place.is_dir()]
    for place in folders:
        for pattern in task.files[role].split("|") if role in task.files else []:
            matches = sorted(
                path
                for path in place.glob(pattern)
                if not _is_later_part(path) and (path.is_file() or task.reader in FOLDER_READERS)
            )
            if matches:
                return matches
    for place in folders:
        for name in _split_names(task, role):
            if matches := sorted({*_exported(place, name, task.hub.get("config", ""))}):
                return matches
    return []


def _split_names(task: Task, role: str) -> tuple[str, ...]:
    split = task.hub.get(role, "")
    return SPLIT_NAMES.get(split, (split,) if split else ())


def _exported(folder: Path, split: str, config: str) -> list[Path]:
    """Return the tables in a folder that are named after a split."""
    places = [
        folder,
        folder / "data",
        folder / split,
        *([folder / config, folder / config / split] if config else []),
    ]
    patterns = (f"{split}.*", f"{split}-*", f"*[-_]{split}.*", f"*[-_]{split}-[0-9]*")
    found = [
        path
        for place in places
        for pattern in (("data-*.arrow", "*.parquet") if place.name == split else ()) + patterns
        for path in place.glob(pattern)
    ]
    return [
        path
        for path in found
        if path.is_file() and content_suffix(path) in TABLE_SUFFIXES and not _is_later_part(path)
    ]


def _is_later_part(path: Path) -> bool:
    """Return True if a file continues a table that another file begins."""
    part = PART.search(path.name)
    return content_suffix(path) in TABLE_SUFFIXES and part is not None and int(part[1]) > 0


def _other_task(task: Task, path: Path) -> str | None:
    """Return the built-in task whose published name a file has, if it has none of this task's.

    Names are compared with the folders that they contain: R2/test.jsonl is ANLI's second round.
    Only tasks of the same format are looked at, and only names that tell them apart. A folder named
    after a task, DATA/TASK/, holds the data of that task, or of those with the same data on the
    hub.
    """
    if _has_name(task, path) or task.name not in task_names():
        return None
    folder = path.absolute().parent.name
    if folder in task_names() and task.hub:
        hub = find_task(folder).hub
        if hub and any(hub[key] != task.hub[key] for key in ("dataset", "config", "items")):
            return folder
    for name in sorted(task_names(), key=len):
        other = find_task(name)
        if other.reader == task.reader and other.files != task.files and _has_name(other, path):
            return name
    return None


def _has_name(task: Task, path: Path) -> bool:
    """Return True if a file has one of the names of the task that no other task's file has."""
    stems = {stem for names in SPLIT_NAMES.values() for stem in names}
    for pattern in task.files["items"].split("|"):
        parts = Path(pattern).parts
        if len(parts) == 1 and (Path(pattern).stem.strip("*") in stems or set(pattern) <= {"*"}):
            continue
        here = path.absolute().parts[-len(parts) :]
        if all(fnmatch(one, part) for one, part in zip(here, parts, strict=True)):
            return True
    return False


def split_data(given: Sequence[str]) -> tuple[dict[str, Path], Path | None]:
    """Return the folders that TASK=FOLDER names by task, and the one of all other tasks.

    Raises UsageError if there are several of all, or if a folder is empty.
    """
    folders: dict[str, Path] = {}
    others: list[Path] = []
    for text in given:
        name, sign, path = text.partition("=")
        known = name in task_names() or name.endswith(".toml")
        if sign and known and not Path(text).exists():
            if not path.strip():  # which would be the current folder
                raise UsageError(
                    f"{text!r} names no folder",
                    where="{option:data}",
                    hint="TASK=FOLDER; a shell variable in the command may be unset",
                )
            folders[Path(name).stem if name.endswith(".toml") else name] = Path(path)
        else:
            others.append(Path(text))
    if len(others) > 1:
        raise UsageError(
            f"{counted(len(others), 'folder')} for all tasks",
            where="{option:data}",
            hint="name one, and those of single tasks as TASK=FOLDER",
        )
    return folders, others[0] if others else None


def hub_folder() -> Path:
    """Return the folder of downloaded data, in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    return Path(cache) / "gpt" / "data"


def download_tasks(
    tasks: Sequence[Task], others: Sequence[Task] = (), *, shots: bool, events: Events = SILENT
) -> Path:
    """Download the items of `tasks`, and with `shots` their examples, into a folder per task.

    Returns the folder of these folders. The same for `others`, of which those that are not on the
    Hub are left out. Raises UsageError if one of `tasks` is not there or a package is missing,
    InputError if the Hub cannot be reached.
    """
    for task in tasks:
        if not task.hub and not task.generated:
            raise UsageError(
                f"{task.name} is not on the hub",
                field="data",
                code="not_on_hub",
                hint=f"it is from {task.source}",
            )
    folder = hub_folder()
    for task in [*tasks, *others]:
        if not task.hub or has_data(task, folder / task.name):
            continue
        splits = [task.hub["items"]] + [task.hub["shots"]] * (shots and "shots" in task.hub)
        with atomic_folder(folder / task.name) as partial:
            for split in splits:
                _download_split(task, split, partial, events)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _download_split(task: Task, split: str, folder: Path, events: Events) -> None:
    """Download the files of a split, by the names that are looked for."""
    dataset, prefix = task.hub["dataset"], f"{task.hub.get('config', 'default')}/{split}/"
    by_hand = (
        f"where the Hub can be reached: hf download {dataset} --repo-type dataset "
        f"--revision {REVISION} --include '{prefix}*' --local-dir DATA/{task.name}; then "
        "{option:data} DATA here"
    )
    remote = HubFiles(dataset, task.name, by_hand, kind="data set", revision=REVISION)
    files = sorted(name for name in remote.sizes if name.startswith(prefix))
    if not files:
        raise InputError(
            f"the data set {dataset} of the Hub has no {prefix}", where=task.name, hint=by_hand
        )
    for number, path in enumerate(remote.download_all(files, events)):
        shutil.copyfile(path, folder / f"{split}-{number:05d}-of-{len(files):05d}.parquet")
