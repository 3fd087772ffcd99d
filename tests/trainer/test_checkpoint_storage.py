from __future__ import annotations

import os

import pytest

from gptcli.trainer import checkpoint_storage
from gptcli.trainer.checkpoint_storage import WRITE_BYTES, DirectFile


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize(
    "length", [0, 1, 4096, WRITE_BYTES - 1, WRITE_BYTES, WRITE_BYTES + 1, 2 * WRITE_BYTES + 5000]
)
def test_a_direct_file_has_exactly_the_bytes_written(tmp_path, monkeypatch, length, refused):
    """Whatever the length, in pieces of any size, and on a file system that only writes through the
    cache.
    """
    if refused:

        def refuse(path, flags):
            raise OSError(22, "Invalid argument")

        monkeypatch.setattr(checkpoint_storage, "_open_direct", refuse)
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    data = os.urandom(length)
    with DirectFile(tmp_path / "file") as file:
        for start in range(0, length, 300_007):
            file.write(memoryview(data)[start : start + 300_007])
    assert (tmp_path / "file").read_bytes() == data
    assert len(synced) == 1


def test_an_error_inside_the_block_is_raised(tmp_path):
    with pytest.raises(KeyError), DirectFile(tmp_path / "file") as file:
        file.write(memoryview(b"abc"))
        raise KeyError
