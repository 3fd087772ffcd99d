"""Weights in and out of the transformers layouts, so that a run folder is a transformers folder and
a transformers folder is a run.

A dense model is a GPT-2, or a GPT-1 where it is post-norm: the same numbers to the bit. A banded
one leaves as a GPT-Neo, which computes the same function from other numbers (`gptcli.model.gpt_neo`):
`native.safetensors` beside it holds ours, exactly, and is what is read back, as long as the file
beside it is the one that was written with it.

Rows of queries, keys and values go head after head here, all queries before all keys before all
values on disk (`gptcli.model.hf`).
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
from gptcli.files import atomic_write, read_json, sha256, write_json
from gptcli.model.checkpoint_tensors import SavedModel
from gptcli.model.config import NORM_EPS, ModelConfig
from gptcli.model.gpt_neo import from_neo, layer_to_neo, to_neo
from gptcli.model.hf import HEAD, Tensors, from_stored, read_release, to_stored
from gptcli.model.hf_config import (
    CONFIG,
    NEO,
    family,
    read_family,
    read_model_config,
    to_transformers,
)
from gptcli.model.not_a_model import no_weights
from gptcli.model.source import (
    UNFINISHED,
    WEIGHTS,
    WEIGHTS_INDEX,
    ModelSource,
    checkpoint_digest,
    find_model,
)
from gptcli.model.tensor_file import open_tensors, unreadable, write_tensors
from gptcli.model.transformer import GPT, Block

GENERATION, NATIVE = "generation_config.json", "native.safetensors"
TWIN = "twin_sha256"  # in the native file's header: of the GPT-Neo file that it belongs to
NEO_TOLERANCE = 1e-3  # of a GPT-Neo's logits, in fp32, against ours
PROBE_TOKENS = 512
EMBEDDING = "wte.weight"


def save_model(
    folder: Path,
    state: GPT | Mapping[str, torch.Tensor],
    config: ModelConfig,
    *,
    eot_id: int | None = None,
    report: dict[str, Any] | None = None,
) -> None:
    """Write config.json, generation_config.json and the weights (fp32, each file atomic) into
    `folder`, model.safetensors last.

    A mapping, of tensors in host memory, may read them when they are asked for: no more than one is
    held at a time, of a banded model one layer's. `eot_id` is the tokenizer's end-of-text, which
    generation starts from and stops at; GPT-2's, the last id, where not given. `report` is a banded
    model's `neo_report`, where it has been made already.
    """
    tensors = (
        {name: tensor.cpu() for name, tensor in state.state_dict().items()}
        if isinstance(state, GPT)
        else state
    )
    names = _blank(config)
    twin = family(config) == NEO
    if twin and report is None:
        report = neo_report(tensors, config)
    folder = Path(folder)
    with atomic_write(folder / WEIGHTS) as file:  # which takes its name after all the others
        digest = _write(file, to_neo if twin else to_stored, names, tensors, config)
        if twin:
            with atomic_write(folder / NATIVE) as native:
                _write(native, to_stored, names, tensors, config, {TWIN: digest})
        save_config(folder, config, eot_id=eot_id, report=report)


def save_config(
    folder: Path,
    config: ModelConfig,
    *,
    eot_id: int | None = None,
    report: dict[str, Any] | None = None,
) -> None:
    """Write config.json and generation_config.json, as `save_model` does."""
    end = config.vocab_size - 1 if eot_id is None else eot_id
    table = to_transformers(config, end)
    write_json(folder / CONFIG, table if report is None else {**table, "gpt_export": report})
    write_json(
        folder / GENERATION,
        {"bos_token_id": end, "eos_token_id": end, "do_sample": True, "top_k": 40},
    )


def save_unfinished(
    folder: Path, tensors: Mapping[str, torch.Tensor], config: ModelConfig, step: int
) -> None:
    """Write a checkpoint's weights as transformers reads them, into a file whose metadata holds the
    step, and the index that names it.

    The file is replaced in one move and the index is always the same, so that the folder loads at
    every moment from the first time on.
    """
    form, names = to_neo if family(config) == NEO else to_stored, _blank(config)
    with atomic_write(folder / UNFINISHED) as file:
        _write(file, form, names, tensors, config, {"step": str(step)})
    like = dict(form(names, names.__getitem__, config))
    size = sum(tensor.nbytes for tensor in like.values())
    index = {"metadata": {"total_size": size}, "weight_map": dict.fromkeys(like, UNFINISHED)}
    if not (folder / WEIGHTS_INDEX).is_file():
        write_json(folder / WEIGHTS_INDEX, index)


def remove_unfinished(folder: Path) -> None:
    """Remove what `save_unfinished` wrote: the finished model is there."""
    # in this order: the index never names a file that is gone
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
    """Our tensors in a `form` that their file has; returns its SHA-256."""
    like = dict(form(names, names.__getitem__, config))
    return write_tensors(
        file, like, (tensor for _, tensor in form(names, tensors.__getitem__, config)), metadata
    )


def _blank(config: ModelConfig) -> Tensors:
    """Every tensor of the model, without memory."""
    with torch.device("meta"):
        return GPT(config).state_dict()


@torch.no_grad()
def neo_report(tensors: Mapping[str, torch.Tensor], config: ModelConfig) -> dict[str, Any]:
    """How far the GPT-Neo's logits are from ours, measured in fp32 on tokens drawn at random, and
    whether that is within tolerance. Both are run layer by layer, so that no more than a layer of
    each is held."""
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
            dict(from_neo(layer_to_neo(layer, names, tensors.__getitem__, config), config)),
            config,
        )(neo)
    gain, bias = (tensors[f"ln_f.{part}"].float() for part in ("weight", "bias"))
    head = tensors["wte.weight" if config.tied else HEAD].float()
    ours, neo = (
        F.layer_norm(x, (config.d_model,), gain, bias, NORM_EPS) @ head.T for x in (ours, neo)
    )
    error = (ours - neo).abs().max().item()
    verdict = "within" if error <= NEO_TOLERANCE else "NOT within"
    note = f"as GPT-Neo, logits differ from the trained model's by at most {error:.1e} on {T} random tokens, {verdict} {NEO_TOLERANCE:g}"
    return {
        "note": f"{note}; {NATIVE} holds the trained model itself",
        "logit_error": error,
        "tolerance": NEO_TOLERANCE,
    }


def _layer(layer: int, tensors: Tensors, config: ModelConfig) -> Block:
    """A layer of the model, for inference, of its tensors under their whole names."""
    with torch.device("meta"):
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
    """The model of a run folder, of a transformers folder (GPT-1, GPT-2, GPT-Neo), or of OpenAI's
    release of GPT-1, ready for inference; of an unfinished run its newest checkpoint's, or that of
    `step`.

    Raises InputError where files are missing or broken, or tensors do not fit the configuration.
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
    """`load_model`, and where its weights were found.

    A run that is going on may remove a checkpoint while it is read: then the newest of those there
    are is read. One that is broken is passed over for the one before it, with a warning.
    """
    skip: set[int] = set()
    asked = step is not None or find_model(folder).folder != Path(folder)
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
            if source.checkpoint.is_dir():
                if asked:
                    raise
                events.warn(
                    f"{source.checkpoint}: {message_of(error)}: reading the checkpoint before it"
                )
            skip.add(source.step)


