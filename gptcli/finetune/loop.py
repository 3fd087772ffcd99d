"""Fine-tuning as GPT-1 does it: a few epochs, validation accuracy after each and in between, by one
process or by several that each hold the whole model and share every batch (`dp`: what is fine-tuned
fits on one device).

Each evaluation ends with a checkpoint, of the trainer's own kind; the order of the examples and
dropout are functions of the step, so that a run that was killed and resumed ends in the same bytes.
The finished folder holds the language model, its vocabulary three tokens longer, as any run does;
the classifier beside it; and `finetune.json`, the task with the accuracy it reached.
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
from gptcli.finetune.inputs import Batch, Example, Transformation, collate
from gptcli.finetune.model import (
    Finetuned,
    Losses,
    make_optimizer,
    schedule,
    with_special_tokens,
)
from gptcli.finetune.task import Task, read_examples
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

EVALUATIONS = 4  # an epoch
LOSSES = ("loss", "task_loss", "lm_loss")  # in a line of the metrics
ALONE = RankContext(torch.device("cpu"))


@dataclass(frozen=True, slots=True)
class Accuracy:
    correct: int
    examples: int

    @property
    def share(self) -> float:
        return self.correct / self.examples


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuning:
    """One run: what is learnt, from which files, and where it is written."""

    task: Task
    data: Path
    """The folder in which the task's files lie."""
    out: Path
    start: str
    """The model to start from, by name: for `finetune_folder` its folder."""
    start_step: int | None = None
    """The step of the checkpoint of it, if it is a run's checkpoint."""
    seed: int = 0
    resume: bool = False
    """Go on from the newest checkpoint, if there is one."""
    layout: Layout = field(default_factory=Layout)
    """Of the processes: replicas alone."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume to be the same run. Raises OSError where a file of the
        task is missing.
        """
        digests = [sha256(self.data / name) for name in (self.task.train, self.task.validation)]
        return {
            **asdict(self.task),
            "start": self.start,
            "checkpoint": self.start_step,
            "seed": self.seed,
            "data": " ".join(digests),
        }


def check_layout(layout: Layout, task: Task) -> None:
    """Raises UsageError where fine-tuning cannot be laid out so."""
    if layout.dp != layout.processes:
        raise UsageError(
            f"{layout} divides the model, and fine-tuning only repeats it",
            field="layout",
            code="layout_divides_the_model",
            hint=f"{{option:layout}} dp={layout.processes}",
        )
    if layout.dp > task.batch:
        raise UsageError(
            f"{layout} is more processes than a batch of {task.batch} has examples",
            field="layout",
            code="batch_too_small_for_layout",
            hint=f"at most dp={task.batch}",
        )


def finetune_folder(run: Finetuning, context: RankContext, events: Events) -> dict[str, Any]:
    """`finetune` of the model in the folder `run.start`; every process of the run calls it
    together.
    """
    folder = initial_weights_folder(run.out, Path(run.start))
    loaded = load(folder, checkpoint=run.start_step, device=str(context.device), precision="fp32")
    return finetune(run, loaded.model, loaded.tokenizer, context=context, events=events)


