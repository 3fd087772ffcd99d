"""The run folder as a model that loads in transformers: from the first checkpoint on, and finished.
`model.safetensors` is written last.

Configuration, tokenizer and card are there from the start. While the run is not finished,
`unfinished.safetensors` holds the weights of a recent checkpoint as transformers reads them, and
the index beside it leads there; `gptcli.model.source` finds the newest itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gptcli import strict_json
from gptcli.events import Events
from gptcli.files import atomic_write
from gptcli.model.checkpoint_tensors import SavedModel
from gptcli.model.config import ModelConfig
from gptcli.model.hf_config import NEO, family
from gptcli.model.safetensors_io import (
    neo_report,
    remove_unfinished,
    save_config,
    save_model,
    save_unfinished,
)
from gptcli.model.source import WEIGHTS
from gptcli.runs.metrics import Line, window
from gptcli.runs.provenance import read_provenance
from gptcli.tokenizer.tokenizer import load_tokenizer
from gptcli.trainer.checkpoint import newest_state
from gptcli.trainer.config import Run
from gptcli.trainer.follower import Follower, Left
from gptcli.trainer.recipe import SMALL_MODEL
from gptcli.trainer.start import drop_start

CARD = "README.md"
UNFINISHED_NOTICE = (
    "**Unfinished: training is still going on, or was stopped before its end.** Until `model.safetensors` is here, the weights are those "
    "of the newest checkpoint, and of a copy of it for transformers; `metrics.jsonl` and `report.html` show how far the run is.\n\n"
)


def prepare(run: Run) -> None:
    """Write tokenizer, model card and configuration of a run that is not finished."""
    if is_finished(run.out):
        return
    state = newest_state(run.out) if run.resume else None
    _write_tokenizer(run)
    write_card(
        run, model_card(run, None if state is None else state.metrics, None, None, finished=False)
    )
    save_config(run.out, run.model, eot_id=run.eot_id)


class TransformersCopy(Follower):
    """Writes the weights of each checkpoint as transformers reads them: 4 bytes a parameter, which
    the finished model takes over.
    """

    name = "copy for transformers"

    def __init__(self, out: Path, model: ModelConfig, events: Events, *, upto: int) -> None:
        super().__init__(events, upto=upto)
        self.out, self.model = out, model

    def work(self, folder: Path, step: int, tokens: int) -> None:
        save_unfinished(self.out, _Leaving(SavedModel(folder), self), self.model, step)


class _Leaving(Mapping[str, torch.Tensor]):
    """Tensors that are read no further once their follower is to leave."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], follower: Follower) -> None:
        self.tensors, self.follower = tensors, follower

    def __getitem__(self, name: str) -> torch.Tensor:
        if self.follower.leaving.is_set():
            raise Left
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


def is_copied(model: ModelConfig) -> bool:
    """Whether checkpoints are copied for transformers: of larger models it would take too much
    beside the run.
    """
    return model.parameters < SMALL_MODEL


def export(
    run: Run, tensors: Mapping[str, torch.Tensor], last: Line, val_loss: float | None
) -> None:
    """Write tokenizer, model card, configuration and weights of the finished model."""
    _write_tokenizer(run)
    report = neo_report(tensors, run.model) if family(run.model) == NEO else None
    write_card(run, model_card(run, last, val_loss, report, finished=True))
    save_model(run.out, tensors, run.model, eot_id=run.eot_id, report=report)
    tidy(run.out)


def tidy(out: Path) -> None:
    """Remove what a finished run needs no more. A run that was killed here does it when it is
    resumed.
    """
    remove_unfinished(out)
    drop_start(out)


def _write_tokenizer(run: Run) -> None:
    load_tokenizer(run.data).save_for_model(run.out, run.model.n_ctx)


def write_card(run: Run, text: str) -> None:
    with atomic_write(run.out / CARD, "w") as file:
        file.write(text)


def is_finished(out: Path) -> bool:
    return (Path(out) / WEIGHTS).is_file()


def model_card(
    run: Run,
    last: Line | None,
    val_loss: float | None,
    leaving: dict[str, Any] | None,
    *,
    finished: bool,
) -> str:
    """Say what the model is and how it came about, in Markdown with the front matter of the Hugging
    Face hub. `last` is the line of the model's step, with its smoothed loss; None before the first
    checkpoint. `leaving`: what it costs that transformers knows it as another, if it does."""
    model, last = run.model, last or {}
    dense = model.attention == "dense"
    step, made = last.get("step", 0), read_provenance(run.resolved)
    rows = {
        "Parameters": f"{model.parameters:,}",
        "Architecture": f"{model.n_layer} layers, {model.n_head} heads, {model.d_model} wide, context {model.n_ctx:,}, "
        + (
            "dense attention" if dense else f"dense and banded attention in turn, band {model.band}"
        ),
        "Vocabulary": f"{model.vocab_size:,}, tokenizer sha256 {run.tokenizer_sha256[:16]}",
        "Trained on": f"{last['tokens']:,} tokens in {step:,} steps, shards sha256 {run.data_sha256[:16]}"
        if step
        else "nothing yet",
        "Validation loss": f"{val_loss:.4f} nats a token"
        if val_loss is not None
        else "not measured"
        if finished
        else "not yet measured",
        "Training loss": _training_loss(last),
        **{name.capitalize(): text for name, text in made.items()},
    }
    if not finished:
        reached = (
            f"at step {step:,} when this was written" if step else "before its first checkpoint"
        )
        rows = {"State": f"unfinished, {reached}, of {run.train.tokens:,} tokens", **rows}
    load = (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")\n'
        "```\n\n"
    )
    if leaving is not None:
        load += f"In transformers: {leaving['note']}.\n\n"
    table = "\n".join(
        f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows.items()
    )
    return (
        f"{front_matter(run, val_loss if finished else None)}# {run.name}\n\nA GPT language model, trained by `gpt train`.\n\n"
        f"{'' if finished else UNFINISHED_NOTICE}| | |\n|---|---|\n{table}\n\n"
        f'## Use\n\n```sh\ngpt sample . "Once upon a time"\n```\n\n{load}'
        f"## Configuration\n\n```toml\n{run.resolved}```\n"
    )


def front_matter(run: Run, val_loss: float | None) -> str:
    """Write the YAML that the hub reads, its values as JSON, which is YAML. It names no license:
    that is the user's to choose."""
    about: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [family(run.model), "gpt"],
    }
    if val_loss is not None:
        result = {
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {
                "type": "shards",
                "name": f"validation shards, sha256 {run.data_sha256[:16]}",
            },
            "metrics": [
                {
                    "type": "loss",
                    "name": "validation loss, nats a token",
                    "value": round(val_loss, 4),
                }
            ],
        }
        about["model-index"] = [{"name": run.out.resolve().name, "results": [result]}]
    return (
        "---\n"
        + "".join(f"{name}: {strict_json.dumps(value)}\n" for name, value in about.items())
        + "---\n\n"
    )


def _training_loss(last: Line) -> str:
    mean = last.get("smoothed_loss", last.get("loss"))
    if not last:
        return "not yet measured"
    steps = window(last["step"]) if "smoothed_loss" in last else 1
    return (
        "not finite"
        if mean is None
        else f"{mean:.4f} nats a token, mean of the last {steps:,} steps"
    )
