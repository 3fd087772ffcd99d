"""Configuration of a training run. Imports no torch, so that a wrong one is refused at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gptcli.cost.hardware import PRECISIONS, Precision
from gptcli.cost.layout import Layout, parse_layout
from gptcli.cost.memory import RECOMPUTE, SCHEDULES, PipelineSchedule, Recompute
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig
from gptcli.numbers import counted
from gptcli.shards.manifest import mixture_text, read_mixture
from gptcli.toml_json import shown

OPTIMIZERS = ("adamw", "muon")
TIMEOUT_S = 120
LR_SCHEDULES = ("cosine", "wsd", "linear", "constant")
COURSES = ("constant", "linear", "cosine")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Training configuration; schedules are in tokens, cadences in steps.

    Only `tokens`, `batch_tokens` and `lr` have no default. The other defaults are GPT-3's
    constants without warm-up and batch ramp; `TrainConfig.for_size` gives a paper's whole recipe.
    Raises UsageError for values that are impossible.
    """

    tokens: int
    """Length of the run in tokens, rounded down to whole sequences."""
    batch_tokens: int
    """Tokens per step of all processes together, after the ramp; whole sequences."""
    lr: float
    """Peak learning rate, reached at the end of the warm-up."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end of the decay, as a share of `lr`."""
    warmup_tokens: int = 0
    """Length of the linear warm-up from 0, in tokens."""
    decay_tokens: int = 0
    """End of the cosine decay, in tokens from the start; 0 means `tokens`."""
    ramp_tokens: int = 0
    """Length of the batch's linear growth from `ramp_from` to `batch_tokens`; 0 for no ramp."""
    ramp_from: int = 0
    """Tokens in the first step's batch, if there is a ramp."""
    weight_decay: float = 0.1
    """Weight decay of tensors with two or more dimensions: matrices and embeddings."""
    weight_decay_schedule: str = "constant"
    """Course of the weight decay over the run, one of `COURSES`, or "module:function"."""
    end_weight_decay: float | None = None
    """Weight decay at the end of the run; None unless it changes along a line or a cosine."""
    beta1: float = 0.9
    """Decay rate of Adam's first moment."""
    beta2: float = 0.95
    """Decay rate of Adam's second moment."""
    beta2_schedule: str = "constant"
    """Course of `beta2` over the run, one of `COURSES`, or "module:function"."""
    end_beta2: float | None = None
    """`beta2` at the end of the run; None unless it changes along a line or a cosine."""
    eps: float = 1e-8
    """Adam's epsilon."""
    clip: float = 1.0
    """Maximum global norm of the gradient."""
    optimizer: str = "adamw"
    """Optimizer, one of `OPTIMIZERS` (`gptcli.trainer.optimizer`), or "module:function"."""
    lr_schedule: str = "cosine"
    """Course of the learning rate after the warm-up, one of `LR_SCHEDULES`
    (`gptcli.trainer.schedule`), or "module:function".
    """
    cooldown_tokens: int = 0
    """Length of the fall of the learning rate at the end of a run under wsd, in tokens; 0 means a
    fifth of `tokens`.
    """
    ema: float = 0.0
    """Decay per step of the weights' moving average, which is evaluated and exported; 0 for none.
    """
    spike: float = 6.0
    """Standard deviations above the recent mean from which a loss is a spike, and its update is
    skipped; 0 skips only losses that are not finite.
    """
    follow_noise: bool = False
    """Let the batch follow the gradient noise scale from `ramp_from` up to `batch_tokens`
    (`gptcli.trainer.schedule`).
    """
    document_mask: bool = False
    """Keep attention within each document."""
    mixture: str = ""
    """Weights of the shards' sources by tokens, "web=3,books=1; 500M: web=1,books=2"
    (`gptcli.shards.manifest.read_mixture`); empty for those of the shards, all along.
    """
    mup: int | None = None
    """Width at which `lr` was tuned, for the maximal update parametrization (see
    `gptcli.model.transformer.mup_rescale`);
    None for the standard one. Weights that a run starts from are kept; only their updates follow
    it.
    """
    seed: int = 0
    """Random seed for initialization, data order and dropout."""

    micro_batch: int = 8
    """Sequences that a process runs at a time; gradients accumulate over the batch."""
    layout: str = "dp=1"
    """Processes by axis, "dp=2,shard=4,tp=2,pp=2" (`gptcli.distributed.context`)."""
    pipeline_schedule: PipelineSchedule = "1f1b"
    """Order of micro-batches in a pipeline (`gptcli.distributed.pipeline_parallel`)."""
    recompute: Recompute = "none"
    """Activations to recompute in the backward pass
    (`gptcli.trainer.parallelize`).
    """
    precision: Precision = "fp32"
    """Precision of matrix products, one of `PRECISIONS` (`gptcli.trainer.optimizer`)."""
    compile: bool = False
    """Use torch.compile."""
    deterministic: bool = False
    """Use only kernels whose results are equal to the last bit every time, as a CPU's are; on a GPU
    they are slower.
    """
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    eval_every: int = 500
    """Steps between measurements of the validation loss."""
    eval_tokens: int = 1 << 20
    """Validation tokens of a measurement, the same every time."""
    keep: int = 2
    """Number of newest checkpoints to keep."""
    keep_every: int = 0
    """Steps whose multiples have checkpoints that are kept to the end as well; 0 for none."""
    keep_best: str | None = None
    """Metric, "val_loss" or that of a task, by which the best checkpoint is kept as well."""
    checkpoint_minutes: float = 0.0
    """Minutes after which a checkpoint is written between those of `checkpoint_every`; 0 for none.
    """
    stop_early: int = 0
    """Measurements without a new lowest validation loss that end the run; 0 never does."""
    samples: int = 0
    """Number of texts to generate at every checkpoint."""
    max_skipped: int = 10
    """Number of updates skipped in a row that ends the run."""

    @classmethod
    def for_size(
        cls, size: str, *, tokens: int | str | None = None, **overrides: Any
    ) -> TrainConfig:
        """Return the recipe of a paper's size, "350M", for a run of `tokens` on this machine.

        `tokens` defaults to the paper's and may be written "10M". Shorter runs scale batch and
        schedule as `gpt train` does; what the paper leaves open follows from the machine.
        `overrides` are fields of this class, and fields of `ModelConfig` (n_layer, n_ctx, ...) if
        the model differs from the paper's. Raises UsageError for an unknown size or field.
        """
        from gptcli.trainer.resolve import resolve_config

        return resolve_config({"size": size, "tokens": tokens, **overrides})

    @classmethod
    def for_model(
        cls, model: ModelConfig, *, tokens: int | str | None = None, **overrides: Any
    ) -> TrainConfig:
        """Return the recipe of the GPT-3 size nearest to `model`, for a run of `tokens`.

        `tokens` defaults to 20 per parameter. `overrides` as in `for_size`.
        """
        from gptcli.trainer.resolve import MODEL_KEYS, resolve_config

        shape = {name: value for name, value in model.as_dict().items() if name in MODEL_KEYS}
        return resolve_config({**shape, "tokens": tokens, **overrides}, vocab_size=model.vocab_size)

    def __post_init__(self) -> None:
        if self.decay_tokens == 0:
            object.__setattr__(self, "decay_tokens", self.tokens)
        self._check_schedule()
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
                raise UsageError(
                    f"{getattr(self, name)} is out of range",
                    field=name,
                    code="out_of_range",
                    hint="above 0",
                )
        for name in (
            "warmup_tokens",
            "ramp_tokens",
            "ramp_from",
            "weight_decay",
            "end_weight_decay",
            "spike",
            "samples",
            "seed",
            "cooldown_tokens",
            "keep_every",
            "checkpoint_minutes",
            "stop_early",
        ):
            if (value := getattr(self, name)) is not None and not value >= 0:
                raise UsageError(
                    f"{value} is out of range",
                    field=name,
                    code="out_of_range",
                    hint="0 or more",
                )
        if self.mup is not None and self.mup < 1:
            raise UsageError(
                f"{self.mup} is out of range",
                field="mup",
                code="out_of_range",
                hint="the width, 1 or more, at which {option:lr} was tuned",
            )
        for name in ("beta1", "beta2", "end_beta2", "ema", "min_lr_ratio"):
            value = getattr(self, name)
            if value is not None and not (
                0 <= value < 1 or (name == "min_lr_ratio" and value == 1)
            ):
                raise UsageError(
                    f"{value} is out of range",
                    field=name,
                    code="out_of_range",
                    hint="at least 0 and below 1",
                )
        choices = {"precision": PRECISIONS, "recompute": RECOMPUTE, "pipeline_schedule": SCHEDULES}
        for name, names in choices.items():
            if (value := getattr(self, name)) not in names:
                raise UsageError(
                    f"unknown {name.replace('_', ' ')} {shown(value)}",
                    field=name,
                    code="unknown_value",
                    hint=nearest(value, names),
                )

    def _check_schedule(self) -> None:
        """Check optimizer, schedules and mixture; set the length of a cooldown."""
        object.__setattr__(self, "mixture", mixture_text(read_mixture(self.mixture)))
        kinds = {
            "optimizer": OPTIMIZERS,
            "lr_schedule": LR_SCHEDULES,
            "weight_decay_schedule": COURSES,
            "beta2_schedule": COURSES,
        }
        for name, names in kinds.items():
            if (value := getattr(self, name)) not in names and ":" not in value:
                raise UsageError(
                    f"unknown {name.replace('_', ' ')} {shown(value)}",
                    field=name,
                    code="unknown_value",
                    hint=nearest(value, names, beyond="or your own, as module:function"),
                )
        for name in ("weight_decay", "beta2"):
            course, end = getattr(self, f"{name}_schedule"), getattr(self, f"end_{name}")
            if (end is not None) != (course in COURSES[1:]):
                raise UsageError(
                    f"the schedule {course} "
                    + ("needs a final value" if end is None else "has no final value"),
                    field=f"end_{name}",
                    code="end_without_course",
                    hint=f"give both: {{option:{name}_schedule}} {' or '.join(COURSES[1:])}, and "
                    f"{{option:end_{name}}}",
                )
        if self.optimizer == "muon" and self.mup is not None:
            raise UsageError(
                "muP is a rule for AdamW; Muon's updates have the same size at every width",
                field="mup",
                code="mup_with_muon",
                hint="leave out {option:mup}, or {option:optimizer} muon",
            )
        if self.lr_schedule != "wsd":
            if self.cooldown_tokens:
                raise UsageError(
                    f"the schedule {self.lr_schedule} has no cooldown",
                    field="cooldown_tokens",
                    code="cooldown_without_wsd",
                    hint="{option:lr_schedule} wsd",
                )
        elif self.cooldown_tokens == 0:
            object.__setattr__(self, "cooldown_tokens", max(1, self.tokens // 5))
        elif self.cooldown_tokens > self.tokens:
            raise UsageError(
                f"the cooldown of {counted(self.cooldown_tokens, 'token')} is longer than the "
                "run of "
                f"{self.tokens:,}",
                field="cooldown_tokens",
                code="out_of_range",
                hint="at most {option:tokens}",
            )


RECIPE = (
    "tokens", "batch_tokens", "lr", "min_lr_ratio", "warmup_tokens", "decay_tokens", "ramp_tokens",
    "ramp_from", "weight_decay", "beta1", "beta2", "eps", "clip", "spike", "follow_noise",
    "document_mask", "mup", "seed",
)  # fmt: skip
"""Fields that decide the weights, given model and data: a resumed run keeps them."""
BESIDE_THE_PAPERS = (
    "optimizer", "lr_schedule", "cooldown_tokens", "ema", "weight_decay_schedule",
    "end_weight_decay", "beta2_schedule", "end_beta2", "mixture",
)  # fmt: skip
"""Fields that decide the weights too. An identity has those that differ from the papers' recipe, so
that runs of versions that had none of them can be resumed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One training run: model, configuration, data and run folder."""

    name: str
    """Name for the model card: the paper's for the size, or "GPT"."""
    out: Path
    """Run folder."""
    data: Path
    """Shard folder."""
    model: ModelConfig
    """Architecture."""
    train: TrainConfig
    """Training configuration."""
    data_sha256: str
    """Fingerprint of the shards (`gptcli.trainer.preflight.data_sha256`)."""
    tokenizer_sha256: str
    """Fingerprint of the tokenizer."""
    eot_id: int
    """End-of-text token."""
    must_compile: bool = False
    """Stop if compilation fails, instead of going on without it."""
    init_from: Path | None = None
    """Run or GPT-2 folder with the first weights; None for random ones."""
    init_step: int | None = None
    """Step of the checkpoint of `init_from` to use; None for a finished model."""
    continues: bool = False
    """Begin with the whole checkpoint `init_step` of `init_from`, optimizer and position included.
    """
    resume: bool = False
    """Continue from the newest complete checkpoint of the run folder, if there is one."""
    val: dict[str, Path] = field(default_factory=dict)
    """Further shard folders by name, whose validation losses are measured too."""
    val_by_source: bool = False
    """Measure the validation loss of each source of a mixture too."""
    checkpoint_to: str | None = None
    """URL of a store that gets a copy of every checkpoint (`gptcli.trainer.remote`)."""
    track: tuple[str, ...] = ()
    """Trackers to log metrics to as well (`gptcli.trainer.trackers`)."""
    timeout: int = TIMEOUT_S
    """Seconds that a process waits for another one in a step before it gives it up."""
    profile: bool = False
    """Trace a few steps."""
    measure: Callable[[Any], dict[str, float]] | None = None
    """Function of a GPT that returns further metrics, called at every checkpoint."""
    resolved: str = ""
    """Text of run.toml, for the report and the model card."""

    @property
    def layout(self) -> Layout:
        """Layout of the processes."""
        return parse_layout(self.train.layout)

    @property
    def width_mult(self) -> float:
        """Width multiplier m of muP: model width over tuned width; 1 without muP."""
        return 1.0 if self.train.mup is None else self.model.d_model / self.train.mup

    def shared_values(self) -> dict[str, Any]:
        """Return the values that must be equal on all processes of the run."""
        return {**asdict(self.train), **self.identity()}

    def identity(self) -> dict[str, Any]:
        """Return the values that must be equal for a resume to continue the same run."""
        values = asdict(self.train)
        recipe = {name: values[name] for name in values if name in RECIPE}
        defaults = {part.name: part.default for part in fields(TrainConfig)}
        recipe |= {
            name: values[name] for name in BESIDE_THE_PAPERS if values[name] != defaults[name]
        }
        start = None if self.init_from is None else str(self.init_from)
        begun = {"init_from": start, "checkpoint": self.init_step}
        return {
            **self.model.as_dict(),
            **recipe,
            **begun,
            "data": self.data_sha256,
            "tokenizer": self.tokenizer_sha256,
        }


def is_validation_loss(metric: str | None) -> bool:
    """Return whether a metric of `keep_best` is a validation loss, that of a set included."""
    return metric is not None and metric.startswith("val_loss")


def check_keep_best(
    metric: str | None,
    measured: Sequence[str],
    prefixes: tuple[str, ...] = (),
    *,
    beyond: str,
) -> None:
    """Raise UsageError if a run never measures the metric of `keep_best`: it is none of `measured`,
    and begins with none of `prefixes`. `beyond` says what adds others.
    """
    if metric is None or metric in measured or metric.startswith(prefixes):
        return
    raise UsageError(
        f"{metric} is not measured in this run",
        field="keep_best",
        code="not_measured",
        hint=nearest(metric, measured, beyond=beyond),
    )


def check_optimizer(train: TrainConfig) -> None:
    """Raise UsageError if the user's own optimizer cannot be imported."""
    if ":" in train.optimizer:
        import_object(train.optimizer, "optimizer")


def import_object(path: str, field: str) -> Any:
    """Return what "module:name" names, from the installed packages or the current folder.

    `field` is the parameter that names it. Raises UsageError if there is no such thing.
    """
    module, _, name = path.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the user's module raises
        what = f"{path} cannot be imported: {type(error).__name__}: {error}"
        raise UsageError(
            what,
            field=field,
            code="not_importable",
            hint="module:name, of an installed package or a file MODULE.py in this folder",
        ) from None
    finally:
        sys.path.remove(str(Path.cwd()))


def from_values(kind: type[Any], values: dict[str, Any]) -> Any:
    """Return the dataclass `kind` made from those of `values` that are its fields."""
    return kind(**{part.name: values[part.name] for part in fields(kind) if part.name in values})
