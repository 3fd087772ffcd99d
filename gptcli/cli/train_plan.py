"""What `gpt train` will do: option > --config file > the resumed run > the paper > what suits this
machine, each with its origin.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gptcli.cli.config import NUMBERS, Resolved, read_config, split_list
from gptcli.cost.memory import RECOMPUTE, SCHEDULES
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig, find_size
from gptcli.model.source import RUN_TOML
from gptcli.numbers import amount
from gptcli.papers.models import PaperModel
from gptcli.trainer.config import PRECISIONS, TrainConfig, from_values
from gptcli.trainer.recipe import (
    SCALED,
    SCALED_BATCH,
    TOKENS_PER_PARAMETER,
    batch_origin,
    cadence,
    default_tokens,
    is_of_paper_size,
    nearest_paper,
    paper_recipe,
    samples,
    short_warmup,
    whole_sequences,
)
from gptcli.trainer.sizing import scaled_lr, small_lr

NEWEST = "the newest of init_from"  # the origin of a checkpoint's step that was not asked for
RANGE_STEPS = 100  # of a learning-rate range test, where --tokens does not say
SHAPE = ("n_layer", "n_head", "d_model", "n_ctx")


def words(value: Any) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{value!r} is not text")
    if not value:
        raise UsageError("is empty")
    return value


def names(value: Any) -> list[str]:
    """A list of names, or names separated by commas."""
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
    """Reads one of these words."""

    names: tuple[str, ...]

    def __call__(self, value: Any) -> str:
        if value not in self.names:
            raise UsageError(
                f"{value!r} is none of {', '.join(self.names)}",
                hint=nearest(str(value), self.names),
            )
        return str(value)


def batch(value: Any) -> int | str:
    return "auto" if value == "auto" else NUMBERS["batch_tokens"](value)


def truth(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{value!r} is neither true nor false")
    return value


NUMERIC = (
    "band", "mup", "checkpoint", "tokens", "warmup_tokens", "decay_tokens", "ramp_tokens", "ramp_from", "seed", "micro_batch",
    "checkpoint_every", "eval_every", "eval_tokens", "keep", "max_skipped", "samples", "eval_items", "dropout", "lr",
    "min_lr_ratio", "weight_decay", "beta1", "beta2", "eps", "clip", "spike",
)  # fmt: skip
# what a configuration file may hold, and how each value is read: the options, and the recipe's
# constants
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


@dataclass(frozen=True, slots=True)
class Plan:
    """A run as it will be. `resolved` holds every value with its origin, as run.toml does."""

    name: str
    resolved: Resolved
    model: ModelConfig
    train: TrainConfig
    must_compile: bool
    """The user said so; "auto" may fail and go on without."""


def said(options: Mapping[str, Any], config: Path | None, *, resume: bool) -> Resolved:
    """What the user said, by option and file, over the run.toml of the run that is resumed. `out`
    is among it in any case.

    `options` are as typed, None where not given. Raises UsageError or InputError.
    """
    given = Resolved()
    if config is not None:
        given.put(read_config(config, NAMES, "gpt train"), str(config))
    for name, text in options.items():
        try:
            given.put({name: None if text is None else NAMES[name](text)}, "option")
        except UsageError as error:
            raise UsageError(
                error.what, where=f"--{name.replace('_', '-')}", hint=error.hint
            ) from None
    if given.values.get("scale_lr") and (
        other := next((name for name in ("lr", "mup") if name in given.values), None)
    ):
        why = (
            "both say the learning rate"
            if other == "lr"
            else "muP keeps the learning rate of another width"
        )
        raise UsageError(why, where=f"--scale-lr and --{other}", hint="leave one of the two out")
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
    if "size" in given.values and _paper(given) != _paper(before):
        was = before.values.get("size", "of no named size")
        raise UsageError(
            f"the run here is {was}, not {given.values['size']}",
            where=earlier,
            hint="name another --out",
        )
    for name, value in given.values.items():
        before.put({name: value}, given.origin[name])
    return before


def make_plan(given: Resolved, vocab_size: int | None, *, lr_range: bool = False) -> Plan:
    """Fill in what was not said: from the paper, then from the machine. Raises UsageError.

    `vocab_size` is the shards'; None, where there are none yet, stands for the paper's.
    `lr_range`: for a range test, which is short, keeps nothing, and has a folder of its own.
    """
    model, paper = _model(given, vocab_size)
    if lr_range:
        _make_range_test(given, paper, model)
    resolved = Resolved()
    resolved.put(
        {"data": "shards", "layout": "auto", "precision": "auto", "compile": "auto", "seed": 0},
        "default",
    )
    resolved.put({"recompute": "auto", "pipeline_schedule": "1f1b"}, "default")
    resolved.put(
        {"spike": 6.0, "max_skipped": 10, "follow_noise": False, "document_mask": False}, "default"
    )
    resolved.put(
        {name: value for name, value in model.as_dict().items() if name in NAMES}, paper.name
    )
    _lay_recipe(resolved, paper, given, model)
    for name, value in given.values.items():
        resolved.put({name: value}, given.origin[name])
    _lay_rate(resolved, given, model, lr_range=lr_range)
    _round_batch(resolved, model.n_ctx)
    if resolved.values["follow_noise"]:
        _start_small(resolved, given, model.n_ctx)
    values, origin = resolved.values, resolved.origin

    # torch comes with these, and a second or two: what can be refused without has been
    from gptcli.cost.layout import parse_layout
    from gptcli.trainer.machine import (
        auto_compile,
        auto_layout,
        auto_micro_batch,
        auto_precision,
        auto_processes,
    )

    def choose(name: str, value: Any, why: str) -> None:
        if values.get(name, "auto") == "auto":
            resolved.put({name: value}, f"auto: {why}")

    sequences = values["batch_tokens"] // model.n_ctx
    asked = None if values["layout"] == "auto" else parse_layout(values["layout"])
    compiled, why = auto_compile(
        model, values["tokens"], asked.processes if asked else auto_processes()
    )
    choose("compile", "on" if compiled else "off", why)
    choose("precision", *auto_precision(model, values["compile"] == "on"))
    precision, recompute = values["precision"], values["recompute"]
    if asked is None:
        micro_batch = values.get("micro_batch", "auto")
        layout, why = auto_layout(
            model, sequences, precision, recompute=recompute, micro_batch=micro_batch
        )
        origin["layout"] += f": {layout} here, {why}"
    else:
        layout = asked
    first = sequences
    # the first batch is the smallest, and a process that is alone needs two parts of it
    if values["follow_noise"]:
        first = min(sequences, whole_sequences(values["ramp_from"], model.n_ctx) // model.n_ctx)
        if layout.replicas < layout.processes:
            raise UsageError(
                f"in {layout} the noise scale is measured too seldom to follow it",
                where="--batch-tokens auto",
                hint="use dp and shard alone",
            )
    part = max(1, first // 2) if values["follow_noise"] and layout.processes == 1 else first
    micro_batch, again, why = auto_micro_batch(model, layout, part, precision, recompute)
    choose("micro_batch", micro_batch, why)
    choose("recompute", again, "what fits in memory")
    if values["follow_noise"] and layout.processes == 1 and first < 2 * values["micro_batch"]:
        raise UsageError(
            f"the first batch of {first} sequences is less than two micro-batches of {values['micro_batch']}: no noise to measure",
            where="--batch-tokens auto",
            hint="lower --micro-batch, or raise ramp_from in a --config file",
        )

    for name, value in cadence(values["tokens"], values["batch_tokens"]).items():
        choose(name, value, "by the length of the run")
    choose(
        "samples",
        samples(model.parameters, values["tokens"] // values["batch_tokens"]),
        "by the model's size and the run's length",
    )
    train = from_values(
        TrainConfig, {**values, "layout": str(layout), "compile": values["compile"] == "on"}
    )
    must_compile = train.compile and not origin["compile"].startswith(("auto", RUN_TOML))
    return Plan(paper.name if "size" in values else "GPT", resolved, model, train, must_compile)


def _make_range_test(given: Resolved, paper: PaperModel, model: ModelConfig) -> None:
    """A range test without --tokens takes RANGE_STEPS steps with the batch of the run that it is
    for.
    """
    if "tokens" not in given.values:
        whole = Resolved()
        _lay_recipe(whole, paper, given, model)
        batch, origin = whole.values["batch_tokens"], whole.origin["batch_tokens"]
        given.put(
            {"batch_tokens": given.values.get("batch_tokens", batch)},
            given.origin.get("batch_tokens", origin),
        )
        given.put({"tokens": RANGE_STEPS * given.values["batch_tokens"]}, f"{RANGE_STEPS} steps")
    if given.origin["out"] == "default":
        given.values["out"] += "-lr-range"


def _paper(given: Resolved) -> PaperModel | None:
    return find_size(given.values["size"]) if "size" in given.values else None


def _model(given: Resolved, vocab_size: int | None) -> tuple[ModelConfig, PaperModel]:
    """The architecture, and the paper's size it is, or the one whose recipe is nearest."""
    changes = {
        name: given.values[name]
        for name in (*SHAPE, "attention", "band", "dropout")
        if name in given.values
    }
    if vocab_size is not None:
        changes["vocab_size"] = vocab_size
    if "init_from" in given.values:
        return _started_from(given, changes)
    if "checkpoint" in given.values:
        raise UsageError(
            "names a checkpoint of the run to start from",
            where="--checkpoint",
            hint="--init-from RUN",
        )
    if (paper := _paper(given)) is not None:
        return ModelConfig.from_paper(paper, **changes), paper
    if missing := [f"--{name.replace('_', '-')}" for name in SHAPE if name not in changes]:
        raise UsageError(
            "no size is given",
            where="--size",
            hint=f"for example --size 350M; or say {', '.join(missing)} too",
        )
    model = ModelConfig(**changes)
    return model, nearest_paper(model)


