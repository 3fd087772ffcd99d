"""`gpt train --finetune task.toml`, and `gpt eval` of a fine-tuned run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from gptcli.cli.command import hold
from gptcli.cli.config import read_option
from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.errors import Interrupted, UsageError
from gptcli.events import SILENT
from gptcli.files import check_output, claim_output
from gptcli.locks import own_folder
from gptcli.runtime import is_main, restarted, unused_launch
from gptcli.settings import NUMBERS

# options of gpt train that --finetune takes; the task file contains the rest
TAKEN = ("init_from", "checkpoint", "out", "seed", "layout", "resume", "force", "json")


def run_finetune(task_file: Path, options: dict[str, Any]) -> None:
    """Fine-tune the model of --init-from and print the new run folder.

    `options` are those of `gpt train`, as typed.
    """
    if others := [
        name for name, value in options.items() if name not in TAKEN and value not in (None, False)
    ]:
        raise UsageError(
            "is not supported with --finetune",
            field=others[0],
            hint=f"leave it out, or set it in {task_file}",
        )
    if (init_from := options["init_from"]) is None:
        raise UsageError(
            "--finetune needs a model to start from",
            hint="name a run or a GPT-2 folder with --init-from",
        )

    from gptcli.cost.layout import Layout, parse_layout
    from gptcli.distributed.launch import launch
    from gptcli.finetune.loop import FinetuneRun, check_layout, finetune_from_folder
    from gptcli.finetune.task import read_task
    from gptcli.model.source import INIT, find_model
    from gptcli.sampling.load import load
    from gptcli.trainer.auto import auto_processes, check_processes
    from gptcli.trainer.checkpoint import newest_state, newest_step
    from gptcli.trainer.initial_weights import initial_weights_folder, keep_initial_weights
    from gptcli.trainer.preflight import resumed_state

    task = read_task(task_file)
    out, resume = (
        Path(options["out"] or Path("runs", task_file.stem)),
        options["resume"] or restarted(),
    )
    requested = (
        None
        if options["checkpoint"] is None
        else read_option("checkpoint", options["checkpoint"], NUMBERS["checkpoint"])
    )
    before = newest_state(out) if resume else None
    if before is not None:  # the run it started from may have changed
        step = before.identity.get("checkpoint") if requested is None else requested
    elif resume and (out / INIT).is_dir():
        step = find_model(out / INIT, requested).step
    else:
        step = find_model(init_from, requested).step
    layout = parse_layout(options["layout"]) if options["layout"] else Layout(dp=auto_processes())
    check_layout(layout, task)
    check_processes(layout)
    run = FinetuneRun(
        task=task,
        data=task_file.parent,
        out=out,
        start=init_from,
        start_step=step,
        seed=read_option("seed", options["seed"] or "0", NUMBERS["seed"]),
        resume=resume,
        layout=layout,
    )
    force = options["force"] and not restarted()
    events = ConsoleEvents() if is_main() else SILENT
    if (note := unused_launch()) is not None:
        events.warn(note)
    if is_main():
        hold(own_folder(run.out, read_only=run.resume, events=events))
        check_output(run.out, resume=run.resume, force=force)
    if run.resume:
        resumed_state(run.out, run.identity())
        if is_finetuned(run.out):
            events.info(f"{run.out} is finished")
            return
    if is_main():
        if before is None:  # errors come before anything is deleted
            start = initial_weights_folder(out, Path(init_from)) if resume else Path(init_from)
            load(start, checkpoint=step, device="cpu", precision="fp32")
        claim_output(run.out, resume=run.resume, force=force)
        if before is None and step is not None and not (out / INIT).is_dir():
            run = replace(
                run,
                start_step=keep_initial_weights(
                    Path(init_from), out, step, events, newest=requested is None
                ),
            )
    report = launch(run, events, finetune_from_folder, newest_step)
    if not is_main():
        return
    if report["interrupted"]:
        raise Interrupted(
            f"stopped after step {report['step']:,}, with a checkpoint",
            where=run.out,
            hint="--resume goes on",
        )
    events.info(
        f"{report['steps']:,} steps on {report['examples']:,} examples, "
        f"validation accuracy {report['val_accuracy']:.2%}"
    )
    print_json("train", {**report, "out": str(run.out)}) if options["json"] else print(run.out)


def is_finetuned(run: Path) -> bool:
    """Return whether a run folder contains a finished fine-tuned model."""
    from gptcli.model.source import FINETUNE_REPORT

    return (run / FINETUNE_REPORT).is_file()


def evaluate_finetuned(run: Path, data: Path | None, *, as_json: bool) -> None:
    """Print the accuracy of a fine-tuned run on its validation examples, or those of `data`."""
    from gptcli.finetune.inputs import InputTransform
    from gptcli.finetune.loop import accuracy, load_classifier
    from gptcli.finetune.task import read_examples

    model, task, tokenizer, validation = load_classifier(run)
    path = data or validation
    examples = read_examples(
        task, path, InputTransform(task.kind, tokenizer, model.gpt.config.n_ctx)
    )
    outcome = accuracy(model, examples, task.batch)
    if as_json:
        report = {
            "model": str(run),
            "task": task.kind,
            "data": str(path),
            "examples": outcome.examples,
            "correct": outcome.correct,
        }
        print_json("eval", {**report, "accuracy": outcome.fraction})
    else:
        print(
            f"accuracy {outcome.fraction:.2%} ({outcome.correct:,} of {outcome.examples:,}) on {path}"
        )
