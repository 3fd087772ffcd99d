"""The training order is one to one, differs for each seed and epoch, and never changes."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gptcli.errors import InputError
from gptcli.shards import order as module
from gptcli.shards.format import open_shard, token_dtype, write_shard
from gptcli.shards.manifest import Manifest, Shard, Source, read_manifest, write_manifest
from gptcli.shards.order import (
    MIXTURE_BLOCK,
    Mixture,
    ShuffledWindows,
    TokenStream,
    closed,
    feistel_permutation,
    largest_remainder,
    mix64,
    open_order,
    open_split,
)

SEEDS = st.integers(0, 2**64)


def order(n: int, seed: int, epoch: int = 0) -> list[int]:
    return feistel_permutation(np.arange(n), n, seed, epoch).tolist()


@given(st.integers(1, 3000), SEEDS, st.integers(0, 9))
def test_the_order_is_a_permutation(n: int, seed: int, epoch: int) -> None:
    assert sorted(order(n, seed, epoch)) == list(range(n))


@given(st.integers(1, 2**62), SEEDS, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_any_part_of_the_permutation_agrees_with_the_whole(
    n: int, seed: int, index: list[int]
) -> None:
    index = [number % n for number in index]
    whole = feistel_permutation(np.array(index), n, seed)
    assert whole.dtype == np.int64
    assert all(0 <= value < n for value in whole)
    assert [
        feistel_permutation(np.array([number]), n, seed).item() for number in index
    ] == whole.tolist()
    assert len(set(whole.tolist())) == len(set(index))


def test_the_permutation_has_not_changed() -> None:
    """Recorded once. If this fails, resumed runs would see other data: fix the code, not the
    numbers.
    """
    assert order(10, seed=0) == [4, 1, 5, 2, 8, 9, 6, 0, 7, 3]
    assert order(10, seed=1) == [6, 7, 4, 9, 2, 8, 3, 0, 1, 5]
    assert order(10, seed=0, epoch=1) == [9, 2, 8, 7, 6, 1, 3, 5, 0, 4]
    assert feistel_permutation(np.array([0, 1, 2, 292_968_749]), 292_968_750, 1337).tolist() == [
        57920097,
        84447153,
        178581682,
        150550698,
    ]
    # SplitMix64's first output for seed 0
    assert hex(mix64(np.array([0x9E3779B97F4A7C15], np.uint64))[0]) == "0xe220a8397b1dcdaf"


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = [order(100, seed, epoch) for seed in range(5) for epoch in range(5)]
    assert len({tuple(one) for one in orders}) == 25


def test_every_item_reaches_every_place_equally_often() -> None:
    """Each of 16 items reaches each of 16 places about equally often over 4,000 seeds (chi-square,
    225 degrees of freedom).
    """
    counts = np.zeros((16, 16))
    for seed in range(4000):
        counts[np.arange(16), order(16, seed)] += 1
    assert ((counts - 250) ** 2 / 250).sum() < 318  # 0.9999 of the distribution
    steps = np.diff(order(100_000, 0))
    assert abs(np.corrcoef(steps[:-1], steps[1:])[0, 1] + 0.5) < 0.02  # independent draws give -1/2


def windows(n: int, n_ctx: int, seed: int = 0) -> ShuffledWindows:
    tokens = np.arange(n, dtype=np.uint16)
    return ShuffledWindows(TokenStream([tokens[: n // 3], tokens[n // 3 :]]), n_ctx, seed)


@settings(max_examples=50)
@given(st.integers(2, 300), st.integers(1, 20), SEEDS, st.integers(0, 3))
def test_an_epoch_visits_every_window_once(n: int, n_ctx: int, seed: int, epoch: int) -> None:
    n = max(n, n_ctx + 1)
    the_order = windows(n, n_ctx, seed)
    assert the_order.windows == (n - 1) // n_ctx
    inputs, targets = the_order.batch(epoch * the_order.windows, the_order.windows)
    assert inputs.dtype == targets.dtype == np.int64
    assert sorted(inputs[:, 0].tolist()) == list(range(0, the_order.windows * n_ctx, n_ctx))
    assert (inputs == inputs[:, :1] + np.arange(n_ctx)).all()
    assert (targets == inputs + 1).all()


@settings(max_examples=50)
@given(st.integers(2, 100), st.integers(1, 5), SEEDS, st.integers(0, 200), st.integers(0, 60))
def test_a_batch_equals_its_single_sequences(
    n: int, n_ctx: int, seed: int, first: int, count: int
) -> None:
    """Short streams make batches across one or several ends of an epoch common."""
    the_order = windows(max(n, n_ctx + 1), n_ctx, seed)
    batch = the_order.batch(first, count)
    for part, whole in enumerate(batch):
        assert whole.shape == (count, n_ctx)
        single = [the_order.batch(first + number, 1)[part] for number in range(count)]
        assert (whole == np.concatenate([np.empty((0, n_ctx), np.int64), *single])).all()


def test_a_batch_may_cross_an_epoch_border() -> None:
    the_order = windows(101, 10)
    starts = the_order.batch(8, 4)[0][:, 0] // 10
    assert starts.tolist() == [*order(10, 0, 0)[8:], *order(10, 0, 1)[:2]]


def test_too_few_tokens_for_a_window_are_an_error() -> None:
    with pytest.raises(InputError, match="the data has 10 tokens, too few for a context of 10"):
        windows(10, 10)
    assert windows(11, 10).windows == 1


@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=20), st.integers(20, 5000))
def test_largest_remainder_is_within_one_place(weights: list[float], places: int) -> None:
    shares = [weight / sum(weights) for weight in weights]
    whole = largest_remainder(shares, places)
    assert sum(whole) == places
    assert min(whole) >= 1
    if min(shares) * places >= 1:
        assert all(
            abs(number - share * places) < 1 for number, share in zip(whole, shares, strict=True)
        )


def test_a_small_share_gets_exactly_one_place() -> None:
    assert largest_remainder([0.999, 0.001], 10) == [9, 1]
    assert largest_remainder([0.5, 0.3, 0.2], 10) == [5, 3, 2]


def mixture(
    lengths: list[int],
    shares: list[float],
    n_ctx: int,
    seed: int,
    later: Sequence[tuple[int, list[float]]] = (),
) -> Mixture:
    """Return a mixture in which source s has the tokens from 10,000·s on."""
    sources = [
        ShuffledWindows(TokenStream([np.arange(n) + 10_000 * s]), n_ctx, seed + s)
        for s, n in enumerate(lengths)
    ]
    return Mixture(sources, shares, seed, later=later)


def test_a_mixture_of_one_source_has_its_windows() -> None:
    one = mixture([500], [1.0], 8, seed=3)
    np.testing.assert_array_equal(
        np.sort(one.batch(0, one.windows)[0][:, 0]), np.arange(one.windows) * 8
    )


def test_a_mixture_keeps_its_weights_and_each_sources_own_order() -> None:
    """Any block has exactly GPT-3's weights, and each source is read in epochs without
    replacement.
    """
    weights = [0.60, 0.22, 0.08, 0.08, 0.03]
    shares = [weight / sum(weights) for weight in weights]
    lengths = [9001, 3001, 1001, 501, 81]
    mixed = mixture(lengths, shares, 4, 7)
    starts = mixed.batch(0, 3 * MIXTURE_BLOCK)[0][:, 0]
    owners = starts // 10_000
    for block in range(3):
        counts = np.bincount(
            owners[block * MIXTURE_BLOCK : (block + 1) * MIXTURE_BLOCK], minlength=5
        )
        assert counts.tolist() == mixed.stages[0].slots
        assert np.abs(counts / MIXTURE_BLOCK - shares).max() < 1 / MIXTURE_BLOCK
    assert np.abs(np.bincount(owners[:500], minlength=5) / 500 - shares).max() < 0.08, (
        "mixed within the block, too"
    )
    for source, length in enumerate(lengths):
        seen, windows = starts[owners == source] % 10_000 // 4, (length - 1) // 4
        alone = mixed.sources[source].batch(0, len(seen))[0][:, 0] % 10_000 // 4
        assert (seen == alone).all()
        for begin in range(0, len(seen) - windows, windows):
            assert len(set(seen[begin : begin + windows])) == windows


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(0, 3 * MIXTURE_BLOCK), st.integers(1, 80))
def test_a_mixed_batch_equals_its_single_sequences(seed: int, first: int, count: int) -> None:
    mixed = mixture([101, 41, 9], [0.7, 0.2, 0.1], 4, seed)
    whole = mixed.batch(first, count)
    for part, rows in enumerate(whole):
        single = [mixed.batch(first + number, 1)[part] for number in range(count)]
        assert (rows == np.concatenate(single)).all()
    assert (whole[1] == whole[0] + 1).all()


def test_the_order_of_a_mixture_has_not_changed() -> None:
    """Recorded once: fix the code, not the numbers."""
    mixed = mixture([1001, 401], [0.75, 0.25], 4, 0)
    assert mixed.stages[0].slots == [3072, 1024]
    assert mixed.batch(0, 6)[0][:, 0].tolist() == [608, 10060, 500, 284, 156, 996]
    assert mixed.batch(10 * MIXTURE_BLOCK, 3)[0][:, 0].tolist() == [412, 116, 10300]


STARTS = st.lists(st.integers(0, 3 * MIXTURE_BLOCK), max_size=3).map(sorted)


@settings(max_examples=15)
@given(STARTS, SEEDS, st.integers(0, 3 * MIXTURE_BLOCK), st.integers(1, 900), st.data())
def test_a_mixture_that_changes_is_a_function_of_the_position_alone(
    starts: list[int], seed: int, first: int, count: int, data: st.DataObject
) -> None:
    """Each source is read in its own order without a gap, whatever its shares, and any processes
    read the same windows.
    """
    shares = [data.draw(st.sampled_from(SHARES)) for _ in starts]
    mixed = mixture(
        [401, 161, 33], [0.6, 0.3, 0.1], 4, seed, list(zip(starts, shares, strict=True))
    )
    before = mixture([401, 161, 33], [0.6, 0.3, 0.1], 4, seed)
    same = max(0, min([first + count, *starts]) - first)
    assert (mixed.batch(first, same)[0] == before.batch(first, same)[0]).all()
    owners, counted = mixed.owners(first, count), mixed.counts(first)
    inputs, targets = mixed.batch(first, count)
    assert (targets == inputs + 1).all()
    for number, source in enumerate(mixed.sources):
        mine = owners == number
        expected = source.batch(counted[number], int(mine.sum()))[0]
        assert (inputs[mine] == expected).all()
        assert mixed.counts(first + count)[number] == counted[number] + mine.sum()
    cut = data.draw(st.integers(0, count))
    parts = [mixed.batch(first, cut)[0], mixed.batch(first + cut, count - cut)[0]]
    assert (np.concatenate(parts) == inputs).all()


SHARES = [[0.2, 0.2, 0.6], [0.0, 0.5, 0.5], [0.0, 0.0, 1.0], [0.6, 0.3, 0.1]]


def test_the_shares_of_a_stage_are_exact_in_each_of_its_blocks() -> None:
    later = [(1000, [0.0, 0.25, 0.75]), (1000 + MIXTURE_BLOCK, [1.0, 0.0, 0.0])]
    mixed = mixture([401, 161, 33], [0.6, 0.3, 0.1], 4, 5, later)
    shares = np.bincount(mixed.owners(1000, MIXTURE_BLOCK), minlength=3) / MIXTURE_BLOCK
    assert shares.tolist() == [0.0, 0.25, 0.75]
    assert set(mixed.owners(1000 + MIXTURE_BLOCK, 3000)) == {0}
    assert [stage.block for stage in mixed.stages] == [0, 1, 2], "no block is shuffled alike twice"


def shard_folder(folder: Path, sources: dict[str, tuple[int, float]]) -> Path:
    """Write shards of sources given as name: (tokens, weight)."""
    folder.mkdir()
    shards, rows = [], []
    for number, (name, (count, weight)) in enumerate(sources.items()):
        file = f"train-{name}-000000.bin"
        digest = write_shard(
            folder / file,
            np.array([count]),
            [np.arange(count) + 10_000 * number],
            token_dtype(50257),
        )
        shards.append(
            Shard(file=file, split="train", tokens=count, documents=1, sha256=digest, source=name)
        )
        counts: dict[str, Any] = {
            "documents_in": 1,
            "documents_kept": 1,
            "dropped": {},
            "text_bytes": 1,
            "tokens": count,
        }
        rows.append(Source(name=name, **counts, weight=weight))
    manifest = Manifest(
        tokenizer_sha256="",
        vocab_size=50257,
        eot_id=0,
        seed=0,
        val_fraction=0.0,
        split_rule="none",
        shards=shards,
        sources=rows,
    )
    write_manifest(folder, manifest)
    return folder


def test_several_sources_are_mixed_and_one_keeps_its_order(tmp_path: Path) -> None:
    one = shard_folder(tmp_path / "one", {"inputs": (500, 1.0)})
    same, ever = open_order(one, "train", 8, 3), ShuffledWindows(open_split(one, "train"), 8, 3)
    assert isinstance(same, ShuffledWindows)
    assert (same.batch(5, 200)[0] == ever.batch(5, 200)[0]).all()

    two = shard_folder(tmp_path / "two", {"web": (900, 3.0), "books": (500, 1.0)})
    mixed = open_order(two, "train", 8, 3)
    assert isinstance(mixed, Mixture)
    assert mixed.stages[0].slots == [3072, 1024]
    assert mixed.windows == 112 + 62
    assert np.bincount(mixed.batch(0, MIXTURE_BLOCK)[0][:, 0] // 10_000).tolist() == [3072, 1024]
    with pytest.raises(
        InputError, match="source 'books': the data has 500 tokens, too few for a context of 600"
    ):
        open_order(two, "train", 600, 3)


def test_every_byte_is_checked_unless_verify_is_false(tmp_path: Path) -> None:
    for number, sources in enumerate(
        ({"inputs": (500, 1.0)}, {"web": (500, 3.0), "books": (500, 1.0)})
    ):
        folder = shard_folder(tmp_path / str(number), sources)
        shard = next(folder.glob("*.bin"))
        shard.write_bytes(shard.read_bytes()[:-1] + b"\x55")
        with pytest.raises(InputError, match="altered"):
            open_order(folder, "train", 8, 3)
        open_order(folder, "train", 8, 3, verify=False)


TRAIN = [[9, 1, 2, 9, 3], [9], [9, 4, 5]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of three train shards and no validation."""
    dtype = token_dtype(10)
    shards = []
    for number, tokens in enumerate(TRAIN):
        name = f"train-{number:06d}.bin"
        digest = write_shard(
            tmp_path / name, np.array([len(tokens)]), [np.array(tokens, dtype)], dtype
        )
        shards.append(
            Shard(file=name, split="train", tokens=len(tokens), documents=1, sha256=digest)
        )
    manifest = Manifest(
        tokenizer_sha256="", vocab_size=10, eot_id=9, seed=0, val_fraction=0.0, split_rule="", shards=shards, sources=[]
    )  # fmt: skip
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_all_shards_are_one_sequence(folder: Path) -> None:
    stream = open_split(folder, "train")
    assert len(stream) == 9
    assert stream.dtype == np.uint16
    assert stream[0:9].tolist() == [*chain.from_iterable(TRAIN)]
    assert stream[4:7].tolist() == [3, 9, 9]


