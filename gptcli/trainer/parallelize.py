"""From a run to its train step: the plain model with weights, parallelism, precision, activation
checkpointing, compilation and an optimizer, all applied from outside.

Checkpoints rely on the following under every layout:

- `train_step.model` is one module with this process's part of the model, under plain GPT names
  ("h.3.attn.c_attn.weight", no wrapper's prefix): the whole model without `pp`, the process's own
  stages with it. A tied head appears under both names.
- `train_step.optimizer` is one optimizer of exactly these parameters. `get_model_state_dict` and
  `get_optimizer_state_dict`, and their setters, therefore use plain names on every process.
- A parameter that `shard` or `tp` divides is a DTensor of the plain shape with rows in the plain
  order; any other is a plain tensor. No shape depends on the layout, so that any layout can read
  the checkpoint of any other.
- With `pp` and a tied head the last stage has its own `wte`, bitwise equal to the first stage's, as
  are their optimizer moments. Both stages name it `wte.weight`, and either may be written.
"""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import (
    CheckpointPolicy,
    SelectiveCheckpointContext,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from gptcli import optional_kernels
from gptcli.cost.memory import Recompute
from gptcli.cost.rank_memory import GATHERED_BYTES, undivided_bytes
from gptcli.devices import device_type
from gptcli.distributed.context import RankContext
from gptcli.distributed.fsdp import apply_ddp, apply_fsdp
from gptcli.distributed.join import PEER_LOST
from gptcli.distributed.tensor_parallel import apply_tp, vocab_parallel_loss
from gptcli.errors import RunError
from gptcli.events import Events
from gptcli.model.attention import layer_masks, takes_flex
from gptcli.model.loss import EAGER, IGNORE, next_token_loss
from gptcli.model.transformer import GPT, mup_rescale, without_values
from gptcli.openmp import watch_spinning
from gptcli.runtime import disable_malloc_trim, warm_up_vector_math
from gptcli.trainer.auto import has_compiler
from gptcli.trainer.config import Run, TrainConfig
from gptcli.trainer.memory import device_memory, process_memory
from gptcli.trainer.optimizer import AUTOCAST_DTYPES, convert_to_fp8, make_optimizer
from gptcli.trainer.schedule import Schedule
from gptcli.trainer.step import TrainStep
from gptcli.trainer.step_statistics import rerun_every

SAVE_OPS = {torch.ops.aten.mm.default, torch.ops.aten.addmm.default}
"""Matrix products, whose outputs selective checkpointing saves."""
ATTENTION = re.compile(r"attention|attn|attend|banded_blocks")
"""Part of the name of every operator that computes attention: torch's by backend, and ours."""


def build_train_step(run: Run, context: RankContext, events: Events) -> TrainStep:
    """Return the train step of a run with freshly initialized weights.

    All processes call this together. Raises RunError if compilation is required and fails.
    """
    config = run.train
    if context.device.type == "cpu":
        disable_malloc_trim()
        warm_up_vector_math()
        watch_spinning()
        if config.precision == "bf16" and optional_kernels.lack_compiler():
            events.warn(
                "there is no C compiler: PyTorch computes what the kernels would, more slowly; "
                "with gcc or clang they are built at the next start"
            )
        elif config.precision == "bf16" and (failure := optional_kernels.compiler_failure()):
            events.warn(
                f"the C compiler builds no kernels ({failure}): PyTorch computes what they would, "
                "more slowly; CC=gcc or CC=clang in the environment names another compiler"
            )
    elif context.device.type == "cuda" and not has_compiler():
        events.warn(
            "Triton's kernels cannot be started: they need gcc or clang, and Python's headers "
            "(python3-dev); PyTorch computes what they would, more slowly"
        )
    mesh = context.build_mesh()
    if _undivided_width(run, context) > GATHERED_BYTES:
        context = replace(context, reduce_once=True)
    model, parts = parallelize_model(run, context, mesh)
    for part in parts:
        materialize_(part, context.device, config.seed, run.width_mult)
        install_kernels(part, config, mesh)
    pipeline = None
    if mesh is not None and context.layout.pp > 1:
        from gptcli.distributed.pipeline_parallel import Pipeline

        pipeline = Pipeline(
            parts, context, mesh["pp"].get_group(), config.pipeline_schedule, config.micro_batch
        )
    train_step = TrainStep(
        model,
        make_optimizer(model, config, run.width_mult),
        context,
        engine=apply_ddp(model, context.layout),
        pipeline=pipeline,
        clip=config.clip,
        compute_dtype=AUTOCAST_DTYPES[config.precision],
        spike_sigmas=config.spike,
        ema=config.ema,
        rerun_every=rerun_every(config),
        dropout_seed=config.seed if run.model.dropout else None,
    )
    if config.compile:
        _warm_up_compilation(run, parts, mesh, train_step, events)
    if context.layout.dp == context.world_size > 1:
        _settle_buckets(run, train_step)
    return train_step


def parallelize_model(
    run: Run, context: RankContext, mesh: DeviceMesh | None
) -> tuple[nn.Module, list[GPT]]:
    """Return this process's part of the model on the meta device, and the GPTs that run.

    The first is the module that checkpoints see. The second are its pipeline stages, or without
    `pp` the module itself.
    """
    config, layout = run.train, context.layout
    with without_values():
        whole = GPT(run.model)
    if config.document_mask:
        whole.eot_id = run.eot_id
    model: nn.Module = whole
    parts = [whole]
    if layout.pp > 1:
        from gptcli.distributed.pipeline_parallel import merge_stages, split_stages

        parts = split_stages(whole, context, config.pipeline_schedule)
        model = merge_stages(parts)
    for part in parts:
        if config.precision == "fp8":
            for block in part.h.children():
                convert_to_fp8(block, sharded=layout.shard > 1)
        apply_ac_and_compile(part, config, mesh)
    if mesh is not None:
        for part in parts:
            if layout.tp > 1:
                apply_tp(part, mesh["tp"])
            if layout.shard > 1 or layout.dp not in (1, layout.processes):
                apply_fsdp(
                    part,
                    mesh,
                    AUTOCAST_DTYPES[config.precision],
                    keep_gathered=_undivided_width(run, context) > 0,
                )
    return model, parts


def _undivided_width(run: Run, context: RankContext) -> int:
    """Return the bytes of each weight that a GPU has room to keep undivided by `shard`: those of
    gathered layers, or of their gradients too; 0 if it has none.
    """
    if context.device.type != "cuda":
        return 0
    schedule = Schedule(run.train, run.model.n_ctx)
    sequences = min(schedule.full_batch, schedule.total_sequences)
    layout = context.layout
    needed = process_memory(run.model, layout, run.train, sequences)
    kept = undivided_bytes(run.model, layout, needed, device_memory(context.world_size))
    return round(kept * layout.tp * layout.pp / run.model.parameters)


def apply_ac_and_compile(part: GPT, config: TrainConfig, mesh: DeviceMesh | None) -> None:
    """Apply activation checkpointing and compilation to each block, and choose the head's loss.

    Blocks are compiled one by one, so that one compilation serves every layer and every layout.
    Parameter names and module hooks do not change, and a second call replaces the effect of the
    first.
    """
    if config.compile:
        optional_kernels.before_compilation()
    for block in part.h.children():
        block.__dict__.pop("forward", None)  # restores the class's own
        if config.recompute != "none":
            block.forward = checkpoint_forward(
                block.forward, config.recompute, preserve_rng=part.config.dropout > 0
            )
        if config.compile:
            block.forward = torch.compile(block.forward, dynamic=False)
    elementwise = EAGER.compiled() if config.compile else EAGER
    if mesh is not None and mesh["tp"].size() > 1:
        head_loss = partial(
            vocab_parallel_loss,
            mesh=mesh["tp"],
            n_ctx=part.config.n_ctx,
            elementwise=elementwise,
        )
    else:
        head_loss = partial(next_token_loss, elementwise=elementwise)
    part.head_loss = head_loss
    part.masks_fn = layer_masks if _masks_in_blocks(part, config) else None


def checkpoint_policy(
    ctx: SelectiveCheckpointContext, op: Any, *args: Any, **kwargs: Any
) -> CheckpointPolicy:
    """Return the policy of selective checkpointing for an operator: save products and attention."""
    is_saved = op in SAVE_OPS or ATTENTION.search(op.name())
    return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE


def checkpoint_forward(
    forward: Callable[..., torch.Tensor], recompute: Recompute, *, preserve_rng: bool
) -> Callable[..., torch.Tensor]:
    """Return a layer's `forward` with activation checkpointing: "none", "selective" or "full".

    "full" saves the input of a layer and runs the layer again in the backward pass (Chen et al.
    2016). "selective" saves the outputs of the expensive operators, matrix products and attention,
    and recomputes norms, GELU, residual sums and dropout. The attention scores, which Korthikanti
    et al. (2022) recompute, are never materialized by the kernels used here. With `preserve_rng`
    the recomputation draws the same dropout masks.
    """
    if recompute == "none":
        return forward
    options: dict[str, Any] = {}
    if recompute == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, checkpoint_policy)
    return partial(
        checkpoint, forward, use_reentrant=False, preserve_rng_state=preserve_rng, **options
    )


