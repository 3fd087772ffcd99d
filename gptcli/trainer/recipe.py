"""The papers' training as values of a configuration, and what is chosen where neither paper nor user says."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from gptcli.model.config import ModelConfig
from gptcli.papers.models import MODELS, PaperModel
from gptcli.papers.training import RAMP_TOKENS, TRAINING

SMALL_MODEL = 3e9  # parameters: below, what a CPU makes of every checkpoint beside the run takes little
SCALED = ("warmup_tokens", "decay_tokens", "ramp_tokens")


def paper_recipe(paper: PaperModel, tokens: int | None = None) -> dict[str, Any]:
    """The paper's batch, learning rate, schedule and Adam for one size; another number of `tokens` scales the schedule in proportion."""
    values = {**asdict(TRAINING[paper.paper]), "batch_tokens": paper.batch_tokens, "lr": paper.lr}
    values["ramp_tokens"] = RAMP_TOKENS.get(paper.name, values["ramp_tokens"])
    if tokens is not None:
        for name in SCALED:
            values[name] = round(values[name] * tokens / values["tokens"])
        values["tokens"] = tokens
    return values


def nearest_paper(model: ModelConfig) -> PaperModel:
    """The GPT-3 size whose parameter count is the nearest by ratio: the recipe of an architecture that no paper names."""
    sizes = [paper for paper in MODELS if paper.paper == "GPT-3"]
    return min(sizes, key=lambda paper: abs(math.log(paper.parameters / model.parameters)))


def whole_sequences(tokens: int, n_ctx: int) -> int:
    """`tokens` rounded to whole sequences, at least one."""
    return max(1, round(tokens / n_ctx)) * n_ctx


def cadence(tokens: int, batch_tokens: int) -> dict[str, int]:
    """Steps between checkpoints and evaluations, about 10 and 20 in a short run, and validation tokens of an evaluation: all of a short
    run's evaluations together read a tenth of its tokens."""
    steps = tokens // batch_tokens
    return {
        "checkpoint_every": max(1, min(1000, steps // 10)),
        "eval_every": max(1, min(500, steps // 20)),
        "eval_tokens": max(1, min(2**20, tokens // 200)),
        "keep": 2,
    }


def samples(parameters: int, steps: int) -> int:
    """Texts from every checkpoint: some where writing them on a CPU takes little beside the run."""
    return 3 if parameters < SMALL_MODEL and steps >= 100 else 0
