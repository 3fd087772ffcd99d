"""Checkpoints: whole or absent, checked on reading, loadable into any layout, nothing pickled.

`checkpoints/step-NNNNNNNN/` holds what `gptcli.trainer.checkpoint_storage` wrote, and `state.json`, where the
run stands, with the SHA-256 of every file. A run needs nothing else: data order, schedules and
dropout are functions of the position.
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
from gptcli.errors import GptError, InputError, RunError
from gptcli.events import Events
from gptcli.files import PARTIAL, fsync_folder, read_json, sha256, write_json
from gptcli.model.hf import HEAD
from gptcli.model.safetensors_io import read_weights
from gptcli.model.source import CHECKPOINTS, INDEX, STATE, find_model, step_folders
from gptcli.trainer.checkpoint_storage import CheckpointReader, CheckpointWriter
from gptcli.trainer.schedule import Position

FORMAT = 2
# of processes that wait for one; a lost one is noticed at once, by its closed connections
CHECKPOINT_TIMEOUT = timedelta(days=1)
# bytes of a process's tensors that are written before the next step: a thread would save no time
SYNC_BYTES = 1 << 26

# one process is no mishap
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)

# those that this process holds a part of, by the plain model's names
Parameters = Mapping[str, nn.Parameter]


@dataclass(frozen=True, slots=True)
class CheckpointState:
    """Where a run stands, as `state.json` holds it."""

    position: Position
    identity: dict[str, Any]
    """What a resume must agree with: `Run.identity`."""
    metrics: dict[str, Any]
    """The step's line, without a validation loss: the checkpoint comes before the evaluation."""


class Checkpoints:
    """The checkpoints of one run folder. All processes of the run call each method together."""

    def __init__(self, out: Path, context: RankContext, *, keep: int) -> None:
        """`keep`: how many stay, the newest."""
        self.out, self.context, self.keep = out, context, keep
        # A group of its own, because a thread speaks in it while the training speaks in others, and
        # because they give up after minutes.
        self.group = (
            dist.new_group(backend="gloo", timeout=CHECKPOINT_TIMEOUT)
            if context.world_size > 1
            else None
        )
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
        """Copy everything to host memory, and write it while the training goes on; `wait` says when
        it is on disk.

        The first process calls `on_written` once the checkpoint is whole. Raises RunError where the save
        before this one failed.
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
            async_stager=BlockingAsyncStager(),
            no_dist=self.group is None,
        )
        assert isinstance(writing, Future)
        self.writing = folder, writing
        if sum(tensor.nbytes for tensor in tensors.values()) < SYNC_BYTES:
            self.wait()

    def wait(self) -> None:
        """Until what was saved is on disk, whole. Raises RunError where that failed: the
        checkpoints before it stay.
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
                hint="the checkpoints before it are whole: free some space, then --resume",
            ) from None

    def barrier(self) -> None:
        """Until every process is here, however long one of them has work of its own: with
        evaluations, or the finished model.
        """
        if self.group is not None:
            dist.barrier(group=self.group)

    def newest(self, events: Events) -> Path | None:
        """The newest checkpoint that is whole; None where there is none at all. Broken ones are
        passed over with a warning.

        The processes share the work of reading every byte. Raises InputError where all are broken.
        """
        folders = self._gather(step_folders(self.out))[0]
        for step in sorted(folders, reverse=True):
            broken = next(filter(None, self._gather(_broken(folders[step], self.context))), None)
            if broken is None:
                return folders[step]
            events.warn(f"{folders[step]}: {broken}: going back to the checkpoint before it")
        if folders:
            raise InputError(
                "no checkpoint here is whole",
                where=Path(self.out) / CHECKPOINTS,
                hint="--force starts the run over",
            )
        return None

    def load(
        self, folder: Path, parameters: Parameters, optimizer: torch.optim.Optimizer
    ) -> CheckpointState:
        """Take up a checkpoint that `newest` found: every process reads what it needs, whatever
        layout wrote it.
        """
        reader = CheckpointReader(folder)
        for key, saved in reader.tensors().items():
            name, _, part = key.rpartition("/")
            if (parameter := parameters.get(name)) is not None:
                whole = saved.size == parameter.shape  # laid out as its parameter is
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
            # a run may have been killed between its checkpoint and this
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
        """On the first process, once the files are on disk: the state, the checkpoint's name, and
        away with the oldest.
        """
        write_json(partial / STATE, {"format": FORMAT, **asdict(state), "sha256": digests})
        _remove(folder)
        partial.rename(folder)
        fsync_folder(folder.parent)
        for step, later in step_folders(self.out).items():
            if step > state.position.step:  # it was broken and passed over
                _remove(later)
        self._prune(state.position.step)
        if on_written is not None:
            on_written()

    def _prune(self, newest: int) -> None:
        """Keep `keep` checkpoints up to the step `newest`."""
        folders = step_folders(self.out)
        for step in sorted(step for step in folders if step <= newest)[: -self.keep]:
            _remove(folders[step])

    def _gather(self, value: Any) -> list[Any]:
        """What each process has, by rank."""
        if self.group is None:
            return [value]
        values = [None] * self.context.world_size
        dist.all_gather_object(values, value, self.group)
        return values


