"""The files of a task are found by their names, and those of another task are not taken."""

# ruff: noqa: F811
from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest

from gptcli.errors import InputError, UsageError
from gptcli.evals.find_data import (
    download_tasks,
    find_data,
    find_examples,
    has_data,
    hub_folder,
    split_data,
)
from gptcli.evals.task import find_task
from gptcli.evals.task_data import read_items
from tests.hub_server import Hub, hub  # noqa: F401


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("piqa", "valid.jsonl"),
        ("piqa", "dev.jsonl"),
        ("winogrande", "validation.csv"),
        ("hellaswag", "hellaswag-validation.arrow"),
        ("arc_easy", "ARC-Easy/test-00000-of-00001.parquet"),
        ("openbookqa", "tests.jsonl"),
        ("boolq", "boolq/validation.parquet"),
        ("anli_r2", "test_r2.jsonl"),
        ("race_h", "high/test-00000-of-00001.parquet"),
    ],
)
def test_published_and_exported_names_are_found(tmp_path: Path, name: str, file: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}\n")
    assert find_data(find_task(name), tmp_path) == path
    assert has_data(find_task(name), tmp_path)


@pytest.mark.parametrize(
    ("task", "file", "other"),
    [
        ("anli_r1", "R2/test.jsonl", "anli_r2"),
        ("arc_easy", "ARC-Challenge-Test.jsonl", "arc_challenge"),
        ("cbt_cn", "cbtest_NE_valid_2000ex.txt", "cbt_ne"),
        ("two_digit_addition", "three_digit_addition.jsonl", "three_digit_addition"),
        ("wmt14_en_fr", "newstest2014-fren-src.fr.sgm", "wmt14_fr_en"),
    ],
)
def test_the_data_of_another_task_is_refused(
    tmp_path: Path, task: str, file: str, other: str
) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.touch()
    with pytest.raises(InputError, match=f"the data of {other}"):
        find_data(find_task(task), path)
    own = path.with_name("mine.jsonl")
    own.touch()
    assert find_data(find_task(task), own) == own


@pytest.mark.parametrize(
    ("name", "file", "other"),
    [
        ("rte", "cb/validation-00000-of-00001.parquet", "cb"),  # of the same fields
        ("arc_challenge", "arc_easy/test.jsonl", "arc_easy"),
        ("anli_r1", "anli_r3/test.jsonl", "anli_r3"),
        ("lambada_fill", "lambada/test.jsonl", None),  # the same data
        ("rte", "rte/val.jsonl", None),
        ("rte", "RTE/val.jsonl", None),
    ],
)
def test_a_folder_named_after_a_task_is_that_of_its_data(
    tmp_path: Path, name: str, file: str, other: str | None
) -> None:
    path = tmp_path / file
    path.parent.mkdir()
    path.touch()
    if other is None:
        assert find_data(find_task(name), path) == path
        return
    with pytest.raises(InputError, match=f"this is the data of {other}, not of {name}"):
        find_data(find_task(name), path)


def test_rows_of_another_task_are_refused(tmp_path: Path) -> None:
    row = {"uid": "u", "context": "C", "hypothesis": "H", "label": "e", "tag": "r2_test"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="round is 'r2': this is not the data of anli_r1"):
        read_items(find_task("anli_r1"), tmp_path / "mine.jsonl")
    assert len(read_items(find_task("anli_r2"), tmp_path / "mine.jsonl")) == 1
    row = {"context": "\n\nQ: What is 9 minus 4?\n\nA:", "completion": " 5"}
    (tmp_path / "mine.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match="not the data of two_digit_addition"):
        read_items(find_task("two_digit_addition"), tmp_path / "mine.jsonl")


def test_examples_are_from_one_file_that_is_not_the_items(tmp_path: Path) -> None:
    task = find_task("hellaswag")
    items = tmp_path / "hellaswag_val.jsonl"
    items.touch()
    assert find_examples(task, items, tmp_path) == items
    assert find_examples(task, items, items) == items
    train = tmp_path / "hellaswag_train.jsonl"
    train.touch()
    assert find_examples(task, items, tmp_path) == train
    assert find_examples(task, items, items) == train
    (tmp_path / "hellaswag_train_2.jsonl").touch()
    with pytest.raises(UsageError, match="2 files could be the few-shot examples of hellaswag"):
        find_examples(task, items, tmp_path)


def test_folders_of_single_tasks() -> None:
    assert split_data(["piqa=a/b", "mine.toml=c", "d"]) == (
        {"piqa": Path("a/b"), "mine": Path("c")},
        Path("d"),
    )
    assert split_data(["a=b"]) == ({}, Path("a=b"))
    with pytest.raises(UsageError, match="2 folders for all tasks"):
        split_data(["a", "b"])
    with pytest.raises(UsageError, match="'piqa=' names no folder"):
        split_data(["piqa="])


ROW = {"goal": "To sit", "sol1": "sit", "sol2": "stand", "label": 1}


def publish(hub: Hub, folder: Path, **rows: int) -> None:
    """Put PIQA on the Hub, with this number of rows in each file."""
    for name, count in rows.items():
        path = folder / f"plain_text/{name.replace('_', '/')}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pa.Table.from_pylist([ROW] * count), path)
    (folder / "README.md").write_text("a card")
    hub.repositories["ybisk/piqa"] = folder


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_splits_of_a_task_are_downloaded_once(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "piqa", validation_0000=2, validation_0001=1, train_0000=4)
    task = find_task("piqa")
    folder = download_tasks([task], shots=True)
    items = find_data(task, folder)
    assert items is not None
    assert len(read_items(task, items)) == 3
    assert len(read_items(task, find_examples(task, items, folder / "piqa"))) == 4
    assert "README" not in "\n".join(hub.requests)
    hub.requests.clear()
    assert download_tasks([task], shots=True) == folder
    assert hub.requests == []


def test_a_download_that_is_cut_short_leaves_no_folder(hub: Hub, tmp_path: Path) -> None:
    publish(hub, tmp_path / "piqa", validation_0000=2)
    hub.cut = "plain_text/validation/0000.parquet"
    with pytest.raises(InputError, match="ybisk/piqa"):
        download_tasks([find_task("piqa")], shots=False)
    assert not has_data(find_task("piqa"), hub_folder() / "piqa")


def test_an_unreachable_hub_is_one_message(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="the Hub cannot be reached for ybisk/piqa") as caught:
        download_tasks([find_task("piqa")], shots=False)
    assert "hf download ybisk/piqa --repo-type dataset" in str(caught.value.hint)


def test_what_cannot_be_downloaded_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no public data set of this name on the Hub"):
        download_tasks([find_task("piqa")], shots=False)
    publish(hub, tmp_path / "piqa", train_0000=4)
    with pytest.raises(
        InputError, match="the data set ybisk/piqa of the Hub has no plain_text/val"
    ):
        download_tasks([find_task("piqa")], shots=False)
    with pytest.raises(UsageError, match="sat_analogies is not on the hub"):
        download_tasks([find_task("sat_analogies")], shots=False)
