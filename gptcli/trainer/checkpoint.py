"""Checkpoints: whole or absent, verified on reading, and loadable under any layout.

`checkpoints/step-NNNNNNNN/` contains the tensors, as `gptcli.trainer.checkpoint_storage` writes
them, and `state.json`: the position of the run and the SHA-256 of every file. A resume needs
nothing else, because data order, schedules and dropout are functions of the position.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.staging import BlockingAsyncStager
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor.experimental import implicit_replication

from gptcli.distributed.context import RankContext
from gptcli.errors import GptError, InputError, RunError, message_of
from gptcli.events import Events
from gptcli.files import PARTIAL, advice, fsync_folder, read_json, sha256, write_json
from gptcli.model.hf import HEAD
from gptcli.model.safetensors_io import read_weights
from gptcli.model.source import (
    BEST,
    CHECKPOINTS,
    INDEX,
    STATE,
    damage,
    find_model,
    step_folders,
)
from gptcli.trainer.checkpoint_storage import CheckpointReader, CheckpointWriter
from gptcli.trainer.schedule import Position

FORMAT = 2
# Of ranks that wait for another one; a rank that dies is noticed at once by its connections.
CHECKPOINT_TIMEOUT = timedelta(days=1)
# A GPU's ranks write up to this many bytes before the next step: a thread would save no time.
SYNC_BYTES = 1 << 26

# A single process is a normal case here.
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

Parameters = Mapping[str, nn.Parameter]
"""Parameters of which this rank has a part, by the plain model's names."""


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """Position of a run, as in `state.json`."""

    position: Position
    identity: dict[str, Any]
    """Values that a resume must share: `Run.identity`."""
    metrics: dict[str, Any]
    """Metrics of the step; no validation loss, which is measured after the checkpoint."""


