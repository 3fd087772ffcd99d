"""GPT-2's Table 3, typed a second time, a column a line."""

from __future__ import annotations

import pytest

from gptcli.papers.models import MODELS
from gptcli.papers.scores import GPT2_TABLE_3, TABLES

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
