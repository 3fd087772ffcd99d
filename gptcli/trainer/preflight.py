"""Checks of a run before a process starts or a file is written, and the dry run of its layout.

The dry run gives parameters and traffic of each process without the machines. Processes that differ
only in their coordinate along `dp` have the same tensors, so one of them is built: on the meta
device, as one rank of a fake process group. Its parameters must be those that `gptcli.cost` counts.
The traffic of a step comes from `gptcli.cost` alone, which the tests compare with the collectives
of a real step.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.tensor import DTensor

from gptcli.cost.layout import parse_layout, rank_parameters
from gptcli.cost.memory import SCHEDULES
from gptcli.cost.step_time import StepTraffic, step_traffic
from gptcli.devices import check_apple_gpu, device_type
from gptcli.distributed.context import RankContext
from gptcli.distributed.join import import_ahead
from gptcli.errors import InputError, RunError, UsageError
from gptcli.events import Events
from gptcli.model.source import begun_folder, find_model
from gptcli.numbers import counted, in_bytes
from gptcli.shards.manifest import Manifest, read_manifest
from gptcli.shards.order import open_order, open_split, verify_bytes
from gptcli.tokenizer.load import load_tokenizer
from gptcli.trainer.auto import check_processes
from gptcli.trainer.checkpoint import CheckpointState, newest_state
from gptcli.trainer.config import Run, check_keep_best, check_optimizer, is_validation_loss
from gptcli.trainer.forecast import disk_bytes, disk_cautions
from gptcli.trainer.machine import disk_free
from gptcli.trainer.memory import check_division, check_memory, work_of
from gptcli.trainer.optimizer import check_precision
from gptcli.trainer.parallelize import parallelize_model
from gptcli.trainer.resolve import ResolvedRun
from gptcli.trainer.schedule import Schedule
from gptcli.trainer.trackers import find_tracker

# fields of the architecture that weights keep
SHAPE = {"n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "attention", "band", "norm", "tied"}
Result = TypeVar("Result")
Chunks = dict[tuple[int, ...], int]
"""Chunks of one parameter: their number of elements by their offset in the whole."""


def data_sha256(manifest: Manifest) -> str:
    """Return the fingerprint of the shards: files, splits, tokens and checksums in order.

    For several sources it includes their weights.
    """
    rows: list[Any] = [
        [shard.file, shard.split, shard.tokens, shard.sha256] for shard in manifest.shards
    ]
    if len(shares := manifest.shares()) > 1:
        rows += [[shard.source for shard in manifest.shards], shares]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def check_run(run: Run, manifest: Manifest) -> None:
    """Check quickly: layout, memory, folders, tokenizer, disk, and that the shards fill a window.

    Raises UsageError or InputError.
    """
    schedule = Schedule(run.train, run.model.n_ctx)
    layout, sequences = run.layout, min(schedule.full_batch, schedule.total_sequences)
    check_processes(layout)
    check_division(run.model, layout, run.train.pipeline_schedule, sequences)
    if device_type() == "mps":
        check_apple_gpu(
            precision=run.train.precision,
            compiled=run.train.compile,
            deterministic=run.train.deterministic,
        )
    check_precision(run.train.precision, layout.tp)
    check_memory(run.model, layout, run.train, sequences)
    check_optimizer(run.train)
    is_loss = is_validation_loss(run.train.keep_best)
    if run.measure is None or is_loss:  # the names of its own metrics are known later
        check_keep_best(
            run.train.keep_best,
            validation_losses(run, manifest),
            beyond="names that begin with val_loss are those of validation sets, which "
            "{option:val} adds"
            if is_loss
            else "a function `measure` adds others",
        )
    for name in run.track:
        find_tracker(name)
    if run.out.resolve() in (run.data.resolve(), *run.data.resolve().parents):
        raise UsageError(
            "the run folder contains the shards", where=run.out, hint="choose another {option:out}"
        )
    if load_tokenizer(run.data).sha256 != manifest.tokenizer_sha256:
        raise InputError(
            "the tokenizer in the shard folder is not the one the shards were made with",
            where=run.data,
            hint="build the shards again",
        )
    # a resumed run has its own copy: the run it started from may have changed
    begun = run.resume and begun_folder(run.out) is not None
    if (
        run.init_from is not None
        and not begun
        and _tokenizer_sha256(run.init_from) != manifest.tokenizer_sha256
    ):
        raise InputError(
            "the model to start from has a different tokenizer than the shards",
            where=run.init_from,
            hint="build the shards again, with the model's tokenizer",
        )
    for name, folder in run.val.items():
        if read_manifest(folder).tokenizer_sha256 != manifest.tokenizer_sha256:
            raise InputError(
                f"the validation set {name} has a different tokenizer than the shards",
                where=folder,
                hint="build it with the same one",
            )
    open_order(
        run.data,
        "train",
        run.model.n_ctx,
        run.train.seed,
        mixture=run.train.mixture,
        verify=False,
    )
    check_disk(run)


def validation_losses(run: Run, manifest: Manifest) -> list[str]:
    """Return the names of the validation losses that a run measures."""
    sources = [name for name in manifest.shares("val") if name is not None]
    names = [*run.val, *(sources if run.val_by_source else [])]
    return ["val_loss", *(f"val_loss_{name}" for name in names)]


def _tokenizer_sha256(folder: Path) -> str:
    return load_tokenizer(find_model(folder).folder).sha256


def check_data(run: Run, manifest: Manifest, part: int = 0, parts: int = 1) -> None:
    """Verify every byte of the shards, or of one of several parts of them.

    Raises InputError that names an altered shard.
    """
    for split in ("train", "val"):
        if manifest.tokens(split):
            open_split(run.data, split, verify=False)
    verify_bytes(run.data, manifest.shards[part::parts])


def check_disk(run: Run) -> None:
    """Raise UsageError if checkpoints and the finished model do not fit on the disk."""
    needed = disk_bytes(run.model, run.train, Schedule(run.train, run.model.n_ctx).steps())
    for caution in disk_cautions(needed, disk_free(run.out)):
        raise UsageError(caution.message, where=run.out, hint=caution.hint)


def check_resume(run: Run) -> bool:
    """Return whether the run to resume is complete.

    Raises UsageError if its folder contains a different run.
    """
    state = resumed_state(run.out, run.identity())
    return (
        state is not None
        and state.position.sequences >= Schedule(run.train, run.model.n_ctx).total_sequences
    )


def resumed_state(out: Path, identity: dict[str, Any]) -> CheckpointState | None:
    """Return the state of the run folder's newest checkpoint; None if it has none.

    Raises UsageError if the checkpoint has a different `identity`.
    """
    state = newest_state(out)
    if state is not None and (changed := differences(state.identity, identity)):
        raise UsageError(
            f"was started with other values: {'; '.join(changed)}",
            where=out,
            hint=_ways_on(out, state.identity, identity),
        )
    return state


def _ways_on(out: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return a hint for a run that cannot be resumed as requested, deletion last."""
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    )
    options = [f"{{option:{name}}}" for name in changed if name not in ("data", "tokenizer")]
    ways = []
    if not SHAPE & set(changed) and "tokenizer" not in changed:
        ways.append(
            f"to train another run from its weights: {{option:init_from}} {out} "
            "{option:out} ANOTHER-FOLDER, without {option:resume}"
        )
    if len(options) == len(changed):
        ways.append(f"to continue it: leave out {' and '.join(options)}")
    ways += [
        "to start another run: name another {option:out}",
        "{option:force} deletes it and starts over",
    ]
    return "\n".join(ways)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return descriptions of the values that differ."""
    return [
        f"the {name} changed"
        if name in ("data", "tokenizer")
        else f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


@dataclass(frozen=True, slots=True)
class StageRole:
    """Parameters and traffic of the processes with one coordinate along `pp`."""

    stage: int
    processes: int
    parameters: tuple[int, int]
    """Smallest and largest number of parameters of a process."""
    traffic: StepTraffic

    @property
    def optimizer_bytes(self) -> tuple[int, int]:
        """Smallest and largest size of AdamW's two fp32 moments on a process."""
        return 8 * self.parameters[0], 8 * self.parameters[1]