def _masks_in_blocks(part: GPT, config: TrainConfig) -> bool:
    """Return whether compiled attention takes its masks as blocks: one mask for all layers."""
    return config.compile and takes_flex(
        device_type(),
        AUTOCAST_DTYPES[config.precision] or torch.float32,
        part.config.d_head,
        has_dropout=part.config.dropout > 0,
    )


def install_kernels(part: GPT, config: TrainConfig, mesh: DeviceMesh | None) -> None:
    """Install the kernels, after everything else has been applied to a part.

    Fused blocks are for training, which on a GPU has to be compiled. They are not installed under `tp`, whose weights are
    DTensors, or under selective recomputation, which must see the matrix products. Layers leave
    their last sum to the next one in whole models that keep more of a layer than its input, which
    would be larger. A second call replaces the first.
    """
    has_tp = mesh is not None and mesh["tp"].size() > 1
    has_pp = mesh is not None and mesh["pp"].size() > 1
    fusible = config.compile or next(part.parameters()).device.type == "cpu"
    fuse_blocks = fusible and config.recompute != "selective" and not has_tp
    optional_kernels.install(
        part, fuse_blocks=fuse_blocks, fuse_sums=config.recompute == "none" and not has_pp
    )


def fuses_layers(model: nn.Module, config: TrainConfig) -> bool:
    """Return whether kernels alone compute the layers of a run without compilation.

    FSDP gathers the weights of blocks in bf16, from DTensors; the kernels take fp32.
    """
    return (
        config.precision == "bf16"
        and not config.compile
        and not config.document_mask
        and not any(isinstance(parameter, DTensor) for parameter in model.parameters())
        and optional_kernels.fuses_layers(model)
    )


