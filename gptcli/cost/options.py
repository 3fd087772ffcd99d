"""What a user asks to price: a model, and the GPUs and layout of its run, resolved to a cluster and
a plan.

A model is a size of a paper, a custom shape, or another family's count (BERT, RoBERTa, T5), which
has no GPT shape: its parameters and FLOPs are those of GPT-3's Table D.1.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptcli.cost.cluster import batch_sequences, gpus_needed, implied_cluster, make_cluster
from gptcli.cost.estimate import Cluster, Estimate, price_paper, price_training
from gptcli.cost.flops import flops_per_token
from gptcli.cost.hardware import USER, Gpu, Precision, find_gpu, peak_flops, usual_precision
from gptcli.cost.layout import check_layout, parse_layout
from gptcli.cost.memory import Recompute
from gptcli.cost.planner import Plan, make_plan
from gptcli.cost.rank_memory import StepConfig
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig, find_size, size_names
from gptcli.papers.models import GPT_1, MODELS, TABLE_D1, PaperCompute, PaperModel
from gptcli.papers.training import TRAINING

DEFAULT_GPU = "h100"  # its price is the most recent one
HARDWARE_FIELDS = ("gpu", "gpus", "tflops", "memory", "mfu", "goodput", "price")
LAYOUT_FIELDS = ("layout", "micro_batch", "recompute", "precision")
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareOptions:
    """GPUs, their speed and price, and the layout of a run; None for what the user left out.

    Raises UsageError for an unknown GPU, a precision that it lacks, or a contradiction.
    """

    gpu: str | None = None
    """Name of the GPU; DEFAULT_GPU unless `tflops` describes another one."""
    gpus: int | None = None
    """Number of GPUs."""
    tflops: float | None = None
    """Sustained TFLOP/s of one GPU."""
    memory: float | None = None
    """Memory of one GPU in GB, for a GPU described by `tflops`."""
    mfu: float | None = None
    """Model FLOPs utilization, in (0, 1]."""
    goodput: float | None = None
    """Fraction of the time in which the run makes progress, in (0, 1]."""
    price: float | None = None
    """Dollars per GPU-hour."""
    hours: float | None = None
    """Duration of the run."""
    layout: str | None = None
    """Processes per axis, such as dp=2,shard=4,tp=2,pp=2."""
    micro_batch: int | None = None
    """Sequences per process and forward pass."""
    recompute: Recompute | None = None
    """Activations to recompute in the backward pass."""
    precision: Precision | None = None
    """Precision of matrix products."""

    def __post_init__(self) -> None:
        gpu = self.gpu_row
        if self.memory is not None and gpu is not None:
            raise UsageError(
                "{option:memory} describes a custom GPU",
                field="memory",
                code="memory_without_tflops",
                hint="use it with {option:tflops} and without {option:gpu}",
            )
        if gpu is not None:
            peak_flops(gpu, self.matmul_precision)

    @property
    def gpu_row(self) -> Gpu | None:
        """GPU of the hardware table; None for a custom GPU described by `tflops`."""
        if self.gpu is None and self.tflops is not None:
            return None
        return find_gpu(self.gpu or DEFAULT_GPU)

    @property
    def is_default_gpu(self) -> bool:
        """True if the GPU is assumed, because the user named none."""
        return self.gpu is None and self.tflops is None

    @property
    def has_layout_options(self) -> bool:
        """True if any option of a layout is set."""
        return any(getattr(self, name) is not None for name in LAYOUT_FIELDS)

    @property
    def matmul_precision(self) -> Precision:
        """Precision of matrix products: the one named, or the usual one of the GPU."""
        gpu = self.gpu_row
        chosen: Precision = self.precision or ("bf16" if gpu is None else usual_precision(gpu))
        return StepConfig(precision=chosen).precision

    def cluster(self, model: ModelConfig | None, flops: float) -> tuple[Cluster, Plan | None]:
        """Return the GPUs with their speed, and the layout that the speed is predicted for.

        `flops` is the total of the run. With `hours`, the number of GPUs determines their speed,
        or the speed determines the number of GPUs. Raises UsageError for a contradiction.
        """
        plan = None if model is None else self._plan(model)
        count = self.gpus or 1
        if plan is not None:
            count = plan.layout.processes
            if self.gpus is not None and self.gpus != count:
                raise UsageError(
                    f"{{option:layout}} {plan.layout} needs {count} GPUs, "
                    f"but {{option:gpus}} is {self.gpus}",
                    hint="leave out one of the two",
                )
        gpu, price = self.gpu_row, self.price
        speed = {"tflops": self.tflops, "mfu": self.mfu, "goodput": self.goodput}
        if self.hours is None:
            cluster, plan = make_cluster(gpu, count, model=model, plan=plan, price=price, **speed)
        elif self.gpus is not None or plan is not None:
            if extra := next((name for name, value in speed.items() if value is not None), None):
                raise UsageError(
                    "{option:hours} and {option:gpus} determine the speed, "
                    f"and {{option:{extra}}} sets it too",
                    hint="leave out one of the three",
                )
            cluster = implied_cluster(gpu, count, flops, self.hours, price=price)
        else:
            cluster, plan = make_cluster(gpu, 1, model=model, plan=None, price=price, **speed)
            # more GPUs are slower each, so that even more may be needed
            while (count := gpus_needed(flops, self.hours, cluster)) > cluster.count:
                cluster, plan = make_cluster(
                    gpu, count, model=model, plan=None, price=price, **speed
                )
        if self.memory is not None:
            cluster = replace(cluster, described_memory=round(self.memory * 1e9))
        return cluster, plan

    def _plan(self, model: ModelConfig) -> Plan | None:
        """Return the layout that the user named with its memory and speed, or None."""
        if self.layout is None:
            fields = ("micro_batch", "recompute", "precision")
            if extra := next((name for name in fields if getattr(self, name) is not None), None):
                raise UsageError(
                    f"{{option:{extra}}} needs a layout",
                    hint="name one with {option:layout}, or list those that fit with {option:plan}",
                )
            return None
        gpu = self.gpu_row
        if gpu is None:
            raise UsageError("{option:layout} needs a GPU", hint="name it with {option:gpu}")
        layout = parse_layout(self.layout)
        check_layout(layout, model)
        micro_batch = 1 if self.micro_batch is None else self.micro_batch
        rounds = max(1, -(-batch_sequences(model) // (layout.replicas * max(1, micro_batch))))
        step = StepConfig(
            micro_batch=micro_batch,
            micro_batches=rounds,
            precision=self.matmul_precision,
            recompute=self.recompute or "none",
        )
        return make_plan(model, layout, step, gpu)


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
