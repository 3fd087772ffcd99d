"""What a model is: a handful of integers. Imports no torch, so that `gpt cost` and `--help` stay
quick.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from gptcli.errors import UsageError, nearest
from gptcli.papers.models import MODELS, PaperModel

ATTENTIONS = ("dense", "banded")
NORMS = ("pre", "post")
NORM_EPS = 1e-5  # of every LayerNorm


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One architecture of the family. Raises UsageError where the numbers cannot make a model."""

    n_layer: int
    n_head: int
    d_model: int
    n_ctx: int
    """Longest context, in tokens."""
    vocab_size: int = 50257
    attention: str = "dense"
    """"dense"; "banded": dense and locally banded layers in turn, dense first (GPT-3, section 2.1;
    the order is an assumption); or any pattern that the layers repeat, such as "banded,dense" or
    "dense,banded,banded"."""
    band: int = 256
    """Keys a banded layer sees, the key itself counted. Unpublished for GPT-3: an assumption."""
    norm: str = "pre"
    """LayerNorm stands before each sub-block and once more after the last layer ("pre", GPT-2), or
    after each residual sum ("post", GPT-1)."""
    tied: bool = True
    """The output head shares the token embedding."""
    dropout: float = 0.0
    """On the embeddings, the attention weights and both residual branches."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "band"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{name} is {getattr(self, name)}", hint=f"{name} must be at least 1"
                )
        if self.d_model % self.n_head:
            raise UsageError(
                f"d_model {self.d_model} does not divide into {self.n_head} heads",
                hint=f"make d_model a multiple of n_head, for example {self.d_model // self.n_head * self.n_head or self.n_head}",
            )
        if unknown := [kind for kind in self.attention.split(",") if kind not in ATTENTIONS]:
            hint = f"{nearest(unknown[0], ATTENTIONS)} A pattern such as banded,dense is repeated over the layers"
            raise UsageError(f"unknown attention {unknown[0]!r}", hint=hint)
        if self.norm not in NORMS:
            raise UsageError(f"unknown norm {self.norm!r}", hint=nearest(self.norm, NORMS))
        if self.norm == "post" and self.attention != "dense":
            raise UsageError(
                "post-norm, GPT-1's, goes with dense attention only",
                hint="{option:attention} dense, or another {option:size}",
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(
                f"dropout is {self.dropout}", hint="dropout must be at least 0 and below 1"
            )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_head

    @property
    def d_ff(self) -> int:
        """Width of the feed-forward layer: four times the model's (GPT-3, section 2.1)."""
        return 4 * self.d_model

    def band_of(self, layer: int) -> int | None:
        """Keys that layer `layer` (from 0) sees, or None where it is dense."""
        pattern = ["dense", "banded"] if self.attention == "banded" else self.attention.split(",")
        return self.band if pattern[layer % len(pattern)] == "banded" else None

    @property
    def parameters(self) -> int:
        """Exact count: 12·L·C² + 13·L·C + (V + T)·C, 2·C more for pre-norm's last LayerNorm, and
        V·C for an untied head.
        """
        L, C, V, T = self.n_layer, self.d_model, self.vocab_size, self.n_ctx
        return (
            12 * L * C**2
            + 13 * L * C
            + (V + T) * C
            + (2 * C if self.norm == "pre" else 0)
            + (0 if self.tied else V * C)
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_paper(cls, paper: PaperModel, **changes: Any) -> ModelConfig:
        """The paper's architecture, with any field changed."""
        names = {field.name for field in fields(cls)}
        row = {name: getattr(paper, name) for name in names if hasattr(paper, name)}
        return cls(**{**row, **changes})


def find_size(name: str) -> PaperModel:
    """The paper's row for a name or alias, in any case: "350M", "gpt2-xl". Raises UsageError with
    the nearest names.
    """
    for model in MODELS:
        if name.lower() in (model.name.lower(), *(alias.lower() for alias in model.aliases)):
            return model
    raise UsageError(f"unknown size {name!r}", hint=nearest(name, size_names()))


def size_names() -> list[str]:
    """Every name and alias, in the papers' order."""
    return [name for model in MODELS for name in (model.name, *model.aliases)]


def short_name(paper: PaperModel) -> str:
    """Return the name that says a model's size, as users type it: "774M", "13B"; "gpt1" has
    none.
    """
    return next((alias for alias in paper.aliases if alias[0].isdigit()), paper.name)
