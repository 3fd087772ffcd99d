"""Export of a run as a folder that loads in transformers, while it trains and once it is finished.

Configuration, tokenizer and model card exist from the start. Until the run is finished,
`unfinished.safetensors` is a copy of a recent checkpoint's weights in transformers' names, with an
index that names it; `gptcli.model.source` itself reads the newest checkpoint. `model.safetensors`
is written last.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gptcli import toml_json
from gptcli.files import atomic_write
from gptcli.model.config import ModelConfig
from gptcli.model.hf import NEO, model_type
from gptcli.model.safetensors_io import (
    neo_report,
    remove_unfinished,
    save_config,
    save_model,
    save_unfinished,
)
from gptcli.model.source import WEIGHTS, remove_initial_weights
from gptcli.model.tensor_file import CheckpointStateDict
from gptcli.numbers import counted
from gptcli.runs.metrics import Line, window
from gptcli.runs.record import read_provenance, shareable, validation_extent
from gptcli.tokenizer.load import load_tokenizer
from gptcli.trainer.callbacks import (
    BackgroundCallback,
    Callback,
    Cancelled,
    RunProgress,
    SavedCheckpoint,
)
from gptcli.trainer.checkpoint import newest_state
from gptcli.trainer.config import Run
from gptcli.trainer.recipe import SMALL_MODEL

CARD = "README.md"
UNFINISHED_NOTICE = (
    "**Unfinished: training is still running, or was stopped before its end.** Until "
    "`model.safetensors` exists, the weights are those of the newest checkpoint, with a copy for "
    "transformers; `metrics.jsonl` and `report.html` show the progress of the run.\n\n"
)


def prepare_run_folder(run: Run) -> None:
    """Write tokenizer, model card and configuration of a run that is not finished."""
    if is_finished(run.out):
        return
    state = newest_state(run.out) if run.resume else None
    _write_tokenizer(run)
    last = None if state is None else state.metrics
    write_card(run, model_card(run, last, None, None, finished=False))
    save_config(run.out, run.model, eot_id=run.eot_id)


class TransformersCopy(BackgroundCallback):
    """Callback that copies the weights of checkpoints into a file that transformers loads.

    The copy takes 4 bytes per parameter; the finished model replaces it.
    """

    product = "copy for transformers"

    def process(self, checkpoint: SavedCheckpoint) -> None:
        """Copy one checkpoint, tensor by tensor."""
        tensors = _CancellableTensors(CheckpointStateDict(checkpoint.folder), self.cancelled)
        run = self.progress.run
        save_unfinished(run.out, tensors, run.model, checkpoint.step)

    def on_end(self, *, interrupted: bool) -> None:
        """Finish the copy of the last checkpoint, unless the finished model replaces it."""
        if interrupted:
            self.finish()
        else:
            self.close()


class _CancellableTensors(Mapping[str, torch.Tensor]):
    """Tensors of which none is read once `cancelled` is set."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], cancelled: threading.Event) -> None:
        self.tensors, self.cancelled = tensors, cancelled

    def __getitem__(self, name: str) -> torch.Tensor:
        if self.cancelled.is_set():
            raise Cancelled
        return self.tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)


class ModelCardWriter(Callback):
    """Callback that updates the model card, README.md, at every checkpoint but the last.

    The card of the last checkpoint is written with the finished model.
    """

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        self.card: str | None = None
        """Card of the checkpoint that is being written."""

    def before_checkpoint(self) -> None:
        """Compose the card of this step."""
        progress, self.card = self.progress, None
        if not progress.is_finished:
            last = {**progress.line, "smoothed_loss": progress.smoothed_loss}
            self.card = model_card(progress.run, last, progress.val_loss, None, finished=False)

    def after_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        """Write the card. A full disk is no reason to stop: the old card names its own step."""
        if self.card is not None:
            with contextlib.suppress(OSError):
                write_card(self.progress.run, self.card)


def is_small(model: ModelConfig) -> bool:
    """Return True if copying every checkpoint of the model takes little next to training it."""
    return model.parameters < SMALL_MODEL


def export_model(
    run: Run, tensors: Mapping[str, torch.Tensor], last: Line, val_loss: float | None
) -> None:
    """Write tokenizer, model card, configuration and weights of the finished model.

    `last` is the metrics line of the last step with `smoothed_loss`, `val_loss` in nats per token.
    """
    _write_tokenizer(run)
    report = neo_report(tensors, run.model) if model_type(run.model) == NEO else None
    write_card(run, model_card(run, last, val_loss, report, finished=True))
    save_model(run.out, tensors, run.model, eot_id=run.eot_id, report=report)
    remove_temporary_weights(run.out)


