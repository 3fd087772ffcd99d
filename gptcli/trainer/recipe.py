"""The papers' training as values of a configuration, and what is chosen where neither paper nor
user says.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from itertools import pairwise
from typing import Any

from gptcli.model.config import ModelConfig
from gptcli.numbers import amount
from gptcli.papers.models import MODELS, PaperModel
from gptcli.papers.training import RAMP_TOKENS, TRAINING

# parameters: below, what a CPU makes of every checkpoint beside the run takes little
SMALL_MODEL = 3e9
SCALED = ("warmup_tokens", "decay_tokens", "ramp_tokens")
SCALED_BATCH = ("batch_tokens", "ramp_from")
# the best batch grows as tokens to this power, whatever the model's size: Bergsma et al. 2025
# (arXiv 2505.13738)
BATCH_EXPONENT = 0.383
STEPS = 500  # a short run has about as many at least: its batch is no larger than a 500th of it
MAX_SMALL_LR = 4e-3  # learning rate of the smallest models: an assumption, see `small_lr`
TOKENS_PER_PARAMETER = 20  # compute-optimal: Hoffmann et al. 2022 (arXiv 2203.15556)


def paper_recipe(
    paper: PaperModel, tokens: int | None = None, *, scale_batch: bool = True
) -> dict[str, Any]:
    """Return the paper's batch, learning rate, schedule and Adam constants for one size.

    Another number of `tokens` scales the schedule in proportion, and fewer than the paper's make
    batch and ramp smaller, unless `scale_batch` is false (see `batch_share`).
    """
    values = {**asdict(TRAINING[paper.paper]), "batch_tokens": paper.batch_tokens, "lr": paper.lr}
    values["ramp_tokens"] = RAMP_TOKENS.get(paper.name, values["ramp_tokens"])
    if tokens is not None:
        for name in SCALED:
            values[name] = round(values[name] * tokens / values["tokens"])
        if scale_batch and (share := batch_share(paper, tokens)) < 1:
            for name in SCALED_BATCH:
                values[name] = round(share * values[name])
        values["tokens"] = tokens
    return values


def batch_share(paper: PaperModel, tokens: int) -> float:
    """Return the share of the paper's batch that a run of this length takes: 1 from the paper's
    tokens on.

    Below, (tokens / paper's tokens) ** BATCH_EXPONENT, and at most what makes STEPS steps of the
    run.
    """
    law = min(1.0, tokens / TRAINING[paper.paper].tokens) ** BATCH_EXPONENT
    return law if law == 1 else min(law, tokens / STEPS / paper.batch_tokens)


def batch_origin(paper: PaperModel, tokens: int) -> str:
    """Say by which rule the batch of a shorter run was scaled."""
    law = min(1.0, tokens / TRAINING[paper.paper].tokens) ** BATCH_EXPONENT
    if batch_share(paper, tokens) < law:
        return f"scaled to {amount(tokens)} tokens: a {STEPS}th of the run"
    return f"scaled to {amount(tokens)} tokens by D^{BATCH_EXPONENT} (Bergsma et al. 2025)"


def short_warmup(recipe: dict[str, Any], batch_tokens: int) -> int:
    """Return the warm-up, in tokens, of a run shorter than the paper's: in proportion, it would be
    a step or two.

    At least the 2 / (1 - beta2) steps over which Adam's second moment settles (Ma and Yarats 2021,
    arXiv 1910.04209; GPT-1's 2,000 steps are that many), but no more of them than a tenth of the
    run.
    """
    settled = round(2 / (1 - recipe["beta2"])) * batch_tokens
    return max(recipe["warmup_tokens"], min(settled, recipe["tokens"] // 10))


def is_of_paper_size(model: ModelConfig, paper: PaperModel) -> bool:
    """Whether a model has the depth and width of a paper's; its context, heads and vocabulary may
    be others.
    """
    return (model.n_layer, model.d_model) == (paper.n_layer, paper.d_model)


def default_tokens(model: ModelConfig, paper: PaperModel) -> int:
    """Return the length of a run of a model that no paper has: TOKENS_PER_PARAMETER a parameter,
    and no more than the paper's.
    """
    return min(TOKENS_PER_PARAMETER * model.parameters, TRAINING[paper.paper].tokens)


def nearest_paper(model: ModelConfig) -> PaperModel:
    """The GPT-3 size whose parameter count is the nearest by ratio: the recipe of an architecture
    that no paper names.
    """
    sizes = [paper for paper in MODELS if paper.paper == "GPT-3"]
    return min(sizes, key=lambda paper: abs(math.log(paper.parameters / model.parameters)))


def whole_sequences(tokens: int, n_ctx: int) -> int:
    """`tokens` rounded to whole sequences, at least one."""
    return max(1, round(tokens / n_ctx)) * n_ctx


def cadence(tokens: int, batch_tokens: int) -> dict[str, int]:
    """Steps between checkpoints and evaluations, about 10 and 20 in a short run, and validation
    tokens of an evaluation: all of a short run's evaluations together read a tenth of its
    tokens."""
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


def small_lr(parameters: int) -> float:
    """Return a learning rate for a model smaller than GPT-3 Small, the smallest of Table 2.1.

    Small's rises with the cube root as parameters fall, as the table's does from 175B to Small
    (tenfold for 1,394 times fewer), up to MAX_SMALL_LR: an assumption. In 500 steps at 233k
    parameters, Small's own rate ends 0.9 nats higher than 4e-3.
    """
    small = min(
        (model for model in MODELS if model.paper == "GPT-3"), key=lambda model: model.parameters
    )
    return float(
        f"{min(MAX_SMALL_LR, small.lr * max(1.0, small.parameters / parameters) ** (1 / 3)):.2g}"
    )


def scaled_lr(parameters: int) -> float:
    """Table 2.1's learning rate at this many parameters: a straight line between neighbouring
    sizes, both axes logarithmic; beyond the smallest and the largest, theirs."""
    rows = sorted((model.parameters, model.lr) for model in MODELS if model.paper == "GPT-3")
    if parameters <= rows[0][0]:
        return rows[0][1]
    for (small, high), (large, low) in pairwise(rows):
        if parameters <= large:
            share = math.log(parameters / small) / math.log(large / small)
            return high * (low / high) ** share
    return rows[-1][1]
