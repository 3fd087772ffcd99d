"""Fine-tuning runs, as in GPT-1: a task's checks, a few epochs with regular validation accuracy,
and the report.

One process trains, or several that each have the whole model and share every batch (layout `dp`).
Each evaluation ends with a checkpoint of the trainer's format. The order of the examples and the
dropout masks are functions of the step, so that a run that was killed and resumed ends in the same
bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gptcli.cost.layout import Layout, parse_layout
from gptcli.devices import has_bf16
from gptcli.distributed.context import RankContext
from gptcli.distributed.fsdp import apply_ddp
from gptcli.distributed.join import join
from gptcli.distributed.launch import launch
from gptcli.errors import RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import check_output, sha256
from gptcli.finetune.model import (
    SINGLE_PROCESS,
    GPTClassifier,
    Losses,
    accuracy,
    add_special_tokens,
    load_classifier,
    lr_multiplier,
    make_optimizer,
    save_classifier,
)
from gptcli.finetune.task import (
    Batch,
    FinetuneTask,
    InputTransform,
    collate,
    read_examples,
    read_task,
)
from gptcli.locks import own_folder
from gptcli.model.hub import fetch_model
from gptcli.model.safetensors_io import save_config
from gptcli.model.source import (
    INIT,
    RUN_TOML,
    find_model,
    initial_weights_folder,
    is_finetuned,
    remove_initial_weights,
)
from gptcli.model.transformer import GPT
from gptcli.runs.metrics import MetricsLog, smoothed_loss
from gptcli.runtime import is_main
from gptcli.sampling.load import load
from gptcli.tokenizer.tokenizer import Tokenizer
from gptcli.trainer.auto import auto_processes, check_processes
from gptcli.trainer.checkpoint import Checkpoints, CheckpointState, newest_state, newest_step
from gptcli.trainer.config import TIMEOUT_S
from gptcli.trainer.loop import StopSignal, stopped_after
from gptcli.trainer.preflight import resumed_state
from gptcli.trainer.schedule import Position
from gptcli.trainer.start import claim_run_folder
from gptcli.trainer.train import interrupted

EVALS_PER_EPOCH = 4
LOSS_KEYS = ("loss", "task_loss", "lm_loss")  # in a line of the metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRun:
    """Fine-tuning run: a task, its data, the model to start from and the output folder."""

    task: FinetuneTask
    data: Path
    """Folder of the task's files."""
    out: Path
    start: str
    """Name of the model to start from; for `finetune_from_folder` its folder."""
    start_step: int | None = None
    """Step of the checkpoint to start from; None for a finished model."""
    seed: int = 0
    resume: bool = False
    """Continue from the newest checkpoint, if there is one."""
    timeout: int = TIMEOUT_S
    """Seconds that a process waits for another one in a step before it gives it up."""
    layout: Layout = field(default_factory=Layout)
    """Layout of the processes, with replicas only."""

    def shared_values(self) -> dict[str, Any]:
        """Return the values that must be equal on all processes of the run."""
        return {**self.identity(), "layout": str(self.layout)}

    def identity(self) -> dict[str, Any]:
        """Return the settings and data hashes that must be equal for a resume.

        Raises OSError if a file of the task is missing.
        """
        digests = [sha256(self.data / name) for name in (self.task.train, self.task.validation)]
        return {
            **asdict(self.task),
            "start": self.start,
            "checkpoint": self.start_step,
            "seed": self.seed,
            "data": " ".join(digests),
        }


def check_layout(layout: Layout, task: FinetuneTask) -> None:
    """Raise UsageError if fine-tuning does not support the layout."""
    if layout.dp != layout.processes:
        raise UsageError(
            f"{layout} divides the model, but fine-tuning supports replicas only",
            field="layout",
            code="layout_divides_the_model",
            hint=f"{{option:layout}} dp={layout.processes}",
        )
    if layout.dp > task.batch:
        raise UsageError(
            f"{layout} has more processes than a batch has examples ({task.batch})",
            field="layout",
            code="batch_too_small_for_layout",
            hint=f"at most dp={task.batch}",
        )


def finetune_from_folder(run: FinetuneRun, context: RankContext, events: Events) -> dict[str, Any]:
    """Run `finetune` on the model in the folder `run.start`; a collective call."""
    folder = initial_weights_folder(run.out, Path(run.start))
    loaded = load(folder, checkpoint=run.start_step, device=str(context.device), precision="fp32")
    return finetune(run, loaded.model, loaded.tokenizer, context=context, events=events)


