"""Location of a model's weights, names of a run's files, and errors for paths without a model.

    runs/x                             model.safetensors if it exists, else the newest checkpoint
    runs/x, step 1200                  runs/x/checkpoints/step-00001200
    runs/x/checkpoints/step-00001200   the same
    a transformers folder              its own files
    out/ckpt.pt, out                   a checkpoint of nanoGPT
    gpt2_124M.bin                      a checkpoint of llm.c
    openai-community/gpt2              the folder of this name, or the model in the Hub's cache

For a path without a readable model, the error says what is there instead and what to do: download,
convert, name another folder, or finish the run. Only names and the first bytes of files are
examined. Imports no torch.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from gptcli.errors import InputError, UsageError
from gptcli.files import read_json, read_toml, similar
from gptcli.model import hub
from gptcli.model.hub import HUB, PICKLED_WEIGHTS, by_hand, cached_model, hub_repository

CONFIG, WEIGHTS, WEIGHTS_INDEX = hub.CONFIG, hub.WEIGHTS, hub.WEIGHTS_INDEX
UNFINISHED = "unfinished.safetensors"
"""Weights of a checkpoint for transformers, which WEIGHTS_INDEX names until WEIGHTS exists."""
CHECKPOINTS, STATE, INDEX = "checkpoints", "state.json", "index.json"
MODEL = "model"
"""Prefix of the names of weight files in a checkpoint."""
# other files of a run folder
RUN_TOML, METRICS, SAMPLES = "run.toml", "metrics.jsonl", "samples.jsonl"
REPORT, TRACE = "report.html", "trace.json"
LR_RANGE, LR_RANGE_REPORT = "lr_range.jsonl", "lr_range.html"
BEST = "best.json"
"""Step of the checkpoint with the best value of a metric, of a run that keeps it."""
INIT = "init"
"""Folder of the model from which an unfinished run was initialized."""
FINETUNE_REPORT, CLASSIFIER = "finetune.json", "classifier.safetensors"
STEP = re.compile(r"step-(\d{8,})")
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
PICKLE_HEADS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"PK\x03\x04")
MODEL_SUFFIXES = (*PICKLES, ".safetensors", ".gguf")
NANOGPT = "ckpt.pt"
WEIGHT_FILES, SHARDS = "*.safetensors", "manifest.json"
# first int32 of llm.c's files
LLMC_MODEL, LLMC_STATE, TOKEN_FILES = 20240326, 20240327, (20240520, 20240801)
NEVER_RELEASED = ("gpt3", "gpt3.5", "gpt4", "gpt4o", "gpt5", "chatgpt", "gpt3.5turbo", "175b")
NOT_READABLE_YET = "the run has not ended and contains no readable model yet"
WHAT_IS_READ = (
    "a model is a run folder, a transformers folder with config.json, model.safetensors and "
    "tokenizer.json, a checkpoint of nanoGPT (.pt) or llm.c (.bin), or a name on the Hub such as "
    "openai-community/gpt2"
)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Location of a model's files."""

    folder: Path
    """Folder of configuration and tokenizer, and of the weights if there is no `checkpoint`; or a
    single file with a model of another program."""
    checkpoint: Path | None = None
    """Checkpoint folder that contains the weights."""
    step: int | None = None
    """Training step of the weights; None for a finished model."""
    digest: str | None = None
    """Fingerprint of the checkpoint's weights, set when it is loaded."""

    def __str__(self) -> str:
        if self.step is None:
            return str(self.folder)
        unfinished = "" if (self.folder / WEIGHTS).is_file() else ", an unfinished run"
        return f"step {self.step:,} of {self.folder}{unfinished}"


MAX_NAMED = 4  # models of a folder, in a message


def is_finetuned(folder: Path) -> bool:
    """Tell whether a run folder contains a finished fine-tuned model."""
    return (folder / FINETUNE_REPORT).is_file()


