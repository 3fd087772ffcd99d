"""Built-in tasks: the list is complete, each turns a row of its format into an item, and each runs
on a file in its original format. With real data at hand, it also runs on the real file.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from gptcli.evals.check import EvalOptions
from gptcli.evals.find_data import find_data
from gptcli.evals.runner import run_task
from gptcli.evals.synthetic import GENERATED, generate_rows
from gptcli.evals.task import TASKS_DIR, find_task, task_names
from gptcli.evals.task_data import make_item, read_items
from gptcli.model.config import ModelConfig
from gptcli.model.transformer import GPT
from gptcli.text.detokenize import DETOKENIZERS
from gptcli.tokenizer.tokenizer import Tokenizer
from tests.evals.task_files import FIXTURES, REAL

LISTED = {  # the tasks of each paper
    "GPT-2": "lambada cbt_cn cbt_ne cbt_v cbt_p wikitext2 ptb enwik8 text8 wikitext103 one_billion_words winograd winograd_full gpt2_coqa "
    "cnn_dailymail gpt2_wmt14_en_fr gpt2_wmt14_fr_en gpt2_natural_questions",
    "GPT-3": "lambada_fill hellaswag story_cloze natural_questions web_questions trivia_qa wmt14_en_fr wmt14_fr_en wmt16_de_en "
    "wmt16_en_de wmt16_ro_en wmt16_en_ro winograd winogrande piqa arc_easy arc_challenge openbookqa coqa drop quac squad_v2 race_h race_m "
    "boolq cb copa "
    "rte wic wsc multirc record anli_r1 anli_r2 anli_r3 sat_analogies novel_words grammar_correction "
    + " ".join(GENERATED),
}
SHOTS = {  # Table H.1's K
    "hellaswag": 20,
    "lambada_fill": 15,
    "story_cloze": 70,
    "natural_questions": 64,
    "trivia_qa": 64,
    "web_questions": 64,
    "wmt14_fr_en": 64,
    "wmt16_en_ro": 64,
    "winograd": 7,
    "winogrande": 50,
    "piqa": 50,
    "arc_easy": 50,
    "arc_challenge": 50,
    "openbookqa": 100,
    "quac": 5,
    "race_h": 10,
    "race_m": 10,
    "squad_v2": 16,
    "coqa": 5,
    "drop": 20,
    "boolq": 32,
    "cb": 32,
    "copa": 32,
    "rte": 32,
    "wic": 32,
    "wsc": 32,
    "multirc": 32,
    "record": 32,
    "anli_r1": 50,
    "anli_r3": 50,
    "two_digit_addition": 50,
    "single_digit_three_ops": 50,
    "cycle_letters_in_word": 100,
    "reversed_words": 100,
    "sat_analogies": 20,
}
UNCONDITIONAL = {
    "arc_easy": "Answer:",
    "arc_challenge": "Answer:",
    "openbookqa": "A:",
    "race_h": "A:",
    "race_m": "A:",
}


@pytest.mark.parametrize("paper", LISTED)
def test_every_task_of_the_paper_exists(paper: str) -> None:
    assert set(LISTED[paper].split()) <= set(task_names())


@pytest.mark.parametrize("name", task_names())
def test_each_task_uses_existing_formats_and_scores(name: str) -> None:
    task = find_task(name)
    assert task.kind != "freeform" or task.metric
    assert not task.detokenize or task.detokenize in DETOKENIZERS
    assert (task.generated or name) in (GENERATED if task.generated else [name])
    assert task.unconditional == UNCONDITIONAL.get(name, "")
    assert (task.normalise == "unconditional") == (name in UNCONDITIONAL)
    assert name not in SHOTS or task.shots == SHOTS[name]
    assert (TASKS_DIR / f"{name}.toml").read_text(encoding="utf-8").isascii()


def test_prompts_equal_the_papers() -> None:
    row = next(generate_rows("two_digit_addition", seed=0))
    item = make_item(find_task("two_digit_addition"), row, Path("x"))
    assert item.prompt == row["prompt"]
    assert item.answers == (row["answer"],)
    ready = {
        "arc_easy": (
            {"question": "Why?", "choices": ["so", "no"], "gold": 0},
            "Question: Why?\nAnswer:",
            " so",
        ),
        "boolq": (
            {"passage": "P", "question": "is it", "gold": 1},
            "P\nquestion: is it?\nanswer:",
            " yes",
        ),
        "cb": (
            {"premise": "P", "hypothesis": "h", "gold": 2},
            "P\nquestion: h. true, false, or neither?\nanswer:",
            " true",
        ),
        "rte": (
            {"premise": "P", "hypothesis": "H.", "gold": 0},
            "P\nquestion: H. True or False?\nanswer:",
            " True",
        ),
        "anli_r1": (
            {"premise": "P", "hypothesis": "H.", "gold": 0},
            "anli 1: anli 1: P\nQuestion: H. True, False, or Neither?",
            " True",
        ),
        "multirc": (
            {"passage": "P", "question": "Q?", "option": "o", "gold": 0, "group": "g", "key": "k"},
            "P\n\nQ?\n-",
            " [True] o",
        ),
        "record": (
            {
                "passage": "P\n- h",
                "before": "So ",
                "after": " ran.",
                "choices": ["Ann"],
                "gold": [0],
                "answers": ["Ann"],
                "group": "g",
            },
            "P\n- h\n-",
            " So Ann ran.",
        ),
        "sat_analogies": (
            {
                "a": "lull",
                "b": "trust",
                "choices": ["cajole is to compliance", "hinder is to destination"],
                "gold": 0,
            },
            "lull is to trust as",
            " cajole is to compliance",
        ),
        "cbt_cn": (
            {
                "context": "C.",
                "before": "the ",
                "after": " ran.",
                "choices": ["dog", "cat"],
                "gold": 0,
            },
            "C. the ",
            "dog ran.",
        ),
        "winograd_full": ({"sentences": ["It is.", "He is."], "gold": 0}, "", "It is."),
    }
    for name, (fields, prompt, choice) in ready.items():
        assert isinstance(fields, dict)
        item = make_item(find_task(name), {"id": "1", **fields}, Path("x"))
        assert (item.prompt, item.choices[0]) == (prompt, choice), name
    free = {
        "natural_questions": ({"question": "Who?", "answers": ["he"]}, "Q: Who?\n\nA:"),
        "coqa": (
            {
                "story": "S",
                "history": "Q: a?\n\nA: b\n\n",
                "question": "c?",
                "answers": ["d"],
                "group": "g",
            },
            "S\n\nQ: a?\n\nA: b\n\nQ: c?\n\nA:",
        ),
        "drop": (
            {"passage": "P", "question": "Q?", "answers": ["1"]},
            "Passage: P\nQuestion: Q?\nAnswer:",
        ),
        "squad_v2": (
            {"title": "T", "context": "B", "history": "", "question": "Q?", "answers": ["1"]},
            "Title: T\n\nBackground: B\n\nQ: Q?\n\nA:",
        ),
        "wmt14_fr_en": ({"fr": "Oui.", "en": "Yes."}, "Oui. ="),
        "wmt14_fr_en_zero": (
            {"fr": "Oui.", "en": "Yes."},
            "Q: What is the English translation of Oui. A:",
        ),
        "grammar_correction": (
            {"poor": "I eated.", "good": "I ate."},
            "Poor English input: I eated.\nGood English output:",
        ),
        "cnn_dailymail": ({"article": "A.", "summary": "a"}, "A.\nTL;DR:"),
    }
    for name, (fields, prompt) in free.items():
        assert isinstance(fields, dict)
        assert make_item(find_task(name), {"id": "1", **fields}, Path("x")).prompt == prompt, name
    item = make_item(
        find_task("lambada_fill"),
        {"id": "1", "context": "Alice went to visit her friend", "word": "Bob"},
        Path("x"),
    )
    assert item.prompt + item.target == "Alice went to visit her friend ____. -> Bob"


@pytest.fixture(scope="module")
def small(tokenizer: Tokenizer) -> GPT:
    model = GPT(
        ModelConfig(n_layer=1, n_head=1, d_model=16, n_ctx=256, vocab_size=tokenizer.vocab_size)
    ).eval()
    model.init_weights(0)
    return model


def check(model: GPT, tokenizer: Tokenizer, name: str, data: Path) -> None:
    task = find_task(name)
    results, records = run_task(model, tokenizer, task, data, EvalOptions(limit=2))
    assert 1 <= len(records) <= 2
    assert not results[0].conditions.skipped
    for result in results:
        assert set(result.metrics) == set(task.metric)
        assert all(math.isfinite(figure.value) for figure in result.metrics.values())
        assert task.kind in ("text", "last_word") or all(
            0 <= figure.value <= 100 for figure in result.metrics.values()
        )


@pytest.mark.parametrize("name", task_names())
def test_task_runs_on_a_fixture_in_its_original_format(
    small: GPT, tokenizer: Tokenizer, tmp_path: Path, name: str
) -> None:
    for file, text in FIXTURES[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text, encoding="utf-8")
    check(small, tokenizer, name, tmp_path)


@pytest.mark.real_data
@pytest.mark.parametrize("name", REAL)
def test_task_runs_on_its_real_file(
    small: GPT, tokenizer: Tokenizer, real_data: Path, name: str
) -> None:
    check(small, tokenizer, name, real_data / REAL[name])


WHOLE = (  # tasks whose whole published set is in the folder of real data
    "lambada arc_easy arc_challenge boolq cb copa rte coqa natural_questions hellaswag winograd "
    "winogrande two_digit_addition two_digit_subtraction three_digit_addition "
    "two_digit_multiplication single_digit_three_ops cycle_letters_in_word mid_word_1_anagrams "
    "reversed_words"
)


@pytest.mark.real_data
@pytest.mark.parametrize("name", WHOLE.split())
def test_a_whole_set_has_the_papers_number_of_items(real_data: Path, name: str) -> None:
    task = find_task(name)
    assert len(read_items(task, find_data(task, real_data / REAL[name]))) == task.count
