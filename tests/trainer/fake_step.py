"""One step of one process with fake tensors in a fake process group, which counts collectives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from gptcli.cost.layout import Layout
from gptcli.cost.step_time import StepTraffic
from gptcli.distributed.context import MESH_AXES, RankContext
from gptcli.distributed.fsdp import set_gradient_sync
from gptcli.distributed.pipeline_parallel import is_first, is_last
from gptcli.distributed.tensor_parallel import reduce_partial_grads
from gptcli.model.loss import IGNORE
from gptcli.model.transformer import GPT
from gptcli.trainer.config import Run
from gptcli.trainer.optimizer import AUTOCAST_DTYPES
from gptcli.trainer.parallelize import parallelize_model


def measure_step(run: Run, micro_batches: int, context: RankContext) -> StepTraffic:
    """Return the bytes of a step of `micro_batches`, whole tensors, by axis.

    They follow from two passes: one that accumulates gradients and one that reduces them.
    """
    dist.init_process_group("fake", rank=context.rank, world_size=context.world_size)
    mesh = context.build_mesh()
    assert mesh is not None
    _, parts = parallelize_model(run, context, mesh)
    layout, passes = context.layout, []
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in parts:
            part.to_empty(device="cpu")
            if part.config.tied and is_last(part):
                part.lm_head.weight = part.wte.weight
        for last in (False, True):
            with CollectiveBytes(mesh) as counter:
                for part in parts:
                    run_pass(part, run, layout, counter, last=last)
                    if last and layout.tp > 1:
                        reduce_partial_grads(part)
            # DDP, which needs real tensors, reduces every gradient as it is
            if last and layout.processes == layout.dp:
                counter.bytes["dp"] += sum(parameter.nbytes for parameter in parts[0].parameters())
            passes.append(counter.bytes)
    accumulated, reduced = passes
    return StepTraffic(
        **{axis: (micro_batches - 1) * accumulated[axis] + reduced[axis] for axis in MESH_AXES}
    )


def run_pass(part: GPT, run: Run, layout: Layout, counter: CollectiveBytes, *, last: bool) -> None:
    """Run a micro-batch forward and backward; count what stages exchange."""
    tokens = torch.zeros(run.train.micro_batch, run.model.n_ctx, dtype=torch.long)
    activations = (len(tokens), run.model.n_ctx // layout.tp, run.model.d_model)
    x = tokens if is_first(part) else torch.zeros(activations, requires_grad=True)
    # torch's pipeline schedules accumulate unsharded gradients
    set_gradient_sync(part, layout if layout.pp == 1 else Layout(), last)
    dtype = AUTOCAST_DTYPES[run.train.precision]
    with torch.autocast("cpu", dtype, enabled=dtype is not None):
        y = part(x, torch.full_like(tokens, IGNORE))
    torch.autograd.backward(y, None if is_last(part) else torch.zeros_like(y))
    if not is_last(part):
        counter.bytes["pp"] += y.nbytes
    if not is_first(part):
        assert x.grad is not None
        counter.bytes["pp"] += x.grad.nbytes
    if last and layout.pp > 1 and run.model.tied and (is_first(part) or is_last(part)):
        table = part.wte.weight
        counter.bytes["pp"] += (table.to_local() if isinstance(table, DTensor) else table).nbytes


class CollectiveBytes(TorchDispatchMode):
    """Counts the bytes of the collectives of a mesh."""

    def __init__(self, mesh: DeviceMesh) -> None:
        super().__init__()
        self.axes: dict[str, str] = {mesh[axis].get_group().group_name: axis for axis in MESH_AXES}
        self.bytes: Counter[str] = Counter()
        """Bytes of whole tensors, by axis."""

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
    """Find the group of a collective: functional ones name it, the others contain it."""
    for value in args:
        if isinstance(value, str) and value not in ("sum", "avg", "max"):
            return value
        if isinstance(value, torch.ScriptObject) and "ProcessGroup" in str(value._type()):
            return dist.ProcessGroup.unbox(value).group_name
    raise AssertionError(args)
