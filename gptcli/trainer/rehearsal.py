"""A layout rehearsed without its machines: each role is built, with no memory for its tensors, as
one of all processes of a group that is not there, and takes a step in which every collective is
weighed.

Processes that differ in their place along `dp` alone do the same with other sequences: one of them
is built. Every place along `pp`, `tp` and `shard` is; a step is taken once for stages of as many
layers, the first and the last apart, because the whole of what a collective moves is the same for
all who take part.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from gptcli.cost.communication import StepTraffic, step_traffic
from gptcli.cost.layout import Layout
from gptcli.cost.memory import SCHEDULES
from gptcli.cost.sharding import layers_of, rank_parameters
from gptcli.distributed.context import MESH, Place, reduce_gradients
from gptcli.distributed.tensor_parallel import add_up_partial
from gptcli.errors import RunError
from gptcli.events import Events
from gptcli.model.loss import IGNORE
from gptcli.trainer.auto import work_of
from gptcli.trainer.config import Run
from gptcli.trainer.parallelize import Part, lay_out
from gptcli.trainer.precision import PRODUCTS

# of one parameter: where a piece begins in the whole, and how many elements it has
Pieces = dict[tuple[int, ...], int]


@dataclass(frozen=True, slots=True)
class Role:
    """What the processes at one place along pp hold and send."""

    stage: int
    processes: int
    parameters: tuple[int, int]
    """The least and the most that one holds."""
    traffic: StepTraffic

    @property
    def optimizer_bytes(self) -> tuple[int, int]:
        """Two fp32 moments of each."""
        return 8 * self.parameters[0], 8 * self.parameters[1]


def rehearse(run: Run, sequences: int, events: Events) -> list[Role]:
    """Every role of a run's layout, one entry a stage, in a step of `sequences`. Raises RunError
    where what is built differs from what `gptcli.cost` counts, where a process has no role or two,
    or where a piece of a parameter is held by no one or in two shapes."""
    layout = run.layout
    places = [
        Place(torch.device("cpu"), rank, layout.processes, layout)
        for rank in range(layout.processes)
    ]
    if (given := len({_coordinates(place) for place in places})) != layout.processes:
        raise RunError(f"the {layout.processes} processes of {layout} share {given} roles")
    # as which its weights are held and sent
    precision = "bf16" if run.train.precision == "fp8" else run.train.precision
    run = replace(
        run, train=replace(run.train, compile=False, recompute="none", precision=precision)
    )
    work, each = work_of(layout, run.train, sequences), SCHEDULES[run.train.pipeline_schedule]
    pieces: dict[str, Pieces] = defaultdict(dict)
    sizes: dict[int, list[int]] = defaultdict(list)
    # by what tells one stage's step from another's
    traffic: dict[tuple[bool, bool, int], StepTraffic] = {}
    kinds = [
        (stage == 0, stage == layout.pp - 1, layers_of(run.model, layout.pp, stage, each))
        for stage in range(layout.pp)
    ]
    steps = {kinds.index(kind) for kind in kinds}  # the stages that take one
    played = [place for place in places if _coordinates(place)[1] == 0]
    # Each in a process of its own: torch remembers, by the shape of a mesh, what one of its
    # processes did.
    with multiprocessing.get_context("fork").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        for place, (held_pieces, moved) in zip(
            played, pool.imap(partial(_play, run, work.micro_batches, steps), played), strict=True
        ):
            stage, _, shard, slice_ = _coordinates(place)
            size = sum(sum(part.values()) for part in held_pieces.values())
            _agree(
                f"process {place.rank} holds",
                size,
                rank_parameters(run.model, layout, stage, slice_, shard, each=each),
            )
            sizes[stage].append(size)
            for name, part in held_pieces.items():
                for begin, count in part.items():
                    _agree(
                        f"the piece of {name} from {begin} on has",
                        pieces[name].setdefault(begin, count),
                        count,
                    )
            if moved is not None:
                _agree(
                    f"stage {stage} moves",
                    moved,
                    step_traffic(run.model, layout, work, stage, each=each),
                )
                traffic[kinds[stage]] = moved
            events.progress("rehearsal", sum(map(len, sizes.values())), len(played), "processes")
        pool.close()
        # to terminate it while it replaces a process that has had its one task may hang
        pool.join()
    events.finish("rehearsal")
    _agree(
        "all processes together hold",
        sum(sum(part.values()) for part in pieces.values()),
        run.model.parameters,
    )
    return [
        Role(
            stage, layout.processes // layout.pp, (min(counts), max(counts)), traffic[kinds[stage]]
        )
        for stage, counts in sizes.items()
    ]


def _coordinates(place: Place) -> tuple[int, ...]:
    """Its place along each axis of the mesh."""
    shard = place.layout.shard
    return place.stage, place.replica // shard, place.replica % shard, place.rank % place.layout.tp


def _agree(what: str, built: Any, counted: Any) -> None:
    if built != counted:
        raise RunError(
            f"{what} {built}, not {counted}",
            hint="gptcli.cost and the trainer disagree: please report it",
        )


def _play(
    run: Run, micro_batches: int, steps: set[int], place: Place
) -> tuple[dict[str, Pieces], StepTraffic | None]:
    """What one process holds, and, of the first of the stages `steps`, what it moves in a step; in
    a process group that is not there.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=place.rank, world_size=place.world)
    mesh = place.mesh()
    assert mesh is not None
    if tuple(mesh.get_coordinate() or ()) != _coordinates(place):
        raise RunError(
            f"process {place.rank} is at {mesh.get_coordinate()} of the mesh, not at {_coordinates(place)}"
        )
    model, parts = lay_out(run, place, mesh)
    pieces = {name: _piece(parameter) for name, parameter in model.named_parameters()}
    takes_step = place.stage in steps and _coordinates(place)[1:] == (0, 0, 0)
    return pieces, _take_step(parts, mesh, run, place.layout, micro_batches) if takes_step else None


