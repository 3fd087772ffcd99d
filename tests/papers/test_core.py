"""The tasks of CORE: 22, with the counts of DCLM's list."""

from __future__ import annotations

from collections import Counter

from gptcli.papers.core import CORE_TASKS


def test_core_has_dclms_22_tasks() -> None:
    assert len({task.name for task in CORE_TASKS}) == 22
    kinds = Counter(task.kind for task in CORE_TASKS)
    assert kinds == {"multiple_choice": 11, "language_modeling": 9, "schema": 2}
    assert Counter(task.shots for task in CORE_TASKS) == {10: 14, 0: 7, 3: 1}


def test_baselines_reproduce_published_centred_scores() -> None:
    """Accuracy and centred accuracy of one published run with nanochat's prompts."""
    published = {
        "boolq": (0.472, -0.390),
        "commonsense_qa": (0.322, 0.153),
        "agi_eval_lsat_ar": (0.248, 0.060),
        "bigbench_language_identification": (0.254, 0.179),
        "winograd": (0.531, 0.062),
        "arc_easy": (0.556, 0.408),
        "piqa": (0.580, 0.160),
        "jeopardy": (0.1, 0.1),
    }
    baselines = {task.name: task.baseline / 100 for task in CORE_TASKS}
    for name, (accuracy, centred) in published.items():
        assert abs((accuracy - baselines[name]) / (1 - baselines[name]) - centred) < 2e-3, name