def remove_temporary_weights(out: Path) -> None:
    """Remove the weights that a finished run does not need: the copy for transformers, `init/`.

    A resume repeats it, in case the run was killed before.
    """
    remove_unfinished(out)
    remove_initial_weights(out)


def _write_tokenizer(run: Run) -> None:
    load_tokenizer(run.data).save_for_model(run.out, run.model.n_ctx)


def write_card(run: Run, text: str) -> None:
    """Replace the model card."""
    with atomic_write(run.out / CARD, "w") as file:
        file.write(text)


def is_finished(out: Path) -> bool:
    """Return True if the run folder `out` has its finished model."""
    return (Path(out) / WEIGHTS).is_file()


def model_card(
    run: Run,
    last: Line | None,
    val_loss: float | None,
    export_report: dict[str, Any] | None,
    *,
    finished: bool,
) -> str:
    """Return the model card: Markdown with the front matter of the Hugging Face hub.

    `last` is the metrics line of the model's step, with `smoothed_loss`; None before the first
    checkpoint. `export_report` is `neo_report`'s, for a model that transformers loads as GPT-Neo.
    """
    last = last or {}
    facts = _facts(run, last, val_loss, finished=finished)
    if not finished:
        step = last.get("step", 0)
        reached = (
            f"at step {step:,} when this was written" if step else "before its first checkpoint"
        )
        facts = {
            "State": f"unfinished, {reached}, of {counted(run.train.tokens, 'token')}",
            **facts,
        }
    table = "\n".join(
        f"| {name} | {value.replace('|', '&#124;')} |" for name, value in facts.items()
    )
    load = (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), '
        'AutoTokenizer.from_pretrained(".")\n'
        "```\n\n"
    )
    if export_report is not None:
        load += f"In transformers: {export_report['note']}.\n\n"
    return (
        f"{front_matter(run, val_loss if finished else None)}# {run.name}\n\n"
        "A GPT language model, trained by `gpt train`.\n\n"
        f"{'' if finished else UNFINISHED_NOTICE}| | |\n|---|---|\n{table}\n\n"
        f'## Use\n\n```sh\ngpt sample . "Once upon a time"\n```\n\n{load}'
        f"## Configuration\n\n```toml\n{shareable(run.resolved)}```\n"
    )


def _facts(run: Run, last: Line, val_loss: float | None, *, finished: bool) -> dict[str, str]:
    """Return the rows of the card's table, by their names."""
    model, step = run.model, last.get("step", 0)
    attention = "dense attention"
    if model.attention != "dense":
        attention = f"alternating dense and banded attention, band {model.band}"
    trained = "nothing yet"
    if step:
        shards = run.data_sha256[:16]
        trained = (
            f"{counted(last['tokens'], 'token')} in {counted(step, 'step')}, shards sha256 {shards}"
        )
    validation = "not measured" if finished else "not yet measured"
    if val_loss is not None:
        validation = f"{val_loss:.4f} nats per token"
        if extent := validation_extent(run.resolved):
            validation += f", on {extent}; `gpt eval` reads all"
    provenance = read_provenance(shareable(run.resolved))
    return {
        "Parameters": f"{model.parameters:,}",
        "Architecture": f"{counted(model.n_layer, 'layer')}, {counted(model.n_head, 'head')}, "
        f"{model.d_model} wide, "
        f"context {model.n_ctx:,}, {attention}",
        "Vocabulary": f"{model.vocab_size:,}, tokenizer sha256 {run.tokenizer_sha256[:16]}",
        "Trained on": trained,
        "Validation loss": validation,
        "Training loss": _training_loss(last),
        **{name.capitalize(): text for name, text in provenance.items()},
    }


def front_matter(run: Run, val_loss: float | None) -> str:
    """Return the YAML header that the hub reads; its values are JSON, which is YAML.

    It names no license: that is the user's choice.
    """
    about: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [model_type(run.model), "gpt"],
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
                    "name": "validation loss, nats per token",
                    "value": round(val_loss, 4),
                }
            ],
        }
        about["model-index"] = [{"name": run.out.resolve().name, "results": [result]}]
    return (
        "---\n"
        + "".join(f"{name}: {toml_json.dumps(value)}\n" for name, value in about.items())
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
        else f"{mean:.4f} nats per token, mean of the last {counted(steps, 'step')}"
    )