def stage_roles(plan: ResolvedRun, events: Events) -> list[StageRole]:
    """Return what each kind of process of a resolved run holds and sends; nothing for one process.

    Raises UsageError if the layout cannot divide the model, and what `dry_run` raises.
    """
    layout, sequences = parse_layout(plan.train.layout), plan.train.batch_tokens // plan.model.n_ctx
    if layout.processes == 1:
        return []
    check_division(plan.model, layout, plan.train.pipeline_schedule, sequences)
    check_precision(plan.train.precision, layout.tp, here=False)
    run = Run(
        name=plan.name, out=Path(), data=Path(), model=plan.model, train=plan.train,
        data_sha256="", tokenizer_sha256="", eot_id=0,
    )  # fmt: skip
    return dry_run(run, sequences, events)


def role_facts(roles: list[StageRole]) -> dict[str, str]:
    """Return a sentence about each stage: its processes, their parameters and their traffic."""
    facts = {}
    for role in roles:
        low, high = (f"{held:,}" for held in role.parameters)
        moved = [
            f"{in_bytes(n_bytes)} over {axis}"
            for axis, n_bytes in asdict(role.traffic).items()
            if n_bytes
        ]
        facts[f"stage {role.stage}"] = (
            f"{counted(role.processes, 'process')}, each with "
            f"{low if low == high else f'{low} to {high}'} parameters and "
            f"{in_bytes(role.optimizer_bytes[1])} of optimizer state; "
            f"a step moves {', '.join(moved)}"
        )
    return facts


