"""Loss curves of every layout of 2 and 4 processes against one process.

The cases are all products of dp, shard, tp and pp, every pipeline schedule, dense and banded
attention, tied and untied heads, muP, document masks, and vocabularies that no layout
divides evenly. One set of processes runs them all.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gptcli.cost.memory import SCHEDULES
from tests.fork_server import python
from tests.system.layout_worker import N_CTX, SEQUENCES

# sequences in the part of the batch that the noise scale measures
SLICED = {2: {"tp=2": 1, "pp=2": 2}, 4: {"shard=2,tp=2": 2, "tp=2,pp=2": 2, "dp=2,pp=2": 4}}
MASK = 5  # of layout_worker.MODEL's fields, the document mask's place
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run the processes; return the folder of their results."""
    folder = tmp_path_factory.mktemp("layouts")
    done = python(
        "-m", "tests.system.layout_worker", folder, cwd=ROOT, env={"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr.decode()[-8000:]
    return folder


def test_every_layout_follows_the_loss_curve_of_one_process(folder: Path) -> None:
    results: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    alone = {tuple(case["model"]): case for case in results if case["layout"] == "dp=1"}
    laid_out = [case for case in results if case["layout"] != "dp=1"]
    for case in laid_out:
        one, exact = alone[tuple(case["model"])], case.get("precision", "fp32") == "fp32"
        away = max(
            abs(mine - its)
            for mine, its in zip(case["losses"], one["losses"], strict="steps" not in case)
        )
        told = {name: value for name, value in case.items() if not isinstance(value, (list, float))}
        assert away < (1e-4 if exact else 3e-2), (told, away)
        assert case["norms"] == pytest.approx(
            one["norms"][: len(case["norms"])], rel=1e-3 if exact else 5e-2
        ), told
        for mine, its, loss in zip(
            case["by_source"], one["by_source"], case["losses"], strict=False
        ):
            assert mine == pytest.approx(its, rel=1e-4 if exact else 3e-2), told
            assert sum(mine) == pytest.approx(loss * SEQUENCES * N_CTX, rel=1e-4), told
        if "steps" not in case:
            assert abs(case["unseen"] - one["unseen"]) < 1e-4, told
    masked = [model for model in alone if model[MASK]]
    assert masked, "some models have a document mask"
    for model in masked:
        plain = *model[:MASK], False, *model[MASK + 1 :]
        assert alone[model]["losses"] != alone[plain]["losses"]
    assert all(case["losses"][0] - case["losses"][-1] > 1 for case in alone.values()), (
        "there was something to follow"
    )
    assert len({case["layout"] for case in laid_out}) == 14
    assert {case["layout"] for case in laid_out if "compile" in case} == {
        "dp=2",
        "shard=2",
        "tp=2",
        "pp=2",
    }
    assert {
        case["pipeline_schedule"]
        for case in laid_out
        if "pp" in case["layout"] and "pipeline_schedule" in case
    } == set(SCHEDULES)


def test_each_process_loads_its_part_of_a_model(folder: Path) -> None:
    found = [
        case for rank in (0, 1) for case in json.loads((folder / f"taken-{rank}.json").read_text())
    ]
    assert found == 2 * [
        {"layout": layout, "wrong": []} for layout in ("dp=2", "shard=2", "tp=2", "pp=2")
    ]


def test_noise_scale_measures_the_same_part_under_model_parallelism(
    folder: Path,
) -> None:
    for world, layouts in SLICED.items():
        for rank in range(world):
            found = json.loads((folder / f"parts-{world}-{rank}.json").read_text())
            assert [case["layout"] for case in found] == list(layouts)
            assert [case["held"] for case in found] == list(layouts.values())
            for case in found:
                assert case["sliced"] == pytest.approx(case["plain"], rel=1e-5), case
                assert case["plain"][0] < case["plain"][1]
