"""Fine-tuning run of a task file, from its checks to its report, and the finished run's accuracy."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

from gptcli.cost.layout import Layout, parse_layout
from gptcli.distributed.launch import launch
from gptcli.events import SILENT, Events
from gptcli.files import check_output, claim_output
from gptcli.finetune.inputs import InputTransform
from gptcli.finetune.loop import (
    FinetuneRun,
    accuracy,
    check_layout,
    finetune_from_folder,
    load_classifier,
)
from gptcli.finetune.task import read_examples, read_task
from gptcli.locks import own_folder
from gptcli.model.source import INIT, find_model, is_finetuned
from gptcli.runtime import is_main
from gptcli.sampling.load import load
from gptcli.trainer.auto import auto_processes, check_processes
from gptcli.trainer.checkpoint import CheckpointState, newest_state, newest_step
from gptcli.trainer.initial_weights import initial_weights_folder, keep_initial_weights
from gptcli.trainer.preflight import resumed_state
from gptcli.trainer.train import interrupted


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
            check_output(out, resume=resume, force=force)
        if resume:
            resumed_state(out, run.identity())
            if is_finetuned(out):
                return None
        if is_main():
            if before is None:  # errors come before anything is deleted
                start = initial_weights_folder(out, Path(init_from)) if resume else Path(init_from)
                load(start, checkpoint=step, device="cpu", precision="fp32")
            claim_output(out, resume=resume, force=force)
            if before is None and step is not None and not (out / INIT).is_dir():
                kept_step = keep_initial_weights(
                    Path(init_from), out, step, events, newest=checkpoint is None
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
