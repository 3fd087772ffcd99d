"""What the options of `gpt cost` mean together: which question is asked, on which GPUs, in which layout."""

from __future__ import annotations

from typing import Any

from gptcli.cli.config import count, quantity
from gptcli.cost.estimate import Fleet
from gptcli.cost.fleet import batch_sequences, make_fleet, usual_precision
from gptcli.cost.hardware import Gpu, find_gpu, peak_flops
from gptcli.cost.layout import check_layout, parse_layout
from gptcli.cost.plans import Plan, make_plan
from gptcli.cost.rank import Work
from gptcli.errors import UsageError
from gptcli.model.config import ModelConfig

DEFAULT_GPU = "v100"  # the cost article's, with its speed and its price
NO_VALUE = "auto"  # what `--flops` means alone

FLEET = ("gpu", "gpus", "tflops", "mfu", "goodput", "price")
SHAPE = ("n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "attention")
LAYOUT = ("layout", "micro_batch", "recompute", "precision")
SHOWN = ("json", "markdown", "explain")
QUESTIONS: dict[str, tuple[str, ...]] = {  # an option that asks something of its own, and those that go with it
    "fit": ("runs",),
    "optimal": (),
    "plan": ("size", "runs", *SHAPE, "gpu", "gpus", "precision"),
    "table": ("tokens", *FLEET),
    "budget": ("hours", *FLEET),
    "hours": FLEET,
    "flops": FLEET,
}


def question(said: dict[str, Any]) -> str:
    """Which of QUESTIONS is asked, or "size". Raises UsageError where options of two are mixed."""
    asked = next((name for name in QUESTIONS if name in said), "size")
    if asked == "size" or (asked == "flops" and said["flops"] == NO_VALUE):
        return "size"
    for name in said:
        if name not in (asked, *QUESTIONS[asked], *SHOWN):
            what = f"--flops {said['flops']}" if asked == "flops" else option(asked)
            raise UsageError(
                f"{what} does not go with {'a run folder' if name == 'runs' else option(name)}",
                hint="--flops without a number counts the FLOPs of a run" if asked == "flops" else "give one of the two",
            )
    return asked


class Terms:
    """What the user said of the GPUs and the layout."""

    def __init__(self, said: dict[str, Any]) -> None:
        name = said.get("gpu", None if "tflops" in said else DEFAULT_GPU)
        self.gpu: Gpu | None = None if name is None else find_gpu(name)
        self.count = whole("--gpus", said.get("gpus", "1"))
        self.speed = {name: positive(option(name), said.get(name)) for name in ("tflops", "mfu", "goodput", "price")}
        self.said = said
        if self.gpu is not None:
            peak_flops(self.gpu, self.precision)

    @property
    def precision(self) -> str:
        chosen = self.said.get("precision", "bf16" if self.gpu is None else usual_precision(self.gpu))
        return Work(precision=chosen).precision

    def fleet(self, model: ModelConfig | None) -> tuple[Fleet, Plan | None]:
        """The GPUs with their speed, and the plan that it is predicted for or that the user asked for. Raises UsageError."""
        plan = None if model is None else self._layout(model)
        count = self.count
        if plan is not None:
            count = plan.layout.processes
            if "gpus" in self.said and self.count != count:
                raise UsageError(f"--layout {plan.layout} is {count} GPUs, --gpus says {self.count}", hint="give one of the two")
        return make_fleet(self.gpu, count, model=model, plan=plan, **self.speed)

    def _layout(self, model: ModelConfig) -> Plan | None:
        """The layout that the user named, with what it takes; None where none is named."""
        if "layout" not in self.said:
            if stray := next((name for name in LAYOUT if name in self.said), None):
                raise UsageError(f"{option(stray)} needs a layout", hint="name one with --layout, or let --plan list them")
            return None
        if self.gpu is None:
            raise UsageError("--layout needs a GPU", hint="name it with --gpu")
        layout = parse_layout(self.said["layout"])
        check_layout(layout, model)
        micro_batch = self.said.get("micro_batch", 1)
        rounds = max(1, -(-batch_sequences(model) // (layout.replicas * max(1, micro_batch))))
        recompute = self.said.get("recompute", "none")
        work = Work(micro_batch=micro_batch, micro_batches=rounds, precision=self.precision, recompute=recompute)
        return make_plan(model, layout, work, self.gpu)


def positive(name: str, text: str | None) -> float | None:
    """The number an option was given. Raises UsageError where it is no number, or not above zero."""
    if text is None:
        return None
    try:
        value = quantity(text.removeprefix("-"))
    except UsageError as error:
        raise UsageError(error.what, where=name, hint=error.hint) from None
    if text.startswith("-") or not 0 < value < float("inf"):
        raise UsageError(f"{text} is out of range", where=name, hint="give a number above zero")
    return value


def whole(name: str, text: str) -> int:
    positive(name, text)
    try:
        return count(text)
    except UsageError as error:
        raise UsageError(error.what, where=name, hint=error.hint) from None


def option(name: str) -> str:
    return "--" + name.replace("_", "-")
