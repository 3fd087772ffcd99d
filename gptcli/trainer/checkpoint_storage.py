"""Storage of torch.distributed.checkpoint (DCP) in safetensors files with a JSON index.

DCP plans which rank writes and reads what under any layout; its own storage would keep the index as
a pickle. Here every rank writes its pieces of tensors to files of its own, and `index.json` maps
every tensor to its pieces. Names are the plain model's:
`h.0.mlp.c_fc.weight` for a parameter, `h.0.mlp.c_fc.weight/exp_avg` for optimizer state.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from gptcli.distributed.context import RankContext
from gptcli.files import sha256, write_json
from gptcli.model.source import INDEX, MODEL
from gptcli.model.tensor_file import (
    AVERAGE,
    DTYPES,
    OPTIMIZER,
    open_tensors,
    read_index,
    write_tensors,
)

METADATA_BYTES = 1 << 20  # disk space for the headers and the index

WRITE_BYTES = 4 << 20  # size of one write to disk
ALIGN_BYTES = 4096  # offsets and lengths of direct writes are multiples of this

Table = dict[str, Any]


def tensor_file_name(name: str, context: RankContext) -> str:
    """Return the name of the file that gets this rank's piece of a tensor.

    It matches `gptcli.model.tensor_file.FILE`.
    """
    kind = OPTIMIZER if "/" in name and not name.endswith(AVERAGE) else MODEL
    return (
        f"{kind}.safetensors"
        if context.world_size == 1
        else f"{kind}-{context.rank:05d}-of-{context.world_size:05d}.safetensors"
    )


class CheckpointWriter(StorageWriter):
    """DCP writer of one checkpoint into `folder`.

    On the main rank it calls `finish` with the SHA-256 of every file, once all are on disk.
    """

    def __init__(
        self, folder: Path, context: RankContext, finish: Callable[[dict[str, str]], None]
    ) -> None:
        self.folder, self.context, self.finished = folder, context, finish

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a writer is used once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Do nothing: `context` tells the main rank."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Return the rank's plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Create the empty folder, on the main rank and before any rank writes.

        Raises OSError if the disk lacks the space for the checkpoint.
        """
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        needed = METADATA_BYTES + sum(
            item.tensor_storage_size() or 0 for plan in plans for item in plan.items
        )
        if (free := shutil.disk_usage(self.folder).free) < needed:
            raise OSError(errno.ENOSPC, f"{needed:,} bytes are needed and {free:,} are free")
        return plans

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write this rank's pieces, one file for weights and one for optimizer state."""
        self.folder.mkdir(parents=True, exist_ok=True)  # another machine may not see it yet
        files = defaultdict(list)
        for item in plan.items:
            files[tensor_file_name(item.index.fqn, self.context)].append(item)
        results = []
        for file, items in files.items():
            tensors: dict[str, Any] = {item.index.fqn: planner.resolve_data(item) for item in items}
            digest = write_file(self.folder / file, tensors)
            results += [
                WriteResult(item.index, item.tensor_storage_size() or 0, (file, digest))
                for item in items
            ]
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Write the index, on the main rank, after all ranks have written."""
        index: dict[str, Table] = {}
        for result in (result for part in results for result in part):
            tensor: Any = metadata.state_dict_metadata[result.index.fqn]
            row = {
                "dtype": DTYPES[tensor.properties.dtype],
                "size": list(tensor.size),
                "pieces": [],
            }
            chunk = tensor.chunks[result.index.index]
            piece = {
                "file": result.storage_data[0],
                "offset": list(chunk.offsets),
                "size": list(chunk.sizes),
            }
            index.setdefault(result.index.fqn, row)["pieces"].append(piece)
        write_json(self.folder / INDEX, index)
        digests = dict(result.storage_data for part in results for result in part)
        self.finished({**digests, INDEX: sha256(self.folder / INDEX)})

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return True: the folder is not checked here."""
        return True


class CheckpointReader(StorageReader):
    """DCP reader of the pieces that a rank needs, whatever layout wrote them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[MetadataIndex, str] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Do nothing: a reader is used once."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """Return the description of all tensors."""
        return Metadata({**self.tensors()})

    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """Return the checkpoint's tensors by name. Raises InputError as `read_index` does."""
        tensors: dict[str, TensorStorageMetadata] = {}
        for name, saved in read_index(self.folder).items():
            chunks = [
                ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.size))
                for piece in saved.pieces
            ]
            self.files |= {MetadataIndex(name, piece.offset): piece.file for piece in saved.pieces}
            tensors[name] = TensorStorageMetadata(
                TensorProperties(saved.dtype), torch.Size(saved.size), chunks
            )
        return tensors

    def file_names(self) -> set[str]:
        """Return the names of all tensor files. Raises InputError as `tensors` does."""
        self.tensors()
        return set(self.files.values())

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Do nothing: `read_metadata` has read everything."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """Return the rank's plan unchanged."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """Return the plans unchanged."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Copy the planned pieces from their files into the tensors."""
        files = defaultdict(list)
        for item in plan.items:
            files[self.files[item.storage_index]].append(item)
        for file, items in files.items():
            with open_tensors(self.folder / file) as stored:
                for item in items:
                    name, target = item.storage_index.fqn, planner.resolve_tensor(item)
                    region = tuple(
                        slice(start, start + length)
                        for start, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    target.copy_(
                        stored.get_slice(name)[region] if region else stored.get_tensor(name)
                    )
                    planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Return True: the folder is not checked here."""
        return True


def write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Write a safetensors file, and return its SHA-256 once it is on disk."""
    with DirectFile(path) as file:
        return write_tensors(file, tensors, tensors.values())


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class DirectFile:
    """File written from front to back, past the page cache if the system allows it.

    Nothing reads a checkpoint soon. Through the cache the kernel would allocate, copy and write
    back each of its pages on the cores that train, and evict the shards that are read again. The
    file is complete and on disk at the end of its `with` block.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.file = FileIO(path, "wb", opener=_open_direct)
        except OSError:  # a file system without direct writes
            self.file = FileIO(path, "wb")
        self.buffer = memoryview(mmap.mmap(-1, WRITE_BYTES))  # aligned to a page
        self.filled = self.size = 0

    def write(self, data: memoryview) -> None:
        """Append `data`."""
        while data:
            part = data[: WRITE_BYTES - self.filled]
            self.buffer[self.filled : self.filled + len(part)] = part
            self.filled += len(part)
            self.size += len(part)
            data = data[len(part) :]
            if self.filled == WRITE_BYTES:
                self._flush(WRITE_BYTES)

    def _flush(self, length: int) -> None:
        left = self.buffer[:length]
        while left:
            left = left[self.file.write(left) :]
        self.filled = 0

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.file:
            if error is None:
                self._flush(-(-self.filled // ALIGN_BYTES) * ALIGN_BYTES)
                self.file.truncate(self.size)
                os.fsync(self.file.fileno())


def _open_direct(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