def _started_from(given: Resolved, changes: dict[str, Any]) -> tuple[ModelConfig, PaperModel]:
    """The architecture of the model to start from, with this run's dropout; what else the user
    says, and the shards, must agree with it.

    Of a run that is not finished it is the newest checkpoint, whose step is recorded. A run that is
    resumed has all of this in its own folder: the one that it started from may have gone on, or be
    gone.
    """
    from gptcli.model.hf_config import is_padded, read_model_config
    from gptcli.model.source import find_model
    from gptcli.trainer.initial_weights import begun_folder

    folder = Path(given.values["init_from"])
    if (
        RUN_TOML in given.origin.values()
        and (kept := begun_folder(Path(given.values["out"]))) is not None
    ):
        folder = kept
    else:
        source = find_model(folder, given.values.get("checkpoint"))
        folder = source.folder
        if "checkpoint" not in given.values:
            given.put({"checkpoint": source.step}, NEWEST)
    model = replace(read_model_config(folder), dropout=changes.pop("dropout", 0.0))
    if is_padded(model.vocab_size, entries := changes.get("vocab_size", model.vocab_size)):
        model = replace(model, vocab_size=entries)  # without the padding, which stands for no token
    paper = _paper(given)
    wanted = {name: getattr(paper, name) for name in SHAPE} if paper else {}
    for name, value in {**wanted, **changes}.items():
        if (there := getattr(model, name)) != value:
            where = "the shards" if name == "vocab_size" else "this command"
            raise UsageError(
                f"the model's {name} is {there}, {where} says {value}",
                where=folder,
                hint="a model keeps its architecture",
            )
    return model, paper or nearest_paper(model)


