"""`gpt train --finetune task.toml`, and `gpt eval` of what it made."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from gptcli.cli.config import NUMBERS, option, read_option
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.errors import Interrupted, UsageError
from gptcli.events import SILENT
from gptcli.files import check_output, claim_output

TAKEN = ("init_from", "out", "seed", "layout", "resume", "force", "json")  # of the options of gpt train: the task says the rest


def run_finetune(task_file: Path, options: dict[str, Any], *, again: bool = False) -> None:
    """Fine-tune the model of --init-from and print the new run folder; `options` are those of `gpt train`, as typed. `again`: torchrun
    starts this very job over."""
    if others := [name for name, value in options.items() if name not in TAKEN and value not in (None, False)]:
        raise UsageError("is no option of --finetune: the task says how", where=option(others[0]), hint=f"leave it out, or see {task_file}")
    if (init_from := options["init_from"]) is None:
        raise UsageError("--finetune needs a model to start from", hint="--init-from RUN")

    from gptcli.cost.layout import Layout, parse_layout
    from gptcli.sampling.loading import load
    from gptcli.trainer import machine
    from gptcli.trainer.finetune import Finetuning, check_layout, finetune_folder
    from gptcli.trainer.finetune_task import read_task
    from gptcli.trainer.launch import launch
    from gptcli.trainer.preflight import resumed_state

    task = read_task(task_file)
    layout = parse_layout(options["layout"]) if options["layout"] else Layout(dp=machine.auto_processes())
    check_layout(layout, task)
    machine.check_layout(layout)
    run = Finetuning(
        task=task,
        data=task_file.parent,
        out=Path(options["out"] or Path("runs", task_file.stem)),
        start=init_from,
        seed=read_option("seed", options["seed"] or "0", NUMBERS["seed"]),
        resume=options["resume"] or again,
        layout=layout,
    )
    force = options["force"] and not again
    leads = os.environ.get("RANK", "0") == "0"  # the only one, or the first of those that torchrun or Slurm started
    events = ConsoleEvents() if leads else SILENT
    if leads:
        check_output(run.out, resume=run.resume, force=force)
    if run.resume:
        resumed_state(run.out, run.identity())
        if is_finetuned(run.out):
            events.info(f"{run.out} is finished")
            return
    if leads:
        load(Path(init_from), device="cpu", precision="fp32")  # what is wrong with it is told before anything is emptied
        claim_output(run.out, resume=run.resume, force=force)
    report = launch(run, events, finetune_folder)
    if not leads:
        return
    if report["interrupted"]:
        raise Interrupted(f"stopped after step {report['step']:,}, with a checkpoint", where=run.out, hint="--resume goes on")
    events.info(f"{report['steps']:,} steps on {report['examples']:,} examples, validation accuracy {report['val_accuracy']:.2%}")
    print_json("train", {**report, "out": str(run.out)}) if options["json"] else print(run.out)


def is_finetuned(run: Path) -> bool:
    from gptcli.sampling.loading import FINETUNED

    return (run / FINETUNED).is_file()


def evaluate_finetuned(run: Path, data: Path | None, *, as_json: bool) -> None:
    """Print the accuracy of a fine-tuned run on its task's validation examples, or on those of the file `data`."""
    from gptcli.trainer.finetune import accuracy, load_finetuned
    from gptcli.trainer.finetune_inputs import Transformation
    from gptcli.trainer.finetune_task import read_examples

    model, task, tokenizer, validation = load_finetuned(run)
    path = data or validation
    examples = read_examples(task, path, Transformation(task.kind, tokenizer, model.gpt.config.n_ctx))
    found = accuracy(model, examples, task.batch)
    if as_json:
        report = {"model": str(run), "task": task.kind, "data": str(path), "examples": found.examples, "correct": found.correct}
        print_json("eval", {**report, "accuracy": found.share})
    else:
        print(f"accuracy {found.share:.2%} ({found.correct:,} of {found.examples:,}) on {path}")