def assemble(state: Tensors, config: ModelConfig) -> GPT:
    """The model of these tensors, ready for inference; a tied head need not be among them."""
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict({**state, HEAD: state[EMBEDDING]} if config.tied else state, assign=True)
    if config.tied:
        model.lm_head.weight = model.wte.weight
    return model.eval()


def read_weights(where: Path | ModelSource) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of such a folder by the model's names, each made when its turn comes: who takes
    some of them holds no others.

    Of a model whose head is the embedding, the tensor may be stored under either name. Raises
    InputError as `load_model`; of a tensor that is missing at the end.
    """
    source = where if isinstance(where, ModelSource) else find_model(where)
    folder, config = source.folder, read_model_config(source.folder)
    if source.checkpoint is not None:
        return _checked(
            _enough(SavedModel(source.checkpoint), config, source.checkpoint).items(),
            config,
            source.checkpoint,
        )
    if not (folder / CONFIG).is_file():
        return _checked(read_release(folder, config), config, folder)
    neo = read_family(folder) == NEO
    native = _read_native(folder) if neo else None
    stored = _enough(_read_tensors(folder) if native is None else native, config, folder)
    return _checked(
        (from_neo if neo and native is None else from_stored)(_tie(stored, config, folder), config),
        config,
        folder,
    )


def _tie(stored: Mapping[str, torch.Tensor], config: ModelConfig, where: Path) -> Tensors:
    """The stored tensors, with one tensor for the embedding and a head tied to it.

    Raises InputError if the head differs from the embedding to which the configuration ties it:
    either may be the one that was trained.
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
    # safetensors' save_model keeps one name of a shared tensor, and not always this one
    if embedding is None:
        return {names[2] if config.norm == "post" else names[0]: stored[HEAD], **rest}
    if not torch.equal(stored[HEAD], stored[embedding]):
        raise InputError(
            f"holds a head ({HEAD}) other than its embedding, and the configuration says that they are one (tie_word_embeddings)",
            where=where,
            hint=f'to use that head, write "tie_word_embeddings": false in {where / CONFIG}',
        )
    return rest