class Checkpoints:
    """Checkpoints of one run folder. All ranks call each method together."""

    def __init__(self, out: Path, context: RankContext, *, keep: int, keep_every: int = 0) -> None:
        """Keep the newest `keep` checkpoints, and remove what a killed run left behind.

        Also kept are those of the multiples of `keep_every`, and the best one (`write_best`).
        """
        self.out, self.context, self.keep, self.keep_every = out, context, keep, keep_every
        # A separate group: a thread communicates in it while training uses the others, whose
        # timeout is too short.
        self.group = context.new_group(CHECKPOINT_TIMEOUT) if context.world_size > 1 else None
        self.pinned: tuple[set[str], BlockingAsyncStager] | None = None
        self.writing: tuple[Path, Future[Any]] | None = None
        if context.is_main:
            for leftover in (out / CHECKPOINTS).glob(f".*{PARTIAL}"):
                shutil.rmtree(leftover)

    def save(
        self,
        state: CheckpointState,
        parameters: Parameters,
        optimizer: torch.optim.Optimizer,
        *,
        on_written: Callable[[], None] | None = None,
    ) -> None:
        """Write all tensors: of a GPU from a copy in host memory, in the background until `wait`.

        A CPU's are written where they are before this returns: a copy takes as much memory as
        weights and optimizer, and the thread that writes takes its time from the step.

        The main rank calls `on_written`, in the thread that writes, once the checkpoint is on
        disk. Raises RunError if the save before this one failed.
        """
        self.wait()
        folder = checkpoint_folder(self.out, state.position.step)
        partial = folder.with_name(f".{folder.name}{PARTIAL}")
        tensors = named_tensors(parameters, optimizer)
        writing = async_save(
            tensors,
            storage_writer=CheckpointWriter(
                partial,
                self.context,
                lambda digests: self._complete(partial, folder, state, digests, on_written),
            ),
            planner=DefaultSavePlanner(flatten_state_dict=False),
            process_group=self.group,
            async_stager=self._stager(tensors),
            no_dist=self.group is None,
        )
        assert isinstance(writing, Future)
        self.writing = folder, writing
        on_cpu = self.context.device.type == "cpu"
        if on_cpu or sum(tensor.nbytes for tensor in tensors.values()) < SYNC_BYTES:
            self.wait()

    def _stager(self, tensors: dict[str, Any]) -> BlockingAsyncStager:
        """Return what copies tensors to the host: nothing on a CPU; from a CUDA GPU, into the same
        pinned memory each time, which takes a tenth of the time of new memory.
        """
        if self.context.device.type == "cpu":
            return _InPlace()
        if self.context.device.type != "cuda":
            return BlockingAsyncStager()
        if self.pinned is None or self.pinned[0] != tensors.keys():
            self.pinned = set(tensors), BlockingAsyncStager(cache_staged_state_dict=True)
        return self.pinned[1]

    def wait(self) -> None:
        """Wait until the checkpoint that is being saved is on disk.

        Raises RunError if it could not be written; the checkpoints before it stay.
        """
        if self.writing is None:
            return
        (folder, writing), self.writing = self.writing, None
        try:
            writing.result()
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            if self.context.is_main:
                shutil.rmtree(folder.with_name(f".{folder.name}{PARTIAL}"), ignore_errors=True)
            if not isinstance(cause, OSError):
                raise cause from None
            raise RunError(
                f"the checkpoint could not be written: {cause}",
                where=folder,
                hint=f"earlier checkpoints are intact: {advice(cause) or 'mend this'}, then "
                "{option:resume}",
            ) from None

    def barrier(self) -> None:
        """Wait until every rank is here, however long one of them evaluates or exports."""
        if self.group is not None:
            dist.barrier(group=self.group)

    def newest(self, events: Events) -> Path | None:
        """Return the folder of the newest intact checkpoint; None if there is no checkpoint.

        The ranks share the verification of all bytes. A broken checkpoint is skipped with a
        warning. Raises InputError if all are broken.
        """
        folders = self.context.all_gather(step_folders(self.out), self.group)[0]
        steps = sorted(folders)
        while steps:
            step = steps.pop()
            found = self.context.all_gather(_broken(folders[step], self.context), self.group)
            broken = next(filter(None, found), None)
            if broken is None:
                return folders[step]
            events.warn(damage(folders[step], broken, steps[-1] if steps else None))
        if folders:
            raise InputError(
                "no checkpoint here is intact",
                where=Path(self.out) / CHECKPOINTS,
                hint="{option:force} starts the run over",
            )
        return None

    def load(
        self, folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer
    ) -> CheckpointState:
        """Load the checkpoint that `newest` returned; every rank reads its own part.

        The layout may differ from the one that wrote the checkpoint.
        """
        reader = CheckpointReader(folder)
        for key, saved in reader.tensors().items():
            name, _, part = key.rpartition("/")
            if (parameter := parameters.get(name)) is not None:
                whole = saved.size == parameter.shape  # then it has the parameter's layout
                optimizer.state[parameter][part] = (
                    torch.zeros_like(parameter)
                    if whole
                    else torch.zeros(
                        saved.size, dtype=saved.properties.dtype, device=parameter.device
                    )
                )
        _load(named_tensors(parameters, optimizer), reader, self.group)
        state = read_state(folder)
        if self.context.is_main:
            # the run may have been killed between its last checkpoint and its removals
            self._prune(state.position.step)
        return state

    def _complete(
        self,
        partial: Path,
        folder: Path,
        state: CheckpointState,
        digests: dict[str, str],
        on_written: Callable[[], None] | None,
    ) -> None:
        """Write the state, name the checkpoint and remove the oldest, on the main rank.

        The tensor files are on disk by then.
        """
        write_json(partial / STATE, {"format": FORMAT, **asdict(state), "sha256": digests})
        _remove(folder)
        partial.rename(folder)
        fsync_folder(folder.parent)
        for step, later in step_folders(self.out).items():
            if step > state.position.step:  # it was broken, and the run resumed before it
                _remove(later)
        self._prune(state.position.step)
        if on_written is not None:
            on_written()

    def _prune(self, newest: int) -> None:
        """Remove the checkpoints up to step `newest` that are not to be kept."""
        folders, best = step_folders(self.out), read_best(self.out).get("step")
        for step in sorted(step for step in folders if step <= newest)[: -self.keep]:
            if step != best and not (self.keep_every and step % self.keep_every == 0):
                _remove(folders[step])


