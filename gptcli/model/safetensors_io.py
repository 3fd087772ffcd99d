"""Saving and loading of models in the format of transformers: a run folder can be loaded by it.

A dense model is saved as a GPT-2, or as a GPT-1 if it is post-norm, to the bit. A banded model is
saved as a GPT-Neo, which computes the same function from other numbers (`gptcli.model.gpt_neo`).
Its exact weights are saved too, in `native.safetensors`; they are loaded as long as the GPT-Neo
file is the one that was written with them.

`gptcli.model.hf` maps names and layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
import torch.nn.functional as F

from gptcli.errors import InputError, message_of
from gptcli.events import SILENT, Events
from gptcli.files import atomic_write, sha256, write_json
from gptcli.model.config import NORM_EPS, ModelConfig
from gptcli.model.external import read_file_weights
from gptcli.model.gpt_neo import from_gpt_neo, layer_to_gpt_neo, to_gpt_neo
from gptcli.model.hf import (
    HEAD,
    NEO,
    Tensors,
    from_hf,
    model_type,
    read_model_config,
    read_model_type,
    read_release,
    to_hf,
    to_transformers,
)
from gptcli.model.source import (
    CONFIG,
    UNFINISHED,
    WEIGHTS,
    WEIGHTS_INDEX,
    ModelSource,
    checkpoint_digest,
    damage,
    find_model,
    is_model_file,
    step_folders,
)
from gptcli.model.tensor_file import (
    CheckpointStateDict,
    open_tensors,
    read_file_tensors,
    read_folder_tensors,
    unreadable_error,
    write_tensors,
)
from gptcli.model.transformer import GPT, Block, without_values
from gptcli.numbers import counted

GENERATION, NATIVE = "generation_config.json", "native.safetensors"
TWIN = "twin_sha256"
"""Key in the header of the native file: SHA-256 of the GPT-Neo file that it belongs to."""
NEO_TOLERANCE = 1e-3
"""Largest accepted difference of a GPT-Neo's logits, in fp32."""
PROBE_TOKENS = 512
"""Random tokens on which this difference is measured."""
EMBEDDING = "wte.weight"