def _piece(parameter: nn.Parameter) -> Pieces:
    if not isinstance(parameter, DTensor):
        return {(0,) * parameter.dim(): parameter.numel()}
    shape, begin = compute_local_shape_and_global_offset(
        parameter.shape, parameter.device_mesh, parameter.placements
    )
    assert tuple(parameter.to_local().shape) == tuple(shape)
    return {tuple(begin): parameter.to_local().numel()} if parameter.to_local().numel() else {}


def _take_step(
    parts: list[Part], mesh: DeviceMesh, run: Run, layout: Layout, micro_batches: int
) -> StepTraffic:
    """Bytes of a step, from a pass that keeps its gradients and one that exchanges them."""
    passes = []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in parts:
            part.to_empty(device="cpu")
            if part.config.tied and hasattr(part, "lm_head"):
                part.lm_head.weight = part.wte.weight
        for last in (False, True):
            with _Scales(mesh) as scales:
                for part in parts:
                    _pass(part, run, layout, scales, exchange=last)
                    if last and layout.tp > 1:
                        add_up_partial(part)
            # DDP, which wants real tensors, exchanges every gradient as it is
            if last and layout.processes == layout.dp:
                scales.bytes["dp"] += sum(parameter.nbytes for parameter in parts[0].parameters())
            passes.append(scales.bytes)
    kept, exchanged = passes
    return StepTraffic(
        **{axis: (micro_batches - 1) * kept[axis] + exchanged[axis] for axis in MESH}
    )


def _pass(part: Part, run: Run, layout: Layout, scales: _Scales, *, exchange: bool) -> None:
    """A micro-batch forwards and backwards."""
    tokens = torch.zeros(run.train.micro_batch, run.model.n_ctx, dtype=torch.long)
    first, last = hasattr(part, "wpe"), hasattr(part, "lm_head")
    stream = (len(tokens), run.model.n_ctx // layout.tp, run.model.d_model)
    x = tokens if first else torch.zeros(stream, requires_grad=True)
    # torch's schedules keep gradients whole
    reduce_gradients(part, layout if layout.pp == 1 else Layout(), exchange)
    products = PRODUCTS[run.train.precision]
    with torch.autocast("cpu", products, enabled=products is not None):
        y = part(x, torch.full_like(tokens, IGNORE))
    torch.autograd.backward(y, None if last else torch.zeros_like(y))
    if not last:
        scales.bytes["pp"] += y.nbytes
    if not first:
        assert x.grad is not None
        scales.bytes["pp"] += x.grad.nbytes
    if exchange and layout.pp > 1 and run.model.tied and (first or last):
        table = part.wte.weight
        scales.bytes["pp"] += (table.to_local() if isinstance(table, DTensor) else table).nbytes


class _Scales(TorchDispatchMode):
    """Weighs the collectives of the process groups of a mesh."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.axes: dict[str, str] = {mesh[axis].get_group().group_name: axis for axis in MESH}
        self.bytes: Counter[str] = Counter()
        """Of whole tensors, by axis."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if (
            func.namespace in ("c10d", "_c10d_functional")
            and func.overloadpacket.__name__ != "wait_tensor"
        ):
            tensors = [*_tensors(args), *_tensors((out,))]
            self.bytes[self.axes[_group_name(args)]] += max(tensor.nbytes for tensor in tensors)
        return out


def _tensors(values: Any) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _group_name(args: tuple[Any, ...]) -> str:
    """Functional collectives name their group, the others hold it."""
    for value in args:
        if isinstance(value, str) and value not in ("sum", "avg", "max"):
            return value
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return dist.ProcessGroup.unbox(value).group_name
    raise AssertionError(args)
