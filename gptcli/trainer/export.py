"""The finished run folder: a model that loads in transformers as it stands, and its card. `model.safetensors` is written last."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptcli.files import atomic_write
from gptcli.model.config_json import NEO, family
from gptcli.model.weights import WEIGHTS, neo_report, save_model
from gptcli.trainer.config import Run
from gptcli.trainer.metrics import Line, window
from gptcli.trainer.provenance import read_provenance

CARD = "README.md"
TOKENIZER = "tokenizer.json"


def export(run: Run, tensors: Mapping[str, torch.Tensor], last: Line, val_loss: float | None) -> None:
    """Write tokenizer, model card, configuration and weights."""
    with atomic_write(run.out / TOKENIZER) as file, open(run.data / TOKENIZER, "rb") as source:
        shutil.copyfileobj(source, file)
    report = neo_report(tensors, run.model) if family(run.model) == NEO else None
    with atomic_write(run.out / CARD, "w") as file:
        file.write(model_card(run, last, val_loss, report))
    save_model(run.out, tensors, run.model, eot_id=run.eot_id, report=report)


def is_finished(out: Path) -> bool:
    return (Path(out) / WEIGHTS).is_file()


def model_card(run: Run, last: Line | None, val_loss: float | None, leaving: dict[str, Any] | None) -> str:
    """Say what the model is and how it came about, in Markdown with the front matter of the Hugging Face
    hub. `last` is the newest step's line, with its smoothed loss; None or empty before the first step.
    `leaving`: what it costs that transformers knows it as another, if it does."""
    model, last = run.model, last or {}
    dense = model.attention == "dense"
    step, made = last.get("step", 0), read_provenance(run.resolved)
    finished = step > 0 and last["tokens"] + model.n_ctx > run.train.tokens
    rows = {
        "Parameters": f"{model.parameters:,}",
        "Architecture": f"{model.n_layer} layers, {model.n_head} heads, {model.d_model} wide, context {model.n_ctx:,}, "
        + ("dense attention" if dense else f"dense and banded attention in turn, band {model.band}"),
        "Vocabulary": f"{model.vocab_size:,}, tokenizer sha256 {run.tokenizer_sha256[:16]}",
        "Trained on": f"{last['tokens']:,} tokens in {step:,} steps, shards sha256 {run.data_sha256[:16]}" if step else "nothing yet",
        "Validation loss": f"{val_loss:.4f} nats a token" if val_loss is not None else "not measured" if finished else "not yet measured",
        "Training loss": _training_loss(last),
        **{name.capitalize(): text for name, text in made.items()},
    }
    if not finished:
        rows = {"State": f"unfinished: of {run.train.tokens:,} tokens", **rows}
    load = (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")\n'
        "```\n\n"
    )
    if leaving is not None:
        load += f"In transformers: {leaving['note']}.\n\n"
    table = "\n".join(f"| {name} | {value.replace('|', '&#124;')} |" for name, value in rows.items())
    return (
        f"{front_matter(run, val_loss if finished else None)}# {run.name}\n\nA GPT language model, trained by `gpt train`.\n\n"
        f"| | |\n|---|---|\n{table}\n\n"
        f'## Use\n\n```sh\ngpt sample . "Once upon a time"\n```\n\n{load}'
        f"## Configuration\n\n```toml\n{run.resolved}```\n"
    )


def front_matter(run: Run, val_loss: float | None) -> str:
    """Write the YAML that the hub reads, its values as JSON, which is YAML. It names no license: that is
    the user's to choose."""
    about: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [family(run.model), "gpt"],
    }
    if val_loss is not None:
        result = {
            "task": {"type": "text-generation", "name": "Text generation"},
            "dataset": {"type": "shards", "name": f"validation shards, sha256 {run.data_sha256[:16]}"},
            "metrics": [{"type": "loss", "name": "validation loss, nats a token", "value": round(val_loss, 4)}],
        }
        about["model-index"] = [{"name": run.out.resolve().name, "results": [result]}]
    return "---\n" + "".join(f"{name}: {json.dumps(value, ensure_ascii=False)}\n" for name, value in about.items()) + "---\n\n"


def _training_loss(last: Line) -> str:
    mean = last.get("smoothed_loss", last.get("loss"))
    if not last:
        return "not yet measured"
    steps = window(last["step"]) if "smoothed_loss" in last else 1
    return "not finite" if mean is None else f"{mean:.4f} nats a token, mean of the last {steps:,} steps"