def finetune(
    run: Finetuning,
    gpt: GPT,
    tokenizer: Tokenizer,
    *,
    context: RankContext = ALONE,
    events: Events = SILENT,
) -> dict[str, Any]:
    """Fine-tune `gpt` to the end, or to the step in which a signal to stop comes to any process;
    returns the report.

    Raises RunError where the loss is not a number, Interrupted where a signal came too late to stop
    at a step.
    """
    task, seed = run.task, run.seed
    gpt = with_special_tokens(gpt, seed, dropout=task.dropout)
    transformation = Transformation(task.kind, tokenizer, gpt.config.n_ctx)
    train, validation = (
        read_examples(task, run.data / name, transformation)
        for name in (task.train, task.validation)
    )
    torch.manual_seed(seed)
    model = Finetuned(gpt, task.kind, len(task.labels)).to(context.device).train()
    parameters, optimizer = (
        dict(model.named_parameters()),
        make_optimizer(model, task.lr, task.weight_decay),
    )
    engine = apply_ddp(model, context.layout)
    per_epoch = -(-len(train) // task.batch)
    steps = per_epoch * task.epochs
    if context.is_main:
        tokenizer.save_for_model(run.out, gpt.config.n_ctx)
        save_config(run.out, gpt.config, eot_id=tokenizer.eot_id)
    checkpoints, identity = Checkpoints(run.out, context, keep=1), run.identity()
    done, line = 0, {}
    if run.resume and (folder := checkpoints.newest(events)) is not None:
        state = checkpoints.load(folder, parameters, optimizer)
        done, line = state.position.step, state.metrics
        events.info(f"going on after step {done:,}")
    log, stop = (
        MetricsLog(run.out, before=done + 1) if context.is_main else None,
        StopSignal(events),
    )
    with stop:
        for step in range(done + 1, steps + 1):
            epoch, number = divmod(step - 1, per_epoch)
            batch = collate(
                [
                    train[at]
                    for at in _order(len(train), seed, epoch)[
                        number * task.batch : (number + 1) * task.batch
                    ]
                ]
            )
            torch.manual_seed(_dropout_seed(seed, step, context.rank))
            lr = task.lr * schedule(step, steps)
            *losses, told = _update(engine, batch, optimizer, task, lr, context, stop.requested)
            line = {
                "step": step,
                "epoch": epoch + 1,
                **dict(zip(LOSSES, losses, strict=True)),
                "lr": lr,
            }
            if not line["loss"] < float("inf"):
                raise RunError(
                    f"the loss is {line['loss']} at step {step}",
                    where=run.out,
                    hint="lower lr in the task",
                )
            due = step % max(1, per_epoch // EVALUATIONS) == 0 or step == steps
            if due:
                line["val_accuracy"] = accuracy(model, validation, task.batch, context).share
            if log:
                log.write(line)
            if due or told:
                checkpoints.save(
                    CheckpointState(Position(step, step * task.batch), identity, line),
                    parameters,
                    optimizer,
                )
            facts = {
                "loss": smoothed_loss(log.newest) if log else None,
                "val_accuracy": line.get("val_accuracy"),
            }
            events.progress("finetune", step, steps, "steps", **facts)
            if told:
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
        _write(run.out, model, tokenizer, report)
    return {**report, "interrupted": line["step"] < steps}


def _update(
    engine: nn.Module,
    batch: Batch,
    optimizer: torch.optim.Optimizer,
    task: Task,
    lr: float,
    context: RankContext,
    told: bool,
) -> list[float]:
    """One step; returns the whole batch's losses before it, and whether any process was `told` to
    stop.
    """
    mine, share = _share(batch, context)
    losses: Losses = engine(mine.to(context.device))
    total = losses.total(task.lm_weight)
    optimizer.zero_grad()
    (total * (share * context.replicas)).backward()  # the engine averages over replicas
    torch.nn.utils.clip_grad_norm_(engine.parameters(), task.clip)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    values = torch.stack([total, losses.task, losses.lm]).detach() * share
    figures: list[float] = context.all_reduce_sum(
        torch.cat([values, values.new_tensor([told])])
    ).tolist()
    return figures


def _share(batch: Batch, context: RankContext) -> tuple[Batch, float]:
    """This process's examples of a batch, and what part of it they are; where there are none for
    it, one that counts for nothing.
    """
    examples = len(batch.labels)
    each = -(-examples // context.replicas)
    first = min(context.replica_rank * each, examples - 1)
    last = min(first + each, examples)
    return batch.rows(first, last), (
        last - first
    ) / examples if context.replica_rank * each < examples else 0.0


def _dropout_seed(seed: int, step: int, rank: int) -> int:
    """A function of the place in the run, so that no generator's state need be saved."""
    key = f"{seed} {step} {rank}" if rank else f"{seed} {step}"
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little") >> 1


@torch.no_grad()
def accuracy(
    model: Finetuned, examples: Sequence[Example], batch: int, context: RankContext = ALONE
) -> Accuracy:
    """How many of the examples the model labels rightly; the processes of `context` share the
    work.
    """
    was = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.long, device=context.device)
    for start in range(context.replica_rank * batch, len(examples), context.replicas * batch):
        part = collate(examples[start : start + batch]).to(context.device)
        scores_NL, _ = model.scores(part)
        correct += (scores_NL.argmax(-1) == part.labels).sum()
    model.train(was)
    return Accuracy(int(context.all_reduce_sum(correct)), len(examples))


def load_finetuned(folder: Path) -> tuple[Finetuned, Task, Tokenizer, Path]:
    """A fine-tuned folder's model, ready for inference; its task; the tokenizer of the text,
    without the special tokens; and the validation file."""
    report = read_json(folder / FINETUNE_REPORT)
    try:
        task, data = Task(**report["task"]), Path(report["data"])
    except (KeyError, TypeError, AttributeError, UsageError):
        raise InputError(
            "not what gpt train --finetune writes",
            where=folder / FINETUNE_REPORT,
            hint="fine-tune again, or copy it again",
        ) from None
    model = Finetuned(load_model(folder), task.kind, len(task.labels))
    try:
        with open_tensors(folder / CLASSIFIER) as file:
            model.classifier.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (it is no mapping)
    except FileNotFoundError:
        raise InputError(
            f"no {CLASSIFIER} here, which belongs to a fine-tuned model",
            where=folder,
            hint="copy it again",
        ) from None
    except (SafetensorError, ValueError) as error:
        raise unreadable_error(folder / CLASSIFIER, error) from None
    except RuntimeError:
        raise InputError(
            "is not the classifier of this task", where=folder / CLASSIFIER, hint="copy it again"
        ) from None
    return model.eval(), task, load_tokenizer(folder), data / task.validation


def _order(examples: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(
        examples, generator=torch.Generator().manual_seed(seed * 1000 + epoch)
    ).tolist()


def _write(out: Path, model: Finetuned, tokenizer: Tokenizer, report: dict[str, Any]) -> None:
    """All files, finetune.json last."""
    from safetensors.torch import save

    tokenizer.save_for_model(out, model.gpt.config.n_ctx)
    save_model(out, model.gpt, model.gpt.config, eot_id=tokenizer.eot_id)
    with atomic_write(out / CLASSIFIER) as file:
        file.write(
            save(
                {
                    name: tensor.detach().cpu()
                    for name, tensor in model.classifier.state_dict().items()
                }
            )
        )
    write_json(out / FINETUNE_REPORT, report)
    remove_initial_weights(out)
