"""GPT-2's Table 3, typed a second time, a column a line."""

from __future__ import annotations

import pytest

from gptcli.papers.models import MODELS
from gptcli.papers.scores import GPT2_TABLE_3, GPT3_TABLE_H1, TABLES

COLUMNS = {
    "lambada_ppl": "35.13 15.60 10.87 8.63",
    "lambada_acc": "45.99 55.48 60.12 63.24",
    "cbt_cn": "87.65 92.35 93.45 93.30",
    "cbt_ne": "83.4 87.1 88.0 89.05",
    "wikitext2": "29.41 22.76 19.93 18.34",
    "ptb": "65.85 47.33 40.31 35.76",
    "enwik8_bpb": "1.16 1.01 0.97 0.93",
    "text8_bpc": "1.17 1.06 1.02 0.98",
    "wikitext103": "37.50 26.37 22.05 17.48",
    "1bw": "75.20 55.72 44.575 42.16",
}


def test_gpt2_table_3() -> None:
    printed = list(zip(*GPT2_TABLE_3.rows.values(), strict=True))
    assert dict(zip(GPT2_TABLE_3.columns, printed, strict=True)) == {
        name: tuple(map(float, scores.split())) for name, scores in COLUMNS.items()
    }
    assert list(GPT2_TABLE_3.rows) == [model.name for model in MODELS if model.paper == "GPT-2"]


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_model_of_the_papers(name: str) -> None:
    names = {model.name for model in MODELS}
    for row, scores in TABLES[name].rows.items():
        assert row in names
        assert len(scores) == len(TABLES[name].columns)


def h1(task: str, setting: str) -> list[float]:
    column = GPT3_TABLE_H1.columns.index(f"{task}_{setting}")
    return [row[column] for row in GPT3_TABLE_H1.rows.values()]


def test_gpt3_table_h1() -> None:
    assert list(GPT3_TABLE_H1.rows) == [model.name for model in MODELS if model.paper == "GPT-3"]
    assert len(GPT3_TABLE_H1.columns) == 63 * 3
    # a column a line, typed a second time, from all over the table
    for task, setting, printed in [
        ("hellaswag", "zero", "33.7 43.6 51.0 54.7 62.8 67.4 70.9 78.9"),
        ("lambada_ppl", "one", "165.0 11.6 8.29 6.46 5.53 4.61 4.06 3.35"),
        ("trivia_qa", "few", "6.96 16.3 26.5 32.1 42.3 51.6 57.5 71.2"),
        ("wmt14_fr_en", "few", "5.30 26.2 29.5 32.2 35.1 36.4 38.3 41.4"),
        ("wmt16_en_ro_multibleu", "zero", "2.14 2.65 2.53 2.50 3.46 4.24 5.32 14.1"),
        ("two_digit_addition", "few", "2.00 4.10 3.50 4.50 8.90 11.9 55.5 100.0"),
        ("random_insertion_in_word", "one", "0.03 0.05 0.57 1.18 1.67 3.46 6.62 45.4"),
        ("sat_analogies", "few", "30.5 40.4 42.8 40.6 48.4 51.9 53.5 65.2"),
    ]:
        assert h1(task, setting) == [float(score) for score in printed.split()]


@pytest.mark.parametrize("setting", ["zero", "one", "few"])
def test_the_printed_average_of_superglue_is_that_of_its_eight(setting: str) -> None:
    """A task with two metrics counts with their mean: 288 printed figures hold one another."""
    eight = [
        ["boolq"],
        ["cb", "cb_f1"],
        ["copa"],
        ["rte"],
        ["wic"],
        ["wsc"],
        ["multirc", "multirc_f1a"],
        ["record", "record_f1"],
    ]
    for number, printed in enumerate(h1("superglue", setting)):
        mean = (
            sum(
                sum(h1(column, setting)[number] for column in columns) / len(columns)
                for columns in eight
            )
            / 8
        )
        assert mean == pytest.approx(printed, abs=0.11), (setting, number)
