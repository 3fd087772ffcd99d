"""Models that can be priced: a size of a paper, a custom shape, or another family's count.

A model of another family (BERT, RoBERTa, T5) has no GPT shape. Its parameters and FLOPs are those
of GPT-3's Table D.1.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.cost.estimate import Estimate, price_paper, price_training
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import USER
from gptcli.cost.hardware_options import HardwareOptions
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig, find_size, size_names
from gptcli.papers.compute import GPT_1, TABLE_D1, PaperCompute
from gptcli.papers.models import MODELS, PaperModel
from gptcli.papers.training import TRAINING

DEFAULT_SIZE = "gpt3"
TOKENS_SOURCE = {
    "GPT-3": "GPT-3, Table 2.1",
    "GPT-2": "assumed: GPT-2 prints none; one pass over its 40 GB of text at 4 characters a token",
    "GPT-1": "assumed: GPT-1 prints none; 100 epochs of 985M words at 1.2 tokens a word",
}
# models known by their counts alone, GPT-1 among them unless its shape is one of the sizes
OTHER_FAMILIES = tuple(
    row
    for row in (GPT_1, *TABLE_D1)
    if not row.size and row.name not in {model.paper for model in MODELS}
)


@dataclass(frozen=True, slots=True)
class Target:
    """Model to price, with the number of tokens it is usually trained on."""

    name: str
    shape: ModelConfig | PaperCompute
    """Shape of the model, or the published counts of a model of another family."""
    tokens: int
    """Usual number of training tokens."""
    source: str
    """Source of that number."""

    @property
    def model(self) -> ModelConfig:
        """Shape of the model. Raises UsageError for a model of another family."""
        if isinstance(self.shape, PaperCompute):
            raise UsageError(
                f"{self.name} is not a GPT: only its parameter count is known",
                hint="layouts, shapes and scaling laws need a GPT size",
            )
        return self.shape


def find_target(size: str = DEFAULT_SIZE) -> Target:
    """Return a size by its name or alias; case and hyphens do not matter.

    Raises UsageError with the nearest names for an unknown size.
    """
    for name in size_names():
        if bare_name(name) == bare_name(size):
            return _gpt(find_size(name))
    for row in OTHER_FAMILIES:
        if bare_name(row.name) == bare_name(size):
            return _other(row)
    raise UsageError(
        f"unknown size {size!r}",
        field="size",
        code="unknown_size",
        hint=nearest(size, target_names()),
    )


def all_targets() -> list[Target]:
    """Return every size of the papers: GPT-2's and GPT-3's, GPT-1, and Table D.1's families."""
    return [_gpt(model) for model in MODELS] + [_other(row) for row in OTHER_FAMILIES]


def target_names() -> list[str]:
    """Return the names and aliases that `find_target` takes."""
    return [*size_names(), *(row.name for row in OTHER_FAMILIES)]


def bare_name(name: str) -> str:
    """Return a name as it is compared: lower case, without hyphens."""
    return name.lower().replace("-", "")


def estimate_target(target: Target, tokens: int | None, hardware: HardwareOptions) -> Estimate:
    """Estimate the cost of training `target` on `tokens`, or on its usual number of tokens.

    Raises UsageError if the options contradict each other or the layout does not fit the model.
    """
    n, source = (target.tokens, target.source) if tokens is None else (tokens, USER)
    if isinstance(target.shape, PaperCompute) and not hardware.has_layout_options:
        row = target.shape
        cluster, _ = hardware.cluster(None, row.flops_per_parameter * row.parameters * n)
        return price_paper(row, n, cluster, tokens_source=source)
    cluster, plan = hardware.cluster(target.model, flops_per_token(target.model, "6N") * n)
    return price_training(target.name, target.model, n, cluster, tokens_source=source, plan=plan)


def _gpt(model: PaperModel) -> Target:
    return Target(
        model.name,
        ModelConfig.from_paper(model),
        TRAINING[model.paper].tokens,
        TOKENS_SOURCE[model.paper],
    )


def _other(row: PaperCompute) -> Target:
    return Target(row.name, row, round(row.tokens), row.source)
