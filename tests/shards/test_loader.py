"""Batches of the data loader are those of `gpt train`, divided over processes and resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gptcli.errors import UsageError
from gptcli.shards.loader import DataLoader
from gptcli.shards.order import Mixture, open_order
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


MIXTURE = "a=3,b=1; 2k: a=1,b=2"


def test_a_mixture_is_that_of_gpt_train(write_sources: Callable[..., Path]) -> None:
    """Its own shards have equal weights; a stage begins where the trainer begins it."""
    shards = write_sources(a=1, b=1)
    order = open_order(shards, "train", 16, 3, mixture=MIXTURE)
    loader = DataLoader(shards, batch_size=5, n_ctx=16, seed=3, mixture=MIXTURE)
    batches = iter(loader)
    read = np.concatenate([next(batches)[0].numpy() for _ in range(80)])
    assert (read == order.batch(0, 400)[0]).all()
    plain = DataLoader(shards, batch_size=400, n_ctx=16, seed=3)
    assert (next(iter(plain))[0].numpy() != read).any()
    assert isinstance(order, Mixture)
    owned = np.bincount(order.owners(0, 400)) * 16
    assert loader.tokens_of_sources() == dict(zip("ab", owned.tolist(), strict=True))
    part = DataLoader(shards, batch_size=5, n_ctx=16, seed=3, mixture=MIXTURE, rank=1, world_size=4)
    part.load_state_dict(loader.state_dict())
    assert (next(iter(part))[0].numpy() == order.batch(405, 5)[0]).all()


def test_a_mixture_that_does_not_fit_is_refused(write_sources: Callable[..., Path]) -> None:
    shards = write_sources(a=1, b=1)
    with pytest.raises(UsageError, match="no source of the shards is named 'c'"):
        DataLoader(shards, batch_size=1, n_ctx=16, mixture="a=1,c=1")
    with pytest.raises(UsageError, match="mixture: a mixture is of training data"):
        DataLoader(shards, batch_size=1, n_ctx=16, split="val", mixture=MIXTURE)
    own = DataLoader(shards, batch_size=1, n_ctx=16)
    mixed = DataLoader(shards, batch_size=1, n_ctx=16, mixture=MIXTURE)
    with pytest.raises(UsageError, match="saved with mixture="):
        own.load_state_dict(mixed.state_dict())
    earlier = {"split": "train", "n_ctx": 16, "seed": 0, "position": 7}
    own.load_state_dict(earlier)
    assert own.position == 7
