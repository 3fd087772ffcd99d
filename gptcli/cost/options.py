"""Options for the GPUs and the layout of a run, resolved to a cluster and a plan."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from gptcli.cost.cluster import (
    MAX_GPUS,
    best_plan,
    gpus_needed,
    implied_cluster,
    make_cluster,
    whole_nodes,
)
from gptcli.cost.estimate import Cluster
from gptcli.cost.hardware import Gpu, Precision, find_gpu, peak_flops, usual_precision
from gptcli.cost.layout import check_division, parse_layout
from gptcli.cost.memory import Recompute, padded_micro_batches
from gptcli.cost.planner import Plan, make_plan, plans
from gptcli.cost.prices import Offer, hourly_price, offers_for
from gptcli.cost.rank_memory import StepConfig
from gptcli.cost.step_time import DEFAULT_TRAINER, Trainer, check_trainer
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.numbers import counted
from gptcli.settings import NUMBERS

DEFAULT_N_CTX = 1024  # GPT-2's
SHAPE = ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "attention")
DEFAULT_GPU = "h100"  # the one with most offers
POWER_FIELDS = ("server", "pue", "carbon")
HARDWARE_FIELDS = (
    "gpu",
    "gpus",
    "tflops",
    "memory",
    "mfu",
    "goodput",
    "price",
    "prices",
    *POWER_FIELDS,
)
LAYOUT_FIELDS = ("layout", "micro_batch", "recompute", "precision", "batch_tokens", "trainer")
# what the options may be, both ends included: beyond, no figure means anything
LIMITS: dict[str, tuple[float, float]] = {
    name: (NUMBERS[name].low, NUMBERS[name].high)
    for name in (
        *("gpus", "tflops", "memory", "price", "hours", *POWER_FIELDS),
        *("micro_batch", "batch_tokens", "tokens", "flops"),
    )
}


def check_limit(name: str, value: float | None) -> None:
    """Raise UsageError if a number is outside LIMITS, or not finite."""
    low, high = LIMITS[name]
    if value is not None and not low <= value <= high:
        raise UsageError(
            f"{value:,.10g} is out of range",
            field=name,
            code="out_of_range",
            hint=f"from {low:,.10g} to {high:,.10g}",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareOptions:
    """GPUs, their speed and price, and the layout of a run; None for what the user left out.

    Raises UsageError for an unknown GPU, a precision that it lacks, or a contradiction.
    """

    gpu: str | None = None
    """Name of the GPU; DEFAULT_GPU unless `tflops` describes another one."""
    processor: Gpu | None = None
    """This machine's processor (`gptcli.cost.cpu.cpu_device`), if `gpu` is "cpu"."""
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
    prices: tuple[Offer, ...] = ()
    """Offers that replace the published ones of their GPUs (`hardware.read_offers`)."""
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
    batch_tokens: int | None = None
    """Tokens of a step."""
    trainer: Trainer | None = None
    """Trainer whose speed is predicted."""
    server: float | None = None
    """Power of a server's share over that of the board."""
    pue: float | None = None
    """Power of the building over that of its servers."""
    carbon: float | None = None
    """Emissions in kg of CO2e per kWh."""

    def __post_init__(self) -> None:
        for name in LIMITS.keys() & {field.name for field in fields(self)}:
            check_limit(name, getattr(self, name))
        check_trainer(self.trainer_name)
        gpu = self.gpu_row
        if self.processor is not None:
            self._check_processor()
        if self.memory is not None and gpu is not None:
            raise UsageError(
                "is the memory of a custom GPU",
                field="memory",
                code="memory_without_tflops",
                hint="use it with {option:tflops} and without {option:gpu}",
            )
        if self.prices and (self.price is not None or gpu is None):
            raise UsageError(
                "{option:prices} and {option:price} contradict each other"
                if gpu is not None
                else "{option:prices} lists GPUs by name, and {option:tflops} describes one without",
                field="prices",
                code="two_prices",
                hint="leave out one of the two" if gpu is not None else "set {option:price}",
            )
        if gpu is not None:
            peak_flops(gpu, self.matmul_precision)

    def _check_processor(self) -> None:
        """Raise UsageError for an option that only GPUs have."""
        for name in ("layout", "trainer", "recompute", "micro_batch", "hours"):
            if getattr(self, name) is not None:
                raise UsageError(
                    f"{{option:{name}}} is for GPUs",
                    field=name,
                    code="not_on_a_cpu",
                    hint="leave it out: {option:gpu} cpu prices a run in one process",
                )
        if self.matmul_precision not in ("bf16", "fp32"):
            raise UsageError(
                f"{self.matmul_precision} is for GPUs",
                field="precision",
                code="not_on_a_cpu",
                hint="{option:gpu} cpu takes bf16 or fp32",
            )
        if self.gpus not in (None, 1):
            raise UsageError(
                "{option:gpu} cpu is this machine, once",
                field="gpus",
                code="not_on_a_cpu",
                hint="leave out {option:gpus}",
            )

    @property
    def gpu_row(self) -> Gpu | None:
        """GPU of the hardware table; None for a custom GPU described by `tflops`."""
        if self.gpu is None and self.tflops is not None:
            return None
        if self.processor is not None:
            return self.processor
        return find_gpu(DEFAULT_GPU if self.gpu is None else self.gpu)

    @property
    def is_default_gpu(self) -> bool:
        """True if the GPU is assumed, because the user named none."""
        return self.gpu is None and self.tflops is None

    @property
    def trainer_name(self) -> Trainer:
        """Trainer whose speed is predicted: the one named, or ours."""
        return DEFAULT_TRAINER if self.trainer is None else self.trainer

    @property
    def matmul_precision(self) -> Precision:
        """Precision of matrix products: the one named, or the usual one of the GPU."""
        gpu = self.gpu_row
        chosen: Precision = self.precision or ("bf16" if gpu is None else usual_precision(gpu))
        return StepConfig(precision=chosen).precision

    def cluster(
        self,
        model: ModelConfig | None,
        flops: float,
        sequences: int = 0,
        *,
        published: bool = False,
    ) -> tuple[Cluster, Plan | None]:
        """Return the GPUs with their speed, and the layout that the speed is predicted for.

        `flops` is the total of the run, `sequences` the batch. With `hours`, the number of GPUs
        determines their speed, or the speed determines the number of GPUs. With `published`, the
        speed is what was published for the GPU, if it was. Raises UsageError for a contradiction.
        """
        plan = None if model is None else self._plan(model, sequences)
        count = self.gpus
        if plan is not None:
            count = plan.layout.processes
            if self.gpus is not None and self.gpus != count and self.layout is not None:
                raise UsageError(
                    f"{{option:layout}} {plan.layout} needs {counted(count, 'GPU')}, "
                    f"but {{option:gpus}} is {self.gpus}",
                    hint="leave out one of the two",
                )
            if self.layout is None:
                count = self.gpus
        gpu, price = self.gpu_row, self.price
        speed = {"tflops": self.tflops, "mfu": self.mfu, "goodput": self.goodput}
        arguments: dict[str, Any] = {
            "model": model,
            "sequences": sequences,
            "flops": flops,
            "price": price,
            "precision": self.matmul_precision,
            "trainer": self.trainer_name,
            "published": published,
            **speed,
        }
        if self.hours is None:
            cluster, plan = make_cluster(gpu, count, plan=plan, **arguments)
        elif count is not None:
            if extra := next((name for name, value in speed.items() if value is not None), None):
                raise UsageError(
                    "{option:hours} and {option:gpus} determine the speed, "
                    f"and {{option:{extra}}} sets it too",
                    hint="leave out one of the three",
                )
            cluster = implied_cluster(gpu, count, flops, self.hours, price=price)
        else:
            cluster, plan = self._cluster_for_hours(gpu, flops, self.hours, arguments)
        if self.memory is not None:
            cluster = replace(cluster, described_memory=round(self.memory * 1e9))
        power: dict[str, Any] = {name: getattr(self, name) for name in POWER_FIELDS}
        if price is None:
            power |= {
                "price": hourly_price(gpu, own=self.prices),
                "offers": offers_for(gpu, self.prices),
            }
        return replace(cluster, **power), plan

    def _cluster_for_hours(
        self, gpu: Gpu | None, flops: float, hours: float, arguments: dict[str, Any]
    ) -> tuple[Cluster, Plan | None]:
        """Return the smallest cluster, in whole nodes above one, that computes `flops` in `hours`."""
        cluster, plan = make_cluster(gpu, None, **arguments)
        if plan is None:
            count = gpus_needed(flops, hours, cluster)
            return replace(cluster, count=count), None
        low, high = 0, whole_nodes(plan.layout.processes)
        while True:
            cluster, plan = make_cluster(gpu, high, **arguments)
            if flops / (cluster.flops * high * 3600) <= hours:
                break
            low, high = high, whole_nodes(2 * high)
            if high > MAX_GPUS:
                raise UsageError(
                    f"{flops:.3g} FLOP in {hours:g} hours takes more than {MAX_GPUS:,} GPUs, "
                    "or a larger batch",
                    field="hours",
                    code="too_many_gpus",
                    hint="give it more hours, or a larger {option:batch_tokens}",
                )
        while (middle := whole_nodes((low + high) / 2)) < high and low:
            other, found = make_cluster(gpu, middle, **arguments)
            if flops / (other.flops * middle * 3600) <= hours:
                high, cluster, plan = middle, other, found
            else:
                low = middle
        return cluster, plan

    def _plan(self, model: ModelConfig, sequences: int) -> Plan | None:
        """Return the layout that the user named, or the fastest with the step that the user named,
        with its memory and speed; None if the user named neither.
        """
        gpu = self.gpu_row
        if self.layout is None:
            if self.micro_batch is None and self.recompute is None:
                return None
            if gpu is None:
                return None
            return self._best_plan(model, gpu, sequences)
        if gpu is None:
            raise UsageError("{option:layout} needs a GPU", hint="name it with {option:gpu}")
        layout = parse_layout(self.layout)
        check_division(layout, model, sequences, precision=self.matmul_precision)
        micro_batch = 1 if self.micro_batch is None else self.micro_batch
        rounds = max(1, -(-sequences // (layout.replicas * micro_batch)))
        step = StepConfig(
            micro_batch=micro_batch,
            micro_batches=padded_micro_batches(rounds, layout.pp, "1f1b"),
            precision=self.matmul_precision,
            recompute=self.recompute or "none",
        )
        return make_plan(model, layout, step, gpu, sequences=sequences, trainer=self.trainer_name)

    def _best_plan(self, model: ModelConfig, gpu: Gpu, sequences: int) -> Plan:
        count = self.gpus
        if count is None:
            least = best_plan(model, gpu, None, sequences, self.matmul_precision, self.trainer_name)
            count = least.layout.processes
        found = self.plans(model, gpu, count, sequences, most=1)
        if not found:
            raise UsageError(
                f"no layout of {count:,} {gpu.name} runs this model with such a step",
                field="micro_batch",
                code="does_not_fit_in_memory",
                hint="leave out {option:micro_batch} and {option:recompute}",
            )
        return found[0]

    def plans(
        self, model: ModelConfig, gpu: Gpu, count: int, sequences: int, *, most: int
    ) -> list[Plan]:
        """Return up to `most` layouts that fit on `count` GPUs, fastest first."""
        return plans(
            model,
            gpu,
            count,
            sequences,
            self.matmul_precision,
            most=most,
            micro_batch=self.micro_batch,
            recompute=self.recompute,
            trainer=self.trainer_name,
        )
