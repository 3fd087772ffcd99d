"""The 22 tasks of CORE, the suite of DCLM (Li et al. 2024, "DataComp-LM"), and their baselines.

The files are those of DCLM's evaluation bundle, in its folder eval_data; tasks and delimiters are
those of its task list, baselines those of its eval_meta_data.csv.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CoreKind = Literal["multiple_choice", "language_modeling", "schema"]
ANSWER = "\nAnswer: "


@dataclass(frozen=True, slots=True)
class CoreTask:
    """A task of CORE."""

    name: str
    """Name in DCLM's tables."""
    file: str
    """File below eval_data."""
    kind: CoreKind
    """Kind of task, by llm-foundry's names."""
    shots: int
    """Number of few-shot examples, K."""
    baseline: float
    """Accuracy of random answers, in percent."""
    delimiter: str = " "
    """Text between context and answer."""


_LANGUAGE, _WORLD, _COMMON = "language_understanding", "world_knowledge", "commonsense_reasoning"
_SYMBOLIC, _READING = "symbolic_problem_solving", "reading_comprehension"
# fmt: off
CORE_TASKS = (
    CoreTask("hellaswag_zeroshot", f"{_LANGUAGE}/hellaswag.jsonl", "multiple_choice", 0, 25.0),
    CoreTask("jeopardy", f"{_WORLD}/jeopardy_all.jsonl", "language_modeling", 10, 0.0, ANSWER),
    CoreTask("bigbench_qa_wikidata", f"{_WORLD}/bigbench_qa_wikidata.jsonl", "language_modeling", 10, 0.0),
    CoreTask("arc_easy", f"{_WORLD}/arc_easy.jsonl", "multiple_choice", 10, 25.0, ANSWER),
    CoreTask("arc_challenge", f"{_WORLD}/arc_challenge.jsonl", "multiple_choice", 10, 25.0, ANSWER),
    CoreTask("copa", f"{_COMMON}/copa.jsonl", "multiple_choice", 0, 50.0),
    CoreTask("commonsense_qa", f"{_COMMON}/commonsense_qa.jsonl", "multiple_choice", 10, 20.0),
    CoreTask("piqa", f"{_COMMON}/piqa.jsonl", "multiple_choice", 10, 50.0, ANSWER),
    CoreTask("openbook_qa", f"{_COMMON}/openbook_qa.jsonl", "multiple_choice", 0, 25.0),
    CoreTask("lambada_openai", f"{_LANGUAGE}/lambada_openai.jsonl", "language_modeling", 0, 0.0),
    CoreTask("hellaswag", f"{_LANGUAGE}/hellaswag.jsonl", "multiple_choice", 10, 25.0),
    CoreTask("winograd", f"{_LANGUAGE}/winograd_wsc.jsonl", "schema", 0, 50.0),
    CoreTask("winogrande", f"{_LANGUAGE}/winogrande.jsonl", "schema", 0, 50.0),
    CoreTask("bigbench_dyck_languages", f"{_SYMBOLIC}/bigbench_dyck_languages.jsonl", "language_modeling", 10, 0.0),
    CoreTask("agi_eval_lsat_ar", f"{_SYMBOLIC}/agi_eval_lsat_ar.jsonl", "multiple_choice", 3, 20.0),
    CoreTask("bigbench_cs_algorithms", f"{_SYMBOLIC}/bigbench_cs_algorithms.jsonl", "language_modeling", 10, 0.0),
    CoreTask("bigbench_operators", f"{_SYMBOLIC}/bigbench_operators.jsonl", "language_modeling", 10, 0.0),
    CoreTask("bigbench_repeat_copy_logic", f"{_SYMBOLIC}/bigbench_repeat_copy_logic.jsonl", "language_modeling", 10, 0.0),
    CoreTask("squad", f"{_READING}/squad.jsonl", "language_modeling", 10, 0.0),
    CoreTask("coqa", f"{_READING}/coqa.jsonl", "language_modeling", 0, 0.0),
    CoreTask("boolq", f"{_READING}/boolq.jsonl", "multiple_choice", 10, 62.0, ANSWER),
    CoreTask("bigbench_language_identification", f"{_LANGUAGE}/bigbench_language_identification.jsonl", "multiple_choice", 10, 9.1),
)
# fmt: on
