"""`gpt train --finetune task.toml`, and `gpt eval` of what it made."""

from __future__ import annotations

from pathlib import Path

from gptcli.cli.console import ConsoleEvents, print_json
from gptcli.errors import UsageError
from gptcli.files import claim_output


def run_finetune(task_file: Path, init_from: str | None, out: Path | None, *, seed: int, force: bool, as_json: bool) -> None:
    """Fine-tune the model of `init_from` and print the new run folder."""
    if init_from is None:
        raise UsageError("--finetune needs a model to start from", hint="--init-from RUN")

    from gptcli.sampling.loading import load
    from gptcli.trainer.finetune import finetune
    from gptcli.trainer.finetune_task import read_task

    task = read_task(task_file)
    loaded = load(Path(init_from), precision="fp32")
    out = out or Path("runs") / task_file.stem
    claim_output(out, resume=False, force=force)
    events = ConsoleEvents()
    report = finetune(task, task_file.parent, loaded.model, loaded.tokenizer, out, seed=seed, device=str(loaded.device), events=events)
    events.info(f"{report['steps']:,} steps on {report['examples']:,} examples, validation accuracy {report['val_accuracy']:.2%}")
    print_json("train", {**report, "out": str(out)}) if as_json else print(out)


def is_finetuned(run: Path) -> bool:
    from gptcli.trainer.finetune_task import FINETUNE

    return (run / FINETUNE).is_file()


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