def _enough(
    tensors: Mapping[str, torch.Tensor], config: ModelConfig, where: Path
) -> Mapping[str, torch.Tensor]:
    """The same tensors. Raises InputError if they are too few, before as many modules are made as a
    configuration says.
    """
    if config.n_layer > len(tensors):
        raise InputError(
            f"holds {len(tensors)} tensors, too few for the {config.n_layer:,} layers of the configuration",
            where=where,
        )
    return tensors


def _checked(
    tensors: Iterable[tuple[str, torch.Tensor]], config: ModelConfig, where: Path
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as they come. Raises InputError where one has no place in the model or the wrong
    shape, or is missing at the end.
    """
    expected = {name: tensor.shape for name, tensor in _blank(config).items()}
    missing = expected.keys() - ({HEAD} if config.tied else set())
    seen = set()
    for name, tensor in tensors:
        if name in seen:
            raise InputError(f"tensor {name} is stored twice, under two names", where=where)
        seen.add(name)
        if name not in expected:
            raise InputError(f"tensor {name} has no place in this model", where=where)
        if tensor.shape != expected[name]:
            raise InputError(
                f"tensor {name} is {list(tensor.shape)}, the configuration says {list(expected[name])}",
                where=where,
            )
        missing.discard(name)
        yield name, tensor
    if missing:
        raise InputError(f"tensor {min(missing)} is missing", where=where)


def _read_native(folder: Path) -> Tensors | None:
    """The trained model beside its GPT-Neo twin; None where there is none, or the twin has been
    replaced since.
    """
    from safetensors import SafetensorError

    if not (folder / NATIVE).is_file() or not (folder / WEIGHTS).is_file():
        return None
    try:
        with open_tensors(folder / NATIVE) as file:
            twin = (file.metadata() or {}).get(TWIN)
    except SafetensorError as error:
        raise unreadable(folder / NATIVE, error) from None
    return _read_file(folder, NATIVE) if twin == sha256(folder / WEIGHTS) else None


def _read_tensors(folder: Path) -> Tensors:
    """All tensors of model.safetensors, or of the files its index names."""
    index = folder / WEIGHTS_INDEX
    files = [WEIGHTS]
    if not (folder / WEIGHTS).is_file():
        if not index.is_file():
            raise no_weights(folder)
        files = _indexed(index)
    tensors: Tensors = {}
    for file in files:
        found = _read_file(folder, file)
        if twice := sorted(found.keys() & tensors.keys()):
            raise InputError(
                f"tensor {twice[0]} is in another of the files too",
                where=folder / file,
                hint="download or copy them again",
            )
        tensors |= found
    return tensors


def _indexed(index: Path) -> list[str]:
    """The files that an index of weights names. Raises InputError if they are not files of its
    folder.
    """
    table = read_json(index)
    named = table.get("weight_map") if isinstance(table, dict) else None
    files = (
        set(named.values())
        if isinstance(named, dict) and all(isinstance(file, str) for file in named.values())
        else set()
    )
    if not files or any(Path(file).name != file for file in files):
        raise InputError("the index names no files of this folder", where=index)
    return sorted(files)


def _read_file(folder: Path, file: str) -> Tensors:
    """Each tensor of a file, mapped for itself: of what is copied from it, memory holds one at a
    time.
    """
    from safetensors import SafetensorError

    try:
        with open_tensors(folder / file) as whole:
            names = list(whole.keys())
        tensors = {}
        for name in names:
            with open_tensors(folder / file) as alone:
                tensors[name] = alone.get_tensor(name)
        return tensors
    except FileNotFoundError:
        raise InputError(
            f"no {file} here, which the weights' index names",
            where=folder,
            hint="download or copy it again",
        ) from None
    except (SafetensorError, ValueError) as error:
        raise unreadable(folder / file, error) from None
