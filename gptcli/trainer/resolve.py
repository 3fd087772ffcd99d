"""Resolution of a training run: size, overrides, shards and machine give a configuration.

Precedence: what is given, then the paper, then the machine; every value keeps its origin.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from gptcli.cost.layout import parse_layout
from gptcli.errors import UsageError, nearest
from gptcli.model.config import ModelConfig, find_size
from gptcli.model.source import RUN_TOML, ModelSource, step_folders
from gptcli.numbers import counted
from gptcli.papers.models import PaperModel
from gptcli.settings import NUMBERS, Resolved
from gptcli.trainer.config import TrainConfig, from_values, is_validation_loss
from gptcli.trainer.recipe import (
    cadence,
    nearest_paper,
    put_lr,
    put_recipe,
    round_batch,
    samples,
    start_small,
    whole_sequences,
    with_losses,
)

NEWEST = "the newest of init_from"  # origin of a checkpoint's step that was not given
LR_RANGE_STEPS = 100  # of a learning-rate range test without a number of tokens
DEFAULTS = {
    "data": "shards", "layout": "auto", "precision": "auto", "compile": "auto", "seed": 0,
    "recompute": "auto", "pipeline_schedule": "1f1b", "spike": 6.0, "max_skipped": 10,
    "follow_noise": False, "document_mask": False, "deterministic": False,
}  # fmt: skip
"""Default values of a run; an "auto" follows from the machine."""
SHAPE = ("n_layer", "n_head", "d_model", "n_ctx")
MODEL_KEYS = (*SHAPE, "attention", "band", "dropout")
"""Fields of `ModelConfig` that a run may set; the others follow from the size or the shards."""


@dataclass(frozen=True, slots=True)
class ResolvedRun:
    """Configuration of a run with nothing left to choose."""

    name: str
    """Paper's name for the size, or "GPT"."""
    resolved: Resolved
    """Every value with its origin, as run.toml contains them."""
    model: ModelConfig
    """Architecture."""
    train: TrainConfig
    """Training configuration."""
    must_compile: bool
    """Compilation was requested, so that a failure is an error; "auto" falls back to none."""

    @property
    def processes(self) -> int:
        """Number of processes of the layout."""
        return parse_layout(self.train.layout).processes


def complete_given(
    given: Resolved, read: Callable[[Path], dict[str, Any]], *, resume: bool
) -> Resolved:
    """Return the values given to a run, over those of the run to resume; `out` is among them.

    `read` returns the values of a run.toml. Raises UsageError for values that contradict each
    other, for another size than that of the run to resume, and if there is neither run nor size.
    """
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
        if resume and not given.values.keys() & {"size", "init_from", *SHAPE}:
            raise UsageError(
                "there is no run here to continue",
                where=given.values["out"],
                field="resume",
                code="no_run",
                hint="name the folder of a run with {option:out}",
            )
        return _continued_values(given, read) if given.values.get("continues") else given
    before = Resolved()
    before.put(read(earlier), RUN_TOML)
    if "size" in given.values and paper_of(given) != paper_of(before):
        was = before.values.get("size", "of no named size")
        raise UsageError(
            f"the run here is {was}, not {given.values['size']}",
            where=earlier,
            field="size",
            code="another_run",
            hint="name another {option:out}",
        )
    before.update(given)
    return before


def _continued_values(given: Resolved, read: Callable[[Path], dict[str, Any]]) -> Resolved:
    """Return the values given to a run over those of the run that it continues."""
    from gptcli.model.source import find_model

    if "init_from" not in given.values:
        return given
    folder = find_model(given.values["init_from"], given.values.get("checkpoint")).folder
    own = ["out", "init_from", "checkpoint", "continues"]
    if given.values.get("lr_schedule") is not None:
        own.append("min_lr_ratio")  # each schedule ends at a rate of its own
    before = Resolved()
    values = read(folder / RUN_TOML)
    before.put(
        {name: value for name, value in values.items() if name not in own},
        f"{RUN_TOML} of {folder}",
    )
    before.update(given)
    return before


def resolve_run(given: Resolved, vocab_size: int | None, *, lr_range: bool = False) -> ResolvedRun:
    """Complete the `given` values, from the paper first, then from the machine.

    `vocab_size` is that of the shards; None, if there are none yet, means the paper's. `lr_range`
    resolves a learning-rate range test, which is short and has its own run folder. Raises
    UsageError if the values do not go together.
    """
    model, paper = _model(given, vocab_size)
    if lr_range:
        _make_range_test(given, paper, model)
    resolved = Resolved()
    resolved.put(DEFAULTS, "default")
    resolved.put(
        {name: value for name, value in model.as_dict().items() if name in MODEL_KEYS}, paper.name
    )
    put_recipe(resolved, paper, given, model)
    resolved.update(given)
    put_lr(resolved, given, model, lr_range=lr_range)
    round_batch(resolved, given, model.n_ctx)
    if resolved.values["follow_noise"]:
        start_small(resolved, given, model.n_ctx)
    layout = _put_machine(resolved, model)
    _put_cadence(resolved, model)
    values = resolved.values
    train = from_values(
        TrainConfig, {**values, "layout": layout, "compile": values["compile"] == "on"}
    )
    must_compile = train.compile and not resolved.origin["compile"].startswith(("auto", RUN_TOML))
    name = paper.name if "size" in values else "GPT"
    return ResolvedRun(name, resolved, model, train, must_compile)