def _lay_recipe(resolved: Resolved, paper: PaperModel, given: Resolved, model: ModelConfig) -> None:
    """The paper's recipe; what the run's length scales says so."""
    source, tokens = f"{paper.paper}, {paper.name}", given.values.get("tokens")
    of_paper = "size" in given.values and is_of_paper_size(model, paper)
    own = None if of_paper or tokens is not None else default_tokens(model, paper)
    scale = not (given.values.get("follow_noise") or "batch_tokens" in given.values)
    recipe = paper_recipe(paper, own if tokens is None else tokens, scale_batch=scale)
    resolved.put(recipe, source)
    if not of_paper and small_lr(model.parameters) > paper.lr:
        resolved.put(
            {"lr": small_lr(model.parameters)},
            f"GPT-3, Table 2.1, continued to {amount(model.parameters)} parameters",
        )
    if own is not None:
        resolved.put({"tokens": own}, f"{TOKENS_PER_PARAMETER} a parameter (Hoffmann et al. 2022)")
    if recipe["tokens"] == paper_recipe(paper)["tokens"]:
        return
    resolved.put({name: recipe[name] for name in SCALED}, f"{source}, in proportion to tokens")
    if recipe["batch_tokens"] != paper.batch_tokens:
        scaled = {
            name: whole_sequences(recipe[name], model.n_ctx)
            for name in SCALED_BATCH
            if recipe[name]
        }
        resolved.put(scaled, f"{source}, {batch_origin(paper, recipe['tokens'])}")
    if recipe["tokens"] < paper_recipe(paper)["tokens"]:
        warmup = short_warmup(
            recipe, given.values.get("batch_tokens", resolved.values["batch_tokens"])
        )
        if warmup != recipe["warmup_tokens"]:
            resolved.put(
                {"warmup_tokens": warmup},
                "2 / (1 - beta2) steps (Ma and Yarats 2021), or a tenth of the run",
            )


