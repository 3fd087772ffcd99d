"""The weights that a run starts from, kept in its own folder if they are a checkpoint's of another
run, which may remove it at any time.

`init/` is itself a run folder with one checkpoint, of weights alone. Its files are hard links if
the file system allows, else copies; it is removed when the new run is finished.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gptcli.errors import InputError
from gptcli.events import Events
from gptcli.files import atomic_folder, read_json, write_json
from gptcli.model.hf_config import CONFIG
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
    """The folder that the run in `out` reads its first weights from: its own copy if there is
    one.
    """
    return out / INIT if (out / INIT).is_dir() else init_from


def begun_folder(out: Path) -> Path | None:
    """The folder that holds configuration and tokenizer of a run that was begun: its own, or what
    it starts from; None if there is none.
    """
    return next((folder for folder in (out, out / INIT) if (folder / CONFIG).is_file()), None)


def keep_initial_weights(
    init_from: Path, out: Path, step: int, events: Events, *, newest: bool
) -> int:
    """Keep the checkpoint of `step` for the run in `out`, and return its step: of the `newest`, if
    that was asked for and this one has been removed since. Raises InputError if there is none."""
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
    shutil.rmtree(out / INIT, ignore_errors=True)


def _copy(source: ModelSource, checkpoint: Path, folder: Path) -> None:
    """The weights of a checkpoint, without the optimizer's state, as a run folder."""
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
