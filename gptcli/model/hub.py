"""Models by their names on the Hugging Face Hub: found in its local cache, or downloaded into it.

    gpt2, distilgpt2, openai-gpt, ...     short names, see HUB
    EleutherAI/gpt-neo-125m               the name of any repository

The cache is that of every other program that uses the Hub: `HF_HUB_CACHE`, or `hub` in `HF_HOME`,
or `~/.cache/huggingface/hub`. It contains, per repository, `refs/main` with a commit and
`snapshots/COMMIT` with that commit's files. A file appears there once it is complete, and a
snapshot is used once it has all files of a model. Looking into the cache needs no package and no
network.
"""

from __future__ import annotations

import inspect
import os
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from gptcli.errors import InputError, UsageError, install_hint, message_of
from gptcli.events import SILENT, Events
from gptcli.files import read_json, similar
from gptcli.numbers import counted, in_bytes

CONFIG = "config.json"
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED_WEIGHTS = "pytorch_model.bin"
"""Weights of older repositories, which are used if there are no others."""
TOKENIZER, TOKENIZER_PAIR = "tokenizer.json", ("vocab.json", "merges.txt")
HUB = {  # models of the Hugging Face Hub that can be read, by their short names
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
    "openai-gpt": "openai-community/openai-gpt",
    "gpt1": "openai-community/openai-gpt",
    "gpt-2": "openai-community/gpt2",
    "gpt-1": "openai-community/openai-gpt",
}
# common names of local folders, which are not owners on the Hub
LOCAL = ("runs", "out", "output", "models", "checkpoints", "..", ".")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
CONNECT_SECONDS = 10


def hub_repository(path: str | Path) -> str | None:
    """Return the repository on the Hub that a path without a file names, or None.

    A path that exists, or that looks like a mistyped one (run/book for runs/book), is not a name.
    """
    name, path = str(path), Path(path)
    if path.exists():
        return None
    if name in HUB:
        return HUB[name]
    owner = name.partition("/")[0]
    if not REPOSITORY.fullmatch(name) or owner in LOCAL or Path(owner).exists():
        return None
    return None if similar(path) is not None else name


def cached_model(path: str | Path) -> Path | None:
    """Return the folder in the Hub's cache of the model that a path names.

    None if the path exists or is no name, or the cache does not have all files of the model.
    """
    if (repository := hub_repository(path)) is None:
        return None
    for name in dict.fromkeys((repository, str(path))):  # older caches have the short names
        store = _cache() / f"models--{name.replace('/', '--')}"
        try:
            commit = (store / "refs" / "main").read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            continue
        folder = store / "snapshots" / commit
        if commit and not _missing(folder):
            return folder
    return None


def fetch_model(path: str | Path, events: Events = SILENT, *, dry_run: bool = False) -> Path | None:
    """Download the model that a path names into the Hub's cache, unless it is there.

    Does nothing for a path that exists or cannot be a name: a local folder is always preferred.
    The configuration comes first, and a model of another architecture is refused before its
    weights are downloaded. `events` reports files, size and progress. With `dry_run` it reports
    what would be downloaded, and downloads the configuration alone: its folder is returned.
    Otherwise returns None. Raises InputError if the Hub cannot be reached or has no such model;
    UsageError if huggingface_hub is not installed.
    """
    repository = hub_repository(path)
    if repository is None or cached_model(path) is not None:
        return None
    remote = HubFiles(repository, path, by_hand(repository))
    if CONFIG not in remote.sizes:
        raise InputError(
            f"the repository {repository} of the Hub has no {CONFIG}: it is not a model",
            where=path,
        )
    configured = remote.download(CONFIG).parent
    _check_architecture(configured, path, repository)
    files = _files(remote.sizes, path, repository, remote.download)
    remote.download_all(files, events, dry_run=dry_run)
    if dry_run:
        return configured
    if cached_model(path) is None:
        raise InputError(
            f"the files of {repository} in the cache are not of one commit",
            where=_cache(),
            hint="run the command again",
        )
    return None


def by_hand(repository: str) -> str:
    """Return how to bring a model of the Hub to a machine that cannot reach it."""
    folder = repository.rpartition("/")[2]
    return (
        "where the Hub can be reached: "
        f"hf download {repository} {CONFIG} {WEIGHTS} {TOKENIZER} --local-dir {folder}\n"
        f"then copy the folder here and name it: {folder}"
    )