def materialize_(part: GPT, device: torch.device, seed: int, width_mult: float) -> None:
    """Allocate the parameters of `part` on `device` and initialize them as the plain model's.

    Each process draws its own part of every tensor, and little beside it.
    """
    tied = part.config.tied and part.lm_head is not None
    part.to_empty(device=device)
    if tied:  # to_empty separates the two
        part.lm_head.weight = part.wte.weight
    part.init_weights(seed, own_part)
    mup_rescale(part, width_mult)


def own_part(parameter: nn.Parameter) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return this process's part of a parameter, and the offsets of that part in the whole."""
    if not isinstance(parameter, DTensor):
        return parameter, (0,) * parameter.dim()
    (chunk,) = parameter.__create_chunk_list__()
    return parameter.to_local(), tuple(chunk.offsets)


def _warm_up_compilation(
    run: Run, parts: list[GPT], mesh: DeviceMesh | None, train_step: TrainStep, events: Events
) -> None:
    """Compile before the first step, on a batch without targets; train uncompiled if that fails.

    Raises RunError instead if the run requires compilation.
    """
    events.info("compiling the model: a minute or more the first time")
    config, context = run.train, train_step.context
    inputs = torch.zeros(
        config.micro_batch, run.model.n_ctx, dtype=torch.long, device=context.device
    )
    batches = [(inputs, torch.full_like(inputs, IGNORE))]
    reason = compiler_problem(context) if context.world_size > 1 else None
    if reason is None:
        try:
            train_step.forward_backward(batches, batch_tokens=1, step=0)
            train_step.eval_loss(batches)  # a forward pass without gradients is compiled apart
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # raised by dynamo, inductor and the compilers below them
            if context.world_size > 1 and PEER_LOST.search(str(error)):
                raise  # another process has died
            reason = _compiler_message(error)
            if context.world_size > 1:  # the other processes may wait for this one: it has to end
                raise _compile_error(reason) from error
    if reason is not None:
        if run.must_compile:
            raise _compile_error(reason)
        events.warn(f"torch.compile failed, training without it: {reason}")
        train_step.model.train()
        for part in parts:
            apply_ac_and_compile(part, replace(config, compile=False), mesh)
            install_kernels(part, replace(config, compile=False), mesh)
    train_step.optimizer.zero_grad()


def _settle_buckets(run: Run, train_step: TrainStep) -> None:
    """Run one pass of zero gradients, after which DDP orders its buckets anew.

    It does so once, after the first pass of a process. Where an element lies decides in which order
    more than two replicas are summed: the first step of a resumed run would differ from the same
    step of a run that was not stopped, in its last bits. On a CPU buckets that are made between two
    steps would divide the memory that the first has freed.
    """
    shape = run.train.micro_batch, run.model.n_ctx
    inputs = torch.zeros(shape, dtype=torch.int64, device=train_step.context.device)
    batches = [(inputs, torch.full_like(inputs, IGNORE))]
    train_step.forward_backward(batches, batch_tokens=1, step=0)
    train_step.optimizer.zero_grad()


def compiler_problem(context: RankContext) -> str | None:
    """Return why torch.compile does not work for some process; None if it works for all.

    All processes call it together, and return alike. It compiles next to nothing: what is missing
    is a compiler, not a part of the model.
    """
    problem = ""
    optional_kernels.before_compilation()
    try:
        torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(8, device=context.device))
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        problem = _compiler_message(error)
    failed = torch.tensor(float(bool(problem)), device=context.device)
    if context.all_reduce_sum(failed).item():
        return problem or "it does not work for another process"
    return None


def _compile_error(reason: str) -> RunError:
    return RunError(
        f"torch.compile failed: {reason}", hint="{option:compile} off trains without it"
    )


def _compiler_message(error: RuntimeError) -> str:
    """Return the first line of an error of torch.compile that says what went wrong."""
    if os.strerror(errno.ENOSPC) in str(error):
        return (
            f"its folder for temporary files, {tempfile.gettempdir()}, is full; "
            "TMPDIR=/path gpt ... names another"
        )
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # torch names the backend in a line of its own: "backend='inductor' raised:"
    return next((line for line in lines if not line.endswith("raised:")), type(error).__name__)