@given(st.lists(st.lists(st.integers(0, 9)), min_size=1, max_size=6), st.data())
def test_slices_equal_those_of_the_joined_list(
    arrays: list[list[int]], data: st.DataObject
) -> None:
    joined = [*chain.from_iterable(arrays)]
    border = st.none() | st.integers(-len(joined) - 2, len(joined) + 2)
    span = slice(data.draw(border), data.draw(border))
    assert (
        TokenStream([np.array(array, np.uint16) for array in arrays])[span].tolist() == joined[span]
    )


def test_a_slice_is_a_copy() -> None:
    stream = TokenStream([np.arange(4, dtype=np.uint16)])
    stream[0:4][:] = 7
    assert stream[0:4].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="a step of 1"):
        stream[0:4:2]


def test_an_altered_byte_is_an_error(folder: Path) -> None:
    path = folder / "train-000001.bin"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="altered: its SHA-256") as caught:
        open_split(folder, "train")
    assert caught.value.where == str(path)
    assert len(open_split(folder, "train", verify=False)) == 9


def test_a_truncated_shard_is_found_without_reading_it(folder: Path) -> None:
    path = folder / "train-000002.bin"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="truncated by 3 bytes") as caught:
        open_split(folder, "train", verify=False)
    assert caught.value.where == str(path)


