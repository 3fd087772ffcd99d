"""Location of a model's weights, in a finished model or a checkpoint, and names of a run's files.

    runs/x                             model.safetensors if it exists, else the newest checkpoint
    runs/x, step 1200                  runs/x/checkpoints/step-00001200
    runs/x/checkpoints/step-00001200   the same
    a transformers folder              its own files

Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gptcli.errors import InputError, UsageError
from gptcli.files import read_json, read_toml

CONFIG = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
UNFINISHED = "unfinished.safetensors"
"""Weights of a checkpoint for transformers, which WEIGHTS_INDEX names until WEIGHTS exists."""
CHECKPOINTS, STATE, INDEX = "checkpoints", "state.json", "index.json"
MODEL = "model"
"""Prefix of the names of weight files in a checkpoint."""
# other files of a run folder
RUN_TOML, METRICS, SAMPLES = "run.toml", "metrics.jsonl", "samples.jsonl"
REPORT, TRACE = "report.html", "trace.json"
LR_RANGE, LR_RANGE_REPORT = "lr_range.jsonl", "lr_range.html"
INIT = "init"
"""Folder of the model from which an unfinished run was initialized."""
FINETUNE_REPORT, CLASSIFIER = "finetune.json", "classifier.safetensors"
STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Location of a model's files."""

    folder: Path
    """Folder of configuration and tokenizer, and of the weights if there is no `checkpoint`."""
    checkpoint: Path | None = None
    """Checkpoint folder that contains the weights."""
    step: int | None = None
    """Training step of the weights; None for a finished model."""
    digest: str | None = None
    """Fingerprint of the checkpoint's weights, set when it is loaded."""

    def __str__(self) -> str:
        if self.step is None:
            return str(self.folder)
        unfinished = "" if (self.folder / WEIGHTS).is_file() else ", an unfinished run"
        return f"step {self.step:,} of {self.folder}{unfinished}"


def is_finetuned(folder: Path) -> bool:
    """Tell whether a run folder contains a finished fine-tuned model."""
    return (folder / FINETUNE_REPORT).is_file()


def find_model(
    folder: str | Path, step: int | None = None, *, skip: Collection[int] = ()
) -> ModelSource:
    """Return the location of the weights of a model folder.

    `step` selects a checkpoint; `skip` lists steps whose checkpoints are unreadable. Only names are
    examined, so that a folder without a model is rejected only when it is loaded. Raises InputError
    if the checkpoint does not exist, or the run has none yet.
    """
    folder = Path(folder)
    whole_path = folder if folder.name else folder.absolute()
    if (match := STEP.fullmatch(whole_path.name)) and whole_path.parent.name == CHECKPOINTS:
        if step not in (None, int(match[1])):
            raise UsageError(
                f"is the checkpoint of step {int(match[1]):,}, not of step {step:,}", where=folder
            )
        folder, step = whole_path.parent.parent, int(match[1])
    found = step_folders(folder)
    if step is not None:
        if step not in found:
            raise InputError(f"no checkpoint of step {step:,}", where=folder, hint=_listed(found))
        return ModelSource(folder, found[step], step)
    if (folder / WEIGHTS).is_file():
        return ModelSource(folder)
    if left := found.keys() - set(skip):
        return ModelSource(folder, found[max(left)], max(left))
    if found:
        raise InputError(
            "no checkpoint can be read",
            where=folder / CHECKPOINTS,
            hint="gpt train --resume reports what is wrong with each",
        )
    if (folder / WEIGHTS_INDEX).is_file():
        return ModelSource(folder, step=_copied_step(folder))
    if (folder / RUN_TOML).is_file():
        raise InputError(
            "the run has no checkpoint yet, and therefore no weights",
            where=folder,
            hint=_first_checkpoint(folder),
        )
    return ModelSource(folder)


def step_folders(run: Path) -> dict[int, Path]:
    """Return the checkpoint folders of a run by step."""
    found = (
        (STEP.fullmatch(folder.name), folder) for folder in (Path(run) / CHECKPOINTS).glob("step-*")
    )
    return {int(match[1]): folder for match, folder in found if match}


def initial_weights_folder(out: Path, init_from: Path) -> Path:
    """Return the folder with the initial weights of the run in `out`: `init/` if it exists."""
    return out / INIT if (out / INIT).is_dir() else init_from


def begun_folder(out: Path) -> Path | None:
    """Return the folder with configuration and tokenizer of the run in `out`, or None.

    It is the run folder itself or, before the first step, its `init/`.
    """
    return next((folder for folder in (out, out / INIT) if (folder / CONFIG).is_file()), None)


def remove_initial_weights(out: Path) -> None:
    """Remove `init/` from a finished run folder."""
    shutil.rmtree(out / INIT, ignore_errors=True)


def checkpoint_digest(checkpoint: Path) -> str:
    """Return a fingerprint of a checkpoint's weights, from the checksums in its state.

    Raises InputError if the state cannot be read.
    """
    try:
        digests = read_json(checkpoint / STATE)["sha256"]
        rows = [
            f"{file} {digest}\n"
            for file, digest in sorted(digests.items())
            if file.startswith(MODEL)
        ]
    except (AttributeError, KeyError, TypeError):
        raise InputError("not the state of a checkpoint", where=checkpoint / STATE) from None
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def _copied_step(folder: Path) -> int | None:
    """Return the step of UNFINISHED if the folder's index names it, else None."""
    from safetensors import SafetensorError, safe_open

    try:
        named = set(read_json(folder / WEIGHTS_INDEX)["weight_map"].values())
        if named != {UNFINISHED}:
            return None
        with safe_open(folder / UNFINISHED, "np") as file:
            return int((file.metadata() or {})["step"])
    except (AttributeError, KeyError, TypeError, ValueError, InputError, OSError, SafetensorError):
        return None  # reported when the weights are loaded


def _listed(found: Collection[int]) -> str:
    if not found:
        return "there are no checkpoints"
    *steps, last = (f"{step:,}" for step in sorted(found))
    return (
        f"there are checkpoints of steps {', '.join(steps)} and {last}"
        if steps
        else f"there is a checkpoint of step {last}"
    )


def _first_checkpoint(folder: Path) -> str:
    """Return a hint that says when the first checkpoint is due, if run.toml tells."""
    try:
        every = read_toml(folder / RUN_TOML).get("checkpoint_every")
    except InputError:
        every = None
    when = (
        f"the first one is due after step {every:,}"
        if isinstance(every, int)
        else "wait for the first one"
    )
    return f"{when}; if the run was stopped, continue it with gpt train --resume --out {folder}"