class _InPlace(BlockingAsyncStager):
    """Stager of tensors that nothing changes until they are written."""

    def stage(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return the tensors themselves."""
        return state_dict


def plain_named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return this rank's parameters by the plain model's names.

    A tied head is the token embedding, on the last pipeline stage too.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if parameters.get(HEAD) is parameters.get("wte.weight"):
        parameters.pop(HEAD, None)
    return parameters


def checkpoint_folder(out: Path, step: int) -> Path:
    """Return the folder of the checkpoint of `step` in the run folder `out`."""
    return Path(out) / CHECKPOINTS / f"step-{step:08d}"


def named_tensors(
    parameters: Parameters, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """Return the parameters by name, and the optimizer's state of each as `name/key`.

    Their order is fixed, so that the files of a resumed run are the same.
    """
    tensors = {name: parameter.detach() for name, parameter in parameters.items()}
    for name, parameter in parameters.items():
        tensors.update(
            {
                f"{name}/{part}": value
                for part, value in sorted(optimizer.state.get(parameter, {}).items())
            }
        )
    return tensors


@torch.no_grad()
def load_weights_(folder: Path, parameters: Parameters, step: int | None = None) -> None:
    """Copy the weights in a run or GPT-2 folder into this rank's parameters, in place.

    `step` selects a checkpoint of a run. One whole tensor at a time is in memory. Rows that pad
    the vocabulary are left out. Raises InputError if weights are missing.
    """
    with implicit_replication():  # each rank copies its part of the whole tensor
        for name, tensor in read_weights(find_model(folder, step)):
            if name in parameters:
                parameters[name].copy_(tensor[: parameters[name].shape[0]])


def read_state(folder: Path) -> CheckpointState:
    """Return the state in a checkpoint's folder. Raises InputError if it cannot be read."""
    table = read_json(folder / STATE)
    state: CheckpointState | None = None
    with contextlib.suppress(KeyError, TypeError):
        state = CheckpointState(Position(**table["position"]), table["identity"], table["metrics"])
    numbers = () if state is None else (state.position.step, state.position.sequences)
    if (
        state is None
        or not all(isinstance(part, dict) for part in (state.identity, state.metrics))
        or set(map(type, numbers)) != {int}
    ):
        raise InputError("not the state of a checkpoint of this format", where=folder / STATE)
    return state


def newest_state(out: Path) -> CheckpointState | None:
    """Return the newest readable checkpoint state, without verifying files; None without one."""
    for _, folder in sorted(step_folders(out).items(), reverse=True):
        with contextlib.suppress(InputError):
            return read_state(folder)
    return None


def read_best(out: Path) -> dict[str, Any]:
    """Return step, metric and value of a run's best checkpoint; nothing if none was chosen."""
    with contextlib.suppress(InputError):
        table = read_json(out / BEST)
        if isinstance(table, dict):
            return table
    return {}


def write_best(out: Path, step: int, metric: str, value: float) -> None:
    """Record the best checkpoint of a run, which is then kept."""
    write_json(out / BEST, {"step": step, "metric": metric, "value": value})


def newest_step(out: Path) -> int | None:
    """Return the step of the newest checkpoint in the run folder `out`; None if it has none."""
    state = newest_state(out)
    return None if state is None else state.position.step


def _load(
    tensors: dict[str, torch.Tensor], reader: CheckpointReader, group: dist.ProcessGroup | None
) -> None:
    """Fill `tensors` in place. Raises InputError if the files do not contain them."""
    try:
        load(
            tensors,
            storage_reader=reader,
            planner=DefaultLoadPlanner(flatten_state_dict=False),
            process_group=group,
            no_dist=group is None,
        )
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        if isinstance(cause, OSError | GptError):
            raise cause from None
        raise InputError(
            f"the checkpoint does not fit this run: {str(cause).splitlines()[0]}",
            where=reader.folder,
        ) from None


def _broken(folder: Path, context: RankContext) -> str | None:
    """Verify this rank's share of a checkpoint's files; return the first defect, or None."""
    try:
        table = read_json(folder / STATE)
        if table["format"] != FORMAT:
            return f"its format {table['format']} is not {FORMAT}, the one this version reads"
        read_state(folder)
        digests = table["sha256"]
        if unknown := {INDEX, *CheckpointReader(folder).file_names()} ^ digests.keys():
            return f"{STATE} and {INDEX} disagree on {', '.join(sorted(unknown))}"
        files = sorted(digests)[context.rank :: context.world_size]
        with ThreadPoolExecutor() as pool:  # hashing releases the GIL
            for file, digest in zip(
                files, pool.map(lambda file: sha256(folder / file), files), strict=True
            ):
                if digest != digests[file]:
                    return f"{file} does not match its SHA-256"
    except (InputError, OSError) as error:
        return message_of(error)
    except (AttributeError, KeyError, TypeError):
        return f"{STATE} is incomplete"
    return None


def _remove(folder: Path) -> None:
    """Remove a checkpoint, renamed first: a partly removed one must not look like one."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.old{PARTIAL}")))
