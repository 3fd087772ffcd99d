"""What can be refused before a process starts or a file is written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, UsageError
from gptcli.model.source import find_model
from gptcli.shards.loader import open_split
from gptcli.shards.manifest import Manifest
from gptcli.shards.order import open_order
from gptcli.tokenizer.tokenizer import load_tokenizer
from gptcli.trainer.checkpoint import CheckpointState, newest_state
from gptcli.trainer.config import Run
from gptcli.trainer.fit import check_division, check_memory
from gptcli.trainer.forecast import disk_bytes, disk_cautions, disk_free
from gptcli.trainer.initial_weights import begun_folder
from gptcli.trainer.machine import check_layout
from gptcli.trainer.precision import check_precision
from gptcli.trainer.schedule import Schedule
from gptcli.trainer.trackers import check_tracker

# which weights keep
SHAPE = {"n_layer", "n_head", "d_model", "n_ctx", "vocab_size", "attention", "band", "norm", "tied"}


def data_sha256(manifest: Manifest) -> str:
    """The fingerprint of all tokens, files, splits and checksums of the shards in order, and of the
    weights of several sources.
    """
    rows: list[Any] = [
        [shard.file, shard.split, shard.tokens, shard.sha256] for shard in manifest.shards
    ]
    if len(shares := manifest.shares()) > 1:
        rows += [[shard.source for shard in manifest.shards], shares]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def check_run(run: Run, manifest: Manifest) -> None:
    """What is quickly checked: layout, folders, tokenizer, and whether the shards fill a window.
    Raises UsageError or InputError.
    """
    schedule = Schedule(run.train, run.model.n_ctx)
    layout, sequences = run.layout, min(schedule.full_batch, schedule.total_sequences)
    check_layout(layout)
    check_division(run.model, layout, run.train.pipeline_schedule, sequences)
    check_precision(run.train.precision, layout.tp)
    check_memory(run.model, layout, run.train, sequences)
    if run.track is not None:
        check_tracker(run.track)
    if run.out.resolve() in (run.data.resolve(), *run.data.resolve().parents):
        raise UsageError(
            "the run folder holds the shards", where=run.out, hint="choose another --out"
        )
    if load_tokenizer(run.data).sha256 != manifest.tokenizer_sha256:
        raise InputError(
            "the tokenizer beside the shards is not the one they were made with",
            where=run.data,
            hint="build the shards again",
        )
    # what it started from may have gone on, or be gone
    begun = run.resume and begun_folder(run.out) is not None
    if (
        run.init_from is not None
        and not begun
        and _tokenizer_sha256(run.init_from) != manifest.tokenizer_sha256
    ):
        raise InputError(
            "the model to start from has another tokenizer than the shards",
            where=run.init_from,
            hint="build shards with its own",
        )
    open_order(run.data, "train", run.model.n_ctx, run.train.seed, verify=False)
    check_disk(run)


def _tokenizer_sha256(folder: Path) -> str:
    return load_tokenizer(find_model(folder).folder).sha256


def check_data(run: Run, manifest: Manifest) -> None:
    """Every byte of the shards, which takes its time. Raises InputError that names the one that was
    altered.
    """
    for split in ("train", "val"):
        if manifest.tokens(split):
            open_split(run.data, split)


def check_disk(run: Run) -> None:
    """Raises UsageError if the disk cannot hold the checkpoints kept, the one being written and the
    finished model.
    """
    needed = disk_bytes(run.model, run.train, Schedule(run.train, run.model.n_ctx).steps())
    for caution in disk_cautions(needed, disk_free(run.out)):
        raise UsageError(caution.message, where=run.out, hint=caution.hint)


def check_resume(run: Run) -> bool:
    """Whether the run has reached its end. Raises UsageError where what is in its folder is another
    run.
    """
    state = resumed_state(run.out, run.identity())
    return (
        state is not None
        and state.position.sequences >= Schedule(run.train, run.model.n_ctx).total_sequences
    )


def resumed_state(out: Path, identity: dict[str, Any]) -> CheckpointState | None:
    """Where the run folder's newest checkpoint stands; None where it has none. Raises UsageError
    where it is another run's.
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
    """What to do about a run that cannot be resumed as it was asked for; what deletes it comes
    last.
    """
    changed = sorted(
        name for name in before.keys() | now.keys() if before.get(name) != now.get(name)
    )
    options = [
        f"--{name.replace('_', '-')}" for name in changed if name not in ("data", "tokenizer")
    ]
    ways = []
    if not SHAPE & set(changed) and "tokenizer" not in changed:
        ways.append(
            f"to train on from its weights: --init-from {out} --out ANOTHER-FOLDER, without --resume"
        )
    if len(options) == len(changed):
        ways.append(f"to go on with it as it was: leave out {', '.join(options)}")
    ways += ["to keep both: name another --out", "--force deletes it and starts over"]
    return "\n  ".join(ways)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What changed, in words."""
    return [
        f"the {name} changed"
        if name in ("data", "tokenizer")
        else f"{name} was {before.get(name)}, now {now.get(name)}"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]