def plain_named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """This process's parameters by the plain model's names; a tied head is the token embedding, on
    the last stage too.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if parameters.get(HEAD) is parameters.get("wte.weight"):
        parameters.pop(HEAD, None)
    return parameters


def checkpoint_folder(out: Path, step: int) -> Path:
    return Path(out) / CHECKPOINTS / f"step-{step:08d}"


def named_tensors(
    parameters: Parameters, optimizer: torch.optim.Optimizer
) -> dict[str, torch.Tensor]:
    """The parameters, and the optimizer's state of each as `name/part`; in one order, so that a
    resumed run's files are the same.
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
    """Copy the model of a run or GPT-2 folder, or of a run's checkpoint of `step`, into this
    process's parameters, holding one more tensor at a time; of a padded vocabulary the rows that
    these have. Raises InputError where it is not whole."""
    with implicit_replication():  # each process takes its part of the whole
        for name, tensor in read_weights(find_model(folder, step)):
            if name in parameters:
                parameters[name].copy_(tensor[: parameters[name].shape[0]])


def read_state(folder: Path) -> CheckpointState:
    """Raises InputError where it cannot be read."""
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
    """Where the newest checkpoint stands that says so, its files unread."""
    for _, folder in sorted(step_folders(out).items(), reverse=True):
        with contextlib.suppress(InputError):
            return read_state(folder)
    return None


def newest_step(out: Path) -> int | None:
    """Return the step of the newest checkpoint in the run folder `out`; None if it has none."""
    state = newest_state(out)
    return None if state is None else state.position.step


def _load(
    tensors: dict[str, torch.Tensor], reader: CheckpointReader, group: dist.ProcessGroup | None
) -> None:
    """Fill `tensors` in place. Raises InputError where the files do not hold them."""
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
    """What is wrong with this process's share of a checkpoint's files, or None."""
    try:
        table = read_json(folder / STATE)
        if table["format"] != FORMAT:
            return f"format {table['format']} is not {FORMAT}, the one this program reads"
        read_state(folder)
        digests = table["sha256"]
        if unknown := {INDEX, *CheckpointReader(folder).file_names()} ^ digests.keys():
            return f"{STATE} and {INDEX} do not agree on {', '.join(sorted(unknown))}"
        files = sorted(digests)[context.rank :: context.world_size]
        with ThreadPoolExecutor() as pool:  # hashing lets other threads run
            for file, digest in zip(
                files, pool.map(lambda file: sha256(folder / file), files), strict=True
            ):
                if digest != digests[file]:
                    return f"{file} does not match its SHA-256"
    except (InputError, OSError) as error:
        return str(error)
    except (AttributeError, KeyError, TypeError):
        return f"{STATE} is not whole"
    return None


def _remove(folder: Path) -> None:
    """Under another name first, so that no half of it is ever taken for a checkpoint."""
    if folder.exists():
        shutil.rmtree(folder.rename(folder.with_name(f".{folder.name}.old{PARTIAL}")))