def find_model(
    folder: str | Path, step: int | None = None, *, skip: Collection[int] = ()
) -> ModelSource:
    """Return the location of the weights of a model folder or file, or of a name on the Hub.

    `step` selects a checkpoint; `skip` lists steps whose checkpoints are unreadable. Only names are
    examined, so that a folder without a model is rejected only when it is loaded. Raises InputError
    if the checkpoint does not exist, or the run has none yet.
    """
    folder = cached_model(folder) or Path(folder)
    whole_path = folder if folder.name else folder.absolute()
    if (match := STEP.fullmatch(whole_path.name)) and whole_path.parent.name == CHECKPOINTS:
        if step not in (None, int(match[1])):
            raise UsageError(
                f"is the checkpoint of step {int(match[1]):,}, not of step {step:,}", where=folder
            )
        folder, step = whole_path.parent.parent, int(match[1])
    if (folder / NANOGPT).is_file() and not any(
        (folder / name).exists() for name in (CONFIG, RUN_TOML)
    ):
        folder = folder / NANOGPT
    found = step_folders(folder)
    if step is not None:
        if step not in found:
            raise InputError(f"no checkpoint of step {step:,}", where=folder, hint=_listed(found))
        return ModelSource(folder, found[step], step)
    if (folder / WEIGHTS).is_file():
        return ModelSource(folder)
    if left := found.keys() - set(skip):
        return ModelSource(folder, found[max(left)], max(left))
    if found:
        raise InputError(
            "no checkpoint can be read",
            where=folder / CHECKPOINTS,
            hint="gpt train with --force starts the run over",
        )
    if (folder / WEIGHTS_INDEX).is_file():
        return ModelSource(folder, step=_copied_step(folder))
    if (folder / RUN_TOML).is_file():
        raise InputError(
            "the run has no checkpoint yet, and therefore no weights",
            where=folder,
            hint=_first_checkpoint(folder),
        )
    return ModelSource(folder)


def step_folders(run: Path) -> dict[int, Path]:
    """Return the checkpoint folders of a run by step."""
    found = (
        (STEP.fullmatch(folder.name), folder) for folder in (Path(run) / CHECKPOINTS).glob("step-*")
    )
    return {int(match[1]): folder for match, folder in found if match}


def damage(checkpoint: Path, message: str, earlier: int | None) -> str:
    """Return a warning that a checkpoint is damaged, with the first line of the error's message, and
    that the one of step `earlier` is tried instead, if there is one.
    """
    what = message.partition("\n")[0]
    where = "" if str(checkpoint) in what else f"{checkpoint}: "
    instead = "" if earlier is None else f"; trying that of step {earlier:,}"
    return f"a checkpoint is damaged: {where}{what}{instead}"


def initial_weights_folder(out: Path, init_from: Path) -> Path:
    """Return the folder with the initial weights of the run in `out`: `init/` if it exists."""
    return out / INIT if (out / INIT).is_dir() else init_from


def begun_folder(out: Path) -> Path | None:
    """Return the folder with configuration and tokenizer of the run in `out`, or None.

    It is the run folder itself or, before the first step, its `init/`.
    """
    return next((folder for folder in (out, out / INIT) if (folder / CONFIG).is_file()), None)


def remove_initial_weights(out: Path) -> None:
    """Remove `init/` from a finished run folder."""
    shutil.rmtree(out / INIT, ignore_errors=True)


def checkpoint_digest(checkpoint: Path) -> str:
    """Return a fingerprint of a checkpoint's weights, from the checksums in its state.

    Raises InputError if the state cannot be read.
    """
    try:
        digests = read_json(checkpoint / STATE)["sha256"]
        rows = [
            f"{file} {digest}\n"
            for file, digest in sorted(digests.items())
            if file.startswith(MODEL)
        ]
    except (AttributeError, KeyError, TypeError):
        raise InputError("not the state of a checkpoint", where=checkpoint / STATE) from None
    return hashlib.sha256("".join(rows).encode()).hexdigest()


def _copied_step(folder: Path) -> int | None:
    """Return the step of UNFINISHED if the folder's index names it, else None."""
    from safetensors import SafetensorError, safe_open

    try:
        named = set(read_json(folder / WEIGHTS_INDEX)["weight_map"].values())
        if named != {UNFINISHED}:
            return None
        with safe_open(folder / UNFINISHED, "np") as file:
            return int((file.metadata() or {})["step"])
    except (AttributeError, KeyError, TypeError, ValueError, InputError, OSError, SafetensorError):
        return None  # reported when the weights are loaded


def _listed(found: Collection[int]) -> str:
    if not found:
        return "there are no checkpoints"
    *steps, last = (f"{step:,}" for step in sorted(found))
    return (
        f"there are checkpoints of steps {', '.join(steps)} and {last}"
        if steps
        else f"there is a checkpoint of step {last}"
    )


