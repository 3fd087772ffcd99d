"""Data parallelism: DDP for plain replicas, FSDP2 for sharded ones, and when they synchronize."""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.nn.parallel import DistributedDataParallel

from gptcli.cost.layout import Layout
from gptcli.model.transformer import GPT


def apply_fsdp(
    model: GPT, mesh: DeviceMesh, param_dtype: torch.dtype | None, *, keep_gathered: bool = False
) -> None:
    """Shard a GPT or a pipeline stage over `shard` and replicate it over `dp`, in place.

    Each block is an FSDP unit of its own, gathered in `param_dtype` (None: as stored). The root
    unit holds the embeddings, the final norm and the head, which are needed together at the end of
    the forward pass and the beginning of the backward pass; it is gathered as stored, so that the
    residual stream starts in fp32. Gradients are reduced in fp32. With `keep_gathered`, blocks stay
    gathered from their forward to their backward pass.

    Parameters are sharded by rows. A vocabulary that `tp` times `shard` does not divide is sharded
    by columns instead, because DTensor does not support uneven shards of uneven shards.
    """
    axes = mesh["dp", "shard"] if mesh["dp"].size() > 1 else mesh["shard"]
    for block in model.h.children():
        for module in block.modules():
            if isinstance(module, nn.LayerNorm):
                module.forward = MethodType(_layer_norm, module)  # type: ignore[method-assign]
        fully_shard(
            block,
            mesh=axes,
            reshard_after_forward=not keep_gathered,
            mp_policy=MixedPrecisionPolicy(param_dtype, torch.float32, cast_forward_inputs=False),
        )

    shards = mesh["tp"].size() * mesh["shard"].size()

    def placement(parameter: nn.Parameter) -> Shard | None:
        uneven = (
            isinstance(parameter, DTensor)
            and parameter.placements[0].is_shard(0)
            and parameter.shape[0] % shards
        )
        return Shard(1) if uneven else None

    fully_shard(
        model,
        mesh=axes,
        mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False),
        shard_placement_fn=placement,
    )


def _layer_norm(norm: nn.LayerNorm, x: torch.Tensor) -> torch.Tensor:
    """Normalize `x` in its own dtype; CPU kernels refuse a gain and bias gathered in another."""
    return F.layer_norm(
        x, norm.normalized_shape, norm.weight.to(x.dtype), norm.bias.to(x.dtype), norm.eps
    )


def apply_ddp(model: nn.Module, layout: Layout) -> nn.Module:
    """Return `model` wrapped in DDP if the layout has replicas only, otherwise `model` itself."""
    if layout.processes == layout.dp > 1:
        # blocks are compiled one by one: dynamo need not split them at the borders of buckets
        torch._dynamo.config.optimize_ddp = False
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    return model


def set_gradient_sync(
    model: nn.Module, layout: Layout, last: bool, *, reduce_once: bool = False
) -> None:
    """Choose which gradients the next backward pass reduces; `last` marks the step's last one.

    Replicas all-reduce once a step and accumulate locally until then. Shards reduce-scatter in
    every pass, unless `reduce_once`: a process has memory for unsharded gradients.
    """
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = last
    elif isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(last or (layout.shard > 1 and not reduce_once))
        model.set_requires_all_reduce(last)  # second, because the call above sets it too
        model.set_reshard_after_backward(last or not reduce_once)


def reshard(model: nn.Module) -> None:
    """Free gathered parameters; for after a forward pass that no backward pass follows.

    Otherwise the next pass computes with them, whatever has become of the shards.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