def finetune(
    run: FinetuneRun,
    gpt: GPT,
    tokenizer: Tokenizer,
    *,
    context: RankContext = SINGLE_PROCESS,
    events: Events = SILENT,
) -> dict[str, Any]:
    """Fine-tune `gpt` to the end, or until any process is told to stop, and return the report.

    A collective call. Not compiled, on a GPU either: each batch is as long as its longest example,
    and most runs are over in the time that compilation takes. Raises RunError if the loss is not
    finite, and Interrupted if a signal came too late to stop at a step.
    """
    task, seed = run.task, run.seed
    gpt = add_special_tokens(gpt, seed, dropout=task.dropout)
    transform = InputTransform(task.kind, tokenizer, gpt.config.n_ctx)
    train, validation = (
        read_examples(task, run.data / name, transform) for name in (task.train, task.validation)
    )
    torch.manual_seed(seed)
    model = GPTClassifier(gpt, task.kind, len(task.labels)).to(context.device).train()
    parameters = dict(model.named_parameters())
    optimizer = make_optimizer(model, task.lr, task.weight_decay)
    replicated = apply_ddp(model, context.layout)
    steps_per_epoch = -(-len(train) // task.batch)
    steps = steps_per_epoch * task.epochs
    if context.is_main:
        tokenizer.save_for_model(run.out, gpt.config.n_ctx)
        save_config(run.out, gpt.config, eot_id=tokenizer.eot_id)
    checkpoints, identity = Checkpoints(run.out, context, keep=1), run.identity()
    done, line = 0, {}
    if run.resume and (folder := checkpoints.newest(events)) is not None:
        state = checkpoints.load(folder, parameters, optimizer)
        done, line = state.position.step, state.metrics
        events.info(f"resuming after step {done:,}")
    log, stop = (
        MetricsLog(run.out, before=done + 1) if context.is_main else None,
        StopSignal(events),
    )
    with stop:
        for step in range(done + 1, steps + 1):
            epoch, number = divmod(step - 1, steps_per_epoch)
            first = number * task.batch
            batch = collate(
                [train[i] for i in _order(len(train), seed, epoch)[first : first + task.batch]]
            )
            torch.manual_seed(_dropout_seed(seed, step, context.rank))
            lr = task.lr * lr_multiplier(step, steps)
            *losses, stopping = _update(
                replicated, batch, optimizer, task, lr, context, stop.requested
            )
            line = {
                "step": step,
                "epoch": epoch + 1,
                **dict(zip(LOSS_KEYS, losses, strict=True)),
                "lr": lr,
            }
            if not line["loss"] < float("inf"):
                raise RunError(
                    f"the loss is {line['loss']} at step {step}",
                    where=run.out,
                    hint="lower lr in the task",
                )
            evaluating = step % max(1, steps_per_epoch // EVALS_PER_EPOCH) == 0 or step == steps
            if evaluating:
                line["val_accuracy"] = accuracy(model, validation, task.batch, context).fraction
            if log:
                log.write(line)
            if evaluating or stopping:
                position = Position(step, step * task.batch)
                checkpoints.save(CheckpointState(position, identity, line), parameters, optimizer)
            facts = {
                "loss": smoothed_loss(log.newest) if log else None,
                "val_accuracy": line.get("val_accuracy"),
            }
            events.progress("finetune", step, steps, "steps", **facts)
            if stopping:
                break
        events.finish("finetune")
        checkpoints.wait()
    if stop.requested and line["step"] == steps:
        raise stopped_after(steps, run.out)
    report = {
        "task": asdict(task),
        "data": str(run.data),
        "seed": seed,
        "examples": len(train),
        "steps": steps,
        **line,
    }
    if line["step"] == steps and context.is_main:
        save_classifier(run.out, model, tokenizer, report)
        remove_initial_weights(run.out)
    return {**report, "interrupted": line["step"] < steps}


def _update(
    model: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    task: FinetuneTask,
    lr: float,
    context: RankContext,
    stop_requested: bool,
) -> list[float]:
    """Update the weights; return the batch's LOSS_KEYS before the update, and a positive number if
    any process was told to stop.
    """
    local, fraction = _local_batch(batch, context)
    on_bf16_gpu = context.device.type == "cuda" and has_bf16("cuda")
    with torch.autocast(context.device.type, torch.bfloat16, enabled=on_bf16_gpu):
        losses: Losses = model(local.to(context.device))
    total = losses.total(task.lm_weight)
    optimizer.zero_grad()
    # gradients are averaged over replicas, but each has a fraction of the batch
    (total * (fraction * context.replicas)).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    values = torch.stack([total, losses.task, losses.lm]).detach() * fraction
    sums: list[float] = context.all_reduce_sum(
        torch.cat([values, values.new_tensor([stop_requested])])
    ).tolist()
    return sums


def _local_batch(batch: Batch, context: RankContext) -> tuple[Batch, float]:
    """Return this process's examples of a batch, and their fraction of it.

    A process without examples gets one of another process, with the fraction 0.
    """
    examples = len(batch.labels)
    each = -(-examples // context.replicas)
    first = min(context.replica_rank * each, examples - 1)
    last = min(first + each, examples)
    fraction = (last - first) / examples if context.replica_rank * each < examples else 0.0
    return batch.rows(first, last), fraction


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """Return the seed of a step's dropout, so that a checkpoint needs no generator state."""
    key = f"{seed} {step} {rank}" if rank else f"{seed} {step}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


def _order(examples: int, seed: int, epoch: int) -> list[int]:
    """Return the order of the examples in an epoch (from 0)."""
    generator = torch.Generator().manual_seed(seed * 1000 + epoch)
    return torch.randperm(examples, generator=generator).tolist()


def run_task(
    task_file: Path,
    init_from: str,
    out: Path,
    *,
    checkpoint: int | None = None,
    seed: int = 0,
    layout: str | None = None,
    resume: bool = False,
    force: bool = False,
    events: Events = SILENT,
) -> dict[str, Any] | None:
    """Fine-tune the model in `init_from` on a task, and return the report of rank 0.

    Returns None if `resume` finds the run finished. Raises UsageError or InputError before anything
    is written, and Interrupted if the run was stopped and has saved a checkpoint.
    """
    task = read_task(task_file)
    fetch_model(init_from, events)
    before = newest_state(out) if resume else None
    step = _initial_step(out, init_from, checkpoint, before, resume=resume)
    axes = parse_layout(layout) if layout else Layout(dp=auto_processes())
    check_layout(axes, task)
    check_processes(axes)
    run = FinetuneRun(
        task=task,
        data=task_file.parent,
        out=out,
        start=init_from,
        start_step=step,
        seed=seed,
        resume=resume,
        layout=axes,
    )
    with contextlib.ExitStack() as locks:
        if is_main():
            locks.enter_context(own_folder(out, read_only=resume, events=events))
            check_output(out, resume=resume, force=force, own=RUN_TOML)
        if resume:
            resumed_state(out, run.identity())
            if is_finetuned(out):
                return None
        if is_main() and before is None:  # errors come before anything is deleted
            start = initial_weights_folder(out, Path(init_from)) if resume else Path(init_from)
            load(start, checkpoint=step, device="cpu", precision="fp32")
        join(run, events)
        if is_main():
            kept_step = claim_run_folder(
                out,
                Path(init_from),
                step,
                events,
                resume=resume,
                force=force,
                newest=checkpoint is None,
            )
            run = replace(run, start_step=kept_step)
        report = launch(run, events, finetune_from_folder, newest_step)
    if is_main() and report["interrupted"]:
        raise interrupted(report, out)
    return report


def _initial_step(
    out: Path,
    init_from: str,
    checkpoint: int | None,
    before: CheckpointState | None,
    *,
    resume: bool,
) -> int | None:
    """Return the step of the initial weights' checkpoint; None for a finished model."""
    if before is not None:  # the run it started from may have changed
        return before.identity.get("checkpoint") if checkpoint is None else checkpoint
    if resume and (out / INIT).is_dir():
        return find_model(out / INIT, checkpoint).step
    return find_model(init_from, checkpoint).step


def evaluate_finetuned(folder: Path, data: Path | None = None) -> dict[str, Any]:
    """Return the accuracy of a fine-tuned run on its validation examples, or those of `data`.

    The report has the keys model, task, data, examples, correct and accuracy.
    """
    model, task, tokenizer, validation = load_classifier(folder)
    path = data or validation
    transform = InputTransform(task.kind, tokenizer, model.gpt.config.n_ctx)
    measured = accuracy(model, read_examples(task, path, transform), task.batch)
    return {
        "model": str(folder),
        "task": task.kind,
        "data": str(path),
        "examples": measured.examples,
        "correct": measured.correct,
        "accuracy": measured.fraction,
    }
