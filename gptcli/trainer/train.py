"""Train a model: check a run, claim its folder, launch it.

`gpt train` and `gptcli.train` both go this way. Everything that can be refused is refused before
the run folder is changed.
"""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gptcli.distributed.gpu import no_gpu_reason
from gptcli.distributed.join import check_together, join
from gptcli.distributed.launch import launch
from gptcli.errors import Interrupted, UsageError
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, check_output, contents
from gptcli.locks import claim_owned, nothing_to_resume, own_folder
from gptcli.model.config import ModelConfig, find_size
from gptcli.model.hub import fetch_model
from gptcli.model.source import (
    RUN_TOML,
    WEIGHTS,
    find_model,
    step_folders,
)
from gptcli.model.tensor_file import damage_of
from gptcli.runs.record import provenance, resumed
from gptcli.runtime import is_main, restarted
from gptcli.settings import Resolved, resolved_toml, same_values, updated_toml
from gptcli.shards.manifest import Manifest, read_manifest
from gptcli.trainer.checkpoint import newest_state, newest_step
from gptcli.trainer.config import TIMEOUT_S, Run, TrainConfig
from gptcli.trainer.export import is_finished, remove_temporary_weights
from gptcli.trainer.loop import stopped_after
from gptcli.trainer.loop import train as train_on_rank
from gptcli.trainer.preflight import check_data, check_resume, check_run, data_sha256
from gptcli.trainer.remote import check_store, copy_finished, fetch_checkpoint
from gptcli.trainer.resolve import MODEL_KEYS, NEWEST, ResolvedRun, newest_checkpoint
from gptcli.trainer.start import claim_run_folder, continued_state, copy_checkpoint

SOURCES = "sources"  # in `val`: each source of the shards
Measure = Callable[[Any], dict[str, float]]
"""Measures a GPT at every checkpoint; returns figures by name."""


def train(
    config: TrainConfig,
    *,
    data: str | Path,
    out: str | Path,
    model: ModelConfig | str,
    init_from: str | Path | None = None,
    checkpoint: int | None = None,
    continues: bool = False,
    resume: bool = False,
    force: bool = False,
    checkpoint_to: str | None = None,
    measure: Measure | None = None,
    events: Events = SILENT,
) -> dict[str, Any]:
    """Train a model on the shards in `data` and return a report, that of `gpt train --json`.

    `model` is an architecture or the name of a paper's size; its vocabulary becomes that of the
    shards. The run folder `out` receives run.toml, checkpoints, metrics and at last the model, and
    must be empty unless `resume` continues the run in it or `force` empties it. `init_from` is a
    run or GPT-2 folder to take the first weights from, at the step of its `checkpoint` if it has
    several; with `continues` the run goes on from there with the optimizer's state, in its own
    folder. `checkpoint_to` is the URL of a store that gets a copy of every checkpoint, and from
    which `resume` fetches one if `out` has none. `measure` adds figures at every checkpoint.

    A layout of several processes starts them with multiprocessing, so a script must guard its main
    part by `if __name__ == "__main__"`. Raises UsageError, InputError or RunError, and Interrupted
    if training was stopped after saving a checkpoint.
    """
    out, data = Path(out), Path(data)
    manifest = read_manifest(data)
    name = model if isinstance(model, str) else "GPT"
    if isinstance(model, str):
        model = ModelConfig.from_paper(find_size(model))
    model = replace(model, vocab_size=manifest.vocab_size)
    resolved = settings_of(config, model, data=data, out=out)
    if init_from is not None:
        fetch_model(init_from, events)
        source = find_model(Path(init_from), checkpoint)
        step = newest_checkpoint(source) if continues else source.step
        start = {"init_from": str(init_from), "checkpoint": step, "continues": continues or None}
        resolved.put(start, "argument")
    resolved_run = ResolvedRun(name, resolved, model, config, must_compile=config.compile)
    resolved.put({"checkpoint_to": checkpoint_to}, "argument")
    with own_folder(out, read_only=resume, events=events):
        if resume and checkpoint_to is not None:
            fetch_checkpoint(checkpoint_to, out, events, fetches=is_main())
        run = prepare_run(
            resolved_run,
            manifest,
            events,
            command=shlex.join(sys.argv),
            resume=resume,
            force=force,
            measure=measure,
        )
        if run is None:
            raise UsageError(
                "the run here is finished",
                where=out,
                field="resume",
                code="finished",
                hint="{option:force} starts over",
            )
        report = launch_run(run, events)
    if report["interrupted"]:
        raise interrupted(report, out)
    return report


def launch_run(run: Run, events: Events) -> dict[str, Any]:
    """Train a prepared run on the processes of its layout, and return the report of rank 0."""
    return launch(run, events, train_on_rank, newest_step)


def interrupted(report: dict[str, Any], out: Path) -> Interrupted:
    """Return the error of a run that was stopped and has saved a checkpoint."""
    return stopped_after(report["step"], out)


def settings_of(config: TrainConfig, model: ModelConfig, *, data: Path, out: Path) -> Resolved:
    """Return a configuration made in Python as settings, for run.toml."""
    resolved = Resolved()
    resolved.put({"data": str(data), "out": str(out)}, "argument")
    shape = {name: value for name, value in model.as_dict().items() if name in MODEL_KEYS}
    resolved.put(shape, "argument")
    values = {**asdict(config), "compile": "on" if config.compile else "off"}
    resolved.put(values, "argument")
    return resolved


