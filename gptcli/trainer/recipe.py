"""Training recipes: the papers' values, scaled to a run's length, and defaults for the rest."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

from gptcli.cost.layout import divisors
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.numbers import amount, counted
from gptcli.papers.models import MODELS, RAMP_TOKENS, TRAINING, PaperModel
from gptcli.settings import Resolved

# parameters below which samples and copies of a checkpoint take a CPU little time
SMALL_MODEL = 3e9
SCALED = ("warmup_tokens", "decay_tokens", "ramp_tokens")
SCALED_BATCH = ("batch_tokens", "ramp_from")
# exponent with which the optimal batch grows with tokens, at any model size: Bergsma et al. 2025
# (arXiv 2505.13738)
BATCH_EXPONENT = 0.383
MIN_EVAL_TOKENS = 4096  # of a validation, unless a twentieth of the run is less
STEPS = 500  # minimum steps of a short run: its batch is at most a 500th of its tokens
MAX_SMALL_LR = 4e-3  # learning rate of the smallest models: an assumption, see `small_lr`
TOKENS_PER_PARAMETER = 20  # compute-optimal: Hoffmann et al. 2022 (arXiv 2203.15556)


def paper_recipe(
    paper: PaperModel, tokens: int | None = None, *, scale_batch: bool = True
) -> dict[str, Any]:
    """Return the paper's batch, learning rate, schedule and Adam constants for one size.

    A different number of `tokens` scales the schedule in proportion. Fewer than the paper's also
    reduce batch and ramp, unless `scale_batch` is false (see `batch_share`).
    """
    values = {**TRAINING[paper.paper]._asdict(), "batch_tokens": paper.batch_tokens, "lr": paper.lr}
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
    """Return the share of the paper's batch for a run of this length, 1 from the paper's on.

    Below, it is (tokens / paper's tokens) ** BATCH_EXPONENT, limited so that the run has STEPS
    steps.
    """
    law = min(1.0, tokens / TRAINING[paper.paper].tokens) ** BATCH_EXPONENT
    return law if law == 1 else min(law, tokens / STEPS / paper.batch_tokens)


def batch_origin(paper: PaperModel, tokens: int) -> str:
    """Return the rule by which the batch of a shorter run was scaled, in words."""
    law = min(1.0, tokens / TRAINING[paper.paper].tokens) ** BATCH_EXPONENT
    if batch_share(paper, tokens) < law:
        return f"scaled to {counted(tokens, 'token', amount)}: a {STEPS}th of the run"
    return (
        f"scaled to {counted(tokens, 'token', amount)} by D^{BATCH_EXPONENT} (Bergsma et al. 2025)"
    )


def short_warmup(recipe: dict[str, Any], batch_tokens: int) -> int:
    """Return the warm-up in tokens of a run shorter than the paper's.

    In proportion it would be a step or two. It is at least the 2 / (1 - beta2) steps over which
    Adam's second moment converges (Ma and Yarats 2021, arXiv 1910.04209; GPT-1's 2,000 steps are
    that many), but at most a tenth of the run.
    """
    settled = round(2 / (1 - recipe["beta2"])) * batch_tokens
    return max(recipe["warmup_tokens"], min(settled, recipe["tokens"] // 10))


def is_of_paper_size(model: ModelConfig, paper: PaperModel) -> bool:
    """Return whether a model has the depth and width of a paper's size.

    Context, heads and vocabulary may differ.
    """
    return (model.n_layer, model.d_model) == (paper.n_layer, paper.d_model)


def default_tokens(model: ModelConfig, paper: PaperModel) -> int:
    """Return the tokens of a run for a model that no paper has.

    They are TOKENS_PER_PARAMETER per parameter, and at most the paper's.
    """
    return min(TOKENS_PER_PARAMETER * model.parameters, TRAINING[paper.paper].tokens)


def nearest_paper(model: ModelConfig) -> PaperModel:
    """Return the GPT-3 size whose parameter count is nearest by ratio."""
    sizes = [paper for paper in MODELS if paper.paper == "GPT-3"]
    return min(sizes, key=lambda paper: abs(math.log(paper.parameters / model.parameters)))


def whole_sequences(tokens: int, n_ctx: int) -> int:
    """Return `tokens` rounded to whole sequences of `n_ctx`, at least one."""
    return max(1, round(tokens / n_ctx)) * n_ctx


def cadence(tokens: int, batch_tokens: int) -> dict[str, int]:
    """Return steps between checkpoints and evaluations, and validation tokens per evaluation.

    A short run has about 10 checkpoints and 20 evaluations, which together read a tenth of its
    tokens; a very short one up to a twentieth each, for a loss that is a measurement.
    """
    steps = tokens // batch_tokens
    eval_tokens = max(tokens // 200, min(MIN_EVAL_TOKENS, tokens // 20))
    return {
        "checkpoint_every": max(1, min(1000, steps // 10)),
        "eval_every": max(1, min(500, steps // 20)),
        "eval_tokens": max(1, min(2**20, eval_tokens)),
        "keep": 2,
    }


def with_losses(usual: dict[str, int], given: dict[str, int]) -> dict[str, int]:
    """Return the cadence with a validation loss at the step of every checkpoint, so that the best of
    them is known. What is `given` is kept; if both are, they may not meet.
    """
    checkpoints, losses = ({**usual, **given}[name] for name in ("checkpoint_every", "eval_every"))
    if "checkpoint_every" not in given:
        return usual | {"checkpoint_every": losses * max(1, round(checkpoints / losses))}
    nearest = min(divisors(checkpoints), key=lambda n: abs(n - losses))
    return usual | {"eval_every": nearest}


def samples(parameters: int, steps: int) -> int:
    """Return the texts to generate at each checkpoint: some if a CPU makes them fast enough."""
    return 3 if parameters < SMALL_MODEL and steps >= 100 else 0


def small_lr(parameters: int) -> float:
    """Return a learning rate for a model smaller than GPT-3 Small, the smallest of Table 2.1.

    It rises with the cube root of the ratio of parameters, as the table's does from 175B to Small
    (tenfold for 1,394 times fewer), up to MAX_SMALL_LR: an assumption. After 500 steps at 233k
    parameters, the loss with Small's own rate is 0.9 nats higher than with 4e-3.
    """
    small = min(
        (model for model in MODELS if model.paper == "GPT-3"), key=lambda model: model.parameters
    )
    return float(
        f"{min(MAX_SMALL_LR, small.lr * max(1.0, small.parameters / parameters) ** (1 / 3)):.2g}"
    )


def scaled_lr(parameters: int) -> float:
    """Return the learning rate of GPT-3's Table 2.1 at this parameter count.

    It is interpolated between neighboring sizes on logarithmic axes, and constant beyond the ends.
    """
    rows = sorted((model.parameters, model.lr) for model in MODELS if model.paper == "GPT-3")
    if parameters <= rows[0][0]:
        return rows[0][1]
    for (small, high), (large, low) in pairwise(rows):
        if parameters <= large:
            share = math.log(parameters / small) / math.log(large / small)
            return high * (low / high) ** share
    return rows[-1][1]


def put_recipe(resolved: Resolved, paper: PaperModel, given: Resolved, model: ModelConfig) -> None:
    """Set the paper's recipe; origins name what was scaled to the run's length."""
    source, tokens = f"{paper.paper}, {paper.name}", given.values.get("tokens")
    of_paper = "size" in given.values and is_of_paper_size(model, paper)
    own = None if of_paper or tokens is not None else default_tokens(model, paper)
    scale = not (given.values.get("follow_noise") or "batch_tokens" in given.values)
    recipe = paper_recipe(paper, own if tokens is None else tokens, scale_batch=scale)
    resolved.put(recipe, source)
    if given.values.get("lr_schedule") == "wsd":
        resolved.put({"min_lr_ratio": 0.0}, "wsd ends at 0: Hägele et al. 2024")
    if not of_paper and small_lr(model.parameters) > paper.lr:
        resolved.put(
            {"lr": small_lr(model.parameters)},
            f"GPT-3, Table 2.1, continued to {counted(model.parameters, 'parameter', amount)}",
        )
    if own is not None:
        resolved.put({"tokens": own}, f"{TOKENS_PER_PARAMETER} a parameter (Hoffmann et al. 2022)")
    if recipe["tokens"] == paper_recipe(paper)["tokens"]:
        return
    resolved.put({name: recipe[name] for name in SCALED}, f"{source}, in proportion to tokens")
    if recipe["batch_tokens"] != paper.batch_tokens:
        scaled = {
            name: whole_sequences(recipe[name], model.n_ctx)
            for name in SCALED_BATCH
            if recipe[name]
        }
        resolved.put(scaled, f"{source}, {batch_origin(paper, recipe['tokens'])}")
    if recipe["tokens"] < paper_recipe(paper)["tokens"]:
        warmup = short_warmup(
            recipe, given.values.get("batch_tokens", resolved.values["batch_tokens"])
        )
        if warmup != recipe["warmup_tokens"]:
            resolved.put(
                {"warmup_tokens": warmup},
                "2 / (1 - beta2) steps (Ma and Yarats 2021), or a tenth of the run",
            )


def put_lr(resolved: Resolved, given: Resolved, model: ModelConfig, *, lr_range: bool) -> None:
    """Set the learning rate of Table 2.1 if `scale_lr` asks for it, and check it against muP.

    Raises UsageError if muP is not possible for the model, or lacks its learning rate.
    """
    resolved.origin.pop("scale_lr", None)
    if resolved.values.pop("scale_lr", False):  # from here on a learning rate as any other
        resolved.put(
            {"lr": scaled_lr(model.parameters)},
            f"GPT-3, Table 2.1, at {counted(model.parameters, 'parameter')}",
        )
    if "mup" not in given.values:
        return
    if model.norm == "post":
        raise UsageError(
            "muP needs the LayerNorm after the last layer, which GPT-1 lacks",
            field="mup",
            code="mup_needs_pre_norm",
            hint="another {option:size}",
        )
    if not (lr_range or "lr" in given.values):
        raise UsageError(
            "the learning rate tuned at that width is missing",
            field="mup",
            code="mup_without_lr",
            hint=f"{{option:lr}} X, as found at {{option:d_model}} {given.values['mup']}, "
            "for example by {option:lr_range} there",
        )


def start_small(resolved: Resolved, given: Resolved, n_ctx: int) -> None:
    """Let a batch that follows the noise scale grow from the paper's first batch, or a 16th."""
    most = resolved.values["batch_tokens"]
    resolved.origin["batch_tokens"] += ", at most: follows the noise scale"
    if not resolved.values["ramp_from"]:
        resolved.put(
            {"ramp_from": whole_sequences(max(most // 16, 2 * n_ctx), n_ctx)},
            "a 16th of batch_tokens",
        )
    if given.values.get("ramp_tokens"):
        raise UsageError(
            "a batch that follows the noise scale has no ramp",
            field="ramp_tokens",
            code="ramp_with_noise_scale",
            hint="leave one of the two out",
        )
    resolved.put({"ramp_tokens": 0}, "no ramp: the batch follows the noise scale")


def round_batch(resolved: Resolved, given: Resolved, n_ctx: int) -> None:
    """Round the batch to whole sequences. Raises UsageError if the one given is not even one."""
    requested = resolved.values["batch_tokens"]
    if requested < n_ctx and "batch_tokens" in given.values:
        raise UsageError(
            f"a batch of {counted(requested, 'token')} is less than one sequence of {n_ctx}",
            field="batch_tokens",
            code="out_of_range",
            hint=f"the batch is counted in tokens: {counted(requested, 'sequence')} would be "
            f"{requested * n_ctx}",
        )
    whole = whole_sequences(requested, n_ctx)
    if whole != requested:
        resolved.put(
            {"batch_tokens": whole},
            f"{resolved.origin['batch_tokens']}: {requested} in whole sequences of {n_ctx}",
        )