def _lay_rate(resolved: Resolved, given: Resolved, model: ModelConfig, *, lr_range: bool) -> None:
    """The learning rate where its table is asked for, and whether muP can do with the one that
    there is.
    """
    resolved.origin.pop("scale_lr", None)
    if resolved.values.pop("scale_lr", False):  # from here on a learning rate as any other
        resolved.put(
            {"lr": scaled_lr(model.parameters)},
            f"GPT-3, Table 2.1, at {model.parameters:,} parameters",
        )
    if "mup" not in given.values:
        return
    if model.norm == "post":
        raise UsageError(
            "muP needs the LayerNorm after the last layer, which GPT-1 lacks",
            where="--mup",
            hint="another --size",
        )
    if not (lr_range or "lr" in given.values):
        hint = (
            f"--lr X, as found at --d-model {given.values['mup']}, for example by --lr-range there"
        )
        raise UsageError("the learning rate of that width is not said", where="--mup", hint=hint)


def _start_small(resolved: Resolved, given: Resolved, n_ctx: int) -> None:
    """A batch that follows the noise scale: from where the paper's ramp begins, or a 16th, to the
    paper's, without a ramp.
    """
    most = resolved.values["batch_tokens"]
    resolved.origin["batch_tokens"] += ", at most: follows the noise scale"
    if not resolved.values["ramp_from"]:
        resolved.put(
            {"ramp_from": whole_sequences(max(most // 16, 2 * n_ctx), n_ctx)},
            "a 16th of batch_tokens",
        )
    if given.values.get("ramp_tokens"):
        raise UsageError(
            "a batch that follows the noise scale has no ramp",
            where="--ramp-tokens",
            hint="leave one of the two out",
        )
    resolved.put({"ramp_tokens": 0}, "no ramp: the batch follows the noise scale")


def _round_batch(resolved: Resolved, n_ctx: int) -> None:
    """A batch is whole sequences."""
    asked = resolved.values["batch_tokens"]
    whole = whole_sequences(asked, n_ctx)
    if whole != asked:
        resolved.put(
            {"batch_tokens": whole},
            f"{resolved.origin['batch_tokens']}: {asked} in whole sequences of {n_ctx}",
        )
