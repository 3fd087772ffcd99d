"""What a training run is told. Imports no torch, so that a wrong configuration is refused at
once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.memory import RECOMPUTE, SCHEDULES
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig

PRECISIONS = ("bf16", "fp32", "fp16", "fp8")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a model is trained. Schedules are in tokens, cadences in steps. Raises UsageError where
    the values cannot be met.
    """

    tokens: int
    """The run ends here, on a whole sequence."""
    batch_tokens: int
    """Of a step, all processes together, once the ramp is over: whole sequences."""
    lr: float
    """The highest learning rate, reached at the end of the warm-up."""
    min_lr_ratio: float
    """Where the decay ends, as a share of `lr`."""
    warmup_tokens: int
    """Linear from 0 over these."""
    decay_tokens: int
    """The cosine decay ends here, counted from the start."""
    ramp_tokens: int
    """The batch grows linearly from `ramp_from` to `batch_tokens` over these; 0 for no ramp."""
    ramp_from: int
    """Tokens of the first step's batch."""
    weight_decay: float
    """Of tensors with two or more dimensions: every matrix, the embeddings among them, no bias and
    no gain.
    """
    beta1: float
    beta2: float
    eps: float
    clip: float
    """The gradient's global norm is cut to this."""
    spike: float = 6.0
    """A loss so many standard deviations above the mean of late is a spike, whose update is
    skipped; 0 to judge no loss that is finite.
    """
    follow_noise: bool = False
    """The batch follows the gradient's noise scale from `ramp_from` up to `batch_tokens`: see
    `gptcli.trainer.schedule`.
    """
    document_mask: bool = False
    """Attention does not cross end-of-text."""
    mup: int | None = None
    """Maximal-update parameterisation: the width at which `lr` was found. None for the standard
    one. See `gptcli.model.mup`. Weights that a run begins with are taken as they are: only what
    they learn by follows."""
    seed: int
    """Of the initial weights, the data order and dropout."""

    micro_batch: int
    """Sequences that one process runs at a time; gradients add up until the batch is whole."""
    layout: str
    """"dp=2,shard=4,tp=2,pp=2": see `gptcli.distributed.context`."""
    pipeline_schedule: str = "1f1b"
    """In which order pipeline stages run micro-batches: see `gptcli.distributed.pipeline_parallel`."""
    recompute: str = "none"
    """What the backward pass computes again: see `gptcli.distributed.activation_checkpoint`."""
    precision: str
    """Of the products, of `PRECISIONS`: see `gptcli.trainer.precision`."""
    compile: bool
    """Through torch.compile."""
    checkpoint_every: int
    eval_every: int
    eval_tokens: int
    """Validation tokens that an evaluation reads, the same ones every time."""
    keep: int
    """Checkpoints kept, the newest."""
    samples: int = 0
    """Texts that are written from every checkpoint."""
    max_skipped: int = 10
    """So many updates skipped in a row end the run."""

    def __post_init__(self) -> None:
        positive = ("tokens", "batch_tokens", "lr", "decay_tokens", "eps", "clip")
        for name in (
            *positive,
            "micro_batch",
            "checkpoint_every",
            "eval_every",
            "eval_tokens",
            "keep",
            "max_skipped",
        ):
            if not getattr(self, name) > 0:
                raise UsageError(f"{name} is {getattr(self, name)}", hint=f"{name} must be above 0")
        for name in (
            "warmup_tokens",
            "ramp_tokens",
            "ramp_from",
            "weight_decay",
            "spike",
            "samples",
            "seed",
        ):
            if not getattr(self, name) >= 0:
                raise UsageError(
                    f"{name} is {getattr(self, name)}", hint=f"{name} must be 0 or more"
                )
        if self.mup is not None and self.mup < 1:
            raise UsageError(f"mup is {self.mup}", hint="mup is the width at which lr was found")
        for name in ("beta1", "beta2", "min_lr_ratio"):
            value = getattr(self, name)
            if not (0 <= value < 1 or (name == "min_lr_ratio" and value == 1)):
                raise UsageError(
                    f"{name} is {value}", hint=f"{name} must be at least 0 and below 1"
                )
        choices = {"precision": PRECISIONS, "recompute": RECOMPUTE, "pipeline_schedule": SCHEDULES}
        for name, names in choices.items():
            if (value := getattr(self, name)) not in names:
                raise UsageError(
                    f"unknown {name.replace('_', ' ')} {value!r}", hint=nearest(value, names)
                )


# what decides the weights, given model and data: a resume holds these fixed; the rest may change
RECIPE = (
    "tokens", "batch_tokens", "lr", "min_lr_ratio", "warmup_tokens", "decay_tokens", "ramp_tokens", "ramp_from",
    "weight_decay", "beta1", "beta2", "eps", "clip", "spike", "follow_noise", "document_mask", "mup", "seed",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run: what is trained, how, on what, and where it is written."""

    name: str
    """Of the model card: the paper's name for the size, or "GPT"."""
    out: Path
    data: Path
    model: ModelConfig
    train: TrainConfig
    data_sha256: str
    """Of the shards' own fingerprints."""
    tokenizer_sha256: str
    eot_id: int
    must_compile: bool = False
    """A failing compiler is an error, not a reason to go on without."""
    init_from: Path | None = None
    """A run or GPT-2 folder whose weights the run begins with; random ones if None."""
    init_step: int | None = None
    """The step of the checkpoint of `init_from` that holds them; None for those of a finished
    model.
    """
    resume: bool = False
    """Go on from the run folder's newest whole checkpoint, if there is one."""
    track: str | None = None
    """Where the figures go too: see `gptcli.trainer.trackers`."""
    profile: bool = False
    """Trace a few steps."""
    measure: Callable[[Any], dict[str, float]] | None = None
    """What else is measured of the model at every checkpoint, for the step's line; it takes a
    GPT.
    """
    resolved: str = ""
    """run.toml's text, for the report and the model card."""

    @property
    def layout(self) -> Layout:
        return parse_layout(self.train.layout)

    @property
    def width_mult(self) -> float:
        """How many times wider the model is than where its learning rate was found: muP's m, and 1
        without.
        """
        return 1.0 if self.train.mup is None else self.model.d_model / self.train.mup

    def identity(self) -> dict[str, Any]:
        """What must be equal for a resume to be the same run."""
        recipe = {name: value for name, value in asdict(self.train).items() if name in RECIPE}
        start = None if self.init_from is None else str(self.init_from)
        begun = {"init_from": start, "checkpoint": self.init_step}
        return {
            **self.model.as_dict(),
            **recipe,
            **begun,
            "data": self.data_sha256,
            "tokenizer": self.tokenizer_sha256,
        }


def from_values(kind: type[Any], values: dict[str, Any]) -> Any:
    """The dataclass `kind` from those of `values` that are its fields."""
    return kind(
        **{field.name: values[field.name] for field in fields(kind) if field.name in values}
    )
