"""What the options of `gpt cost` mean together: which question is asked, on which GPUs, in which
layout.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gptcli.cli.config import option, read_option
from gptcli.cost.cluster import batch_sequences, gpus_needed, implied_cluster, make_cluster
from gptcli.cost.estimate import Cluster
from gptcli.cost.hardware import Gpu, find_gpu, peak_flops, usual_precision
from gptcli.cost.layout import check_layout, parse_layout
from gptcli.cost.planner import Plan, make_plan
from gptcli.cost.rank_memory import StepConfig
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig
from gptcli.settings import NUMBERS

DEFAULT_GPU = "h100"  # the one whose price is the newest
ARTICLE_GPU = "v100"  # the cost article's, with its speed and its price: of GPT-3's own estimate
ASSUMED = "assumed: --gpu names another"
NO_VALUE = "auto"  # what `--flops` means alone

FLEET = ("gpu", "gpus", "tflops", "memory", "mfu", "goodput", "price")
SHAPE = ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "attention")
MODEL = ("size", "runs", *SHAPE)
LAYOUT = ("layout", "micro_batch", "recompute", "precision")
SHOWN = ("json", "markdown", "explain")
# an option that asks something of its own, and those that go with it
QUESTIONS: dict[str, tuple[str, ...]] = {
    "fit": ("runs", "predict", "size", *SHAPE, "tokens", "plot"),
    "optimal": ("plot",),
    "plan": (*MODEL, "gpu", "gpus", "precision", "plot"),
    "table": ("tokens", *FLEET, "plot"),
    "budget": ("hours", *FLEET),
    "flops": ("hours", *FLEET, "plot"),
    "hours": FLEET,
}
OF_ONE_MODEL: tuple[str, ...] = (*MODEL, "tokens", "hours", *FLEET, *LAYOUT, "plot")


def question(said: dict[str, Any]) -> str:
    """Which of QUESTIONS is asked, or "model". Raises UsageError where options of two are mixed."""
    asked = next((name for name in QUESTIONS if name in said), "model")
    if asked == "hours" and any(name in said for name in (*MODEL, "tokens")):
        asked = "model"
    if asked == "model" or (asked == "flops" and said["flops"] == NO_VALUE):
        asked, goes_with = "model", ("flops", *OF_ONE_MODEL)
    else:
        goes_with = (asked, *QUESTIONS[asked])
    for name in said:
        if name not in (*goes_with, *SHOWN):
            with_number = (
                "--flops without a number counts the FLOPs of a run"
                if asked == "flops"
                else "give one of the two"
            )
            what = (
                "a model"
                if asked == "model"
                else f"--flops {said['flops']}"
                if asked == "flops"
                else option(asked)
            )
            raise UsageError(
                f"{what} does not go with {'a run folder' if name == 'runs' else option(name)}",
                hint=with_number,
            )
    return asked


class Terms:
    """What the user said of the GPUs and the layout."""

    def __init__(self, said: dict[str, Any]) -> None:
        name = said.get("gpu", None if "tflops" in said else DEFAULT_GPU)
        self.gpu: Gpu | None = None if name is None else find_gpu(name)
        self.count = whole("gpus", said.get("gpus", "1"))
        self.hours = positive("hours", said.get("hours"))
        self.price = positive("price", said.get("price"))
        self.speed = {name: positive(name, said.get(name)) for name in ("tflops", "mfu", "goodput")}
        self.memory = positive("memory", said.get("memory"))
        self.said = said
        self.assumed = "" if name is None or "gpu" in said else ASSUMED
        if self.memory is not None and self.gpu is not None:
            raise UsageError(
                "--memory describes a GPU of your own",
                where="--memory",
                hint="give it with --tflops, and no --gpu",
            )
        if self.gpu is not None:
            peak_flops(self.gpu, self.precision)

    @property
    def precision(self) -> str:
        chosen = self.said.get(
            "precision", "bf16" if self.gpu is None else usual_precision(self.gpu)
        )
        return StepConfig(precision=chosen).precision

    def cluster(self, model: ModelConfig | None, flops: float) -> tuple[Cluster, Plan | None]:
        """The GPUs with their speed, and the plan that it is predicted for or that the user asked
        for.

        `flops` are the whole run's. Where its hours are said, they and the number of GPUs say the
        speed, or they and the speed the number. Raises UsageError.
        """
        plan = None if model is None else self._layout(model)
        count = self.count
        if plan is not None:
            count = plan.layout.processes
            if "gpus" in self.said and self.count != count:
                raise UsageError(
                    f"--layout {plan.layout} is {count} GPUs, --gpus says {self.count}",
                    hint="give one of the two",
                )
        if self.hours is None:
            return self._described(
                *make_cluster(
                    self.gpu, count, model=model, plan=plan, price=self.price, **self.speed
                )
            )
        if "gpus" in self.said or plan is not None:
            if stray := next(
                (name for name, value in self.speed.items() if value is not None), None
            ):
                raise UsageError(
                    f"--hours and --gpus say how fast they are, and {option(stray)} too",
                    hint="leave one of the three out",
                )
            return self._described(
                implied_cluster(self.gpu, count, flops, self.hours, price=self.price), plan
            )
        cluster, plan = make_cluster(
            self.gpu, 1, model=model, plan=None, price=self.price, **self.speed
        )
        while (count := gpus_needed(flops, self.hours, cluster)) > cluster.count:
            cluster, plan = make_cluster(
                self.gpu, count, model=model, plan=None, price=self.price, **self.speed
            )
        return self._described(cluster, plan)

    def _described(self, cluster: Cluster, plan: Plan | None) -> tuple[Cluster, Plan | None]:
        return (
            cluster
            if self.memory is None
            else replace(cluster, described_memory=round(self.memory * 1e9))
        ), plan

    def _layout(self, model: ModelConfig) -> Plan | None:
        """The layout that the user named, with what it takes; None where none is named."""
        if "layout" not in self.said:
            if stray := next((name for name in LAYOUT if name in self.said), None):
                raise UsageError(
                    f"{option(stray)} needs a layout",
                    hint="name one with --layout, or let --plan list them",
                )
            return None
        if self.gpu is None:
            raise UsageError("--layout needs a GPU", hint="name it with --gpu")
        layout = parse_layout(self.said["layout"])
        check_layout(layout, model)
        micro_batch = self.said.get("micro_batch", 1)
        rounds = max(1, -(-batch_sequences(model) // (layout.replicas * max(1, micro_batch))))
        recompute = self.said.get("recompute", "none")
        work = StepConfig(
            micro_batch=micro_batch,
            micro_batches=rounds,
            precision=self.precision,
            recompute=recompute,
        )
        return make_plan(model, layout, work, self.gpu)


def positive(name: str, text: str | None) -> float | None:
    """The number an option was given. Raises UsageError if it is not a number of the option's
    range.
    """
    return None if text is None else float(read_option(name, text, NUMBERS[name]))


def whole(name: str, text: str) -> int:
    """The number of things an option was given, at least one. Raises UsageError."""
    return int(read_option(name, text, NUMBERS[name]))