def dry_run(run: Run, sequences: int, events: Events) -> list[StageRole]:
    """Return the role of each pipeline stage of a run's layout in a step of `sequences`.

    Raises RunError if a process holds other parameters than `gptcli.cost` counts, if two processes
    have the same coordinates, or if the chunks of a parameter do not add up to the whole.
    """
    layout = run.layout
    contexts = [
        RankContext(torch.device("cpu"), rank, layout.processes, layout)
        for rank in range(layout.processes)
    ]
    distinct = len({mesh_coordinates(context) for context in contexts})
    if distinct != layout.processes:
        raise RunError(
            f"the {counted(layout.processes, 'process')} of {layout} have {distinct} coordinates"
        )
    run = uncompiled(run)
    work = work_of(layout, run.train, sequences)
    stages_per_rank = SCHEDULES[run.train.pipeline_schedule]
    chunks: dict[str, Chunks] = defaultdict(dict)
    sizes: dict[int, list[int]] = defaultdict(list)
    built = [context for context in contexts if mesh_coordinates(context)[1] == 0]
    import_ahead()
    for context, held in zip(built, in_processes(partial(_build, run), built), strict=True):
        stage, _, shard, tp_rank = mesh_coordinates(context)
        size = sum(sum(part.values()) for part in held.values())
        expected = rank_parameters(run.model, layout, stage, tp_rank, shard, each=stages_per_rank)
        _check_equal(f"process {context.rank} holds", size, expected)
        sizes[stage].append(size)
        for name, part in held.items():
            for offset, count in part.items():
                known = chunks[name].setdefault(offset, count)
                _check_equal(f"the chunk of {name} at {offset} has", known, count)
        events.progress("dry run", sum(map(len, sizes.values())), len(built), "processes")
    events.finish("dry run")
    _check_equal(
        "all processes together hold",
        sum(sum(part.values()) for part in chunks.values()),
        run.model.parameters,
    )
    return [
        StageRole(
            stage,
            layout.processes // layout.pp,
            (min(counts), max(counts)),
            step_traffic(run.model, layout, work, stage, each=stages_per_rank),
        )
        for stage, counts in sizes.items()
    ]