def resolve_config(values: dict[str, Any], vocab_size: int | None = None) -> TrainConfig:
    """Return the configuration of a run from values given in Python; None means not given.

    Numbers may be written as quantities, "10M". Raises UsageError for an unknown name or a value
    out of range.
    """
    known = {"size", *MODEL_KEYS, *(field.name for field in fields(TrainConfig)), "scale_lr"}
    given = Resolved()
    for name, value in values.items():
        if name not in known:
            raise UsageError(
                f"unknown field {name!r}",
                code="unknown_field",
                hint=nearest(name, sorted(known)),
            )
        if name == "compile" and isinstance(value, bool):
            value = "on" if value else "off"
        elif name in NUMBERS and value is not None and value != "auto":
            try:
                value = NUMBERS[name](value)
            except UsageError as error:
                raise UsageError(error.what, field=name, code=error.code, hint=error.hint) from None
        given.put({name: value}, "argument")
    return resolve_run(given, vocab_size).train


def paper_of(given: Resolved) -> PaperModel | None:
    """Return the paper's size that is named, or None. Raises UsageError for an unknown name."""
    return find_size(given.values["size"]) if "size" in given.values else None


def _model(given: Resolved, vocab_size: int | None) -> tuple[ModelConfig, PaperModel]:
    """Return the architecture, and the paper's size that it is or whose recipe is nearest."""
    changes = {name: given.values[name] for name in MODEL_KEYS if name in given.values}
    if vocab_size is not None:
        changes["vocab_size"] = vocab_size
    if "init_from" in given.values:
        return _started_from(given, changes)
    if given.values.get("continues"):
        raise UsageError(
            "names no run to continue",
            field="continues",
            code="continues_without_init_from",
            hint="{option:init_from} RUN",
        )
    if "checkpoint" in given.values:
        raise UsageError(
            "names a checkpoint of the run to start from",
            field="checkpoint",
            code="checkpoint_without_init_from",
            hint="{option:init_from} RUN",
        )
    if (paper := paper_of(given)) is not None:
        return ModelConfig.from_paper(paper, **changes), paper
    if missing := [f"{{option:{name}}}" for name in SHAPE if name not in changes]:
        example = "{option:size} 350M"
        for name, value in changes.items():
            example += f" {{option:{name}}} {value}" if name in given.values else ""
        add = f"give {', '.join(missing)} too"
        is_shape = 2 * len(missing) <= len(SHAPE)  # which is nearly complete
        raise UsageError(
            "no size is given",
            field="size",
            code="no_size",
            hint=f"{add}; or a size to change: {example}"
            if is_shape
            else f"for example {example}; or {add}",
        )
    model = ModelConfig(**changes)
    return model, nearest_paper(model)


def _started_from(given: Resolved, changes: dict[str, Any]) -> tuple[ModelConfig, PaperModel]:
    """Return the architecture of the model to start from, with this run's dropout.

    Other given values, and the shards, must agree with it. The step of an unfinished run's newest
    checkpoint is recorded. A resumed run reads its own copy, because the run it started from may
    have changed (`gptcli.trainer.start`).
    """
    from gptcli.model.hf import is_padded, read_model_config
    from gptcli.model.source import begun_folder, find_model

    folder = Path(given.values["init_from"])
    if (
        RUN_TOML in given.origin.values()
        and (kept := begun_folder(Path(given.values["out"]))) is not None
    ):
        folder = kept
    else:
        step = given.values.get("checkpoint")
        if given.values.get("continues") and step is None:
            step = newest_checkpoint(find_model(folder))
        source = find_model(folder, step)
        folder = source.folder
        if "checkpoint" not in given.values:
            given.put({"checkpoint": source.step}, NEWEST)
    model = replace(read_model_config(folder), dropout=changes.pop("dropout", 0.0))
    if is_padded(model.vocab_size, entries := changes.get("vocab_size", model.vocab_size)):
        model = replace(model, vocab_size=entries)  # the padding stands for no token
    paper = paper_of(given)
    wanted = {name: getattr(paper, name) for name in SHAPE} if paper else {}
    for name, value in {**wanted, **changes}.items():
        if (there := getattr(model, name)) != value:
            other, hint = "this command says", "a model keeps its architecture"
            if name == "vocab_size":
                other = "that of the shards"
                hint = f"build shards with the model's tokenizer: gpt build-shards -t {folder}"
            elif name in given.values:
                hint += f": leave out {{option:{name}}}"
            raise UsageError(
                f"the model's {name} is {there}, {other} {value}",
                where=folder,
                field=name,
                code="another_architecture",
                hint=hint,
            )
    return model, paper or nearest_paper(model)