def named_folders(items: Iterable[str]) -> dict[str, Path]:
    """Return the folders of "name=folder". Raises UsageError for an item of another form."""
    found: dict[str, Path] = {}
    for item in items:
        name, equals, folder = item.partition("=")
        if (
            not equals
            or not folder
            or re.fullmatch(r"[A-Za-z0-9_-]+", name) is None
            or name in found
        ):
            raise UsageError(
                f"{item!r} is no name and folder",
                field="val",
                code="not_a_named_folder",
                hint="name=folder, each name once: {option:val} code=shards/code,news=shards/news; or "
                f"{SOURCES}, for each source of the shards",
            )
        found[name] = Path(folder)
    return found


def prepare_run(
    resolved_run: ResolvedRun,
    manifest: Manifest,
    events: Events,
    *,
    command: str,
    resume: bool,
    force: bool,
    measure: Measure | None = None,
    announce: Callable[[Run], None] = lambda run: None,
) -> Run | None:
    """Check everything, claim the run folder and write run.toml; None if the run is finished.

    The caller owns the folder (`gptcli.locks.own_folder`). `announce` is called on the leading
    process after the quick checks, before the shards are read and anything is written; it may
    refuse the run. Raises UsageError or InputError.
    """
    values, train = resolved_run.resolved.values, resolved_run.train
    out, data = Path(values["out"]), Path(values["data"])
    made_by = provenance(
        resolved_run.processes, data, data_sha256(manifest), manifest.tokens("train"), train.tokens
    )
    before = (
        (out / RUN_TOML).read_text(encoding="utf-8-sig")
        if resume and (out / RUN_TOML).is_file()
        else None
    )
    val_tokens = manifest.tokens("val")
    text = _run_toml(resolved_run, val_tokens, made_by, command, before)
    run = Run(
        name=resolved_run.name,
        out=out,
        data=data,
        model=resolved_run.model,
        train=train,
        data_sha256=data_sha256(manifest),
        tokenizer_sha256=manifest.tokenizer_sha256,
        eot_id=manifest.eot_id,
        must_compile=resolved_run.must_compile,
        val=named_folders(item for item in values.get("val", []) if item != SOURCES),
        val_by_source=SOURCES in values.get("val", []),
        checkpoint_to=values.get("checkpoint_to"),
        track=tuple(values.get("track", ())),
        timeout=values.get("timeout", TIMEOUT_S),
        measure=measure,
        init_from=None if (start := values.get("init_from")) is None else Path(start),
        init_step=values.get("checkpoint"),
        continues=values.get("continues", False),
        resume=resume,
        resolved=text,
    )
    check_run(run, manifest)
    if is_main():
        check_output(out, resume=resume, force=force, own=RUN_TOML)
    if resume:
        at_end = check_resume(run)
        lost = damage_of(out / WEIGHTS) if is_finished(out) and at_end else None
        if lost is not None:
            if is_main():
                events.warn(f"{lost.statement}; it is written again")
        elif is_finished(out) and (
            at_end or (newest_state(out) is None and same_values(text, before))
        ):
            if is_main():
                remove_temporary_weights(out)
                copy_finished(run, events)
            return None
        if is_finished(out) and newest_state(out) is None:
            raise UsageError(
                "the model here is finished, and no checkpoint is left to go on from",
                where=out,
                field="resume",
                code="finished",
                hint="{option:force} starts over",
            )
        if is_main() and not restarted() and contents(out) and not step_folders(out):
            events.info(nothing_to_resume(out, RUN_TOML))
        run = replace(run, resume=True)
    if run.continues and newest_state(out) is None:
        continued_state(run)
        run = replace(run, resume=True)
    if is_main():
        check_store(run, events)
    if is_main() and not restarted():
        if (reason := no_gpu_reason()) is not None:
            events.warn(f"the GPU of this machine is not used: {reason}")
        announce(run)
    join(run, events)
    if not restarted():
        # each machine reads its copy of the shards once: its processes share the work
        check_together(run, lambda part, parts: check_data(run, manifest, part, parts))
    if is_main():
        origin = resolved_run.resolved.origin.get("checkpoint", "")
        if run.continues:
            claim_owned(out, resume=resume, force=force, own=RUN_TOML, events=events)
            copy_checkpoint(run, events)
            step = run.init_step
        else:
            step = claim_run_folder(
                out,
                run.init_from,
                run.init_step,
                events,
                resume=resume,
                force=force,
                newest=origin == NEWEST,
            )
        if step != run.init_step:
            resolved_run.resolved.put({"checkpoint": step}, origin)
            text = _run_toml(resolved_run, val_tokens, made_by, command)
            run = replace(run, init_step=step, resolved=text)
        with atomic_write(out / RUN_TOML, "w") as file:
            file.write(run.resolved)
    return run


def _run_toml(
    resolved_run: ResolvedRun,
    val_tokens: int,
    made_by: dict[str, str],
    command: str,
    before: str | None = None,
) -> str:
    """Return the text of run.toml; with the text `before` a resume, that text brought up to date.

    The shards have `val_tokens` validation tokens; `made_by` is the run's provenance.
    """
    facts = {
        "parameters": f"{resolved_run.model.parameters:,}",
        "vocab_size": f"{resolved_run.model.vocab_size:,}, from the shards",
        "val_tokens": f"{val_tokens:,}, from the shards",
    }
    if before is None:
        return resolved_toml(resolved_run.resolved, command, **facts, **made_by)
    return resumed(updated_toml(before, resolved_run.resolved, command, **facts), made_by)
