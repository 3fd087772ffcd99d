"""Fine-tuning loop, as in GPT-1: a few epochs with regular validation accuracy.

One process trains, or several that each have the whole model and share every batch (layout `dp`).
Each evaluation ends with a checkpoint of the trainer's format. The order of the examples and the
dropout masks are functions of the step, so that a run that was killed and resumed ends in the same
bytes.

The finished folder is that of a language model, whose vocabulary is three tokens longer, with two
more files: the classifier, and `finetune.json`, the task with the accuracy it reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from gptcli.cost.layout import Layout
from gptcli.distributed.context import RankContext
from gptcli.distributed.fsdp import apply_ddp
from gptcli.errors import InputError, RunError, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, read_json, sha256, write_json
from gptcli.finetune.inputs import Batch, Example, InputTransform, collate
from gptcli.finetune.model import (
    GPTClassifier,
    Losses,
    add_special_tokens,
    lr_multiplier,
    make_optimizer,
)
from gptcli.finetune.task import FinetuneTask, read_examples
from gptcli.model.safetensors_io import load_model, save_config, save_model
from gptcli.model.source import CLASSIFIER, FINETUNE_REPORT
from gptcli.model.tensor_file import open_tensors, unreadable_error
from gptcli.model.transformer import GPT
from gptcli.runs.metrics import MetricsLog, smoothed_loss
from gptcli.sampling.load import load
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer
from gptcli.trainer.checkpoint import Checkpoints, CheckpointState
from gptcli.trainer.initial_weights import initial_weights_folder, remove_initial_weights
from gptcli.trainer.loop import StopSignal, stopped_after
from gptcli.trainer.schedule import Position

EVALS_PER_EPOCH = 4
LOSS_KEYS = ("loss", "task_loss", "lm_loss")  # in a line of the metrics
SINGLE_PROCESS = RankContext(torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Number of examples whose label was predicted correctly."""

    correct: int
    examples: int

    @property
    def fraction(self) -> float:
        """Fraction of correct examples."""
        return self.correct / self.examples


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
    layout: Layout = field(default_factory=Layout)
    """Layout of the processes, with replicas only."""

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
            where="--layout",
            hint=f"--layout dp={layout.processes}",
        )
    if layout.dp > task.batch:
        raise UsageError(
            f"{layout} has more processes than a batch has examples ({task.batch})",
            where="--layout",
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

    A collective call. Raises RunError if the loss is not finite, and Interrupted if a signal came
    too late to stop at a step.
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
        _write_model(run.out, model, tokenizer, report)
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


@torch.no_grad()
def accuracy(
    model: GPTClassifier,
    examples: Sequence[Example],
    batch: int,
    context: RankContext = SINGLE_PROCESS,
) -> Accuracy:
    """Return the accuracy on the examples, `batch` at a time; a collective call."""
    was_training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.long, device=context.device)
    for start in range(context.replica_rank * batch, len(examples), context.replicas * batch):
        part = collate(examples[start : start + batch]).to(context.device)
        scores_NL, _ = model.scores(part)
        correct += (scores_NL.argmax(-1) == part.labels).sum()
    model.train(was_training)
    return Accuracy(int(context.all_reduce_sum(correct)), len(examples))


def _write_model(
    out: Path, model: GPTClassifier, tokenizer: Tokenizer, report: dict[str, Any]
) -> None:
    """Write the finished model; finetune.json, which marks the run as finished, comes last."""
    from safetensors.torch import save

    tokenizer.save_for_model(out, model.gpt.config.n_ctx)
    save_model(out, model.gpt, model.gpt.config, eot_id=tokenizer.eot_id)
    weights = {
        name: weight.detach().cpu() for name, weight in model.classifier.state_dict().items()
    }
    with atomic_write(out / CLASSIFIER) as file:
        file.write(save(weights))
    write_json(out / FINETUNE_REPORT, report)
    remove_initial_weights(out)


def load_classifier(folder: Path) -> tuple[GPTClassifier, FinetuneTask, Tokenizer, Path]:
    """Load a fine-tuned model for inference.

    Returns the model, its task, the tokenizer without the special tokens, and the validation file.
    Raises InputError if a file of the folder is missing or broken.
    """
    report = read_json(folder / FINETUNE_REPORT)
    try:
        task, data = FinetuneTask(**report["task"]), Path(report["data"])
    except (KeyError, TypeError, AttributeError, UsageError):
        raise InputError(
            "not written by gpt train --finetune",
            where=folder / FINETUNE_REPORT,
            hint="fine-tune again, or copy it again",
        ) from None
    model = GPTClassifier(load_model(folder), task.kind, len(task.labels))
    try:
        with open_tensors(folder / CLASSIFIER) as file:
            names = list(file.keys())
            model.classifier.load_state_dict({name: file.get_tensor(name) for name in names})
    except FileNotFoundError:
        raise InputError(
            f"no {CLASSIFIER} here, which is part of a fine-tuned model",
            where=folder,
            hint="copy it again",
        ) from None
    except (SafetensorError, ValueError) as error:
        raise unreadable_error(folder / CLASSIFIER, error) from None
    except RuntimeError:
        raise InputError(
            "not the classifier of this task", where=folder / CLASSIFIER, hint="copy it again"
        ) from None
    return model.eval(), task, load_tokenizer(folder), data / task.validation
