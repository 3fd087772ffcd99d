"""GPUs and layout of a run as a user names them, resolved to a cluster and a plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

from gptcli.cost.cluster import batch_sequences, gpus_needed, implied_cluster, make_cluster
from gptcli.cost.estimate import Cluster
from gptcli.cost.hardware import Gpu, Precision, find_gpu, peak_flops, usual_precision
from gptcli.cost.layout import check_layout, parse_layout
from gptcli.cost.memory import Recompute
from gptcli.cost.planner import Plan, make_plan
from gptcli.cost.rank_memory import StepConfig
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig

DEFAULT_GPU = "h100"  # its price is the most recent one
HARDWARE_FIELDS = ("gpu", "gpus", "tflops", "memory", "mfu", "goodput", "price")
LAYOUT_FIELDS = ("layout", "micro_batch", "recompute", "precision")


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
