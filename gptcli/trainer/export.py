"""The finished run folder: a model that loads in transformers as it stands, and its card. `model.safetensors` is written last."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptcli.files import atomic_write
from gptcli.model.config_json import NEO, family
from gptcli.model.weights import WEIGHTS, neo_report, save_model
from gptcli.trainer.config import Run
from gptcli.trainer.metrics import Line

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


def model_card(run: Run, last: Line, val_loss: float | None, leaving: dict[str, Any] | None) -> str:
    """What the model is and how it came about, in Markdown. `leaving`: what it costs that transformers knows it as another, if it does."""
    model = run.model
    dense = model.attention == "dense"
    rows = {
        "Parameters": f"{model.parameters:,}",
        "Architecture": f"{model.n_layer} layers, {model.n_head} heads, {model.d_model} wide, context {model.n_ctx:,}, "
        + ("dense attention" if dense else f"dense and banded attention in turn, band {model.band}"),
        "Vocabulary": f"{model.vocab_size:,}, tokenizer sha256 {run.tokenizer_sha256[:16]}",
        "Trained on": f"{last['tokens']:,} tokens in {last['step']:,} steps, shards sha256 {run.data_sha256[:16]}",
        "Training loss": f"{last['loss']:.4f} nats a token at the last step",
        "Validation loss": "not measured" if val_loss is None else f"{val_loss:.4f} nats a token",
    }
    load = (
        "```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")\n'
        "```\n\n"
    )
    if leaving is not None:
        load += f"In transformers: {leaving['note']}.\n\n"
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return (
        f"# {run.name}\n\nA GPT language model, trained by `gpt train`.\n\n| | |\n|---|---|\n{table}\n\n"
        f'## Use\n\n```sh\ngpt sample . "Once upon a time"\n```\n\n{load}'
        f"## Configuration\n\n```toml\n{run.resolved}```\n"
    )
