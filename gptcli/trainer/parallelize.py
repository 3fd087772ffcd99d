"""The plain model made ready for this machine: weights, compilation, layout, precision and
optimizer, applied from outside.

What a checkpoint may rely on, under every layout:

- `stepper.model` is one module that holds this process's part of the model under the plain GPT's
  own names ("h.3.attn.c_attn.weight"),
  no wrapper's prefix among them: all of them without `pp`, those of its own stages with it. A tied
  head is there under both names.
- `stepper.optimizer` is one optimizer over exactly those parameters. So
  `get_model_state_dict(stepper.model)` and
  `get_optimizer_state_dict(stepper.model, stepper.optimizer)`, and their setters, speak in plain
  names on every process.
- A parameter that `shard` or `tp` divides is a DTensor of the plain shape, its rows in the plain
  order; otherwise a plain tensor. No
  shape depends on the layout, so that what one layout wrote any other reads.
- With `pp` and a tied head the last stage holds a `wte` of its own, equal to the first stage's to
  the bit, and so are its moments: both
  stages name `wte.weight`, and either may be written.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.experimental import implicit_replication

from gptcli.distributed import tensor_parallel
from gptcli.distributed.activation_checkpoint import recomputed
from gptcli.distributed.context import Place, repeat, shard
from gptcli.distributed.vocab_parallel_loss import sliced_loss
from gptcli.errors import RunError
from gptcli.events import Events
from gptcli.model import linear_kernel, mup, norm_kernel
from gptcli.model.first_use import keep_freed_memory, settle_math
from gptcli.model.loss import IGNORE, LOOPS, next_token_loss
from gptcli.model.transformer import GPT
from gptcli.trainer.config import Run, TrainConfig
from gptcli.trainer.optimizer import make_optimizer
from gptcli.trainer.pipeline import Pipeline, Stage, cut, held_by
from gptcli.trainer.precision import PRODUCTS, to_fp8
from gptcli.trainer.step import Stepper

Part = GPT | Stage


def build(run: Run, place: Place, events: Events) -> Stepper:
    """The stepper of a run, freshly initialised. All processes call it together. Raises RunError
    where it insists on a failing compiler.
    """
    config = run.train
    if place.device.type == "cpu":
        keep_freed_memory()
        settle_math()
    mesh = place.mesh()
    model, parts = lay_out(run, place, mesh)
    for part in parts:
        fill(part, place.device, config.seed, run.widening)
    pipeline = None
    if mesh is not None and place.layout.pp > 1:
        pipeline = Pipeline(
            cast(list[Stage], parts),
            place,
            mesh["pp"].get_group(),
            run.model,
            config.pipeline_schedule,
            config.micro_batch,
        )
    stepper = Stepper(
        model,
        make_optimizer(model, config, run.widening),
        place,
        engine=repeat(model, place.layout),
        pipeline=pipeline,
        clip=config.clip,
        products=PRODUCTS[config.precision],
        dropout_seed=config.seed if run.model.dropout else None,
    )
    if config.compile:
        _warm_up(run, parts, mesh, stepper, events)
    return stepper


def lay_out(run: Run, place: Place, mesh: DeviceMesh | None) -> tuple[nn.Module, list[Part]]:
    """What this process holds, without memory for it yet: the module that a checkpoint sees, and
    the parts that are run, which are stages of it or the same. The same on the meta device as on
    any other."""
    config, layout = run.train, place.layout
    with torch.device("meta"):
        whole = GPT(run.model)
        if config.document_mask:
            whole.eot_id = run.eot_id
        stages = cut(whole, place, config.pipeline_schedule) if layout.pp > 1 else []
    parts: list[Part] = [*stages] or [whole]
    model = held_by(stages) if stages else whole
    for part in parts:
        if config.precision == "fp8":
            for block in blocks(part):
                to_fp8(block)
        dress(part, config, mesh)
    if mesh is not None:
        for part in parts:
            if layout.tp > 1:
                tensor_parallel.divide(part, mesh["tp"])
            if layout.shard > 1 or layout.dp not in (1, layout.processes):
                shard(part, mesh, PRODUCTS[config.precision])
    return model, parts


def dress(part: Part, config: TrainConfig, mesh: DeviceMesh | None) -> None:
    """Recomputation and compilation: block by block, and the head with its loss, so that one
    compilation serves every layer and every layout; compiled linear layers and norms by their
    kernels, but for slices, and where products are to be told from what is computed again. Names
    and hooks do not change."""
    for block in blocks(part):
        block.__dict__.pop("forward", None)  # back to the class's own
        linear_kernel.take_back(block)
        if (
            config.compile
            and config.recompute != "selective"
            and (mesh is None or mesh["tp"].size() == 1)
        ):
            linear_kernel.give(block)
            norm_kernel.give(block)
        if config.recompute != "none":
            block.forward = recomputed(
                block.forward, config.recompute, drops=part.config.dropout > 0
            )
        if config.compile:
            block.forward = torch.compile(block.forward, dynamic=False)
    loops = LOOPS.compiled() if config.compile else LOOPS
    if mesh is not None and mesh["tp"].size() > 1:
        part.head_loss = partial(sliced_loss, mesh=mesh["tp"], n_ctx=part.config.n_ctx, loops=loops)
    else:
        part.head_loss = partial(next_token_loss, loops=loops)


def blocks(part: Part) -> list[nn.Module]:
    return list(part.h.values() if isinstance(part.h, nn.ModuleDict) else part.h)


def fill(part: Part, device: torch.device, seed: int, widening: float) -> None:
    """Memory, and the plain model's initial weights, or muP's: each process draws every tensor that
    it holds a part of, and keeps that.
    """
    tied = part.config.tied and hasattr(part, "lm_head")
    part.to_empty(device=device)
    if tied:  # which to_empty undoes
        part.lm_head.weight = part.wte.weight
    with implicit_replication():
        GPT.init_weights(cast(GPT, part), seed)
        mup.rescale(part, widening)


def _warm_up(
    run: Run, parts: list[Part], mesh: DeviceMesh | None, stepper: Stepper, events: Events
) -> None:
    """Compile before the first step, on a batch that counts for nothing; where that fails, go on
    without.
    """
    events.info("compiling the model: a minute or more the first time")
    config = run.train
    inputs = torch.zeros(
        config.micro_batch, run.model.n_ctx, dtype=torch.long, device=stepper.place.device
    )
    try:
        stepper.gradients([(inputs, torch.full_like(inputs, IGNORE))], tokens=1, step=0)
    except RuntimeError as error:  # what dynamo, inductor and the compilers below them raise
        reason = str(error).strip().splitlines()[0]
        if run.must_compile:
            raise RunError(
                f"torch.compile failed: {reason}", hint="{option:compile} off trains without"
            ) from None
        events.warn(f"torch.compile failed, training without it: {reason}")
        for part in parts:
            dress(part, replace(config, compile=False), mesh)
    stepper.optimizer.zero_grad()
