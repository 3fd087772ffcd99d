"""Copies of a run in a remote store: a URL of fsspec, such as s3://bucket/run.

    URL/run.toml, metrics.jsonl, samples.jsonl, best.json     of the newest checkpoint there
    URL/step-00001000/                                        a checkpoint; state.json comes last
    URL/config.json, tokenizer.json, ..., model.safetensors   the finished model; its weights last

A checkpoint is copied once it is whole on the local disk, in a thread, while training goes on. A
store that fails, or gives no sign of life, costs copies and never the run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gptcli.errors import InputError, RunError, UsageError, install_hint
from gptcli.events import Events
from gptcli.files import atomic_folder, atomic_write, read_json, sha256
from gptcli.model.source import BEST, METRICS, RUN_TOML, SAMPLES, STATE, STEP, WEIGHTS, step_folders
from gptcli.trainer.callbacks import BackgroundCallback, Cancelled, RunProgress, SavedCheckpoint
from gptcli.trainer.checkpoint import checkpoint_folder
from gptcli.trainer.config import Run

BESIDE = (METRICS, SAMPLES, BEST, RUN_TOML)
"""Files of the run that a resume goes on with; the last one completes a fetched run."""
MODEL = "the finished model"
BLOCK_BYTES = 8 << 20
WAIT_S = 3600.0  # of a process for the one that fetches a checkpoint


class Store:
    """Folder of a remote store with the checkpoints of one run."""

    def __init__(self, url: str) -> None:
        """Raise UsageError if the URL is of no store that can be reached from here."""
        try:
            import fsspec
        except ImportError:
            raise UsageError(
                "a remote store needs the package fsspec, which is not installed",
                field="checkpoint_to",
                code="not_installed",
                hint=install_hint("fsspec"),
            ) from None
        self.url = url.rstrip("/")
        try:
            self.files, path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"{url}: {error}",
                field="checkpoint_to",
                code="no_such_store",
                hint="a URL that fsspec knows, such as s3://bucket/run or gs://bucket/run",
            ) from None
        self.path = path.rstrip("/")

    def steps(self) -> dict[int, str]:
        """Return the whole checkpoints by step: their folders in the store."""
        self.files.invalidate_cache()
        if not self.files.exists(self.path):
            return {}
        names = [str(name).rstrip("/") for name in self.files.ls(self.path, detail=False)]
        found = ((STEP.fullmatch(name.rpartition("/")[2]), name) for name in names)
        return {
            int(match[1]): name
            for match, name in sorted(found, key=lambda pair: pair[1])
            if match and self.files.exists(f"{name}/{STATE}")
        }

    def put(self, checkpoint: Path, moved: Callable[[], None]) -> None:
        """Copy a checkpoint and the files beside it; call `moved` for every block."""
        folder = f"{self.path}/{checkpoint.name}"
        self.files.makedirs(folder, exist_ok=True)
        files = [path for path in checkpoint.iterdir() if path.is_file()]
        names = sorted(path.name for path in files if path.name != STATE)
        run = checkpoint.parent.parent
        beside = [name for name in BESIDE if (run / name).is_file()]
        for local, remote in (
            *((checkpoint / name, f"{folder}/{name}") for name in names),
            *((run / name, f"{self.path}/{name}") for name in beside),
            (checkpoint / STATE, f"{folder}/{STATE}"),
        ):
            with local.open("rb") as source, self.files.open(remote, "wb") as target:
                copy(source, target, moved)

    def has_model(self) -> bool:
        """Return whether the finished model is in the store."""
        self.files.invalidate_cache()
        return bool(self.files.exists(f"{self.path}/{WEIGHTS}"))

    def put_model(self, out: Path, moved: Callable[[], None]) -> None:
        """Copy the files of a finished run folder, without its checkpoints."""
        files = [path for path in out.iterdir() if path.is_file() and path.name[0] != "."]
        self.files.makedirs(self.path, exist_ok=True)
        for local in sorted(files, key=lambda path: (path.name == WEIGHTS, path.name)):
            with (
                local.open("rb") as source,
                self.files.open(f"{self.path}/{local.name}", "wb") as target,
            ):
                copy(source, target, moved)

    def prune(self, keep: int, keep_every: int) -> None:
        """Remove all but the newest `keep` checkpoints and the multiples of `keep_every`."""
        for step, folder in sorted(self.steps().items())[:-keep]:
            if not (keep_every and step % keep_every == 0):
                self.files.rm_file(f"{folder}/{STATE}")  # first: what is left is no checkpoint
                self.files.rm(folder, recursive=True)

    def fetch(self, out: Path, events: Events) -> int:
        """Bring the newest intact checkpoint and the files beside it to the run folder `out`.

        Return its step. Raises InputError if no checkpoint there is intact.
        """
        for step, remote in sorted(self.steps().items(), reverse=True):
            folder = checkpoint_folder(out, step)
            try:
                with atomic_folder(folder) as partial:
                    for name in self.files.ls(remote, detail=False):
                        local = partial / str(name).rpartition("/")[2]
                        with self.files.open(name, "rb") as source, local.open("wb") as target:
                            copy(source, target)
                    for file, digest in read_json(partial / STATE)["sha256"].items():
                        if sha256(partial / file) != digest:
                            raise InputError("does not match its SHA-256", where=file)
            except (InputError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
                events.warn(f"{self.url}: step {step:,} is broken: {error}: using the one before")
                continue
            for name in BESIDE:
                if self.files.exists(f"{self.path}/{name}") and not (out / name).exists():
                    with self.files.open(f"{self.path}/{name}", "rb") as source:
                        content = source.read()
                    with atomic_write(out / name) as file:
                        file.write(content)
            return step
        raise InputError(
            "no checkpoint there is intact",
            where=self.url,
            hint="leave {option:resume} out to begin, with another {option:checkpoint_to}",
        )


def copy(source: Any, target: Any, moved: Callable[[], None] = lambda: None) -> None:
    """Copy an open file to another one; call `moved` for every block."""
    while block := source.read(BLOCK_BYTES):
        target.write(block)
        moved()


def check_store(run: Run, events: Events) -> None:
    """Refuse a new run whose store cannot be reached, or has checkpoints already.

    A run that goes on only says so. Raises UsageError or RunError.
    """
    if run.checkpoint_to is None:
        return
    try:
        steps = Store(run.checkpoint_to).steps()
    except UsageError:
        raise
    except Exception as error:  # of clients without a common base class
        if run.resume:
            events.warn(f"{run.checkpoint_to} cannot be reached: {error}")
            return
        raise RunError(f"cannot be reached: {error}", where=run.checkpoint_to) from error
    if steps and not run.resume:
        raise UsageError(
            f"has checkpoints already, the newest of step {max(steps):,}",
            where=run.checkpoint_to,
            field="checkpoint_to",
            code="store_in_use",
            hint="{option:resume} continues from it; a new run needs another {option:checkpoint_to}",
        )


def copy_finished(run: Run, events: Events) -> None:
    """Copy the model of a finished run to its store, unless it is there: the run may have ended
    before that was done.
    """
    if run.checkpoint_to is None:
        return
    try:
        store = Store(run.checkpoint_to)
        if store.has_model():
            return
        store.put_model(run.out, lambda: None)
    except UsageError:
        raise
    except Exception as error:  # of clients without a common base class
        events.warn(f"the finished model was not copied to {run.checkpoint_to}: {error}")
        return
    events.info(f"the finished model is copied to {run.checkpoint_to}")


def fetch_checkpoint(url: str, out: Path, events: Events, *, fetches: bool) -> None:
    """Bring the newest checkpoint in the store to a run folder that has none.

    The process that `fetches` does so; the others wait for it. Raises RunError if the store cannot
    be reached, and InputError if no checkpoint there is intact.
    """
    if step_folders(out) or (out / WEIGHTS).is_file():
        return
    try:
        store = Store(url)
        if not (steps := store.steps()):
            return
        if fetches:
            events.info(f"{out} has no checkpoint: fetching that of step {max(steps):,} from {url}")
            store.fetch(out, events)
            return
    except (UsageError, InputError):
        raise
    except Exception as error:  # of clients without a common base class
        raise RunError(f"cannot be reached: {error}", where=url) from error
    until = time.monotonic() + WAIT_S
    while not (out / RUN_TOML).is_file() and time.monotonic() < until:
        time.sleep(0.2)


class CheckpointCopies(BackgroundCallback):
    """Callback that copies checkpoints, and at last the finished model, to the run's store.

    A checkpoint that is written during a copy is left out, the last one excepted.
    """

    product = "copy in the store"

    def __init__(self, progress: RunProgress) -> None:
        super().__init__(progress)
        assert progress.run.checkpoint_to is not None
        self.store = Store(progress.run.checkpoint_to)
        self.copied = 0
        self.moved_at = time.monotonic()
        self.given_up = False
        self.copying = ""
        """Name of the files being copied, if they are no checkpoint."""

    def after_checkpoint(self, checkpoint: SavedCheckpoint) -> None:
        """Start to copy the checkpoint, unless another one is being copied."""
        self.moved_at = time.monotonic()
        super().after_checkpoint(checkpoint)

    def process(self, checkpoint: SavedCheckpoint) -> None:
        """Copy one checkpoint and remove old ones; count and tell what fails."""
        train = self.progress.run.train
        try:
            self._moved()
            self.store.put(checkpoint.folder, self._moved)
            self.copied += 1
            self.store.prune(train.keep, train.keep_every)
        except Cancelled:
            raise
        except Exception as error:  # of clients without a common base class
            self._failed(_checkpoint(checkpoint.step), f"{type(error).__name__}: {error}")

    def on_end(self, *, interrupted: bool) -> None:
        """Copy the last checkpoint, and tell how many copies there were."""
        self.finish()
        failed = self.progress.failed_copies
        done = f"{self.copied} checkpoint{'s' * (self.copied != 1)} copied to {self.store.url}"
        self.progress.events.info(done + (f", {failed} failed" if failed else ""))

    def on_finished(self) -> None:
        """Copy the finished model, and say so."""
        self.given_up, self.moved_at, copied = False, time.monotonic(), []

        def work() -> None:
            try:
                self.store.put_model(self.progress.run.out, self._moved)
                copied.append(True)
            except Cancelled:
                return
            except Exception as error:  # of clients without a common base class
                self._failed(MODEL, f"{type(error).__name__}: {error}")

        self.copying = MODEL
        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        self._join()
        if copied:
            self.progress.events.info(f"{MODEL} is copied to {self.store.url}")

    def _moved(self) -> None:
        """Note a sign of life. Raises Cancelled once nobody waits for the copy any more."""
        self.moved_at = time.monotonic()
        if self.cancelled.is_set():
            raise Cancelled

    def _join(self) -> None:
        """Wait for the copy under way as long as it goes forward."""
        while self.thread is not None and self.thread.is_alive() and not self.given_up:
            self.thread.join(0.2)
            if time.monotonic() - self.moved_at > self.progress.run.timeout:
                self.given_up = True
                silent = f"no sign of life for {self.progress.run.timeout:,} s"
                self._failed(self.copying or _checkpoint(self.processed_step), silent)

    def _failed(self, what: str, why: str) -> None:
        self.progress.failed_copies += 1
        now = "the run is done" if what == MODEL else "training goes on"
        self.progress.events.warn(
            f"{what} was not copied to {self.store.url}: {why} "
            f"({self.progress.failed_copies} failed so far; {now})"
        )


def _checkpoint(step: int) -> str:
    """Return a checkpoint in words."""
    return f"the checkpoint of step {step:,}"
