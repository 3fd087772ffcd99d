"""Errors for paths that contain no readable model: what is there instead, and what to do.

The advice is to download, convert, name another folder, or finish a run. Only names and the first
bytes of files are examined. Imports no torch.
"""

from __future__ import annotations

from pathlib import Path

from gptcli.errors import InputError
from gptcli.files import similar
from gptcli.model.source import RUN_TOML

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
PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
WEIGHTS, SHARDS = "*.safetensors", "manifest.json"
# first int32 of llm.c's files
LLMC_MODEL, TOKEN_FILES = (20240326, 20240327), (20240520, 20240801)
# common names of local folders, which are not owners on the Hub
LOCAL = ("runs", "out", "output", "models", "checkpoints", "..", ".")
UNFINISHED = "the run has not ended and contains no readable model yet"
WHAT_IS_READ = (
    "a model is a run folder, or a transformers folder with config.json, model.safetensors and "
    "tokenizer.json"
)


def not_a_model_error(path: Path) -> InputError:
    """Return the error for a path that contains no model."""
    path = Path(path)
    if path.is_dir():
        what, hint = _folder(path)
    elif path.exists():
        what, hint = _file(path)
    else:
        what, hint = _missing(path)
    return InputError(what, where=path, hint=hint)


def _missing(path: Path) -> tuple[str, str]:
    name = str(path)
    if (close := similar(path)) is not None:
        return "no such folder", f"did you mean {close}?"
    if (local := Path("runs", name)).is_dir():
        return "no such folder", f"did you mean {local}?"
    owner, slash, _ = name.partition("/")
    if name in HUB:
        return (
            "no such folder; it is the name of a model on the Hub, which has to be downloaded",
            _download(HUB[name], name),
        )
    if slash and name.count("/") == 1 and owner not in LOCAL and not Path(owner).exists():
        return "no such folder; if it is a model on the Hub, download it first", _download(
            name, path.name
        )
    if name.startswith("~"):
        return "no such folder; the shell did not expand the ~", "remove the quotes around it"
    return "no such folder", WHAT_IS_READ


def _download(repository: str, folder: str) -> str:
    files = "config.json model.safetensors tokenizer.json"
    return f"hf download {repository} {files} --local-dir {folder}"


def _file(path: Path) -> tuple[str, str]:
    folder = path.parent
    if path.suffix in (".safetensors", ".json", ".toml", ".html", ".jsonl"):
        return "is one file of a model; a model is a folder", f"name its folder: {folder}"
    with open(path, "rb") as file:
        head = file.read(8)
    magic = int.from_bytes(head[:4], "little")
    if magic in TOKEN_FILES:
        return "is a token file, not a model", f"gpt train --data {folder} trains a model on it"
    if magic in LLMC_MODEL:
        return "is in llm.c's own format, which is not supported", _convert(
            "load it with llm.c's train_gpt2.py"
        )
    if head.startswith(b"GGUF"):
        return (
            "is a GGUF file, llama.cpp's format, which is not supported",
            f"use the weights that it was made from; {WHAT_IS_READ}",
        )
    if path.suffix in PICKLES or head.startswith(
        (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"PK\x03\x04")
    ):
        return _pickle(path)
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
    if next(path.glob(WEIGHTS), None) is not None:
        return (
            "contains weights but no config.json, which describes the model",
            "copy the config.json that belongs to the weights into it",
        )
    if (path / RUN_TOML).is_file():
        return UNFINISHED, f"gpt train --resume --out {path} continues it"
    if (found := _pickled_in(path)) is not None:
        return _file(found)
    if (found := next(path.glob("*.gguf"), None)) is not None:
        return _file(found)
    inside = sorted(
        str(config.parent)
        for depth in ("*", "*/*", "snapshots/*")
        for config in path.glob(f"{depth}/config.json")
    )
    if inside:
        return "contains no model itself", f"name one of the models in it: {', '.join(inside[:4])}"
    if (found := next(iter(sorted(path.glob("*/ckpt.pt"))), None)) is not None:
        return _pickle(found)
    if not any(path.iterdir()):
        return "is an empty folder", WHAT_IS_READ
    return "contains no config.json", WHAT_IS_READ


def no_weights_error(folder: Path) -> InputError:
    """Return the error for a folder with a config.json but no readable weights."""
    if (folder / RUN_TOML).is_file():
        what, hint = UNFINISHED, f"gpt train --resume --out {folder} continues it"
    elif (found := _pickled_in(folder)) is not None:
        what, hint = _file(found)
    else:
        what, hint = (
            "contains no model.safetensors",
            "copy or download it to the folder of its config.json",
        )
    return InputError(what, where=folder, hint=hint)


def _pickled_in(folder: Path) -> Path | None:
    """Return the first pickle in a folder by its name, nanoGPT's before others."""
    patterns = ("ckpt.pt", *(f"*{ending}" for ending in PICKLES))
    return next(
        (path for pattern in patterns for path in sorted(folder.glob(pattern)) if path.is_file()),
        None,
    )


def _pickle(path: Path) -> tuple[str, str]:
    what = f"{path.name} is a pickle, which can run arbitrary code and is never loaded"
    if path.name == "ckpt.pt":
        return f"{what}; it looks like a checkpoint of nanoGPT", _convert(
            "load it with nanoGPT's model.py"
        )
    folder = path.parent
    if not (folder / "config.json").is_file():
        return what, _convert("load it with the program that wrote it")
    return what, (
        'if you trust it, convert it: python -c "from transformers import AutoModelForCausalLM as '
        "M; "
        f"M.from_pretrained('{folder}').save_pretrained('{folder}-safetensors')\""
    )


def _convert(first: str) -> str:
    return (
        f"if you trust it, {first}, copy its weights into transformers' GPT2LMHeadModel, and call "
        "its save_pretrained(FOLDER)"
    )