def uncompiled(run: Run) -> Run:
    """Return the run without what needs a compiler or a GPU and changes no shape.

    The weights of fp8 are held and sent in bf16.
    """
    precision = "bf16" if run.train.precision == "fp8" else run.train.precision
    return replace(
        run, train=replace(run.train, compile=False, recompute="none", precision=precision)
    )


def mesh_coordinates(context: RankContext) -> tuple[int, int, int, int]:
    """Return the coordinates of a process along (pp, dp, shard, tp)."""
    dp, shard = divmod(context.replica_rank, context.layout.shard)
    return context.pp_rank, dp, shard, context.tp_rank


def _check_equal(what: str, built: Any, expected: Any) -> None:
    """Raise RunError if the trainer and `gptcli.cost` disagree."""
    if built != expected:
        raise RunError(
            f"{what} {built}, not {expected}",
            hint="gptcli.cost and the trainer disagree; please report this",
        )


def in_processes(
    work: Callable[[RankContext], Result], contexts: Iterable[RankContext]
) -> Iterator[Result]:
    """Yield the result of each, made in a process of its own: DeviceMesh caches by shape what one
    rank has done. As many run at a time as there are CPUs.

    They are forks of this thread: a pool makes them in another, in which libraries were not meant to
    be forked, and makes one that dies at its start anew for ever. Raises what the work raises, and
    RunError if a process dies.
    """
    fork = multiprocessing.get_context("fork")
    running: deque[tuple[Any, Any]] = deque()
    ahead = iter(contexts)
    try:
        while True:
            for context in itertools.islice(ahead, (os.cpu_count() or 1) - len(running)):
                receiver, sender = fork.Pipe(duplex=False)
                process = fork.Process(target=_send, args=(sender, work, context), daemon=True)
                process.start()
                sender.close()
                running.append((process, receiver))
            if not running:
                return
            process, receiver = running[0]
            try:
                is_done, result = receiver.recv()
            except EOFError:
                process.join()
                raise RunError(
                    f"a process of the dry run ended with code {process.exitcode}"
                ) from None
            process.join()
            running.popleft()
            if not is_done:
                raise result
            yield result
    finally:
        for process, _ in running:
            process.kill()
            process.join()


def _send(sender: Any, work: Callable[[RankContext], Any], context: RankContext) -> None:
    try:
        answer: tuple[bool, Any] = True, work(context)
    except KeyboardInterrupt:  # the process that waits is interrupted too, and says so
        return
    except Exception as error:
        answer = False, error
    sender.send(answer)


def _build(run: Run, context: RankContext) -> dict[str, Chunks]:
    """Build one process of a run in a fake process group; return its chunk of each parameter."""
    dist.init_process_group("fake", rank=context.rank, world_size=context.world_size)
    mesh = context.build_mesh()
    assert mesh is not None
    if tuple(mesh.get_coordinate() or ()) != mesh_coordinates(context):
        raise RunError(
            f"process {context.rank} has the coordinates {mesh.get_coordinate()} in the mesh, "
            f"not {mesh_coordinates(context)}"
        )
    model, _ = parallelize_model(run, context, mesh)
    return parameter_chunks(model)


def parameter_chunks(model: nn.Module) -> dict[str, Chunks]:
    """Return this process's chunk of each parameter, as a checkpoint would write it."""
    chunks: dict[str, Chunks] = {}
    for name, parameter in model.named_parameters():
        items = create_default_local_save_plan({name: parameter}, is_coordinator=True).items
        planned = [item.tensor_data.chunk for item in items if item.tensor_data is not None]
        chunks[name] = {
            tuple(chunk.offsets): chunk.sizes.numel() for chunk in planned if chunk.sizes.numel()
        }
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        _check_equal(f"{name} has", local.numel(), sum(chunks[name].values()))
    return chunks