def test_a_shard_of_another_build_is_found_without_reading_it(folder: Path) -> None:
    (folder / "train-000002.bin").write_bytes((folder / "train-000001.bin").read_bytes())
    with pytest.raises(InputError, match="has 1 token, but the manifest says 3"):
        open_split(folder, "train", verify=False)


def test_tokens_of_another_data_type_are_refused(folder: Path) -> None:
    write_manifest(folder, dataclasses.replace(read_manifest(folder), vocab_size=70000))
    with pytest.raises(
        InputError, match="uint16 tokens, but the manifest's vocabulary needs uint32"
    ):
        open_split(folder, "train")


def test_a_missing_shard_and_an_empty_split_are_errors(folder: Path) -> None:
    with pytest.raises(InputError, match="the val split is empty"):
        open_split(folder, "val")
    (folder / "train-000000.bin").unlink()
    with pytest.raises(InputError, match=r"train-000000.bin: no such shard"):
        open_split(folder, "train")


def test_a_stream_of_many_shards_has_few_of_them_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the usual limit of 1,024 open files a corpus may have thousands of shards."""
    tokens = np.arange(3000, dtype=np.uint16)
    files = []
    for number in range(60):
        path = tmp_path / f"{number}.bin"
        write_shard(
            path, np.array([50]), [tokens[50 * number : 50 * (number + 1)]], np.dtype("<u2")
        )
        files.append(closed(path, open_shard(path)))
    monkeypatch.setattr(module, "_mapped", lru_cache(maxsize=4)(module._mapped.__wrapped__))
    before = len(os.listdir("/proc/self/fd"))
    stream = TokenStream(files)
    assert len(os.listdir("/proc/self/fd")) == before
    for start in (0, 1490, 2999, 10):
        assert stream[start : start + 700].tolist() == list(range(start, min(start + 700, 3000)))
    assert len(os.listdir("/proc/self/fd")) <= before + 4
