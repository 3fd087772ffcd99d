"""Fine-tuning as GPT-1 does it: on one device, a few epochs, validation accuracy after each and in between.

Each evaluation ends with a checkpoint, of the trainer's own kind; the order of the examples and dropout are functions of the step, so that
a run that was killed and resumed ends in the same bytes. The finished folder holds the language model, its vocabulary three tokens longer,
as any run does; the classifier beside it; and `finetune.json`, the task with the accuracy it reached.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gptcli.errors import RunError
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, read_json, sha256, write_json
from gptcli.model.transformer import GPT
from gptcli.model.weights import load_model, save_model
from gptcli.sampling.loading import FINETUNED
from gptcli.tokenizer.tokenizer import Tokenizer, load_tokenizer
from gptcli.trainer.checkpoint import Checkpoints, State
from gptcli.trainer.finetune_inputs import Batch, Example, Transformation, collate
from gptcli.trainer.finetune_model import Finetuned, make_optimizer, schedule, with_special_tokens
from gptcli.trainer.finetune_task import Task, read_examples
from gptcli.trainer.layout import Place
from gptcli.trainer.loop import StopSignal
from gptcli.trainer.metrics import MetricsLog
from gptcli.trainer.schedule import Position

CLASSIFIER, TOKENIZER = "classifier.safetensors", "tokenizer.json"
EVALUATIONS = 4  # an epoch


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
    """The model to start from, by name."""
    seed: int = 0
    resume: bool = False
    """Go on from the newest checkpoint, if there is one."""

    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume to be the same run. Raises OSError where a file of the task is missing."""
        digests = [sha256(self.data / name) for name in (self.task.train, self.task.validation)]
        return {**asdict(self.task), "start": self.start, "seed": self.seed, "data": " ".join(digests)}


def finetune(run: Finetuning, gpt: GPT, tokenizer: Tokenizer, *, device: str = "cpu", events: Events = SILENT) -> dict[str, Any]:
    """Fine-tune `gpt` to the end, or to the step in which SIGTERM or SIGINT comes; returns the report.

    Raises RunError where the loss is not a number.
    """
    task, seed = run.task, run.seed
    gpt = with_special_tokens(gpt, seed, dropout=task.dropout)
    transformation = Transformation(task.kind, tokenizer, gpt.config.n_ctx)
    train, validation = (read_examples(task, run.data / name, transformation) for name in (task.train, task.validation))
    torch.manual_seed(seed)
    place = Place(torch.device(device))
    model = Finetuned(gpt, task.kind, len(task.labels)).to(place.device).train()
    parameters, optimizer = dict(model.named_parameters()), make_optimizer(model, task.lr, task.weight_decay)
    per_epoch = -(-len(train) // task.batch)
    steps = per_epoch * task.epochs
    checkpoints, identity = Checkpoints(run.out, place, keep=1), run.identity()
    done, line = 0, {}
    if run.resume and (folder := checkpoints.newest(events)) is not None:
        state = checkpoints.load(folder, parameters, optimizer)
        done, line = state.position.step, state.metrics
        events.info(f"going on after step {done:,}")
    log, stop = MetricsLog(run.out, before=done + 1), StopSignal(events, patient=False)
    try:
        for step in range(done + 1, steps + 1):
            epoch, number = divmod(step - 1, per_epoch)
            batch = collate([train[at] for at in _order(len(train), seed, epoch)[number * task.batch : (number + 1) * task.batch]])
            losses, lr = _update(model, batch.to(place.device), optimizer, task, step, steps, seed)
            line = {"step": step, "epoch": epoch + 1, **losses, "lr": lr}
            if not losses["loss"] < float("inf"):
                raise RunError(f"the loss is {losses['loss']} at step {step}", where=run.out, hint="lower lr in the task")
            due = step % max(1, per_epoch // EVALUATIONS) == 0 or step == steps
            if due:
                line["val_accuracy"] = accuracy(model, validation, task.batch).share
            log.write(line)
            stopping = stop.told
            if due or stopping:
                checkpoints.save(State(Position(step, step * task.batch), identity, line), parameters, optimizer)
            facts = {name: line[name] for name in ("loss", "val_accuracy") if name in line}
            events.progress("finetune", step, steps, "steps", **facts)
            if stopping:
                break
    finally:
        stop.release()
    events.finish("finetune")
    checkpoints.wait()
    report = {"task": asdict(task), "data": str(run.data), "seed": seed, "examples": len(train), "steps": steps, **line}
    if line["step"] == steps:
        _write(run.out, model, tokenizer, report)
    return {**report, "interrupted": line["step"] < steps}


def _update(
    model: Finetuned, batch: Batch, optimizer: torch.optim.Optimizer, task: Task, step: int, steps: int, seed: int
) -> tuple[dict[str, float], float]:
    """One step; returns the losses before it, and its learning rate."""
    torch.manual_seed(int.from_bytes(hashlib.blake2b(f"{seed} {step}".encode(), digest_size=8).digest(), "little") >> 1)  # dropout's
    losses, _ = model.losses(batch)
    total = losses.total(task.lm_weight)
    optimizer.zero_grad()
    total.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip)
    lr = task.lr * schedule(step, steps)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return {"loss": total.item(), "task_loss": losses.task.item(), "lm_loss": losses.lm.item()}, lr


@torch.no_grad()
def accuracy(model: Finetuned, examples: Sequence[Example], batch: int) -> Accuracy:
    """How many of the examples the model labels rightly."""
    was = model.training
    model.eval()
    device = next(model.parameters()).device
    correct = 0
    for start in range(0, len(examples), batch):
        part = collate(examples[start : start + batch]).to(device)
        scores_NL, _ = model(part)
        correct += int((scores_NL.argmax(-1) == part.labels).sum())
    model.train(was)
    return Accuracy(correct, len(examples))


def load_finetuned(folder: Path) -> tuple[Finetuned, Task, Tokenizer, Path]:
    """A fine-tuned folder's model, ready for inference; its task; the tokenizer of the text, without the special tokens; and the
    validation file."""
    from safetensors.torch import load_file

    report = read_json(folder / FINETUNED)
    task = Task(**report["task"])
    model = Finetuned(load_model(folder), task.kind, len(task.labels))
    model.classifier.load_state_dict(load_file(folder / CLASSIFIER))
    return model.eval(), task, load_tokenizer(folder), Path(report["data"], task.validation)


def _order(examples: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(examples, generator=torch.Generator().manual_seed(seed * 1000 + epoch)).tolist()


def _write(out: Path, model: Finetuned, tokenizer: Tokenizer, report: dict[str, Any]) -> None:
    """All files, finetune.json last."""
    from safetensors.torch import save

    tokenizer.save(out / TOKENIZER)
    save_model(out, model.gpt, model.gpt.config, eot_id=tokenizer.eot_id)
    with atomic_write(out / CLASSIFIER) as file:
        file.write(save({name: tensor.detach().cpu() for name, tensor in model.classifier.state_dict().items()}))
    write_json(out / FINETUNED, report)
