"""Checks of a run before a process starts or a file is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, UsageError
from gptcli.model.source import find_model
from gptcli.shards.manifest import Manifest
from gptcli.shards.order import open_order, open_split
from gptcli.tokenizer.tokenizer import load_tokenizer
from gptcli.trainer.auto import check_division, check_memory, check_processes
from gptcli.trainer.checkpoint import CheckpointState, newest_state
from gptcli.trainer.config import Run
from gptcli.trainer.forecast import disk_bytes, disk_cautions, disk_free
from gptcli.trainer.initial_weights import begun_folder
from gptcli.trainer.precision import check_precision
from gptcli.trainer.schedule import Schedule
from gptcli.trainer.trackers import check_tracker

# fields of the architecture that weights keep
SHAPE = {"n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "attention", "band", "norm", "tied"}


def data_sha256(manifest: Manifest) -> str:
    """Return the fingerprint of the shards: files, splits, tokens and checksums in order.

    For several sources it includes their weights.
    """
    rows: list[Any] = [
        [shard.file, shard.split, shard.tokens, shard.sha256] for shard in manifest.shards
    ]
    if len(shares := manifest.shares()) > 1:
        rows += [[shard.source for shard in manifest.shards], shares]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def check_run(run: Run, manifest: Manifest) -> None:
    """Check quickly: layout, memory, folders, tokenizer, disk, and that the shards fill a window.

    Raises UsageError or InputError.
    """
    schedule = Schedule(run.train, run.model.n_ctx)
    layout, sequences = run.layout, min(schedule.full_batch, schedule.total_sequences)
    check_processes(layout)
    check_division(run.model, layout, run.train.pipeline_schedule, sequences)
    check_precision(run.train.precision, layout.tp)
    check_memory(run.model, layout, run.train, sequences)
    if run.track is not None:
        check_tracker(run.track)
    if run.out.resolve() in (run.data.resolve(), *run.data.resolve().parents):
        raise UsageError(
            "the run folder contains the shards", where=run.out, hint="choose another {option:out}"
        )
    if load_tokenizer(run.data).sha256 != manifest.tokenizer_sha256:
        raise InputError(
            "the tokenizer in the shard folder is not the one the shards were made with",
            where=run.data,
            hint="build the shards again",
        )
    # a resumed run has its own copy: the run it started from may have changed
    begun = run.resume and begun_folder(run.out) is not None
    if (
        run.init_from is not None
        and not begun
        and _tokenizer_sha256(run.init_from) != manifest.tokenizer_sha256
    ):
        raise InputError(
            "the model to start from has a different tokenizer than the shards",
            where=run.init_from,
            hint="build shards with its own",
        )
    open_order(run.data, "train", run.model.n_ctx, run.train.seed, verify=False)
    check_disk(run)


def _tokenizer_sha256(folder: Path) -> str:
    return load_tokenizer(find_model(folder).folder).sha256


def check_data(run: Run, manifest: Manifest) -> None:
    """Verify every byte of the shards. Raises InputError that names an altered shard."""
    for split in ("train", "val"):
        if manifest.tokens(split):
            open_split(run.data, split)


def check_disk(run: Run) -> None:
    """Raise UsageError if checkpoints and the finished model do not fit on the disk."""
    needed = disk_bytes(run.model, run.train, Schedule(run.train, run.model.n_ctx).steps())
    for caution in disk_cautions(needed, disk_free(run.out)):
        raise UsageError(caution.message, where=run.out, hint=caution.hint)


def check_resume(run: Run) -> bool:
    """Return whether the run to resume is complete.

    Raises UsageError if its folder contains a different run.
    """
    state = resumed_state(run.out, run.identity())
    return (
        state is not None
        and state.position.sequences >= Schedule(run.train, run.model.n_ctx).total_sequences
    )


def resumed_state(out: Path, identity: dict[str, Any]) -> CheckpointState | None:
    """Return the state of the run folder's newest checkpoint; None if it has none.

    Raises UsageError if the checkpoint has a different `identity`.
    """
    state = newest_state(out)
    if state is not None and (changed := differences(state.identity, identity)):
        raise UsageError(
            f"the run here is another: {'; '.join(changed)}",
            where=out,
            hint=_ways_on(out, state.identity, identity),
        )
    return state


def _ways_on(out: Path, before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return a hint for a run that cannot be resumed as requested, deletion last."""
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    )
    options = [f"{{option:{name}}}" for name in changed if name not in ("data", "tokenizer")]
    ways = []
    if not SHAPE & set(changed) and "tokenizer" not in changed:
        ways.append(
            f"to train on from its weights: {{option:init_from}} {out} "
            "{option:out} ANOTHER-FOLDER, without {option:resume}"
        )
    if len(options) == len(changed):
        ways.append(f"to go on with it as it was: leave out {', '.join(options)}")
    ways += ["to keep both: name another {option:out}", "{option:force} deletes it and starts over"]
    return "\n  ".join(ways)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Return descriptions of the values that differ."""
    return [
        f"the {name} changed"
        if name in ("data", "tokenizer")
        else f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
