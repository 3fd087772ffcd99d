"""Where the weights of a model folder are: in the finished model, or in a checkpoint of a run that
stopped or is still going on.

    runs/x                             model.safetensors if it is there, else the newest checkpoint
    runs/x, step 1200                  runs/x/checkpoints/step-00001200
    runs/x/checkpoints/step-00001200   the same
    a transformers folder              its own files

Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gptcli.errors import InputError, UsageError
from gptcli.files import read_json, read_toml

WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# a checkpoint's weights for transformers, which WEIGHTS_INDEX names until WEIGHTS is there
UNFINISHED = "unfinished.safetensors"
CHECKPOINTS, STATE, INDEX = "checkpoints", "state.json", "index.json"
MODEL = "model"  # how the names of a checkpoint's files of weights begin
# the other files of a run folder
RUN_TOML, METRICS, SAMPLES = "run.toml", "metrics.jsonl", "samples.jsonl"
REPORT, TRACE = "report.html", "trace.json"
LR_RANGE, LR_RANGE_REPORT = "lr_range.jsonl", "lr_range.html"
INIT = "init"  # folder of the model that an unfinished run started from
FINETUNE_REPORT, CLASSIFIER = "finetune.json", "classifier.safetensors"
STEP = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model is read from."""

    folder: Path
    """Holds the configuration and the tokenizer, and the weights too if there is no
    `checkpoint`.
    """
    checkpoint: Path | None = None
    """The checkpoint folder that holds the weights."""
    step: int | None = None
    """The training step of the weights; None for a finished model."""
    digest: str | None = None
    """A fingerprint of the checkpoint's weights, once it has been read."""

    def __str__(self) -> str:
        if self.step is None:
            return str(self.folder)
        unfinished = "" if (self.folder / WEIGHTS).is_file() else ", a run that is not finished"
        return f"step {self.step:,} of {self.folder}{unfinished}"


def find_model(
    folder: str | Path, step: int | None = None, *, skip: Collection[int] = ()
) -> ModelSource:
    """Find the weights of a model folder; `step` asks for a checkpoint, and `skip` names steps
    whose checkpoints cannot be read.

    Nothing but names is looked at: a folder that is no model passes here, and is refused by whoever
    reads it. Raises InputError for a checkpoint that is not there, and for a run that has none yet.
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
            raise InputError(
                f"no checkpoint of step {step:,} here", where=folder, hint=_listed(found)
            )
        return ModelSource(folder, found[step], step)
    if (folder / WEIGHTS).is_file():
        return ModelSource(folder)
    if left := found.keys() - set(skip):
        return ModelSource(folder, found[max(left)], max(left))
    if found:
        raise InputError(
            "no checkpoint here can be read",
            where=folder / CHECKPOINTS,
            hint="gpt train --resume says what is wrong",
        )
    if (folder / WEIGHTS_INDEX).is_file():
        return ModelSource(folder, step=_copied_step(folder))
    if (folder / RUN_TOML).is_file():
        raise InputError(
            "the run has no checkpoint yet, and so no weights to read",
            where=folder,
            hint=_first_checkpoint(folder),
        )
    return ModelSource(folder)


def step_folders(run: Path) -> dict[int, Path]:
    """The checkpoints of a run folder by step."""
    found = (
        (STEP.fullmatch(folder.name), folder) for folder in (Path(run) / CHECKPOINTS).glob("step-*")
    )
    return {int(match[1]): folder for match, folder in found if match}


def checkpoint_digest(checkpoint: Path) -> str:
    """A fingerprint of a checkpoint's weights, by the checksums that it lists. Raises InputError if
    they cannot be read.
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
    """The step of an unfinished run's copy for transformers, if that is what the folder's index
    names.
    """
    from safetensors import SafetensorError, safe_open

    try:
        named = set(read_json(folder / WEIGHTS_INDEX)["weight_map"].values())
        if named != {UNFINISHED}:
            return None
        with safe_open(folder / UNFINISHED, "np") as file:
            return int((file.metadata() or {})["step"])
    except (AttributeError, KeyError, TypeError, ValueError, InputError, OSError, SafetensorError):
        return None  # what is wrong with it is said by whoever reads the weights


def _listed(found: Collection[int]) -> str:
    if not found:
        return "there are no checkpoints here"
    *steps, last = (f"{step:,}" for step in sorted(found))
    return (
        f"there are those of steps {', '.join(steps)} and {last}"
        if steps
        else f"there is that of step {last}"
    )


def _first_checkpoint(folder: Path) -> str:
    """When it comes, as far as run.toml says."""
    try:
        every = read_toml(folder / RUN_TOML).get("checkpoint_every")
    except InputError:
        every = None
    when = (
        f"the first comes after step {every:,}" if isinstance(every, int) else "wait for the first"
    )
    return f"{when}; a run that was stopped goes on with gpt train --resume --out {folder}"
