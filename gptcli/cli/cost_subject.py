"""What `gpt cost` prices: a size of a paper, a model of one's own, a run folder, or a model of
another family by its count alone.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from gptcli.cli.config import option
from gptcli.cli.cost_options import LAYOUT, SHAPE, Terms, whole
from gptcli.cost.estimate import Estimate, price_paper, price_training
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import USER
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig, find_size, size_names
from gptcli.model.hf_config import read_model_config
from gptcli.papers.compute import GPT_1, TABLE_D1, PaperCompute
from gptcli.papers.models import MODELS, PaperModel
from gptcli.papers.training import GPT3_TRAINING, TRAINING

DEFAULT_SIZE = "gpt3"
DEFAULT_N_CTX = 1024  # GPT-2's
TOKENS_SOURCE = {
    "GPT-3": "GPT-3, Table 2.1",
    "GPT-2": "assumed: GPT-2 prints none; one pass over its 40 GB of text at 4 characters a token",
    "GPT-1": "assumed: GPT-1 prints none; 100 epochs of 985M words at 1.2 tokens a word",
}
# Models that are known by their counts alone; GPT-1 is, where its shape is not among the sizes.
OTHERS = tuple(
    row
    for row in (GPT_1, *TABLE_D1)
    if not row.size and row.name not in {model.paper for model in MODELS}
)


@dataclass(frozen=True, slots=True)
class Subject:
    name: str
    about: ModelConfig | PaperCompute
    """The shape, or the count of a model whose shape is not ours."""
    tokens: int
    """It is usually trained on."""
    source: str
    """Of that number."""

    @property
    def model(self) -> ModelConfig:
        """Raises UsageError where the shape is not known."""
        if isinstance(self.about, PaperCompute):
            raise UsageError(
                f"{self.name} is not of GPT's shape: only its count is known",
                hint="name a GPT for layouts, runs and laws",
            )
        return self.about


def subject(said: dict[str, Any]) -> Subject:
    """The model in question. Raises UsageError or InputError."""
    shape = {name: said[name] for name in SHAPE if name in said}
    size, runs = said.get("size"), said.get("runs", [])
    if runs:
        if len(runs) > 1 or size or shape:
            raise UsageError(
                "a run folder is a model of its own",
                hint="name one run, and neither --size nor a shape; --fit takes several runs",
            )
        from gptcli.cli.cost_laws import read_run

        run = read_run(runs[0])
        return Subject(
            str(runs[0]), read_model_config(runs[0]), run.tokens, "trained, by its metrics.jsonl"
        )
    if size is None and shape:
        if missing := [
            option(name) for name in ("n_layer", "n_head", "d_model") if name not in shape
        ]:
            raise UsageError(
                f"a model of your own needs {' and '.join(missing)} too",
                hint="or name a --size to start from, and change what you like",
            )
        return Subject(
            "custom",
            ModelConfig(**{"n_ctx": DEFAULT_N_CTX, **shape}),
            GPT3_TRAINING.tokens,
            "assumed: as many as GPT-3",
        )
    found = named(size or DEFAULT_SIZE)
    if not shape:
        return found
    return Subject(
        f"{found.name}, changed",
        ModelConfig(**{**found.model.as_dict(), **shape}),
        found.tokens,
        found.source,
    )


def named(size: str) -> Subject:
    """A size by its name or alias, whatever its case and hyphens. Raises UsageError with the
    nearest names.
    """
    for name in size_names():
        if _bare(name) == _bare(size):
            return _paper(find_size(name))
    for row in OTHERS:
        if _bare(row.name) == _bare(size):
            return _other(row)
    raise UsageError(f"unknown size {size!r}", where="--size", hint=nearest(size, every_name()))


def check_not_a_size(argument: str) -> None:
    """Raise UsageError if an argument, which would be a run folder, is the name of a size."""
    if size := next((name for name in every_name() if _bare(name) == _bare(argument)), None):
        raise UsageError(
            "a size is an option", where=argument, hint=f"gpt cost --size {shlex.quote(size)}"
        )


def subjects() -> list[Subject]:
    """Every size of the papers: GPT-2's and GPT-3's, then GPT-1 and the other families of Table
    D.1.
    """
    return [_paper(model) for model in MODELS] + [_other(row) for row in OTHERS]


def every_name() -> list[str]:
    return [*size_names(), *(row.name for row in OTHERS)]


def estimate(found: Subject, tokens: str | None, terms: Terms) -> Estimate:
    """The bill of training it on `tokens`, or on its usual ones."""
    n, source = (found.tokens, found.source) if tokens is None else (whole("tokens", tokens), USER)
    if isinstance(found.about, PaperCompute) and not any(name in terms.said for name in LAYOUT):
        cluster, _ = terms.cluster(
            None, found.about.flops_per_parameter * found.about.parameters * n
        )
        return price_paper(found.about, n, cluster, tokens_source=source)
    cluster, plan = terms.cluster(found.model, flops_per_token(found.model, "6N") * n)
    return price_training(found.name, found.model, n, cluster, tokens_source=source, plan=plan)


def _paper(model: PaperModel) -> Subject:
    return Subject(
        model.name,
        ModelConfig.from_paper(model),
        TRAINING[model.paper].tokens,
        TOKENS_SOURCE[model.paper],
    )


def _other(row: PaperCompute) -> Subject:
    return Subject(row.name, row, round(row.tokens), row.source)


def _bare(name: str) -> str:
    return name.lower().replace("-", "")
