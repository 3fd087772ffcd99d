"""Model configuration: the architecture as a few integers.

Imports no torch, so that `gpt cost` and `--help` stay fast.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from gptcli.errors import UsageError, nearest
from gptcli.papers.models import MODELS, PaperModel

ATTENTIONS = ("dense", "banded")
Norm = Literal["pre", "post"]
NORMS: tuple[Norm, ...] = get_args(Norm)
Gelu = Literal["tanh", "exact"]
GELUS: tuple[Gelu, ...] = get_args(Gelu)
NORM_EPS = 1e-5
"""Epsilon of every LayerNorm."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Architecture of a GPT-1, GPT-2 or GPT-3 model.

    Raises UsageError if the values do not describe a model.
    """

    n_layer: int
    """Number of layers."""
    n_head: int
    """Number of attention heads per layer."""
    d_model: int
    """Width of the residual stream."""
    n_ctx: int
    """Context length in tokens."""
    vocab_size: int = 50257
    """Number of entries of the vocabulary."""
    attention: str = "dense"
    """Attention pattern that the layers repeat: "dense", or a list such as "banded,dense".

    "banded" alone means "dense,banded": alternating layers (GPT-3, section 2.1; that the first one
    is dense is an assumption)."""
    band: int = 256
    """Keys that a query of a banded layer attends to, including its own; GPT-3's is unpublished."""
    norm: Norm = "pre"
    """Position of LayerNorm: "pre", before each sub-block and after the last layer (GPT-2), or
    "post", after each residual sum (GPT-1)."""
    tied: bool = True
    """Sharing of one matrix by token embedding and output head."""
    dropout: float = 0.0
    """Dropout rate of embeddings, attention weights and residual branches."""
    gelu: Gelu = "tanh"
    """Form of GELU: "tanh", as in the papers' models, or "exact", by the error function, as in
    nanoGPT's and Cerebras-GPT's. The logits of the two differ by about 0.001."""

    def __post_init__(self) -> None:
        for name in ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "band"):
            if getattr(self, name) < 1:
                raise UsageError(
                    f"{getattr(self, name)} is out of range",
                    field=name,
                    code="out_of_range",
                    hint="at least 1",
                )
        if self.d_model % self.n_head:
            raise UsageError(
                f"d_model {self.d_model} is not a multiple of n_head {self.n_head}",
                field="n_head",
                code="heads_do_not_divide",
                hint="make {option:d_model} a multiple of {option:n_head}, for example "
                f"{self.d_model // self.n_head * self.n_head or self.n_head}",
            )
        if unknown := [kind for kind in self.attention.split(",") if kind not in ATTENTIONS]:
            hint = nearest(unknown[0], ATTENTIONS)
            hint += "; the layers repeat a pattern such as banded,dense"
            raise UsageError(
                f"unknown attention {unknown[0]!r}",
                field="attention",
                code="unknown_value",
                hint=hint,
            )
        if self.norm not in NORMS:
            raise UsageError(
                f"unknown norm {self.norm!r}",
                field="norm",
                code="unknown_value",
                hint=nearest(self.norm, NORMS),
            )
        if self.gelu not in GELUS:
            raise UsageError(
                f"unknown gelu {self.gelu!r}",
                field="gelu",
                code="unknown_value",
                hint=nearest(self.gelu, GELUS),
            )
        if self.norm == "post" and self.gelu != "tanh":
            raise UsageError(
                "post-norm models have GELU in its tanh form only",
                field="gelu",
                code="post_norm_needs_tanh",
                hint="use {option:gelu} tanh",
            )
        if self.norm == "post" and self.attention != "dense":
            raise UsageError(
                "post-norm models support dense attention only",
                field="attention",
                code="post_norm_needs_dense",
                hint="use {option:attention} dense or another {option:size}",
            )
        if not 0 <= self.dropout < 1:
            raise UsageError(
                f"{self.dropout} is out of range",
                field="dropout",
                code="out_of_range",
                hint="at least 0 and below 1",
            )

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.d_model // self.n_head

    @property
    def d_ff(self) -> int:
        """Width of the feed-forward layer: 4·d_model (GPT-3, section 2.1)."""
        return 4 * self.d_model

    def band_of(self, layer: int) -> int | None:
        """Return the band of layer `layer` (from 0), or None if it is dense."""
        pattern = ["dense", "banded"] if self.attention == "banded" else self.attention.split(",")
        return self.band if pattern[layer % len(pattern)] == "banded" else None

    @property
    def parameters(self) -> int:
        """Number of parameters.

        12·L·C² + 13·L·C + (V + T)·C, plus 2·C for the last LayerNorm of a pre-norm model and V·C
        for an untied head.
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
        """Return all fields by name, `gelu` only if it is not the papers' form."""
        table = asdict(self)
        if self.gelu == "tanh":  # what was written before there were two forms stays equal
            del table["gelu"]
        return table

    @classmethod
    def from_paper(cls, paper: PaperModel, **changes: Any) -> ModelConfig:
        """Return the architecture of a model of the papers, with `changes` to its fields."""
        names = {field.name for field in fields(cls)}
        row = {name: getattr(paper, name) for name in names if hasattr(paper, name)}
        return cls(**{**row, **changes})


def find_size(name: str) -> PaperModel:
    """Return the model of the papers with this name or alias, such as "350M" or "gpt2-xl".

    Case does not matter. Raises UsageError with the nearest names if there is none.
    """
    for model in MODELS:
        if name.lower() in (model.name.lower(), *(alias.lower() for alias in model.aliases)):
            return model
    raise UsageError(f"unknown size {name!r}", hint=size_hint(name, size_names()))


def size_hint(name: str, names: Iterable[str]) -> str:
    """Return a hint for an unknown size: the `names` with the nearest numbers of parameters if it
    is such a number, else those that are spelled like it.
    """
    custom = "{option:n_layer}, {option:n_head} and {option:d_model} set any other size"
    wanted = _parameters_in(name)
    sizes = {one: size for one in names if (size := _parameters_in(one)) is not None}
    if wanted is None:
        return f"{nearest(name, names, lists='gpt cost --table')}\n{custom}"
    near = sorted(sizes, key=lambda one: abs(math.log(sizes[one] / wanted)))[:3]
    return f"the nearest are {', '.join(sorted(near, key=sizes.__getitem__))}\n{custom}"


def _parameters_in(name: str) -> float | None:
    """Return the number of parameters that a name such as 350M or 1.3B states; None if none."""
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)([MB])", name.upper())
    number = 0.0 if match is None else float(match[1]) * {"M": 1e6, "B": 1e9}[match[2]]
    return number or None


def size_names() -> list[str]:
    """Return every name and alias, in the order of the papers."""
    return [name for model in MODELS for name in (model.name, *model.aliases)]


def short_name(paper: PaperModel) -> str:
    """Return the alias that gives a model's size, such as "774M", or its name if there is none."""
    return next((alias for alias in paper.aliases if alias[0].isdigit()), paper.name)
