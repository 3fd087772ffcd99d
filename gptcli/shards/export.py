"""The tokens of a shard folder for other programs. Megatron and llm.c read the shards as they are; nanoGPT wants one bare file a split."""

from __future__ import annotations

from pathlib import Path

from gptcli.errors import UsageError
from gptcli.files import atomic_write
from gptcli.shards.format import open_shard, token_dtype
from gptcli.shards.manifest import SPLITS, read_manifest

FORMATS = ("shards", "nanogpt")
CHUNK = 1 << 24  # tokens copied together


def export_nanogpt(folder: Path) -> list[Path]:
    """Write train.bin and val.bin beside the shards: their tokens end to end as uint16, without a header.

    Raises UsageError where the vocabulary does not fit into uint16.
    """
    manifest = read_manifest(folder)
    if token_dtype(manifest.vocab_size).itemsize != 2:
        raise UsageError(f"nanoGPT reads uint16, and a vocabulary of {manifest.vocab_size} does not fit", where="--format")
    written = []
    for split in SPLITS:
        with atomic_write(folder / f"{split}.bin") as file:
            for shard in manifest.of(split):
                tokens = open_shard(folder / shard.file)
                for start in range(0, len(tokens), CHUNK):
                    file.write(tokens[start : start + CHUNK].tobytes())
        written.append(folder / f"{split}.bin")
    return written
