"""Initial weights from a checkpoint of another run, kept until the new run is finished.

The other run may remove the checkpoint at any time, so the new one keeps it in `init/`: a run
folder with one checkpoint, without optimizer state. Its files are hard links if the file system
allows them, copies otherwise.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gptcli.errors import InputError
from gptcli.events import Events
from gptcli.files import atomic_folder, read_json, write_json
from gptcli.model.hf import CONFIG
from gptcli.model.source import (
    CHECKPOINTS,
    INDEX,
    INIT,
    MODEL,
    STATE,
    ModelSource,
    find_model,
    step_folders,
)

TOKENIZER = "tokenizer.json"


def initial_weights_folder(out: Path, init_from: Path) -> Path:
    """Return the folder with the initial weights of the run in `out`: `init/` if it exists."""
    return out / INIT if (out / INIT).is_dir() else init_from


def begun_folder(out: Path) -> Path | None:
    """Return the folder with configuration and tokenizer of the run in `out`, or None.

    It is the run folder itself or, before the first step, its `init/`.
    """
    return next((folder for folder in (out, out / INIT) if (folder / CONFIG).is_file()), None)


def keep_initial_weights(
    init_from: Path, out: Path, step: int, events: Events, *, newest: bool
) -> int:
    """Keep the checkpoint of `step` in `init/` of the run folder `out`, and return its step.

    With `newest`, a checkpoint that was removed meanwhile is replaced by the newest one. Raises
    InputError if the checkpoint does not exist.
    """
    while True:
        if newest and (found := step_folders(init_from)) and step not in found:
            step = max(found)
        source = find_model(init_from, step)
        assert source.checkpoint is not None
        try:
            with atomic_folder(out / INIT) as folder:
                _copy(source, source.checkpoint, folder)
        except (FileNotFoundError, InputError):
            if source.checkpoint.is_dir():
                raise
        else:
            events.info(f"starting from {source}")
            return step


def remove_initial_weights(out: Path) -> None:
    """Remove `init/` from a finished run folder."""
    shutil.rmtree(out / INIT, ignore_errors=True)


def _copy(source: ModelSource, checkpoint: Path, folder: Path) -> None:
    """Copy or link the weights of a checkpoint, without optimizer state, as a run folder."""
    for name in (CONFIG, TOKENIZER):
        shutil.copyfile(source.folder / name, folder / name)
    kept = folder / CHECKPOINTS / checkpoint.name
    kept.mkdir(parents=True)
    index, state = read_json(checkpoint / INDEX), read_json(checkpoint / STATE)
    files = sorted(file for file in state["sha256"] if file.startswith(MODEL))
    for file in files:
        try:
            os.link(checkpoint / file, kept / file)
        except FileNotFoundError:
            raise
        except OSError:  # another disk, or a file system without links
            shutil.copyfile(checkpoint / file, kept / file)
    write_json(kept / INDEX, {name: row for name, row in index.items() if "/" not in name})
    write_json(kept / STATE, {**state, "sha256": {file: state["sha256"][file] for file in files}})
