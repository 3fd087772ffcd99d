"""The running text that a loss is taken on: validation shards and text files, as tokens; and the
bytes that tokens spell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from gptcli.errors import InputError
from gptcli.files import read_exact_text, read_toml
from gptcli.model.source import CHECKPOINTS, RUN_TOML
from gptcli.shards.loader import TokenStream, open_split
from gptcli.shards.manifest import read_manifest
from gptcli.tokenizer.tokenizer import Tokenizer


def own_shards(run: Path) -> Path:
    """The shard folder that a run was trained on, by its run.toml. Raises InputError where it is
    not named, or not there any more.
    """
    path = run / RUN_TOML
    hint = "name shards with {option:data}, or a text file with {option:text}"
    if not path.is_file() and (run / CHECKPOINTS).is_dir():
        why = "is a fine-tuning that is not finished: its accuracy so far is in metrics.jsonl"
        raise InputError(
            why,
            where=run,
            hint="gpt train --finetune --resume goes on with it; {option:text} FILE scores its "
            "language model",
        )
    if not path.is_file():
        raise InputError(
            f"has no {RUN_TOML} that would name its validation shards", where=run, hint=hint
        )
    try:
        data = read_toml(path).get("data")
    except InputError as error:
        raise InputError(error.what, where=path, hint=hint) from None
    if not isinstance(data, str):
        raise InputError("names no data", where=path, hint=hint)
    if not Path(data).is_dir():
        raise InputError(f"the run's data, {data}, is not here", where=path, hint=hint)
    return Path(data)


def shard_tokens(folder: Path, tokenizer: Tokenizer) -> TokenStream:
    """The validation split of a shard folder, checked. Raises InputError where another tokenizer
    made it.
    """
    if read_manifest(folder).tokenizer_sha256 != tokenizer.sha256:
        raise InputError(
            "these shards were built with another tokenizer than the model's", where=folder
        )
    return open_split(folder, "val")


def streams_of(
    run: Path, texts: Sequence[Path], data: Path | None, tokenizer: Tokenizer, *, tasks: bool
) -> dict[str, TokenStream | np.ndarray]:
    """The running text that an evaluation reads, by name: validation shards, those of `data` or the
    run's own, unless `texts` or tasks were asked for instead; then `texts`. Raises InputError as
    those that read them."""
    streams: dict[str, TokenStream | np.ndarray] = {}
    if not tasks and (data is not None or not texts):
        shards = data or own_shards(run)
        streams[f"{shards} (val)"] = shard_tokens(shards, tokenizer)
    return streams | {str(path): text_tokens(path, tokenizer) for path in texts}


def text_tokens(path: Path, tokenizer: Tokenizer) -> np.ndarray:
    """A text file as tokens, end-of-text in front, so that its first token is scored too. Raises
    InputError where it is not UTF-8.
    """
    text = read_exact_text(path)
    start = [] if tokenizer.eot_id is None else [tokenizer.eot_id]
    return np.array(start + tokenizer.encode(text), dtype=np.int64)


def token_bytes(tokenizer: Tokenizer) -> np.ndarray:
    """UTF-8 bytes that each token spells, (V,); end-of-text spells none."""
    return np.array(
        [
            0 if token == tokenizer.eot_id else len(tokenizer.decode_bytes([token]))
            for token in range(tokenizer.vocab_size)
        ]
    )