def newest_checkpoint(source: ModelSource) -> int:
    """Return the step of a run's newest checkpoint. Raises UsageError if it has none."""
    steps = [source.step] if source.checkpoint is not None else step_folders(source.folder)
    if not steps:
        raise UsageError(
            "has no checkpoint to continue from",
            where=source.folder,
            field="continues",
            code="no_checkpoint",
            hint="without {option:continues}, a run starts from its weights alone",
        )
    return max(step for step in steps if step is not None)


def _make_range_test(given: Resolved, paper: PaperModel, model: ModelConfig) -> None:
    """Give a range test LR_RANGE_STEPS steps of the run's batch, if it has no number of tokens."""
    if "tokens" not in given.values:
        whole = Resolved()
        put_recipe(whole, paper, given, model)
        batch, origin = whole.values["batch_tokens"], whole.origin["batch_tokens"]
        given.put(
            {"batch_tokens": given.values.get("batch_tokens", batch)},
            given.origin.get("batch_tokens", origin),
        )
        tokens = LR_RANGE_STEPS * given.values["batch_tokens"]
        given.put({"tokens": tokens}, f"{LR_RANGE_STEPS:,} steps")
    if given.origin["out"] == "default":
        given.values["out"] += "-lr-range"


def _put_auto(resolved: Resolved, name: str, value: Any, why: str) -> None:
    if resolved.values.get(name, "auto") == "auto":
        resolved.put({name: value}, f"auto: {why}")


def _put_machine(resolved: Resolved, model: ModelConfig) -> str:
    """Set what the machine decides, and return the layout; in run.toml "auto" stays "auto"."""
    # importing torch takes a second or two: what needs no torch was checked before
    from gptcli.trainer.auto import (
        auto_compile,
        auto_layout,
        auto_micro_batch,
        auto_precision,
        auto_processes,
        kernels_train,
        layout_after_restart,
    )
    from gptcli.trainer.memory import Extras

    values, origin = resolved.values, resolved.origin
    sequences = values["batch_tokens"] // model.n_ctx
    requested = (
        None if values["layout"] == "auto" else layout_after_restart(parse_layout(values["layout"]))
    )
    processes = requested.processes if requested else auto_processes()
    kernels = (
        values["precision"] in ("auto", "bf16")
        and values["recompute"] != "selective"
        and not values["document_mask"]
        and (requested is None or requested.tp == 1)
        and kernels_train(model, processes)
    )
    compiled, why = auto_compile(model, values["tokens"], processes, kernels=kernels)
    _put_auto(resolved, "compile", "on" if compiled else "off", why)
    precision, why = auto_precision(model, values["compile"] == "on", kernels=kernels)
    _put_auto(resolved, "precision", precision, why)
    precision, recompute = values["precision"], values["recompute"]
    extras = Extras(
        ema=values.get("ema", 0.0) > 0,
        muon=values.get("optimizer") == "muon",
        compiled=values["compile"] == "on",
    )
    if requested is None:
        micro_batch = values.get("micro_batch", "auto")
        layout, why = auto_layout(
            model,
            sequences,
            precision,
            recompute=recompute,
            micro_batch=micro_batch,
            extras=extras,
        )
        origin["layout"] += f": {layout} here, {why}"
    else:
        layout = requested
    first = sequences
    # the first batch is the smallest, and a process that is alone, or shares it with the others
    # under tp and pp, needs two parts of it
    if values["follow_noise"]:
        first = min(sequences, whole_sequences(values["ramp_from"], model.n_ctx) // model.n_ctx)
    # without several micro-batches of one process, the noise scale has nothing to compare
    is_divided = layout.processes == 1 or layout.replicas < layout.processes
    part = max(1, first // 2) if values["follow_noise"] and is_divided else first
    micro_batch, again, why = auto_micro_batch(model, layout, part, precision, recompute, extras)
    _put_auto(resolved, "micro_batch", micro_batch, why)
    _put_auto(resolved, "recompute", again, "what fits in memory")
    small = layout.replicas * layout.pp * values["micro_batch"]
    if values["follow_noise"] and is_divided and first < 2 * small:
        raise UsageError(
            f"the first batch of {counted(first, 'sequence')} is less than two micro-batches of "
            f"{small}: no noise to measure",
            where="{option:batch_tokens} auto",
            field="batch_tokens",
            code="noise_scale_unmeasured",
            hint="lower {option:micro_batch}, or raise ramp_from in a {option:config} file",
        )
    return str(layout)


def _put_cadence(resolved: Resolved, model: ModelConfig) -> None:
    """Set how often to save, evaluate and sample."""
    tokens, batch_tokens = resolved.values["tokens"], resolved.values["batch_tokens"]
    usual, why = cadence(tokens, batch_tokens), dict[str, str]()
    given = {name: resolved.values.get(name, "auto") for name in usual}
    if is_validation_loss(resolved.values.get("keep_best")):
        usual = with_losses(usual, {name: n for name, n in given.items() if n != "auto"})
        why = dict.fromkeys(("checkpoint_every", "eval_every"), ", a loss for each checkpoint")
    for name, value in usual.items():
        _put_auto(resolved, name, value, "by the length of the run" + why.get(name, ""))
    count = samples(model.parameters, tokens // batch_tokens)
    _put_auto(resolved, "samples", count, "by the model's size and the run's length")
