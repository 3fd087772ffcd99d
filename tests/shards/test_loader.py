"""Batches of the data loader are those of `gpt train`, divided over processes and resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import UsageError
from gptcli.shards.loader import DataLoader
from gptcli.shards.order import open_order
from tests.small_runs import make_shards


def test_data_loader_resumes_and_divides_its_order(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards")
    whole = DataLoader(shards, batch_size=6, n_ctx=16, seed=3)
    x, y = next(iter(whole))
    assert x.shape == y.shape == (6, 16)
    assert (x[:, 1:] == y[:, :-1]).all()
    parts = [
        DataLoader(shards, batch_size=2, n_ctx=16, seed=3, rank=rank, world_size=3)
        for rank in range(3)
    ]
    divided = [next(iter(part))[0] for part in parts]
    assert [row.tolist() for part in divided for row in part] == x.tolist()
    state = parts[1].state_dict()
    assert state == whole.state_dict()
    again = DataLoader(shards, batch_size=6, n_ctx=16, seed=3)
    again.load_state_dict(state)
    assert (next(iter(again))[0] == next(iter(whole))[0]).all()
    with pytest.raises(UsageError, match="saved with seed=3"):
        DataLoader(shards, batch_size=6, n_ctx=16, seed=4).load_state_dict(state)
    with pytest.raises(UsageError, match="rank: 3 is not a rank of 3 processes"):
        DataLoader(shards, batch_size=6, n_ctx=16, rank=3, world_size=3)


def test_an_epoch_has_every_window_of_the_order_once(tmp_path: Path) -> None:
    shards = make_shards(tmp_path / "shards", train=1000)
    loader = DataLoader(shards, batch_size=2, n_ctx=16, seed=5)
    order = open_order(shards, "train", 16, 5)
    assert loader.windows == order.windows == 62
    batches = iter(loader)
    epoch = np.concatenate([next(batches)[0].numpy() for _ in range(31)])
    assert (epoch == order.batch(0, 62)[0]).all()
    assert loader.epoch == 1
    assert len({row.tobytes() for row in epoch}) == 62
    with pytest.raises(UsageError, match="batch_size: 0 is less than 1"):
        DataLoader(shards, batch_size=0, n_ctx=16)