def _first_checkpoint(folder: Path) -> str:
    """Return a hint that says when the first checkpoint is due, if run.toml tells."""
    try:
        every = read_toml(folder / RUN_TOML).get("checkpoint_every")
    except InputError:
        every = None
    when = (
        f"the first one is due after step {every:,}"
        if isinstance(every, int)
        else "wait for the first one"
    )
    return f"{when}; if the run was stopped, continue it with gpt train --resume --out {folder}"


def check_exists(path: Path) -> None:
    """Raise InputError if `path` is neither there nor a name on the Hub. Imports nothing heavy."""
    if not Path(path).exists() and hub_repository(path) is None:
        raise not_a_model_error(path)


def not_a_model_error(path: Path) -> InputError:
    """Return the error for a path that contains no model."""
    path = Path(path)
    if path.is_dir():
        what, hint = _folder(path)
    elif path.exists():
        what, hint = _file(path)
    else:
        what, hint = _missing(path)
    return InputError(what, where=written(path), hint=hint)


def written(path: Path) -> str:
    """Return a path as it was given: of an address, `Path` drops a slash."""
    if path.parts and Path(path.parts[0]).exists():  # a folder may be named so too
        return str(path)
    return re.sub(r"^(\w{2,}):/(?!/)", r"\1://", str(path))


def _missing(path: Path) -> tuple[str, str]:
    name = written(path)
    absent = "no such file" if path.suffix in MODEL_SUFFIXES else "no such folder"
    if address := re.match(r"https?:/+huggingface\.co/([^/]+(?:/[^/]+)?)", name):
        return "is an address, not a name on the Hub", f"name the model alone: {address[1]}"
    if "://" in name:
        return "is an address, not a model on this machine", (
            "download it to a folder, and name that folder"
        )
    if name.lower().replace("-", "") in NEVER_RELEASED:
        return "no such folder", (
            "the weights of GPT-3, ChatGPT and GPT-4 are not public; OpenAI's largest model that "
            "can be read is GPT-2 XL: openai-community/gpt2-xl"
        )
    if name == "scratch":  # nanoGPT's words, as the next
        return absent, "random weights are the default: leave it out"
    if name == "resume":
        return absent, "{option:resume} continues the run in {option:out}"
    if re.search(r"[*?\[]", name):
        return "no such folder", "the shell found nothing for this pattern, and left it as it is"
    if windows := re.match(r"([A-Za-z]):[\\/](.*)", name):
        rest = windows[2].replace("\\", "/")
        return absent, f"a path of Windows is, in WSL: /mnt/{windows[1].lower()}/{rest}"
    if " " in name:
        return "no such folder", f"the model comes before the prompt, as in: runs/book {name!r}"
    if (repository := hub_repository(path)) is not None:
        what = "the model of this name on the Hub has to be downloaded"
        if name not in HUB:
            what = "a model of this name on the Hub has to be downloaded"
        return f"no such folder; {what}", by_hand(repository)
    if (local := Path("runs", name)).is_dir():
        return "no such folder", f"did you mean {local}?"
    if (close := similar(path)) is not None:
        return absent, f"did you mean {close}?"
    if name.startswith("~"):
        return "no such folder; the shell did not expand the ~", "remove the quotes around it"
    return absent, WHAT_IS_READ


def _file(path: Path) -> tuple[str, str]:
    folder = path.parent
    if path.suffix in (".safetensors", ".json", ".toml", ".html", ".jsonl"):
        if (folder / CONFIG).is_file() or (folder / CHECKPOINTS).is_dir():
            return "is one file of a model; a model is a folder", f"name its folder: {folder}"
        return f"is one file, and no {CONFIG} of a model is next to it", WHAT_IS_READ
    with open(path, "rb") as file:
        head = file.read(8)
    magic = int.from_bytes(head[:4], "little")
    if magic in TOKEN_FILES:
        return "is a token file, not a model", f"gpt train --data {folder} trains a model on it"
    if magic == LLMC_STATE:
        return (
            "contains activations of llm.c for its tests, not a model",
            "name the model itself, such as gpt2_124M.bin",
        )
    if head.startswith(b"GGUF"):
        return (
            "is a GGUF file, llama.cpp's format, which is not supported",
            f"use the weights that it was made from; {WHAT_IS_READ}",
        )
    if path.suffix in PICKLES or head.startswith(PICKLE_HEADS):
        return _pickle(path)
    if path.suffix in (".txt", ".md"):
        return "is text, not a model", (
            f"to measure a model's loss on it: gpt eval RUN --text {path}; to train on it: "
            f"gpt build-shards {path}"
        )
    return "is a file; a model is a folder", WHAT_IS_READ


