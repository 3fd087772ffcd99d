"""Checkpoints: whole or absent, checked on reading, loadable into any layout, nothing pickled.

`checkpoints/step-NNNNNNNN/` holds `model.safetensors` and `optimizer.safetensors` under the plain model's parameter names, and
`state.json`, where the run stands, with the SHA-256 of both. A run needs nothing else: data order, schedules and dropout are functions of
the position.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from gptcli.errors import InputError, RunError
from gptcli.events import Events
from gptcli.files import atomic_folder, read_json, sha256, write_json
from gptcli.trainer.layout import Place
from gptcli.trainer.schedule import Position

FORMAT = 1
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # gathered on the first process
_HEAD = "lm_head.weight"


@dataclass(frozen=True, slots=True)
class State:
    """Where a run stands, as `state.json` holds it."""

    position: Position
    identity: dict[str, Any]
    """What a resume must agree with: `Run.identity`."""
    metrics: dict[str, Any]
    """The step's line, without a validation loss: the checkpoint comes before the evaluation."""


def folder_of(out: Path, step: int) -> Path:
    return Path(out) / "checkpoints" / f"step-{step:08d}"


def save(out: Path, state: State, model: nn.Module, optimizer: torch.optim.Optimizer, place: Place, *, keep: int) -> None:
    """Write the checkpoint of this position, all processes together, and drop all but the newest `keep`.

    Raises RunError where it cannot be written; the checkpoints before it stay.
    """
    weights = model_tensors(model)
    moments: Any = get_optimizer_state_dict(model, optimizer, options=_WHOLE).get("state", {})  # elsewhere empty
    if place.leads:
        folder = folder_of(out, state.position.step)
        try:
            with atomic_folder(folder) as partial:
                save_file(weights, partial / MODEL)
                save_file({f"{name}/{key}": value for name, row in moments.items() for key, value in row.items()}, partial / OPTIMIZER)
                table = {
                    "format": FORMAT,
                    "step": state.position.step,
                    "sequences": state.position.sequences,
                    "metrics": state.metrics,
                    "identity": state.identity,
                    "sha256": {name: sha256(partial / name) for name in (MODEL, OPTIMIZER)},
                }
                write_json(partial / STATE, table)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"the checkpoint could not be written: {error}",
                where=folder,
                hint="the checkpoints before it are whole: free some space, then --resume",
            ) from None
        _drop(out, state.position.step, keep)
    place.wait()


def model_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole model's parameters on the first process (elsewhere empty), a tied head left out. All processes call it together."""
    tensors: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    if _tied(model):
        tensors.pop(_HEAD, None)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Take up a checkpoint that `newest` found: every process reads it, whatever layout wrote it."""
    weights: dict[str, Any] = load_file(folder / MODEL)
    if _tied(model):
        weights[_HEAD] = weights["wte.weight"]
    set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
    table: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
    table["state"] = {}
    for key, value in load_file(folder / OPTIMIZER).items():
        name, _, part = key.rpartition("/")
        table["state"].setdefault(name, {})[part] = value
    set_optimizer_state_dict(model, optimizer, table, options=StateDictOptions(full_state_dict=True))
    return read_state(folder)


def newest(out: Path, events: Events) -> Path | None:
    """The newest checkpoint of a run folder that is whole; None where there is none at all. Broken ones are passed over with a warning.

    Raises InputError where all are broken.
    """
    folders = _folders(out)
    for step in sorted(folders, reverse=True):
        broken = _broken(folders[step])
        if broken is None:
            return folders[step]
        events.warn(f"{folders[step]}: {broken}: going back to the checkpoint before it")
    if folders:
        raise InputError("no checkpoint here is whole", where=Path(out) / "checkpoints", hint="--force starts the run over")
    return None


def read_state(folder: Path) -> State:
    table = read_json(folder / STATE)
    return State(Position(table["step"], table["sequences"]), table["identity"], table["metrics"])


def _broken(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        table = read_json(folder / STATE)
        if table["format"] != FORMAT:
            return f"format {table['format']} is not {FORMAT}, the one this program reads"
        for name, digest in table["sha256"].items():
            if sha256(folder / name) != digest:
                return f"{name} does not match its SHA-256"
    except (InputError, OSError) as error:
        return str(error)
    except (KeyError, TypeError):
        return f"{STATE} is not whole"
    return None


def _folders(out: Path) -> dict[int, Path]:
    """The checkpoints of a run folder by step."""
    found = ((re.fullmatch(r"step-(\d{8,})", folder.name), folder) for folder in (Path(out) / "checkpoints").glob("step-*"))
    return {int(match[1]): folder for match, folder in found if match}


def _drop(out: Path, step: int, keep: int) -> None:
    """Remove all checkpoints but the newest `keep` up to `step`: later ones were broken and passed over."""
    folders = _folders(out)
    kept = sorted(number for number in folders if number <= step)[-keep:]
    for number, folder in folders.items():
        if number not in kept:
            shutil.rmtree(folder)


def _tied(model: nn.Module) -> bool:
    return not any(name.endswith(_HEAD) for name, _ in model.named_parameters())  # which names a shared parameter once
