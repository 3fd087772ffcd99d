"""Functions of the library that combine several rooms; `import gptcli` names them.

Each does what the command of the same purpose does, from Python values instead of options.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, overload

from gptcli.errors import InputError, UsageError
from gptcli.evals.evaluate import evaluate
from gptcli.events import SILENT, Events
from gptcli.model.config import ModelConfig, find_size
from gptcli.numbers import counted
from gptcli.papers.models import TRAINING
from gptcli.sampling.defaults import MAX_TOKENS
from gptcli.sampling.load import Loaded, PrecisionChoice
from gptcli.sampling.load import load as _load
from gptcli.trainer.train import train

if TYPE_CHECKING:
    from gptcli.corpus.formats import DocumentKind
    from gptcli.cost.estimate import Estimate
    from gptcli.sampling.params import SamplingParams
    from gptcli.shards.manifest import Manifest
    from gptcli.tokenizer.tokenizer import Tokenizer

__all__ = [
    "build_shards",
    "estimate_cost",
    "evaluate",
    "export_model",
    "generate",
    "load_model",
    "train",
]

# formats of other programs that export_model does not write
WEIGHT_FILES = {
    ".bin", ".ckpt", ".json", ".onnx", ".pt", ".pth", ".safetensors", ".tar", ".txt", ".zip",
}  # fmt: skip

DEFAULT_GPU = "h100"


def build_shards(
    inputs: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    tokenizer: Tokenizer,
    documents: DocumentKind = "file",
    val_fraction: float = 0.001,
    seed: int = 0,
    workers: int = 1,
    resume: bool = False,
    force: bool = False,
    events: Events = SILENT,
) -> Manifest:
    """Turn text files into shuffled token shards in the folder `out`, and return their manifest.

    `inputs` are files or folders; `documents` says what is a document: "file", "line", "paragraph"
    or another kind of `gpt build-shards`. About `val_fraction` of the documents become the
    validation split. Raises UsageError, InputError or RunError.
    """
    from gptcli.corpus.build import begin_build, finish_build
    from gptcli.corpus.config import BuildConfig
    from gptcli.corpus.input_search import find_inputs
    from gptcli.corpus.recipe import SourceConfig
    from gptcli.locks import own_folder
    from gptcli.shards.manifest import read_manifest

    paths = [inputs] if isinstance(inputs, str | Path) else list(inputs)
    source = SourceConfig(inputs=find_inputs([str(path) for path in paths]), documents=documents)
    build = BuildConfig(sources=[source], tokenizer=tokenizer, val_fraction=val_fraction, seed=seed)
    out = Path(out)
    with own_folder(out, read_only=resume, events=events):
        if begin_build(build, out, resume=resume, force=force):
            return finish_build(build, out, workers=workers, events=events)
    return read_manifest(out)


def load_model(
    folder: str | Path,
    *,
    checkpoint: int | None = None,
    device: str = "auto",
    precision: PrecisionChoice = "auto",
    events: Events = SILENT,
) -> Loaded:
    """Load the model and tokenizer of a run, a transformers folder, a file of nanoGPT or llm.c, or
    a name on the Hub, such as "openai-community/gpt2", which is downloaded unless it is in the
    cache.

    An unfinished run gives its newest checkpoint, or that of step `checkpoint`. `.model` of the
    result is the `GPT`, `.tokenizer` its tokenizer. Raises UsageError for a device or precision
    that is not available here, InputError if the folder contains no complete model.
    """
    return _load(
        Path(folder), checkpoint=checkpoint, device=device, precision=precision, events=events
    )


def export_model(
    model: str | Path,
    out: str | Path,
    *,
    checkpoint: int | None = None,
    precision: str = "fp32",
    force: bool = False,
    events: Events = SILENT,
) -> None:
    """Write a model for other programs: to a GGUF file for llama.cpp if `out` ends in .gguf, or
    else to a folder for transformers.

    `model` and `checkpoint` as in `load_model`. `precision` is that of a GGUF file's matrices:
    "fp32", "fp16" or "bf16"; a folder is always in fp32. Rows that pad the vocabulary are left out.
    Existing output is replaced only with `force`. Raises UsageError if the model cannot be
    represented, InputError if it cannot be read.
    """
    import json
    from dataclasses import replace
    from typing import cast

    from gptcli.files import atomic_folder, check_output, claim_file, contents
    from gptcli.model.gguf import GgufPrecision, GgufVocabulary, write_gguf
    from gptcli.model.hf import HEAD, is_padded, read_model_config
    from gptcli.model.hub import fetch_model
    from gptcli.model.safetensors_io import read_weights, save_model
    from gptcli.model.source import find_model
    from gptcli.tokenizer.load import load_tokenizer

    out = Path(out)
    as_gguf = out.suffix == ".gguf"
    if out.suffix in WEIGHT_FILES and not out.is_dir():
        raise UsageError(
            f"no {out.suffix} file can be written",
            where=out,
            field="out",
            code="not_representable",
            hint="name a file that ends in .gguf for llama.cpp, or a folder for transformers",
        )
    if as_gguf:
        claim_file(out, force=force)
    else:
        if contents(out) and not force:
            raise UsageError(
                "the output folder is not empty",
                where=out,
                field="out",
                code="exists",
                hint="choose another one; {option:force} replaces it",
            )
        check_output(out, resume=False, force=force)
        if precision != "fp32":
            raise UsageError(
                f"a folder for transformers is written in fp32, not {precision}",
                field="precision",
                code="not_representable",
                hint="leave {option:precision} out, or name a file that ends in .gguf",
            )
    fetch_model(model, events)
    source = find_model(model, checkpoint)
    if source.folder.resolve().is_relative_to(out.resolve()):
        raise UsageError(
            "contains the model that is to be exported",
            where=out,
            field="out",
            code="exists",
            hint="choose another folder",
        )
    config, tokenizer = read_model_config(source.folder), load_tokenizer(source.folder)
    entries = tokenizer.vocab_size
    if config.vocab_size != entries and not is_padded(config.vocab_size, entries):
        raise InputError(
            f"the tokenizer has {counted(entries, 'token')}, but the model's vocabulary has "
            f"{config.vocab_size:,}",
            where=source.folder,
            hint="put the tokenizer.json that the model was trained with next to it",
        )
    config = replace(config, vocab_size=entries)
    events.info(f"writing {counted(config.parameters, 'parameter')} of {source} to {out}")
    weights = {
        name: tensor[:entries] if name in ("wte.weight", HEAD) else tensor
        for name, tensor in read_weights(source)
    }
    if not as_gguf:
        with atomic_folder(out) as folder:
            tokenizer.save_for_model(folder, config.n_ctx)
            end = -1 if tokenizer.eot_id is None else tokenizer.eot_id
            save_model(folder, weights, config, eot_id=end)
        return
    if config.gelu == "exact":
        events.warn(
            "llama.cpp computes GELU in its tanh form, and this model was trained with the exact "
            "one: logits differ by about 0.001"
        )
    vocabulary = GgufVocabulary.from_tokenizer_json(
        json.loads(tokenizer.to_json()), tokenizer.eot_id
    )
    write_gguf(
        out,
        weights,
        config,
        vocabulary,
        name=Path(model).resolve().name,
        precision=cast("GgufPrecision", precision),
        on_tensor=lambda done, total: events.progress("writing", done, total, unit="bytes"),
    )
    events.finish("writing")


@overload
def generate(
    model: Loaded | str | Path,
    prompt: str = "",
    *,
    params: SamplingParams | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> str: ...
@overload
def generate(
    model: Loaded | str | Path,
    prompt: list[str],
    *,
    params: SamplingParams | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> list[str]: ...
def generate(
    model: Loaded | str | Path,
    prompt: str | list[str] = "",
    *,
    params: SamplingParams | None = None,
    max_tokens: int = MAX_TOKENS,
    seed: int = 0,
    stops: Sequence[str] = (),
) -> str | list[str]:
    """Return the text that continues `prompt`, or a list of texts for a list of prompts.

    `model` is a result of `load_model`, or a folder to load. Generation ends at the end of the
    text, before one of the strings `stops`, or after `max_tokens` tokens. The text depends on
    `seed` and, in a list, on the position of the prompt. Raises UsageError or RunError.
    """
    from gptcli.sampling.generate import generate as generate_one

    loaded = model if isinstance(model, Loaded) else load_model(model)
    texts = [
        generate_one(
            loaded.model,
            loaded.tokenizer,
            text,
            params,
            max_tokens=max_tokens,
            seed=seed,
            sample_index=index,
            stops=stops,
        ).text
        for index, text in enumerate([prompt] if isinstance(prompt, str) else prompt)
    ]
    return texts[0] if isinstance(prompt, str) else texts


def estimate_cost(
    model: ModelConfig | str,
    *,
    tokens: int | None = None,
    gpus: int | None = None,
    gpu: str = DEFAULT_GPU,
    tflops: float | None = None,
    mfu: float | None = None,
    goodput: float | None = None,
    price: float | None = None,
    batch_tokens: int | None = None,
) -> Estimate:
    """Estimate FLOPs, time, energy and dollars of training a model; `as_dict()` is the JSON report.

    `model` is an architecture or the name of a paper's size. `tokens` defaults to the paper's, or
    to GPT-3's 300B, `batch_tokens` to the recipe's. `gpu` is a row of hardware.toml; its throughput
    is predicted unless `tflops` (in TFLOP/s) or `mfu` (a share of the peak) is given, for `gpus`
    GPUs or the fewest that hold the model. `price` is in dollars per GPU-hour. Raises UsageError if
    the values are impossible or the model does not fit.
    """
    from gptcli.cost.options import HardwareOptions
    from gptcli.cost.target import Target, estimate_target, find_target

    hardware = HardwareOptions(
        gpu=gpu,
        gpus=gpus,
        tflops=tflops,
        mfu=mfu,
        goodput=goodput,
        price=price,
        batch_tokens=batch_tokens,
    )
    if isinstance(model, str):
        find_size(model)  # a paper's size: other families have no architecture
        target = find_target(model)
    else:
        usual = TRAINING["GPT-3"].tokens
        target = Target("custom", model, usual, "assumed: as many as GPT-3")
    return estimate_target(target, tokens, hardware)