def _folder(path: Path) -> tuple[str, str]:
    if (path / SHARDS).is_file():
        return (
            "contains token shards, not a model",
            f"gpt train --data {path} trains a model on them",
        )
    if (path / "adapter_config.json").is_file():
        return (
            "contains a LoRA adapter, not a whole model",
            "merge it first with PeftModel's merge_and_unload().save_pretrained(FOLDER)",
        )
    if next(path.glob(WEIGHT_FILES), None) is not None:
        return (
            "contains weights but no config.json, which describes the model",
            "copy the config.json that belongs to the weights into it",
        )
    if (path / RUN_TOML).is_file():
        return NOT_READABLE_YET, f"gpt train --resume --out {path} continues it"
    found = _pickled_in(path) or next(path.glob("*.gguf"), None)
    if found is not None:
        what, hint = _file(found)
        return f"contains no model: {found.name} {what}", hint
    inside = sorted(
        str(config.parent)
        for depth in ("*", "*/*", "snapshots/*")
        for config in path.glob(f"{depth}/config.json")
    )
    if inside:
        # a run that has only begun has none yet
        ready = [
            each
            for each in inside
            if any(Path(each).glob(WEIGHT_FILES)) or step_folders(Path(each))
        ]
        others = len(ready or inside) - MAX_NAMED
        names = ", ".join((ready or inside)[:MAX_NAMED]) + (
            f" and {others} more" if others > 0 else ""
        )
        return "contains no model itself", f"name one of the models in it: {names}"
    if (found := next(iter(sorted(path.glob(f"*/{NANOGPT}"))), None)) is not None:
        return "contains no model itself", f"name the checkpoint of nanoGPT in it: {found}"
    if path.name == CHECKPOINTS and (path.parent / RUN_TOML).is_file():
        return (
            "contains checkpoints of a run",
            f"name the run: {path.parent}, with {{option:checkpoint}} N",
        )
    if not any(path.iterdir()):
        return "is an empty folder", WHAT_IS_READ
    return "contains no config.json", WHAT_IS_READ


def no_weights_error(folder: Path) -> InputError:
    """Return the error for a folder with a config.json but no readable weights."""
    if (folder / RUN_TOML).is_file():
        what, hint = NOT_READABLE_YET, f"gpt train --resume --out {folder} continues it"
    elif (found := _pickled_in(folder)) is not None:
        what, hint = _file(found)
    else:
        what, hint = (
            "contains no model.safetensors",
            "copy or download it to the folder of its config.json",
        )
    return InputError(what, where=folder, hint=hint)


def is_model_file(path: Path) -> bool:
    """Tell whether a file is a model of nanoGPT or llm.c, by its ending and first bytes."""
    if not path.is_file() or path.name == PICKLED_WEIGHTS:
        return False
    with open(path, "rb") as file:
        head = file.read(8)
    if path.suffix == ".bin" and int.from_bytes(head[:4], "little") == LLMC_MODEL:
        return True
    return path.suffix in (".pt", ".pth", ".ckpt") and head.startswith(PICKLE_HEADS)


def _pickled_in(folder: Path) -> Path | None:
    """Return the first pickle in a folder by its name."""
    return next(
        (path for end in PICKLES for path in sorted(folder.glob(f"*{end}")) if path.is_file()),
        None,
    )


def _pickle(path: Path) -> tuple[str, str]:
    folder = path.parent
    if path.name == PICKLED_WEIGHTS and (folder / CONFIG).is_file():  # its weights
        return "is one file of a model; a model is a folder", f"name its folder: {folder}"
    return (
        f"is neither a checkpoint of nanoGPT (.pt) or llm.c (.bin), nor the {PICKLED_WEIGHTS} of a "
        "folder with a config.json",
        "load it with the program that wrote it, copy its weights into transformers' "
        "GPT2LMHeadModel, and call its save_pretrained(FOLDER)",
    )
