"""Few-shot examples: which ones an item has, and how many fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gptcli.evals.fewshot import FewShotConfig, FewShotPool, ShotFitter
from gptcli.evals.task import Task, read_task
from gptcli.evals.task_data import format_example, read_items

TASK = """title = "t"
source = "s"
files = {items = "items.jsonl", shots = "train.jsonl"}
reader = "jsonl"
kind = "freeform"
prompt = "{q}="
answers = "a"
answer = "{answer}"
metric = ["exact_match"]
"""


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> tuple[Task, Path]:
    folder = tmp_path_factory.mktemp("shots")
    (folder / "mine.toml").write_text(TASK)
    rows = [{"id": str(number), "q": f"q{number}", "a": str(number)} for number in range(40)]
    (folder / "items.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_task(folder / "mine.toml"), folder / "items.jsonl"


@given(shots=st.integers(1, 39), seed=st.integers(0, 2**40))
def test_every_item_has_k_examples_other_than_itself(
    task: tuple[Task, Path], shots: int, seed: int
) -> None:
    definition, path = task
    pool = FewShotPool(definition, path, path.parent, FewShotConfig(shots=shots, seed=seed))
    assert pool.is_evaluated
    for item in read_items(definition, path):
        drawn = pool.draw(item)
        assert len(drawn) == len(set(drawn)) == shots
        assert format_example(definition, item) not in {pool.texts[number] for number in drawn}
        assert drawn == pool.draw(item)


def test_examples_depend_on_item_id_and_seed_only(task: tuple[Task, Path]) -> None:
    definition, path = task
    items = read_items(definition, path)
    one, other = (
        FewShotPool(definition, path, path.parent, FewShotConfig(shots=5, seed=seed))
        for seed in (0, 1)
    )
    assert len({tuple(one.draw(item)) for item in items}) == 40
    assert all(one.draw(item) != other.draw(item) for item in items)
    often = [number for item in items for number in one.draw(item)]
    # 200 draws from 40: all are drawn with a probability of 0.8
    assert set(often) == set(range(40))
    shared = FewShotPool(definition, path, path.parent, FewShotConfig(shots=5, shared=True))
    assert len({tuple(shared.draw(item)) for item in items}) == 1
    assert sum(shared.is_shared_shot(item) for item in items) == 5


def test_items_without_a_known_answer_are_never_examples(
    task: tuple[Task, Path], tmp_path: Path
) -> None:
    definition, path = task
    (tmp_path / "train.jsonl").write_text(
        '{"q": "x", "a": ""}\n{"q": "y", "a": "1"}\n{"q": "z", "a": ["", "1"]}\n'
    )
    pool = FewShotPool(definition, path, tmp_path, FewShotConfig(shots=1))
    assert (pool.is_evaluated, pool.texts) == (False, ["y=1"])


def test_the_first_examples_that_fit_are_kept(task: tuple[Task, Path]) -> None:
    definition, path = task
    pool = FewShotPool(definition, path, path.parent, FewShotConfig(shots=5))
    fitter = ShotFitter(
        pool, "\n\n", len
    )  # a character is a token: "q0=0" and its delimiter have 6
    assert fitter.text([0, 1]) == "q0=0\n\nq1=1\n\n"
    assert fitter.fit([0, 1, 2], "q9=", 15) == [0, 1]
    assert fitter.fit([0, 1, 2], "q9=", 14) == [0]
    # the first does not fit, and no later one replaces it
    assert fitter.fit([10, 1, 2], "q9=", 10) == []
    # the whole text is longer than the sum of its parts
    joined = ShotFitter(pool, "\n\n", lambda text: len(text) + 2 * text.count("\n\nq"))
    assert joined.fit([0, 1, 2], "q9=", 21) == [0, 1]


def test_items_that_share_an_id_are_different_items(
    task: tuple[Task, Path], tmp_path: Path
) -> None:
    definition, _ = task
    rows = [{"id": "same", "q": f"q{number}", "a": str(number)} for number in range(10)]
    rows.append(dict(rows[3]))  # the same content on another line
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = read_items(definition, path)
    assert [item.key for item in items] == ["same", *(f"same#{n}" for n in range(2, 12))]
    pool = FewShotPool(definition, path, tmp_path, FewShotConfig(shots=8))
    drawn = [pool.draw(item) for item in items]
    assert {len(some) for some in drawn} == {8}
    assert len({tuple(some) for some in drawn}) > 5
    for number, some in enumerate(drawn):
        assert number not in some
    assert not {3, 10} & {*drawn[3], *drawn[10]}


def test_a_copy_of_the_evaluated_file_is_the_evaluated_set(
    task: tuple[Task, Path], tmp_path: Path
) -> None:
    definition, path = task
    for name in ("items.jsonl", "train.jsonl"):
        (tmp_path / name).write_bytes(path.read_bytes())
    pool = FewShotPool(definition, tmp_path / "items.jsonl", tmp_path, FewShotConfig(shots=39))
    assert pool.is_evaluated
    for item in read_items(definition, tmp_path / "items.jsonl"):
        assert len(pool.draw(item)) == 39
