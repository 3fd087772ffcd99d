"""Values of a training run as given: option > --config file > run.toml of a resumed run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptcli.cli.config import read_config, read_option, split_list
from gptcli.cost.hardware import PRECISIONS
from gptcli.cost.memory import RECOMPUTE, SCHEDULES
from gptcli.errors import UsageError, nearest
from gptcli.model.config import find_size
from gptcli.model.source import RUN_TOML
from gptcli.settings import NUMBERS, Resolved
from gptcli.trainer.resolve import SHAPE, paper_of


def words(value: Any) -> str:
    """Return a text that is not empty. Raises UsageError otherwise."""
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not text")
    if not value:
        raise UsageError("is empty")
    return value


def names(value: Any) -> list[str]:
    """Return a list of names, given as a list or separated by commas."""
    return [
        name
        for part in (value if isinstance(value, list) else [value])
        for name in split_list(words(part))
    ]


def _size(value: Any) -> str:
    find_size(words(value))
    return value


@dataclass(frozen=True, slots=True)
class OneOf:
    """Reader of one of a few words."""

    names: tuple[str, ...]
    """Words to choose from."""

    def __call__(self, value: Any) -> str:
        """Return `value` if it is one of the words. Raises UsageError, with the nearest, if not."""
        if value not in self.names:
            raise UsageError(
                f"{value!r} is none of {', '.join(self.names)}",
                hint=nearest(str(value), self.names),
            )
        return str(value)


def batch(value: Any) -> int | str:
    """Return a number of tokens, or "auto"."""
    return "auto" if value == "auto" else NUMBERS["batch_tokens"](value)


def truth(value: Any) -> bool:
    """Return true or false. Raises UsageError for other values."""
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither true nor false")
    return value


NUMERIC = (
    "band", "mup", "checkpoint", "tokens", "warmup_tokens", "decay_tokens", "ramp_tokens",
    "ramp_from", "seed", "micro_batch", "checkpoint_every", "eval_every", "eval_tokens", "keep",
    "max_skipped", "samples", "eval_items", "dropout", "lr", "min_lr_ratio", "weight_decay",
    "beta1", "beta2", "eps", "clip", "spike",
)  # fmt: skip
NAMES: dict[str, Any] = {
    "size": _size,
    **dict.fromkeys(
        ("attention", "data", "out", "layout", "init_from", "track", "eval_data"), words
    ),
    **{name: NUMBERS[name] for name in (*SHAPE, *NUMERIC)},
    "eval_task": names,
    "batch_tokens": batch,
    **dict.fromkeys(("follow_noise", "document_mask", "scale_lr"), truth),
    "compile": OneOf(("auto", "on", "off")),
    "precision": OneOf(("auto", *PRECISIONS)),
    "recompute": OneOf(("auto", *RECOMPUTE)),
    "pipeline_schedule": OneOf(tuple(SCHEDULES)),
}
"""Reader of every key of a configuration file: the options, and constants of the recipe."""


def given_values(options: Mapping[str, Any], config: Path | None, *, resume: bool) -> Resolved:
    """Return the values given by option and file, over the run.toml of the run to resume.

    `options` are as typed, None if not given. The result always contains `out`. Raises UsageError
    or InputError for values that cannot be read or contradict each other.
    """
    given = Resolved()
    if config is not None:
        given.put(read_config(config, NAMES, "gpt train"), str(config))
    for name, text in options.items():
        value = None if text is None else read_option(name, text, NAMES[name])
        given.put({name: value}, "option")
    if given.values.get("scale_lr") and (
        other := next((name for name in ("lr", "mup") if name in given.values), None)
    ):
        why = (
            "both set the learning rate"
            if other == "lr"
            else "muP keeps the learning rate of another width"
        )
        raise UsageError(
            why,
            where=f"{{option:scale_lr}} and {{option:{other}}}",
            field="scale_lr",
            code="two_learning_rates",
            hint="leave one of the two out",
        )
    if given.values.get("batch_tokens") == "auto":
        del given.values["batch_tokens"]
        given.put({"follow_noise": True}, given.origin.pop("batch_tokens"))
    if "out" not in given.values:
        given.put({"out": f"runs/{given.values.get('size', 'gpt')}"}, "default")
    earlier = Path(given.values["out"], RUN_TOML)
    if not (resume and earlier.is_file()):
        return given
    before = Resolved()
    before.put(read_config(earlier, NAMES, "gpt train"), RUN_TOML)
    if "size" in given.values and paper_of(given) != paper_of(before):
        was = before.values.get("size", "of no named size")
        raise UsageError(
            f"the run here is {was}, not {given.values['size']}",
            where=earlier,
            field="size",
            code="another_run",
            hint="name another {option:out}",
        )
    for name, value in given.values.items():
        before.put({name: value}, given.origin[name])
    return before
