"""Start of a run: from the weights of another run, or from its whole checkpoint.

The run that another one starts from may remove its checkpoint at any time, so the new one keeps it
in `init/` until it is finished: a run folder with one checkpoint, without optimizer state. Its
files are hard links if the file system allows them, copies otherwise.

A run that continues another one in a folder of its own begins with a whole checkpoint of it, and
with its metrics up to there. Its schedule must agree with the other's in every step before, so that
it ends in the bytes of a run that was never branched.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from gptcli.errors import InputError, UsageError
from gptcli.events import Events
from gptcli.files import atomic_folder, read_json, write_json
from gptcli.locks import claim_owned
from gptcli.model.source import (
    CHECKPOINTS,
    CONFIG,
    INDEX,
    INIT,
    METRICS,
    MODEL,
    RUN_TOML,
    SAMPLES,
    STATE,
    ModelSource,
    find_model,
    step_folders,
)
from gptcli.model.tensor_file import AVERAGE
from gptcli.numbers import counted
from gptcli.runs.metrics import MetricsLog, read_lines
from gptcli.shards.manifest import read_manifest
from gptcli.trainer.checkpoint import CheckpointState, checkpoint_folder, newest_state, read_state
from gptcli.trainer.config import Run, TrainConfig, from_values
from gptcli.trainer.preflight import differences
from gptcli.trainer.schedule import Position, Schedule

TOKENIZER = "tokenizer.json"
FREE = {
    "init_from", "checkpoint", "tokens", "batch_tokens", "lr", "min_lr_ratio", "warmup_tokens",
    "decay_tokens", "ramp_tokens", "ramp_from", "lr_schedule", "cooldown_tokens", "mixture",
}  # fmt: skip
"""Values that a continued run may change, as long as the schedule agrees up to its checkpoint."""


def claim_run_folder(
    out: Path,
    init_from: Path | None,
    step: int | None,
    events: Events,
    *,
    resume: bool,
    force: bool,
    newest: bool,
) -> int | None:
    """Claim a run folder and keep the checkpoint that the run starts from; return its step.

    `step` is None, and nothing is kept, if the run starts from a finished model. A run that has
    been kept or has checkpoints of its own keeps no other. `newest` as in `keep_initial_weights`.
    Raises UsageError or InputError.
    """
    claim_owned(out, resume=resume, force=force, own=RUN_TOML, events=events)
    if init_from is None or step is None or (out / INIT).is_dir() or newest_state(out) is not None:
        return step
    return keep_initial_weights(init_from, out, step, events, newest=newest)


def keep_initial_weights(
    init_from: Path, out: Path, step: int, events: Events, *, newest: bool
) -> int:
    """Keep the checkpoint of `step` in `init/` of the run folder `out`, and return its step.

    With `newest`, a checkpoint that was removed meanwhile is replaced by the newest one. Raises
    InputError if the checkpoint does not exist.
    """
    while True:
        if newest and (found := step_folders(init_from)) and step not in found:
            step = max(found)
        source = find_model(init_from, step)
        assert source.checkpoint is not None
        try:
            with atomic_folder(out / INIT) as folder:
                _copy(source, source.checkpoint, folder)
        except (FileNotFoundError, InputError):
            if source.checkpoint.is_dir():
                raise
        else:
            events.info(f"starting from {source}")
            return step


def _copy(source: ModelSource, checkpoint: Path, folder: Path) -> None:
    """Copy or link the weights of a checkpoint, without optimizer state, as a run folder."""
    for name in (CONFIG, TOKENIZER):
        shutil.copyfile(source.folder / name, folder / name)
    kept = folder / CHECKPOINTS / checkpoint.name
    kept.mkdir(parents=True)
    index, state = read_json(checkpoint / INDEX), read_json(checkpoint / STATE)
    files = sorted(file for file in state["sha256"] if file.startswith(MODEL))
    for file in files:
        _link(checkpoint / file, kept / file)
    write_json(
        kept / INDEX,
        {name: row for name, row in index.items() if "/" not in name or name.endswith(AVERAGE)},
    )
    write_json(kept / STATE, {**state, "sha256": {file: state["sha256"][file] for file in files}})


def _link(file: Path, to: Path) -> None:
    """Link a file, or copy it. Raises FileNotFoundError if it is gone."""
    try:
        os.link(file, to)
    except FileNotFoundError:
        raise
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, to)


def continued_state(run: Run) -> CheckpointState:
    """Return the state of the checkpoint that a run continues.

    Raises UsageError if it is that of a run of another kind, if its schedule differs from the run's
    before the checkpoint, or if the run ends there.
    """
    _, state = _continued(run)
    before, now = state.identity, run.identity()
    fixed = [
        {name: value for name, value in values.items() if name not in FREE}
        for values in (before, now)
    ]
    if changed := differences(*fixed):
        raise UsageError(
            f"cannot be continued as another run: {'; '.join(changed)}",
            where=run.init_from,
            field="continues",
            code="another_run",
            hint="without {option:continues}, a run starts from its weights alone",
        )
    position, n_ctx = state.position, run.model.n_ctx
    _check_mixture(run, before.get("mixture", ""), position.sequences * n_ctx)
    new = Schedule(run.train, n_ctx)
    if new.total_sequences <= position.sequences:
        raise UsageError(
            f"the checkpoint has read {counted(position.sequences * n_ctx, 'token')} already",
            field="tokens",
            code="already_read",
            hint="raise {option:tokens}, or name an earlier {option:checkpoint}",
        )
    old = Schedule(from_values(TrainConfig, before), n_ctx)
    shared = shared_steps(old, new, position.step)
    if shared < position.step:
        raise _another_schedule(run, old, new, shared)
    return state


def _check_mixture(run: Run, before: str, tokens: int) -> None:
    """Raise UsageError if the mixture differs from `before` in the first `tokens`."""
    manifest = read_manifest(run.data)
    was, now = (
        [stage for stage in manifest.stages(mixture) if stage.tokens < tokens]
        for mixture in (before, run.train.mixture)
    )
    if was != now:
        raise UsageError(
            f"the mixtures part before the checkpoint at {counted(tokens, 'token')}",
            field="mixture",
            code="another_mixture",
            hint=f"leave the stages before it as they were: {before or 'none'}",
        )


def shared_steps(one: Schedule, other: Schedule, steps: int) -> int:
    """Return the number of first steps, up to `steps`, that two schedules have in common.

    Batches that follow the noise scale are measured, and not compared.
    """
    position = Position()
    while position.step < steps:
        after = one.after(position)
        tokens = after.sequences * one.n_ctx
        same_batch = one.config.follow_noise or other.after(position) == after
        if after == position or not same_batch or one.rates(tokens) != other.rates(tokens):
            break
        position = after
    return position.step


def _another_schedule(run: Run, old: Schedule, new: Schedule, shared: int) -> UsageError:
    """Return the error of a schedule that agrees with that of the run to continue too briefly."""
    position = Position()
    for _ in range(shared):
        position = old.after(position)
    tokens = old.after(position).sequences * old.n_ctx
    assert run.init_from is not None
    steps = sorted(
        step for step in step_folders(find_model(run.init_from).folder) if step <= shared
    )
    earlier = (
        f"{{option:checkpoint}} {steps[-1]} lies before that"
        if steps
        else ("no checkpoint of before that is left: {option:keep_every} keeps some of a run")
    )
    was, now = old.rates(tokens), new.rates(tokens)
    batches = [each.batch(position.sequences) * each.n_ctx for each in (old, new)]
    is_last = old.after(position).sequences >= old.total_sequences
    rows = [("learning rate", f"{was.lr:.4g}", f"{now.lr:.4g}")]
    rows.append(
        ("last batch" if is_last else "batch", counted(batches[0], "token"), f"{batches[1]:,}")
    )
    for name in ("weight_decay", "beta2"):
        rows.append((name.replace("_", " "), str(getattr(was, name)), str(getattr(now, name))))
    changed = [
        f"the {name} was {before}, and now {after}"
        for name, before, after in rows
        if before.split()[0] != after
    ] or [f"the learning rate was {was.lr}, and now {now.lr}"]
    return UsageError(
        "the schedules part before the checkpoint: at "
        f"{counted(tokens, 'token')} {'; '.join(changed)}",
        where=run.init_from,
        field="continues",
        code="another_schedule",
        hint=f"{earlier}; under {{option:lr_schedule}} wsd or constant, runs of all lengths share "
        "their steps before the cooldown",
    )


def copy_checkpoint(run: Run, events: Events) -> None:
    """Copy the checkpoint that a run continues to its folder, with the metrics up to there.

    Nothing is copied to a folder that has a checkpoint. Raises InputError if the other run has
    removed it meanwhile.
    """
    if newest_state(run.out) is not None:
        return
    source, state = _continued(run)
    assert source.checkpoint is not None
    folder = source.folder
    for name in (METRICS, SAMPLES):
        if (folder / name).is_file():
            before = state.position.step + (name == SAMPLES)
            MetricsLog(run.out, before=before, name=name, of=read_lines(folder / name))
    table = read_json(source.checkpoint / STATE)
    try:
        with atomic_folder(checkpoint_folder(run.out, state.position.step)) as copy:
            for file in table["sha256"]:  # of the index too
                _link(source.checkpoint / file, copy / file)
            write_json(copy / STATE, {**table, "identity": run.identity()})
    except FileNotFoundError:
        raise InputError(
            "the other run has just removed the checkpoint",
            where=source.checkpoint,
            hint="run the command again",
        ) from None
    events.info(f"continuing {source}")


def _continued(run: Run) -> tuple[ModelSource, CheckpointState]:
    """Return the place and the state of the checkpoint that a run continues."""
    assert run.init_from is not None
    source = find_model(run.init_from, run.init_step)
    if source.checkpoint is None:
        raise UsageError(
            "has no checkpoint with the state of an optimizer",
            where=run.init_from,
            field="continues",
            code="no_checkpoint",
            hint="without {option:continues}, a run starts from its weights alone",
        )
    return source, read_state(source.checkpoint)
