"""How the pieces of a checkpoint lie on disk: safetensors files, which each process writes for
itself, and `index.json`, which says where every piece of every tensor is.

It plugs into torch.distributed.checkpoint, which plans who writes and reads what under any layout;
that package's own storage keeps its index as a pickle. Names are the plain model's:
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
from gptcli.model.checkpoint_tensors import OPTIMIZER, read_index
from gptcli.model.source import INDEX, MODEL
from gptcli.model.tensor_file import DTYPES, open_tensors, write_tensors

METADATA_BYTES = 1 << 20  # bytes of a checkpoint beside its tensors: indices and headers

WRITE_BYTES = 4 << 20  # bytes of a write
ALIGN_BYTES = 4096  # what context and length of such writes are multiples of

Table = dict[str, Any]


def tensor_file_name(name: str, context: RankContext) -> str:
    """The file in which this process writes its piece of a tensor: a name that `FILE` knows."""
    kind = OPTIMIZER if "/" in name else MODEL
    return (
        f"{kind}.safetensors"
        if context.world_size == 1
        else f"{kind}-{context.rank:05d}-of-{context.world_size:05d}.safetensors"
    )


class CheckpointWriter(StorageWriter):
    """Writes one checkpoint into `folder`, which the first process makes; `finish` is called there
    once every file is on disk, with the SHA-256 of each."""

    def __init__(
        self, folder: Path, context: RankContext, finish: Callable[[dict[str, str]], None]
    ) -> None:
        self.folder, self.context, self.finished = folder, context, finish

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget: a writer serves once."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """The role is known from `context`."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """On the first process, before any writes: an empty folder on a disk that has room for all
        of it.
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
        """On the first process, after all have written."""
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
        return True


class CheckpointReader(StorageReader):
    """Reads the pieces that a process needs out of the files that hold them, whatever layout wrote
    them.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files: dict[MetadataIndex, str] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to forget: a reader serves once."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return Metadata({**self.tensors()})

    def tensors(self) -> dict[str, TensorStorageMetadata]:
        """What the checkpoint holds, by name. Raises InputError as `read_index`."""
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
        """The files that hold the tensors. Raises InputError as `tensors`."""
        self.tensors()
        return set(self.files.values())

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """All that is needed is known from `read_metadata`."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        files = defaultdict(list)
        for item in plan.items:
            files[self.files[item.storage_index]].append(item)
        for file, items in files.items():
            with open_tensors(self.folder / file) as stored:
                for item in items:
                    name, target = item.storage_index.fqn, planner.resolve_tensor(item)
                    where = tuple(
                        slice(start, start + length)
                        for start, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    target.copy_(
                        stored.get_slice(name)[where] if where else stored.get_tensor(name)
                    )
                    planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return True


def write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns the file's SHA-256, once it is on disk."""
    with DirectFile(path) as file:
        return write_tensors(file, tensors, tensors.values())


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future


class DirectFile:
    """For writing from front to back; whole and on disk once the block it is opened for ends."""

    def __init__(self, path: Path) -> None:
        try:
            self.file = FileIO(path, "wb", opener=_open_direct)
        except OSError:  # not every file system can
            self.file = FileIO(path, "wb")
        self.buffer = memoryview(mmap.mmap(-1, WRITE_BYTES))  # which begins on a page
        self.held = self.size = 0

    def write(self, data: memoryview) -> None:
        while data:
            part = data[: WRITE_BYTES - self.held]
            self.buffer[self.held : self.held + len(part)] = part
            self.held += len(part)
            self.size += len(part)
            data = data[len(part) :]
            if self.held == WRITE_BYTES:
                self._flush(WRITE_BYTES)

    def _flush(self, length: int) -> None:
        left = self.buffer[:length]
        while left:
            left = left[self.file.write(left) :]
        self.held = 0

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
                self._flush(-(-self.held // ALIGN_BYTES) * ALIGN_BYTES)
                self.file.truncate(self.size)
                os.fsync(self.file.fileno())


def _open_direct(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_DIRECT", 0), 0o666)