def _cache() -> Path:
    """Return the Hub's cache, as huggingface_hub does."""
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if found := os.environ.get(name):
            return Path(found).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "huggingface" / "hub"


def _missing(folder: Path) -> list[str]:
    """Return the files that a folder lacks to be a model with its tokenizer."""
    missing = [] if (folder / CONFIG).is_file() else [CONFIG]
    if not (folder / TOKENIZER).is_file() and not all(
        (folder / name).is_file() for name in TOKENIZER_PAIR
    ):
        missing.append(TOKENIZER)
    if not (folder / WEIGHTS).is_file() and not (folder / PICKLED_WEIGHTS).is_file():
        if not (folder / WEIGHTS_INDEX).is_file():
            return [*missing, WEIGHTS]
        try:
            named = _indexed(folder / WEIGHTS_INDEX)
        except InputError:
            return [*missing, WEIGHTS_INDEX]
        missing += [name for name in named if not (folder / name).is_file()]
    return missing


def _indexed(index: Path) -> list[str]:
    """Return the files of an index of weights. Raises InputError if it names others than files of
    its folder.
    """
    table = read_json(index)
    try:
        names = sorted(set(table["weight_map"].values()))
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(names)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise InputError("the index does not name files of this folder", where=index) from None
    return names


def _check_architecture(folder: Path, path: str | Path, repository: str) -> None:
    """Raise InputError if the configuration in `folder` is not that of a model that can be read."""
    from gptcli.model.hf import read_model_config  # which is built on this module

    try:
        read_model_config(folder)
    except InputError as error:
        raise InputError(
            f"the model {repository} of the Hub cannot be used: {error.what}",
            where=path,
            hint=error.hint,
        ) from None


def _files(sizes: dict[str, int], path: str | Path, repository: str, download: Any) -> list[str]:
    """Return the files of the weights and the tokenizer, those that are downloaded."""
    if TOKENIZER in sizes:
        tokenizer = [TOKENIZER]
    elif all(name in sizes for name in TOKENIZER_PAIR):
        tokenizer = list(TOKENIZER_PAIR)
    else:
        raise InputError(
            f"the repository {repository} of the Hub has no {TOKENIZER}",
            where=path,
            hint="use a repository that has one",
        )
    if WEIGHTS in sizes:
        return [*tokenizer, WEIGHTS]
    if WEIGHTS_INDEX in sizes:
        names = _indexed(download(WEIGHTS_INDEX))
        if all(name in sizes for name in names):
            return [*tokenizer, WEIGHTS_INDEX, *names]
    if PICKLED_WEIGHTS in sizes:
        return [*tokenizer, PICKLED_WEIGHTS]
    raise InputError(
        f"the repository {repository} of the Hub has neither {WEIGHTS} nor {PICKLED_WEIGHTS}",
        where=path,
        hint='where transformers is installed: python -c "from transformers import '
        f"AutoModelForCausalLM as M; M.from_pretrained('{repository}').save_pretrained('FOLDER')\"",
    )