def save_model(
    folder: Path,
    state: GPT | Mapping[str, torch.Tensor],
    config: ModelConfig,
    *,
    eot_id: int | None = None,
    report: dict[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json and the weights in fp32, model.safetensors last.

    Each file is written atomically. `state` may be a mapping that loads each CPU tensor on access:
    only one is in memory at a time, or one layer of a banded model. `eot_id` is the end-of-text
    token, at which generation starts and stops: by default the last one, as in GPT-2, and none if
    it is negative. `report` is
    the `neo_report` of a banded model if it is already known.
    """
    tensors = (
        {name: tensor.cpu() for name, tensor in state.state_dict().items()}
        if isinstance(state, GPT)
        else state
    )
    names = _blank(config)
    twin = model_type(config) == NEO
    if twin and report is None:
        report = neo_report(tensors, config)
    folder = Path(folder)
    with atomic_write(folder / WEIGHTS) as file:  # renamed to its final name last
        digest = _write(file, to_gpt_neo if twin else to_hf, names, tensors, config)
        if twin:
            with atomic_write(folder / NATIVE) as native:
                _write(native, to_hf, names, tensors, config, {TWIN: digest})
        save_config(folder, config, eot_id=eot_id, report=report)


def save_config(
    folder: Path,
    config: ModelConfig,
    *,
    eot_id: int | None = None,
    report: dict[str, Any] | None = None,
) -> None:
    """Write config.json and generation_config.json as `save_model` does."""
    end = config.vocab_size - 1 if eot_id is None else eot_id if eot_id >= 0 else None
    table = to_transformers(config, end)
    write_json(folder / CONFIG, table if report is None else {**table, "gpt_export": report})
    write_json(
        folder / GENERATION,
        {"bos_token_id": end, "eos_token_id": end, "do_sample": True, "top_k": 40},
    )


def save_unfinished(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: ModelConfig, step: int
) -> None:
    """Write a checkpoint's weights in the format of transformers, and the index that names them.

    The metadata of the file contains the step. The file is replaced atomically and the index never
    changes, so that the folder can be loaded at any time after the first call.
    """
    form, names = to_gpt_neo if model_type(config) == NEO else to_hf, _blank(config)
    with atomic_write(folder / UNFINISHED) as file:
        _write(file, form, names, tensors, config, {"step": str(step)})
    like = dict(form(names, names.__getitem__, config))
    size = sum(tensor.nbytes for tensor in like.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(like, UNFINISHED)}
    if not (folder / WEIGHTS_INDEX).is_file():
        write_json(folder / WEIGHTS_INDEX, index)


def remove_unfinished(folder: Path) -> None:
    """Remove the files of `save_unfinished`, once the finished model exists."""
    # in this order, so that the index never names a missing file
    for name in (WEIGHTS_INDEX, UNFINISHED):
        (folder / name).unlink(missing_ok=True)


def _write(
    file: IO[bytes],
    form: Callable[..., Iterator[tuple[str, torch.Tensor]]],
    names: Tensors,
    tensors: Mapping[str, torch.Tensor],
    config: ModelConfig,
    metadata: dict[str, str] | None = None,
) -> str:
    """Write tensors converted by `form` and return the SHA-256 of the file."""
    like = dict(form(names, names.__getitem__, config))
    return write_tensors(
        file, like, (tensor for _, tensor in form(names, tensors.__getitem__, config)), metadata
    )


def _blank(config: ModelConfig) -> Tensors:
    """Return all tensors of the model, on the meta device."""
    with without_values():
        return GPT(config).state_dict()


@torch.no_grad()
def neo_report(tensors: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, Any]:
    """Return the difference of the logits of a banded model and its GPT-Neo.

    It is measured in fp32 on random tokens and compared with NEO_TOLERANCE. Both models run layer
    by layer, so that only one layer of each is in memory.
    """
    T = min(config.n_ctx, PROBE_TOKENS)
    idx = torch.randint(config.vocab_size, (1, T), generator=torch.Generator().manual_seed(0))
    names = _blank(config)
    ours = neo = F.embedding(idx, tensors["wte.weight"].float()) + tensors["wpe.weight"][:T].float()
    for layer in range(config.n_layer):
        at = f"h.{layer}."
        ours = _layer(
            layer, {name: tensors[name].float() for name in names if name.startswith(at)}, config
        )(ours)
        neo = _layer(
            layer,
            dict(from_gpt_neo(layer_to_gpt_neo(layer, names, tensors.__getitem__, config), config)),
            config,
        )(neo)
    gain, bias = (tensors[f"ln_f.{part}"].float() for part in ("weight", "bias"))
    head = tensors["wte.weight" if config.tied else HEAD].float()
    ours, neo = (
        F.layer_norm(x, (config.d_model,), gain, bias, NORM_EPS) @ head.T for x in (ours, neo)
    )
    error = (ours - neo).abs().max().item()
    verdict = "within" if error <= NEO_TOLERANCE else "NOT within"
    note = (
        f"as GPT-Neo, logits differ from the trained model's by at most {error:.1e} on {T} random "
        f"tokens, {verdict} {NEO_TOLERANCE:g}"
    )
    return {
        "note": f"{note}; {NATIVE} holds the trained model itself",
        "logit_error": error,
        "tolerance": NEO_TOLERANCE,
    }


def _layer(layer: int, tensors: Tensors, config: ModelConfig) -> Block:
    """Return a layer for inference, from tensors under their full names."""
    with without_values():
        block = Block(config, layer)
    block.load_state_dict(
        {name.removeprefix(f"h.{layer}."): tensor for name, tensor in tensors.items()}, assign=True
    )
    return block.eval()


def load_model(
    folder: Path,
    *,
    step: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GPT:
    """Return the model of a folder in evaluation mode.

    The folder is a run, a transformers model (GPT-1, GPT-2 or GPT-Neo), OpenAI's release of GPT-1,
    a file of nanoGPT or llm.c, or a name in the Hub's cache. An unfinished run is loaded from its
    newest checkpoint, or from that of `step`. Raises InputError if files are missing or broken, or
    tensors do not fit the configuration.
    """
    return open_model(folder, step=step, device=device, dtype=dtype)[0]


def open_model(
    folder: Path,
    *,
    step: int | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    events: Events = SILENT,
) -> tuple[GPT, ModelSource]:
    """Return the model of a folder as `load_model` does, and the location of its weights.

    If a running training removes the checkpoint meanwhile, the newest remaining one is loaded. If a
    checkpoint is broken, the one before it is loaded, with a warning.
    """
    skip: set[int] = set()
    requested = step is not None or find_model(folder).folder != Path(folder)
    while True:
        source = find_model(folder, step, skip=skip)
        try:
            if source.checkpoint is not None:
                source = replace(source, digest=checkpoint_digest(source.checkpoint))
            state = {
                name: tensor.to(device, dtype).contiguous() for name, tensor in read_weights(source)
            }
            return assemble(state, read_model_config(source.folder)), source
        except (InputError, OSError) as error:
            if source.checkpoint is None or source.step is None:
                raise
            skip.add(source.step)
            if source.checkpoint.is_dir():
                if requested:
                    raise
                earlier = step_folders(source.folder).keys() - skip
                events.warn(
                    damage(source.checkpoint, message_of(error), max(earlier, default=None))
                )


def assemble(state: Tensors, config: ModelConfig) -> GPT:
    """Return a model with these weights in evaluation mode; a tied head may be missing."""
    with without_values():
        model = GPT(config)
    model.load_state_dict({**state, HEAD: state[EMBEDDING]} if config.tied else state, assign=True)
    if config.tied:
        model.lm_head.weight = model.wte.weight
    return model.eval()


def read_weights(where: Path | ModelSource) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a folder, lazily, one tensor in memory at a time.

    A matrix shared by embedding and head may be stored under either name. Raises InputError as
    `load_model` does; if a tensor is missing, at the end.
    """
    source = where if isinstance(where, ModelSource) else find_model(where)
    folder, config = source.folder, read_model_config(source.folder)
    if source.checkpoint is not None:
        return _checked(
            _enough(CheckpointStateDict(source.checkpoint), config, source.checkpoint).items(),
            config,
            source.checkpoint,
        )
    if is_model_file(folder):
        return _checked(read_file_weights(folder), config, folder)
    if not (folder / CONFIG).is_file():
        return _checked(read_release(folder, config), config, folder)
    neo = read_model_type(folder) == NEO
    native = _read_native(folder) if neo else None
    stored = _enough(read_folder_tensors(folder) if native is None else native, config, folder)
    return _checked(
        (from_gpt_neo if neo and native is None else from_hf)(_tie(stored, config, folder), config),
        config,
        folder,
    )


def _tie(stored: Mapping[str, torch.Tensor], config: ModelConfig, where: Path) -> Tensors:
    """Return the stored tensors with a tied head stored once, as the embedding.

    Raises InputError if a head differs from the embedding that it is tied to, because either may be
    the trained one.
    """
    names = (
        EMBEDDING,
        f"transformer.{EMBEDDING}",
        "tokens_embed.weight",
        "transformer.tokens_embed.weight",
    )
    embedding = next((name for name in names if name in stored), None)
    if not config.tied or HEAD not in stored:
        return dict(stored)
    rest = {name: tensor for name, tensor in stored.items() if name != HEAD}
    # safetensors' save_model keeps one name of a shared tensor, which may be that of the head
    if embedding is None:
        return {names[2] if config.norm == "post" else names[0]: stored[HEAD], **rest}
    if not torch.equal(stored[HEAD], stored[embedding]):
        raise InputError(
            f"the head ({HEAD}) differs from the embedding, although the configuration ties them "
            "(tie_word_embeddings)",
            where=where,
            hint=f'to use this head, write "tie_word_embeddings": false into {where / CONFIG}',
        )
    return rest


def _enough(
    tensors: Mapping[str, torch.Tensor], config: ModelConfig, where: Path
) -> Mapping[str, torch.Tensor]:
    """Return the same tensors. Raises InputError if they are too few for the configuration.

    This comes before any module is created, whose number the configuration determines.
    """
    if config.n_layer > len(tensors):
        raise InputError(
            f"{counted(len(tensors), 'tensor')} are too few for the "
            f"{counted(config.n_layer, 'layer')} of the "
            "configuration",
            where=where,
        )
    return tensors


def _checked(
    tensors: Iterable[tuple[str, torch.Tensor]], config: ModelConfig, where: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the tensors, checked against the configuration.

    Raises InputError for a tensor that is unknown or has the wrong shape; if one is missing, at the
    end.
    """
    expected = {name: tensor.shape for name, tensor in _blank(config).items()}
    missing = expected.keys() - ({HEAD} if config.tied else set())
    loaded = set()
    for name, tensor in tensors:
        if name in loaded:
            raise InputError(f"tensor {name} is stored twice, under two names", where=where)
        loaded.add(name)
        if name not in expected:
            raise InputError(f"tensor {name} is not part of this model", where=where)
        if tensor.shape != expected[name]:
            raise InputError(
                f"tensor {name} has the shape {list(tensor.shape)}; the configuration requires "
                f"{list(expected[name])}",
                where=where,
                hint=f"{CONFIG} beside it is that of another model, or was changed",
            )
        missing.discard(name)
        yield name, tensor
    if missing:
        raise InputError(f"tensor {min(missing)} is missing", where=where)


def _read_native(folder: Path) -> Tensors | None:
    """Return the exact weights of a banded model, or None if they do not match its GPT-Neo file."""
    from safetensors import SafetensorError

    if not (folder / NATIVE).is_file() or not (folder / WEIGHTS).is_file():
        return None
    try:
        with open_tensors(folder / NATIVE) as file:
            twin = (file.metadata() or {}).get(TWIN)
    except SafetensorError as error:
        raise unreadable_error(folder / NATIVE, error) from None
    return read_file_tensors(folder, NATIVE) if twin == sha256(folder / WEIGHTS) else None
