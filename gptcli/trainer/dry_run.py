"""Dry run of a layout: parameters and traffic of each process, without the machines.

Processes that differ only in their coordinate along `dp` have the same tensors, so one of them is
built: on the meta device, as one rank of a fake process group. Its parameters must be those that
`gptcli.cost` counts. The traffic of a step comes from `gptcli.cost` alone, which the tests compare
with the collectives of a real step.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import defaultdict
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.default_planner import create_default_local_save_plan
from torch.distributed.tensor import DTensor

from gptcli.cost.layout import rank_parameters
from gptcli.cost.memory import SCHEDULES
from gptcli.cost.step_time import StepTraffic, step_traffic
from gptcli.distributed.context import RankContext
from gptcli.errors import RunError
from gptcli.events import Events
from gptcli.trainer.auto import work_of
from gptcli.trainer.config import Run
from gptcli.trainer.parallelize import parallelize_model

Chunks = dict[tuple[int, ...], int]
"""Chunks of one parameter: their number of elements by their offset in the whole."""


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
        raise RunError(f"{layout.processes} processes of {layout} have {distinct} coordinates")
    run = uncompiled(run)
    work = work_of(layout, run.train, sequences)
    stages_per_rank = SCHEDULES[run.train.pipeline_schedule]
    chunks: dict[str, Chunks] = defaultdict(dict)
    sizes: dict[int, list[int]] = defaultdict(list)
    built = [context for context in contexts if mesh_coordinates(context)[1] == 0]
    # One process for each: DeviceMesh caches by shape what one rank has done.
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        for context, held in zip(built, pool.imap(partial(_build, run), built), strict=True):
            stage, _, shard, tp_rank = mesh_coordinates(context)
            size = sum(sum(part.values()) for part in held.values())
            counted = rank_parameters(
                run.model, layout, stage, tp_rank, shard, each=stages_per_rank
            )
            _check_equal(f"process {context.rank} holds", size, counted)
            sizes[stage].append(size)
            for name, part in held.items():
                for offset, count in part.items():
                    known = chunks[name].setdefault(offset, count)
                    _check_equal(f"the chunk of {name} at {offset} has", known, count)
            events.progress("dry run", sum(map(len, sizes.values())), len(built), "processes")
        pool.close()
        # terminating the pool while it replaces a finished process can hang
        pool.join()
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


def _check_equal(what: str, built: Any, counted: Any) -> None:
    """Raise RunError if the trainer and `gptcli.cost` disagree."""
    if built != counted:
        raise RunError(
            f"{what} {built}, not {counted}",
            hint="gptcli.cost and the trainer disagree; please report this",
        )


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