class HubFiles:
    """Files of a repository on the Hub, a model's or a data set's, downloaded into its cache."""

    def __init__(
        self,
        repository: str,
        given: str | Path,
        by_hand: str,
        *,
        kind: Literal["model", "data set"] = "model",
        revision: str | None = None,
    ) -> None:
        """Ask the Hub for the files of `repository` and their sizes.

        `given` is what the user named, the place of an error; `by_hand` says what to do without a
        connection. Raises InputError if the Hub cannot be reached or has no such repository,
        UsageError if huggingface_hub is not installed.
        """
        self.repository, self.given, self.by_hand, self.kind = repository, given, by_hand, kind
        # a model's name could as well be a folder's
        self.preface = "there is no such folder, and " if kind == "model" else ""
        try:
            from huggingface_hub import HfApi, hf_hub_download
        except ImportError:
            raise UsageError(
                f"{self.preface}downloading the {kind} needs the package huggingface_hub",
                where=given,
                hint=f"{install_hint('huggingface_hub')}\nor {by_hand}",
            ) from None
        endpoint = os.environ.get("HF_ENDPOINT") or None
        at: dict[str, Any] = {
            "repo_type": "model" if kind == "model" else "dataset",
            "revision": revision,
        }
        try:
            info: Any = HfApi(endpoint=endpoint).repo_info(
                repository, files_metadata=True, timeout=CONNECT_SECONDS, **at
            )
        except Exception as error:  # of any base, by the client's version
            raise self._failure(error) from None
        self.sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
        """Bytes of each file."""
        self._download = partial(
            hf_hub_download, repository, cache_dir=_cache(), endpoint=endpoint, **at
        )

    def download(self, file: str, **options: Any) -> Path:
        """Return a file of the cache, downloaded unless it is there. Raises InputError."""
        try:
            return Path(self._download(file, **options))
        except Exception as error:
            raise self._failure(error, file) from None

    def download_all(
        self, files: Sequence[str], events: Events, *, dry_run: bool = False
    ) -> list[Path]:
        """Download files, and tell `events` how many there are, their size and the progress.

        With `dry_run`, only tell what a run would download, and return no file.

        Raises UsageError before the first if the disk has no room for them, InputError if one
        fails.
        """
        total = sum(self.sizes[file] for file in files)
        free = shutil.disk_usage(next(p for p in (_cache(), *_cache().parents) if p.exists())).free
        if free < total:
            raise UsageError(
                f"{self.repository} takes {in_bytes(total)}, and the disk has {in_bytes(free)} free",
                where=_cache(),
                hint="free some space, or set HF_HOME to a folder on another disk",
            )
        verb = "the run will first download" if dry_run else "downloading"
        events.info(
            f"{verb} {self.repository}: {counted(len(files), 'file')}, {in_bytes(total)}, into "
            f"{_cache()}"
        )
        if dry_run:
            return []
        done = _Progress(events, self.repository, total)
        options: dict[str, Any] = {}
        if "tqdm_class" in inspect.signature(self._download).parameters:
            options["tqdm_class"] = done.bar_class()
        paths = []
        for file in files:
            paths.append(self.download(file, **options))
            done.finished(self.sizes[file])
        events.finish(done.task)
        return paths

    def _failure(self, error: Exception, file: str | None = None) -> InputError:
        """Return the error for a failed request, by its kind."""
        kinds = {kind.__name__ for kind in type(error).__mro__}
        status = getattr(getattr(error, "response", None), "status_code", None)
        if "GatedRepoError" in kinds:
            what = f"the {self.kind} {self.repository} of the Hub asks for consent to its terms"
            hint = "accept them on its page, and log in with hf auth login"
        elif "RepositoryNotFoundError" in kinds or status in (401, 403, 404):
            what = f"{self.preface}no public {self.kind} of this name on the Hub"
            if self.repository != str(self.given):
                what += f" ({self.repository})"
            hint = f"check the spelling; a private {self.kind} needs hf auth login"
        elif isinstance(error, OSError) and "onsistency" in str(error):
            what = f"the download of {file} from {self.repository} was cut short"
            hint = "run the command again: complete files are kept"
        else:
            reason = next(iter(message_of(error).strip().splitlines()), "") or type(error).__name__
            subject = self.repository if file is None else f"{file} of {self.repository}"
            what = f"{self.preface}the Hub cannot be reached for {subject}: {reason}"
            hint = self.by_hand
        return InputError(what, where=self.given, hint=hint)


class _Progress:
    """Progress of a download of several files, reported to Events."""

    def __init__(self, events: Events, repository: str, total: int) -> None:
        self.events, self.total = events, total
        self.task = f"downloading {repository}"
        self.done = 0
        """Bytes of the files that are complete."""
        self.current = 0
        """Bytes of the file that is being downloaded."""

    def update(self, size: int) -> None:
        """Add bytes of the current file."""
        self.current += size
        self._report()

    def finished(self, size: int) -> None:
        """Count a whole file."""
        self.done, self.current = self.done + size, 0
        self._report()

    def _report(self) -> None:
        done = min(self.done + self.current, self.total)
        self.events.progress(self.task, done, self.total, unit="bytes")

    def bar_class(self) -> type[Any]:
        """Return a progress bar for huggingface_hub that reports here and draws nothing."""
        from huggingface_hub.utils.tqdm import tqdm

        progress = self

        class Bar(tqdm):
            def __init__(self, *args: Any, **options: Any) -> None:
                super().__init__(*args, **{**options, "disable": True})

            def update(self, n: float | None = 1) -> None:
                progress.update(int(n or 0))

        return Bar
